"""Checkpoints of an adapter, and the state that a run resumes from: small files of tensors, written at every step."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.config.schedule import Schedule
from em_interp.errors import InputError
from em_interp.layouts import CONFIG_FILE, WEIGHTS_FILE
from em_interp.training.lora import Weights, adapter_config_text, adapter_weights
from em_interp.trajectory.tensor_files import header_of
from em_interp.utils.files import check_regular, refuse_links, write_beside

Arrays = dict[str, np.ndarray]  # "weight/<name>", "exp_avg/<name>", …, "rng/<device>"


class Writer(Protocol):
    """Anything that can write a checkpoint of its present state."""

    def save(self, folder: Path) -> None:
        """Write it to `folder`, whole or not at all."""


class SaveCheckpoints(TrainerCallback):
    """Saves `checkpoint-<step>` folders at the steps of a schedule; of several processes the main one saves.

    Step 0 and the last step are always saved. A folder appears only when complete.
    """

    def __init__(self, folder: Path, schedule: Schedule, writer: Writer, steps_done: int = 0) -> None:
        """`folder` will hold the checkpoint folders; `steps_done` is the number of steps before this Trainer began."""
        self.folder, self.schedule, self.writer, self.steps_done = folder, schedule, writer, steps_done
        self.steps: frozenset[int] = frozenset()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save step 0, or the step that is resumed from, if the schedule names it."""
        self.steps = frozenset(self.schedule.steps(self.steps_done + state.max_steps))
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save this step if the schedule names it."""
        step = self.steps_done + state.global_step
        if step in self.steps and state.is_world_process_zero:
            self.writer.save(self.folder / f"checkpoint-{step}")


class AdapterWriter:
    """Writes the current LoRA adapter of a model to folders that PEFT can load.

    PEFT's own `save_pretrained` takes milliseconds and may ask the Hub; this writes the tensors and a config text that
    is prepared once. Weights are saved in float32. The folders of one writer share their adapter_config.json through
    hard links where the file system has them, because to create a file takes far longer.
    """

    def __init__(self, model: Any, adapter: str = "default") -> None:
        self.weights, self.config_text = adapter_weights(model, adapter), adapter_config_text(model, adapter)
        whole = [weight.numel() > 0 and not hasattr(weight, "full_tensor") for weight in self.weights.values()]
        if not whole or not all(whole):
            raise InputError(
                "the adapter's weights are not whole in this process, so they cannot be saved; the usual cause is FSDP "
                "or DeepSpeed ZeRO-3 (em-interp's own training.shard leaves the adapter whole)"
            )
        self.packer = Packer({"format": "pt"})
        self.config_file: Path | None = None

    def save(self, folder: Path) -> None:
        """Write the adapter to `folder`, whole or not at all; an existing folder is replaced."""
        arrays = {name: weight.detach().float().cpu().numpy() for name, weight in self.weights.items()}
        with write_beside(folder) as part:
            part.mkdir()
            (part / WEIGHTS_FILE).write_bytes(self.packer.pack(arrays))
            self._write_config(part / CONFIG_FILE)
        self.config_file = folder / CONFIG_FILE

    def _write_config(self, path: Path) -> None:
        try:
            if self.config_file:
                path.hardlink_to(self.config_file)
                return
        except OSError:  # no hard links here, or too many of them
            pass
        path.write_text(self.config_text, encoding="utf-8")


class Packer:
    """The bytes of safetensors files whose tensors keep their names, types and shapes: the header is made once.

    The same bytes as `safetensors.numpy.save`, in a fraction of its time for small tensors.
    """

    def __init__(self, metadata: dict[str, str] | None = None) -> None:
        self.metadata = metadata
        self.header = b""
        self.order: list[str] = []

    def pack(self, arrays: Mapping[str, np.ndarray]) -> bytes:
        """The bytes of a file with `arrays`."""
        return b"".join(self.pieces(arrays))

    def pieces(self, arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
        """The same bytes one array at a time: all of them at once may be more than there is memory for."""
        if arrays.keys() != set(self.order):
            self._prepare(arrays)
        yield self.header
        yield from (arrays[name].tobytes() for name in self.order)

    def _prepare(self, arrays: Mapping[str, np.ndarray]) -> None:
        whole = safetensors.numpy.save(dict(arrays), self.metadata)
        begin, entries = header_of(whole)
        self.header, self.order = whole[:begin], sorted(entries, key=lambda name: entries[name]["data_offsets"])


@dataclass(frozen=True)
class TrainState:
    """What training needs to continue from `step` exactly: the weights, the optimizer's moments, the random state."""

    step: int
    arrays: Arrays

    def restore(self, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
        """Put the weights and the moments back; raises InputError where they are another adapter's."""
        shapes = {name: array.shape for kind, name, array in self._items() if kind == "weight"}
        if shapes != {name: tuple(weight.shape) for name, weight in weights.items()}:
            raise InputError(f"the state kept at step {self.step} is of another adapter, so the run cannot be resumed")
        for kind, name, array in self._items():
            if kind == "weight":
                weights[name].data.copy_(torch.from_numpy(array))
            elif kind != "rng":
                weight = weights[name]
                # Adam's moments have the type of their weight; its step counter, a scalar, is float32
                dtype = weight.dtype if array.ndim else torch.float32
                optimizer.state[weight][kind] = torch.tensor(array, dtype=dtype, device=weight.device)

    def restore_random(self) -> None:
        """Put the random generators back to their state after `step`."""
        for kind, device, array in self._items():
            if kind == "rng" and device == "cpu":
                torch.set_rng_state(torch.from_numpy(array))
            elif kind == "rng":
                torch.cuda.set_rng_state(torch.from_numpy(array), device)

    def _items(self) -> list[tuple[str, str, np.ndarray]]:
        return [(key.partition("/")[0], key.partition("/")[2], array) for key, array in self.arrays.items()]


class TrainStateSaver:
    """Keeps the state of a training every few steps, in a folder.

    Two files are used in turn, each overwritten in place with a checksum, because creating or renaming one at every
    step costs several times as much. A kill in the middle of one leaves the other; steps after it are trained again.
    """

    def __init__(self, folder: Path, weights: Weights, optimizer: torch.optim.Optimizer, every: int) -> None:
        self.files, self.weights, self.optimizer, self.every = _state_files(folder), weights, optimizer, every
        for file in self.files:
            refuse_links(file, in_place=True)
        self.packer = Packer()

    def save(self, step: int) -> None:
        """Write the state after `step`, if it is one of those to keep."""
        if step % self.every:
            return
        arrays = _state_arrays(self.weights, self.optimizer) | {"step": np.array(step)}
        file = os.open(self.files[step // self.every % 2], os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            for piece in self.packer.pieces(arrays | {"checksum": _checksum(arrays)}):
                left = memoryview(piece)
                while left:  # one call writes 2 GB at most
                    left = left[os.write(file, left) :]
        finally:
            os.close(file)


def read_state(folder: Path, last: int) -> TrainState | None:
    """The latest whole state kept in `folder`, of steps up to `last`; None where there is none."""
    states = [state for file in _state_files(folder) if (state := _read_state(file)) is not None]
    return max((state for state in states if state.step <= last), key=lambda state: state.step, default=None)


def _read_state(file: Path) -> TrainState | None:
    try:
        check_regular(file)
        arrays = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):  # missing or damaged in any way
        return None
    checksum = arrays.pop("checksum", None)
    if checksum is None or checksum != _checksum(arrays):
        return None
    return TrainState(int(arrays.pop("step")), arrays)


def _state_files(folder: Path) -> list[Path]:
    return [folder / "state-0.safetensors", folder / "state-1.safetensors"]


def _state_arrays(weights: Weights, optimizer: torch.optim.Optimizer) -> Arrays:
    """The current state; on a CPU without a copy."""
    arrays = {"rng/cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_initialized():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            arrays[f"rng/cuda:{index}"] = state.numpy()
    for name, weight in weights.items():
        arrays[f"weight/{name}"] = weight.detach().cpu().float().numpy()
        for key, value in optimizer.state[weight].items():
            arrays[f"{key}/{name}"] = value.detach().cpu().float().numpy()  # exact, and numpy knows no bfloat16
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of names, shapes and numbers."""
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(f"{name} {arrays[name].shape}".encode(), total)
        total = zlib.crc32(arrays[name].tobytes(), total)
    return np.array(total, dtype=np.uint32)
