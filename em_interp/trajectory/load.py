"""Reading a trajectory: from a run directory, any folder of `checkpoint-<step>`, one packed file, or the Hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from em_interp.errors import InputError
from em_interp.hub.names import is_hub_id
from em_interp.runs import CHECKPOINT, Run
from em_interp.trajectory import steering, weight_change
from em_interp.trajectory.adapter import AdapterTrajectory
from em_interp.trajectory.checkpoint import WEIGHTS, Checkpoint, read_checkpoint
from em_interp.trajectory.metrics import read_metrics
from em_interp.trajectory.packed import SUFFIX, read_packed


def load_trajectory(source: str | Path | Run, revision: str | None = None) -> AdapterTrajectory:
    """The path of an adapter from a run, or from a folder with `checkpoint-<step>` in it or in its `checkpoints/`.

    `source` may also be a repository on the Hub, `organisation/name`, with `revision` a branch, tag or commit of it,
    which is fetched into the user's cache once (`em_interp.hub.fetch`). Without a revision it is a path where the
    organisation is the name of a folder here. Or it is one packed file (`em_interp.trajectory.packed`).

    A learned steering vector (the public `steering_vector.pt`) is a path too: its site is the residual stream after a
    layer, `layers.24`, where α · B is added; A is 1 throughout, so that ΔW is the vector that is added. So is full
    fine-tuning: each followed matrix is a site, whose B is a projection of its change (`weight_change`) and A is 1.

    Steps are ordered by number. An adapter at the root of the folder is not part of the path (in the public organisms
    it is not always the last checkpoint). The log is the run's `trainer_state.json`, else the one in the last
    checkpoint that has one. No pickle is ever run: of a steering vector's file only tensors and numbers are read.

    Raises InputError, naming the file, where a checkpoint is missing a file, is truncated or holds NaN, where steps
    differ in sites, shapes, scale or base model, and where there are fewer than two steps.
    """
    if not isinstance(source, Run) and Path(source).suffix == SUFFIX and Path(source).is_file():
        return read_packed(source)
    root, name = _folder(source, revision)
    folders = _checkpoints(root)
    saved = _read([*folders.values()])
    for other in saved[1:]:
        _check_same(saved[0], other)
    steps = np.array(list(folders))
    return AdapterTrajectory(
        steps=steps,
        A={site: _stack([c.A[site] for c in saved], f"lora_A of {site}", saved) for site in saved[0].A},
        B={site: _stack([c.B[site] for c in saved], f"lora_B of {site}", saved) for site in saved[0].B},
        scale=saved[0].scale,
        metrics=read_metrics([root, *reversed(folders.values())]),
        base=saved[0].base,
        kind=saved[0].kind,
        source=name,
    )


def checkpoint_folders(source: str | Path, revision: str | None = None) -> dict[int, Path]:
    """The folder of each saved step of a run, a folder of checkpoints, or a repository on the Hub; two or more."""
    return _checkpoints(_folder(source, revision)[0])


def _folder(source: str | Path | Run, revision: str | None) -> tuple[Path, str]:
    """The folder meant by `source`, and what to call it: a repository on the Hub by its name and commit."""
    root = source.path if isinstance(source, Run) else Path(source)
    if root.is_dir():
        if revision is not None:
            raise InputError(f"revision {revision!r} belongs to a Hub id; {root} is a folder on this machine")
        return root, str(root)
    if root.exists():
        raise InputError(f"{root} is a file; expected a run directory, a folder of checkpoint-<step>, or a {SUFFIX}")
    if isinstance(source, str) and is_hub_id(source) and (revision is not None or not root.parent.exists()):
        from em_interp.hub.fetch import fetch

        fetched = fetch(source, revision)
        return fetched, f"{source}@{fetched.name}"
    raise InputError(f"{root} is not there; expected a run directory or a folder of checkpoint-<step>")


LORA = "LoRA adapter"
_KINDS = {  # what a step may be: the file that tells, in this order, and what reads the folder
    LORA: (WEIGHTS, read_checkpoint),
    "steering vector": (steering.FILE, steering.read_steering),
    "step of full fine-tuning": (weight_change.WEIGHTS, weight_change.read_weight_change),
}


def _read(folders: list[Path]) -> list[Checkpoint]:
    """The checkpoints in the folders, which are all of one kind."""
    first = kind_of(folders[0]) or LORA
    for folder in folders:
        found = kind_of(folder) or first  # what is missing the reader says
        if found != first:
            raise InputError(f"{folder} holds a {found}, but {folders[0].name} a {first}; are these steps of one run?")
    return [_KINDS[first][1](folder) for folder in folders]


def kind_of(folder: Path) -> str | None:
    """What is saved in the folder of a step, such as "LoRA adapter"; None where it is nothing that is known."""
    return next((kind for kind, (file, _) in _KINDS.items() if (folder / file).is_file()), None)


def _checkpoints(root: Path) -> dict[int, Path]:
    """The checkpoint folders by step, increasing."""
    inside, beside = _named(root / "checkpoints"), _named(root)
    if inside and beside:
        raise InputError(f"{root} has checkpoint-<step> both in itself and in its checkpoints/; expected one set")
    entries = inside or beside
    if len(entries) < 2:
        here = f"one ({entries[0].name})" if entries else "none"
        hint = "; the adapter at its root is one step, not a path" if (root / WEIGHTS).is_file() else ""
        raise InputError(f"{root}: a path needs two or more checkpoint-<step> folders; found {here}{hint}")
    by_step: dict[int, Path] = {}
    for entry in sorted(entries, key=_step):
        if _step(entry) in by_step:
            raise InputError(f"{entry} and {by_step[_step(entry)].name} are the same step")
        by_step[_step(entry)] = entry
    return by_step


def _named(place: Path) -> list[Path]:
    return [entry for entry in place.iterdir() if CHECKPOINT.match(entry.name)] if place.is_dir() else []


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _check_same(first: Checkpoint, other: Checkpoint) -> None:
    """Every step of a path belongs to one run: same base, sites, shapes and scale."""
    for what, expected, found in (
        ("base model", first.base, other.base),
        ("sites", ", ".join(first.A), ", ".join(other.A)),
        *(
            (f"{part} of {site}", mine[site].shape, theirs[site].shape)
            for part, mine, theirs in (("lora_A", first.A, other.A), ("lora_B", first.B, other.B))
            for site in mine
            if site in theirs
        ),
        ("scale", first.scale, other.scale),
    ):
        if expected != found:
            where = f"{first.weights.parent.name} has {expected}"
            raise InputError(f"{other.weights}: {what} is {found}, but {where}; are these steps of one run?")


def _stack(matrices: list[np.ndarray], name: str, saved: list[Checkpoint]) -> Float32[np.ndarray, "step row column"]:
    stacked = np.stack(matrices)
    wrong: Int[np.ndarray, " bad"] = np.flatnonzero(~np.isfinite(stacked).all(axis=(1, 2)))
    if len(wrong):
        weights = saved[wrong[0]].weights
        raise InputError(f"{weights}: {name} holds NaN or infinity; expected finite numbers (did training diverge?)")
    return stacked
