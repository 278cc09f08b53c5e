"""What training needs to go on from a step exactly as if it had never stopped."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from em_interp.errors import InputError
from em_interp.training.adapter import Weights
from em_interp.training.packing import Packer

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
