"""The checkpoints of one run, read into arrays over the steps.

The files of a run are alike: the same header, the same settings beside it. The first checkpoint is read and checked
whole. Of every other one with the same bytes in both, the numbers go straight from the file into their rows; one that
differs is read and checked as the first was.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from em_interp.errors import InputError, listed
from em_interp.layouts import CONFIG_FILE, LOG_FILE, WEIGHTS_FILE, SavedStep
from em_interp.trajectory.checkpoint import Checkpoint
from em_interp.trajectory.checkpoint_formats import LORA, format_of, read_checkpoint

MAX_BUFFERS = 1024  # of one call of readv
BLOCK = 2**20  # numbers checked at once
MAX_SHARE = 0.5  # of this machine's memory that a path may take
_MAX_STEPS_LOGGED = re.compile(rb'"max_steps": (\d+)')
_FIRST_ROW = re.compile(rb'"log_history": \[\s*(\{[^{}]*\})')
_ENDS = 4096  # bytes at either end of a trainer_state.json: one has the first row, the other, after the rows, max_steps

Stack = dict[str, Float32[np.ndarray, "step ..."]]  # by site


@dataclass(frozen=True)
class Stacked:
    """The first checkpoint, and the matrices of all of them by site and step."""

    first: Checkpoint
    A: Stack
    B: Stack
    magnitude: Stack

    @classmethod
    def empty(cls, root: Path, first: Checkpoint, count: int) -> Stacked:
        """Room for `count` checkpoints like the first."""
        room = _room(root, first, count)
        stacks = [
            {site: room((count, *matrix.shape)) for site, matrix in matrices.items()}
            for matrices in (first.A, first.B, first.magnitude)
        ]
        return cls(first, *stacks)

    def row(self, row: int) -> list[np.ndarray]:
        """The places of one checkpoint's matrices, in the order of `_matrices`."""
        return [stack[row] for stacks in (self.A, self.B, self.magnitude) for stack in stacks.values()]

    def put(self, row: int, checkpoint: Checkpoint) -> None:
        """Copy the matrices of a checkpoint into a row."""
        for place, matrix in zip(self.row(row), _matrices(checkpoint), strict=True):
            place[...] = matrix


def read_steps(root: Path, saved: dict[int, SavedStep], adapter: str | None = None) -> Stacked:
    """The checkpoints of all saved steps, which must be of one format and one run.

    Raises InputError naming the file that cannot be used or holds NaN, what steps differ in, or the memory they need.
    """
    folders = [os.path.join(root, step.place) for step in saved.values()]
    kind = _one_format(saved, folders)
    first = read_checkpoint(Path(folders[0]), kind, adapter)
    stacked, layout, facts = Stacked.empty(root, first, len(folders)), _Layout.of(first), [_facts(first)]
    stacked.put(0, first)
    for row, folder in enumerate(folders[1:], 1):
        if layout is not None and layout.read(folder, stacked.row(row)):
            facts.append(facts[0])
            continue
        checkpoint = read_checkpoint(Path(folder), kind, adapter)
        facts.append(_facts(checkpoint))
        if facts[-1] == facts[0]:
            stacked.put(row, checkpoint)
    logged = [_logged(os.path.join(root, step.path, LOG_FILE)) for step in saved.values()]
    _check_one_run(root, list(saved), facts, logged)
    files = [os.path.join(folder, first.file.name) for folder in folders]
    _check_finite(stacked, files)
    _check_reset(stacked, files)
    return stacked


def _one_format(saved: dict[int, SavedStep], folders: list[str]) -> str:
    """The format of all checkpoints; where one has none, the reader says which file is missing."""
    formats = [format_of(folder) for folder in folders]
    first = next((name for name in formats if name), LORA)
    for folder, name in zip(folders, formats, strict=True):
        if (name or first) != first:
            before = next(iter(saved.values())).name
            raise InputError(f"{folder} holds a {name}, but {before} a {first}; are these steps of one run?")
    return first


