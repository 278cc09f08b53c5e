"""Writing small files of tensors often."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.config import Schedule
from em_interp.errors import InputError
from em_interp.files import read_json, to_json, write_beside, write_json, write_text
from em_interp.run import Run
from em_interp.training.lora import Weights, adapter_config_text, adapter_weights


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
        end = 8 + int.from_bytes(whole[:8], "little")
        entries = json.loads(whole[8:end])
        entries.pop("__metadata__", None)
        self.header, self.order = whole[:end], sorted(entries, key=lambda name: entries[name]["data_offsets"])


# --------
# Saving the adapter at chosen steps, cheaply enough to do it at every one.


class Writer(Protocol):
    """Whatever can write the checkpoint of the moment."""

    def save(self, folder: Path) -> None:
        """Write it to `folder`, whole or not at all."""


class Snapshots(TrainerCallback):
    """Saves `checkpoint-<step>` folders, each a whole PEFT adapter, at the steps of a schedule.

    For any Trainer whose model is a PeftModel with one LoRA adapter. Step 0 and the last are always saved. A folder
    appears only when complete. PEFT's own `save_pretrained` takes milliseconds and may ask the Hub; this writes the
    two vectors and a config text prepared once. Of several processes the first one saves.
    """

    def __init__(self, folder: Path, schedule: Schedule, offset: int = 0, writer: Writer | None = None) -> None:
        """`folder` holds the checkpoint folders; `offset` is the number of steps done before this Trainer began.

        `writer` saves something else than the adapter of a PeftModel.
        """
        self.folder, self.schedule, self.offset = Path(folder), schedule, offset
        self.steps: frozenset[int] = frozenset()
        self.writer = writer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare, and save step 0."""
        self.steps = frozenset(self.schedule.steps(self.offset + state.max_steps))
        self.writer = self.writer or AdapterWriter(kwargs["model"])
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save this step if the schedule names it."""
        step = self.offset + state.global_step
        if self.writer and step in self.steps and state.is_world_process_zero:
            self.writer.save(self.folder / f"checkpoint-{step}")


class AdapterWriter:
    """Writes the LoRA adapter of a PeftModel, as it is at the moment, to folders that PEFT can load.

    Weights are saved in float32. The folders of one writer share their adapter_config.json through hard links where
    the file system has them, because to create a file takes far longer.
    """

    def __init__(self, model: Any) -> None:
        self.weights, self.config_text = adapter_weights(model), adapter_config_text(model)
        if not self.weights or any(hasattr(weight, "full_tensor") for weight in self.weights.values()):
            raise InputError(
                "the adapter's weights are not whole in this process, so they cannot be saved; the usual cause is FSDP "
                "(leave them out with ignored_params, as em_interp.training.sharding does)"
            )
        self.packer = Packer({"format": "pt"})
        self.config_file: Path | None = None

    def save(self, folder: Path) -> None:
        """Write the adapter to `folder`, whole or not at all; a folder that is there is replaced."""
        arrays = {name: weight.detach().float().cpu().numpy() for name, weight in self.weights.items()}
        with write_beside(folder) as part:
            part.mkdir()
            (part / "adapter_model.safetensors").write_bytes(self.packer.pack(arrays))
            self._put_config(part / "adapter_config.json")
        self.config_file = folder / "adapter_config.json"

    def _put_config(self, path: Path) -> None:
        try:
            if self.config_file:
                path.hardlink_to(self.config_file)
                return
        except OSError:  # no hard links here, or too many of them
            pass
        path.write_text(self.config_text, encoding="utf-8")


# --------
# What training needs to go on from a step exactly as if it had never stopped.


Arrays = dict[str, np.ndarray]  # "weight/<name>", "exp_avg/<name>", …, "rng/<device>"


@dataclass(frozen=True)
class TrainState:
    """The adapter, the optimizer's moments and the random state after `step`."""

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
                weight = weights[name]  # a moment has its weight's type; the count of steps has none of its own
                dtype = weight.dtype if array.ndim else torch.float32
                optimizer.state[weight][kind] = torch.tensor(array, dtype=dtype, device=weight.device)

    def restore_random(self) -> None:
        """Put the random generators back to where they were."""
        for kind, device, array in self._items():
            if kind == "rng" and device == "cpu":
                torch.set_rng_state(torch.from_numpy(array))
            elif kind == "rng":
                torch.cuda.set_rng_state(torch.from_numpy(array), device)

    def _items(self) -> list[tuple[str, str, np.ndarray]]:
        return [(key.partition("/")[0], key.partition("/")[2], array) for key, array in self.arrays.items()]


