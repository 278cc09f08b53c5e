"""Reading a trajectory: from a run directory, any folder of `checkpoint-<step>`, one packed file, or the Hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int

from em_interp.errors import InputError
from em_interp.files import read_json
from em_interp.hub import is_hub_id
from em_interp.run import CHECKPOINT, Run
from em_interp.trajectory.checkpoint_formats import (
    CHANGE_FILE,
    FILE,
    WEIGHTS,
    Checkpoint,
    read_checkpoint,
    read_steering,
    read_weight_change,
)
from em_interp.trajectory.packed import SUFFIX, read_packed
from em_interp.trajectory.trajectory import AdapterTrajectory


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
        from em_interp.hub import fetch

        fetched = fetch(source, revision)
        return fetched, f"{source}@{fetched.name}"
    raise InputError(f"{root} is not there; expected a run directory or a folder of checkpoint-<step>")


LORA = "LoRA adapter"
_KINDS = {  # what a step may be: the file that tells, in this order, and what reads the folder
    LORA: (WEIGHTS, read_checkpoint),
    "steering vector": (FILE, read_steering),
    "step of full fine-tuning": (CHANGE_FILE, read_weight_change),
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


# --------
# What a run logged while it trained: `trainer_state.json` as a table by step.


FILE = "trainer_state.json"
METRICS = ("loss", "eval_loss", "grad_norm", "learning_rate", "cumulative_lr", "grad_norm_A", "grad_norm_B", "kl")


def read_metrics(folders: list[Path]) -> pd.DataFrame:
    """The log of a run by step, from the first of `folders` that has a `trainer_state.json`; empty where none has.

    Columns are those of METRICS that were logged, NaN at steps without them. `cumulative_lr`, where the run did not
    log it, is the sum of the learning rates so far, taking each as constant since the logged step before.
    """
    files = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    if not files:
        return pd.DataFrame(index=pd.Index([], name="step", dtype=int))
    state = read_json(files[0])
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise InputError(f"{files[0]} should have a list of rows called log_history; it has {type(history).__name__}")
    table = pd.DataFrame(history, columns=["step", *METRICS]).dropna(subset=["step"])
    try:
        table = table.astype(float).astype({"step": int})
    except (TypeError, ValueError) as error:
        raise InputError(f"{files[0]}: a logged value is not a number ({error})") from None
    table = table.groupby("step").last().dropna(axis=1, how="all")  # several rows a step: training, evaluation
    if "learning_rate" in table and "cumulative_lr" not in table:
        rate = table["learning_rate"].dropna()
        spans = np.diff(rate.index.to_numpy(), prepend=0)
        table["cumulative_lr"] = (rate * spans).cumsum()
    return table