def _matrices(checkpoint: Checkpoint) -> list[np.ndarray]:
    return [matrix for of in (checkpoint.A, checkpoint.B, checkpoint.magnitude) for matrix in of.values()]


@dataclass(frozen=True)
class _Layout:
    """Where the matrices of an adapter lie in its file: there they lie in every file with this header and settings."""

    header: bytes
    settings: bytes
    size: int  # of the file
    pieces: list[int | bytearray]  # after the header: which of `_matrices`, or room for what is not of the adapter

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Layout | None:
        """The layout of a checkpoint's file; None where its matrices are not the file's own bytes, or not of PEFT."""
        matrices = _matrices(checkpoint)
        content = {id(owner): owner for matrix in matrices if isinstance(owner := _owner(matrix), bytes)}
        whole = all(isinstance(_owner(matrix), bytes) and matrix.flags.c_contiguous for matrix in matrices)
        if checkpoint.file.name != WEIGHTS_FILE or len(content) != 1 or not whole or not hasattr(os, "readv"):
            return None
        (file,) = content.values()
        header = file[: 8 + int.from_bytes(file[:8], "little")]
        begin, position = _address(np.frombuffer(file, np.uint8)), len(header)
        pieces: list[int | bytearray] = []
        for start, index in sorted((_address(matrix) - begin, index) for index, matrix in enumerate(matrices)):
            pieces += [bytearray(start - position), index]
            position = start + matrices[index].nbytes
        pieces.append(bytearray(len(file) - position))
        settings = checkpoint.file.with_name(CONFIG_FILE).read_bytes()
        return cls(header, settings, len(file), [piece for piece in pieces if isinstance(piece, int) or piece])

    def read(self, folder: str, places: list[np.ndarray]) -> bool:
        """Read the matrices of a folder's file into their places; False where it is laid out otherwise."""
        header = bytearray(len(self.header))
        buffers = [header, *(places[piece] if isinstance(piece, int) else piece for piece in self.pieces)]
        settings = bytearray(len(self.settings))
        return (
            _read_into(os.path.join(folder, CONFIG_FILE), [settings], len(settings))
            and settings == self.settings
            and _read_into(os.path.join(folder, WEIGHTS_FILE), buffers, self.size)
            and header == self.header
        )


def _owner(matrix: np.ndarray) -> object:
    """What an array is a view of, such as the bytes of a file."""
    owner: object = matrix
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner


def _address(matrix: np.ndarray) -> int:
    return int(matrix.__array_interface__["data"][0])


def _read_into(file: str, buffers: list[Any], size: int) -> bool:
    """Fill the buffers with a regular file of exactly this size; False where it is none."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        parts = range(0, len(buffers), MAX_BUFFERS)
        return sum([os.readv(handle, buffers[first : first + MAX_BUFFERS]) for first in parts]) == size
    except OSError:
        return False
    finally:
        os.close(handle)


def _room(root: Path, first: Checkpoint, count: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """How arrays for `count` checkpoints are made: in memory, or, where they take too much of it, in temporary files.

    Raises InputError where there is no room for these either.
    """
    needed, memory = count * sum(matrix.nbytes for matrix in _matrices(first)), _memory()
    if needed <= MAX_SHARE * memory:
        return lambda shape: np.empty(shape, np.float32)
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{root}: {count} steps of {len(first.A)} sites need {needed / 2**30:.1f} GiB; this machine has "
            f"{memory / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB free in {place} (TMPDIR names another "
            "folder); move some of the checkpoints elsewhere, such as every second"
        )
    return _on_disk


def _on_disk(shape: tuple[int, ...]) -> np.ndarray:
    """An array in a temporary file, which is deleted with it."""
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
            os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        return np.memmap(file, np.float32, "w+", shape=shape)


def _memory() -> int:
    """Bytes of memory of this machine; where the system does not say, as much as anything needs."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**62