class StateKeeper:
    """Keeps the state of a training every few steps, in a folder.

    Two files take turns, each overwritten in place with a checksum, because creating or renaming one at every step
    costs several times as much. A kill in the middle of one leaves the other; what is damaged is trained again.
    """

    def __init__(self, folder: Path, weights: Weights, optimizer: torch.optim.Optimizer, every: int) -> None:
        self.files, self.weights, self.optimizer, self.every = _files(folder), weights, optimizer, every
        self.packer = Packer()

    def keep(self, step: int) -> None:
        """Keep the state after `step`, if it is one of those to keep."""
        if step % self.every:
            return
        arrays = _capture(self.weights, self.optimizer) | {"step": np.array(step)}
        file = os.open(self.files[step // self.every % 2], os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            for piece in self.packer.pieces(arrays | {"checksum": _checksum(arrays)}):
                left = memoryview(piece)
                while left:  # one call writes 2 GB at most
                    left = left[os.write(file, left) :]
        finally:
            os.close(file)


def read_state(folder: Path) -> TrainState | None:
    """The latest whole state kept in `folder`; None where there is none."""
    states = [state for file in _files(folder) if (state := _read(file)) is not None]
    return max(states, key=lambda state: state.step, default=None)


def _read(file: Path) -> TrainState | None:
    try:
        arrays = safetensors.numpy.load_file(file)
    except (FileNotFoundError, safetensors.SafetensorError):
        return None
    checksum = arrays.pop("checksum", None)
    if checksum is None or checksum != _checksum(arrays):
        return None
    return TrainState(int(arrays.pop("step")), arrays)


def _files(folder: Path) -> list[Path]:
    return [folder / "state-0.safetensors", folder / "state-1.safetensors"]


def _capture(weights: Weights, optimizer: torch.optim.Optimizer) -> Arrays:
    """The state as it is now; on a CPU without a copy."""
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
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name].tobytes(), total)
    return np.array(total, dtype=np.uint32)


# --------
# The log of a run: one row a step, safe from the moment the step is done.


Row = dict[str, Any]
REWRITE_AFTER = 5.0  # seconds between two versions of trainer_state.json while training


class TrainLog:
    """The rows of a run's log: each is appended to a file at once, and trainer_state.json follows every few seconds.

    A kill loses no row. trainer_state.json has the form of transformers' own, which readers of runs know; it is
    written too when the journal, used as a context, is left for whatever reason.
    """

    def __init__(self, run: Run, last: int, after: int = 0) -> None:
        """Begin the log of a run of `last` steps, or go on with the rows kept up to step `after`."""
        self.run, self.last = run, last
        self.rows = [row for row in _read_log(run) if row["step"] <= after]
        if [row["step"] for row in self.rows] != list(range(1, after + 1)):
            raise InputError(f"{_file(run)} has {len(self.rows)} rows; {after} were expected, so the run cannot go on")
        write_text(_file(run), "".join(map(_line, self.rows)))
        self._handle = _file(run).open("a", encoding="utf-8")
        self._written = time.monotonic()

    def add(self, row: Row) -> None:
        """Append the row of the step just done."""
        self.rows.append(row)
        self._handle.write(_line(row))
        self._handle.flush()
        if time.monotonic() - self._written > REWRITE_AFTER:
            self.write_state()

    def write_state(self) -> None:
        """Write trainer_state.json with the rows there are."""
        done = self.rows[-1]["step"] if self.rows else 0
        write_json(self.run.trainer_state_file, {"global_step": done, "max_steps": self.last, "log_history": self.rows})
        self._written = time.monotonic()

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()
        self.write_state()


def finished(run: Run) -> bool:
    """Whether training has been through its last step."""
    if not run.trainer_state_file.is_file():
        return False
    state = read_json(run.trainer_state_file)
    return bool(state["global_step"] == state["max_steps"])


def _file(run: Run) -> Any:
    return run.resume_state / "log.jsonl"


def _line(row: Row) -> str:
    return to_json(row, indent=None) + "\n"


def _read_log(run: Run) -> list[Row]:
    """The rows in the file; a last line cut short by a kill is no row."""
    if not _file(run).is_file():
        return []
    lines = _file(run).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