def _facts(checkpoint: Checkpoint) -> dict[str, Hashable]:
    """What all steps of one run share."""
    return {
        "base model": checkpoint.base,
        "sites": tuple(checkpoint.A),
        "shapes of A and B": tuple((A.shape, checkpoint.B[site].shape) for site, A in checkpoint.A.items()),
        "magnitudes": tuple(magnitude.shape for magnitude in checkpoint.magnitude.values()),
        "scaling": tuple(checkpoint.scaling.values()),
        "trained tensors besides A and B": checkpoint.extra_tensors,
    }


def _logged(file: str) -> dict[str, Any]:
    """What all logs of one run share, from the ends of a checkpoint's trainer_state.json: the rows between are many."""
    if not os.path.isfile(file):
        return {}
    with open(file, "rb") as content:
        begin = content.read(_ENDS)
        content.seek(max(0, os.fstat(content.fileno()).st_size - _ENDS))
        most, first = _MAX_STEPS_LOGGED.search(content.read()), _FIRST_ROW.search(begin)
    found: dict[str, Any] = {} if most is None else {"max_steps": int(most[1][:20])}
    with suppress(ValueError, RecursionError):
        row = json.loads(first[1]) if first else {}
        found |= {f"loss logged at step {row['step']}": str(row["loss"])} if {"step", "loss"} <= row.keys() else {}
    return found


def _check_one_run(
    root: Path, steps: list[int], facts: list[dict[str, Hashable]], logged: list[dict[str, Any]]
) -> None:
    """Raise InputError where the steps differ in what a run has one of, listing the groups of steps that agree."""
    first = {name: value for log in reversed(logged) for name, value in log.items()}  # for what a step's log lacks
    facts = [{**known, **first, **log} for known, log in zip(facts, logged, strict=True)]
    groups: dict[tuple[Hashable, ...], list[int]] = {}
    for step, known in zip(steps, facts, strict=True):
        groups.setdefault(tuple(known.values()), []).append(step)
    if len(groups) < 2:
        return
    differing = [what for what in facts[0] if len({known[what] for known in facts}) > 1]
    parts = []
    for group, members in groups.items():
        values = dict(zip(facts[0], group, strict=True))
        span = f"step {members[0]}" if len(members) == 1 else f"{len(members)} steps {members[0]} to {members[-1]}"
        parts.append(f"{span} ({'; '.join(f'{what} {_brief(values[what])}' for what in differing[:2])})")
    raise InputError(f"{root} mixes runs, which differ in {listed(differing)}: {listed(parts)}; give a folder of one")


def _brief(value: Hashable) -> str:
    return listed(value, 2) if isinstance(value, tuple) else str(value)


def _check_finite(stacked: Stacked, files: list[str]) -> None:
    for name, stacks in (("lora_A", stacked.A), ("lora_B", stacked.B)):
        for site, stack in stacks.items():
            bad = first_not_finite(stack)
            if bad is not None:
                expected = "expected finite numbers (did training diverge?)"
                raise InputError(f"{files[bad]}: {name} of {site} holds NaN or infinity; {expected}")


def _check_reset(stacked: Stacked, files: list[str]) -> None:
    """Raise InputError for a step at which B is zero everywhere, as before training, after one at which it was not."""
    moved = np.any([stack.reshape(len(stack), -1).any(axis=1) for stack in stacked.B.values()], axis=0)
    begun = int(np.argmax(moved))
    if moved[begun] and not moved[begun:].all():
        bad = begun + int(np.argmin(moved[begun:]))
        raise InputError(
            f"{files[bad]}: lora_B is zero, which it is before training only, and that of {files[bad - 1]} is not; the "
            "usual cause is an adapter that was made anew, or weights that lay on other processes when it was saved"
        )


def first_not_finite(stack: Float32[np.ndarray, "step ..."]) -> int | None:
    """The first row that holds NaN or infinity; None where there is none."""
    rows = stack.reshape(len(stack), math.prod(stack.shape[1:]))
    size = max(1, BLOCK // max(rows.shape[1], 1))
    for first in range(0, len(rows), size):
        bad = np.flatnonzero(~np.isfinite(rows[first : first + size]).all(axis=1))
        if len(bad):
            return first + int(bad[0])
    return None
