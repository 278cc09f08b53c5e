"""Reading a trajectory: from a run directory, any folder of `checkpoint-<step>`, one packed file, or the Hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int

from em_interp.checks import check_type
from em_interp.errors import InputError
from em_interp.files import read_json
from em_interp.hub import is_hub_id
from em_interp.run import CHECKPOINT, Run
from em_interp.trajectory.checkpoint_formats import (
    CHANGE_FILE,
    STEERING_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    read_lora,
    read_steering,
    read_weight_change,
)
from em_interp.trajectory.packed import SUFFIX, read_packed
from em_interp.trajectory.trajectory import AdapterTrajectory

LORA = "LoRA adapter"
FORMATS = {  # what a checkpoint may be: the file that tells, in this order, and what reads the folder
    LORA: (WEIGHTS_FILE, read_lora),
    "steering vector": (STEERING_FILE, read_steering),
    "step of full fine-tuning": (CHANGE_FILE, read_weight_change),
}
LOG_FILE = "trainer_state.json"
METRICS = ("loss", "eval_loss", "grad_norm", "learning_rate", "cumulative_lr", "grad_norm_A", "grad_norm_B", "kl")


TrajectorySource = AdapterTrajectory | Run | str | Path  # a run or its path stand for its trajectory


def load_trajectory(source: str | Path | Run, revision: str | None = None) -> AdapterTrajectory:
    """Read the adapters of every saved step of one run.

    Steps are ordered by number. An adapter at the root of a folder is not part of the path (in the public organisms it
    is not always the last checkpoint). The log is the run's `trainer_state.json`, else that of the last checkpoint that
    has one. A learned steering vector and full fine-tuning are paths too; `checkpoint_formats` says what stands in A
    and B then. No pickle is executed.

    Args:
        source: A run, a run directory, a folder with `checkpoint-<step>` in it or in its `checkpoints/`, a packed file
            (`.safetensors`), or a repository on the Hub, `organisation/name`, which is fetched into the user's cache
            once. Without `revision`, `a/b` is a path where a folder `a` exists.
        revision: Branch, tag or commit of the repository on the Hub.

    Returns:
        The path, with `source` naming where it was read from.

    Raises:
        InputError: Naming the file, where a checkpoint is missing a file, is truncated or holds NaN, where steps differ
            in sites, shapes, scaling or base model, and where there are fewer than two steps.
    """
    check_type("source", source, (str, Path, Run), "a run, the path of one, a folder of checkpoint-<step> or a Hub id")
    check_type("revision", revision, (str, type(None)), "a branch, tag or commit of a Hub repository")
    if not isinstance(source, Run) and Path(source).suffix == SUFFIX and Path(source).is_file():
        return read_packed(source)
    root, name = _locate(source, revision)
    folders = _folders_by_step(root)
    checkpoints = _read_all([*folders.values()])
    first = checkpoints[0]
    for other in checkpoints[1:]:
        _check_same(first, other)
    return AdapterTrajectory(
        steps=np.array(list(folders)),
        A={site: _stack([c.A[site] for c in checkpoints], f"lora_A of {site}", checkpoints) for site in first.A},
        B={site: _stack([c.B[site] for c in checkpoints], f"lora_B of {site}", checkpoints) for site in first.B},
        scale=first.scaling,
        metrics=read_log([root, *reversed(folders.values())]),
        base=first.base,
        kind=first.kind,
        source=name,
    )


def as_trajectory(source: TrajectorySource) -> AdapterTrajectory:
    """A trajectory itself, or the one that `load_trajectory` reads from a run or its path."""
    return source if isinstance(source, AdapterTrajectory) else load_trajectory(source)


def checkpoint_folders(source: str | Path, revision: str | None = None) -> dict[int, Path]:
    """The folder of each saved step of a run, a folder of checkpoints, or a repository on the Hub; two or more."""
    return _folders_by_step(_locate(source, revision)[0])


def format_of(folder: Path) -> str | None:
    """What is saved in the folder of a step, such as "LoRA adapter"; None where it is none of FORMATS."""
    return next((name for name, (file, _) in FORMATS.items() if (folder / file).is_file()), None)


def read_position(folder: Path) -> Float32[np.ndarray, " coordinate"]:
    """B of all sites of one saved step, flattened, as in a row of `AdapterTrajectory.vectors("B")`."""
    checkpoint = _read_all([folder])[0]
    return np.concatenate([matrix.ravel() for matrix in checkpoint.B.values()])


def _locate(source: str | Path | Run, revision: str | None) -> tuple[Path, str]:
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
    raise InputError(f"{root} does not exist; expected a run directory or a folder of checkpoint-<step>")


def _folders_by_step(root: Path) -> dict[int, Path]:
    """The checkpoint folders by step, increasing."""
    inside, beside = _named_checkpoints(root / "checkpoints"), _named_checkpoints(root)
    if inside and beside:
        raise InputError(f"{root} has checkpoint-<step> both in itself and in its checkpoints/; expected one set")
    entries = inside or beside
    if len(entries) < 2:
        found = f"one ({entries[0].name})" if entries else "none"
        hint = "; the adapter at its root is one step, not a path" if (root / WEIGHTS_FILE).is_file() else ""
        raise InputError(f"{root}: a path needs two or more checkpoint-<step> folders; found {found}{hint}")
    by_step: dict[int, Path] = {}
    for entry in sorted(entries, key=_step):
        if _step(entry) in by_step:
            raise InputError(f"{entry} and {by_step[_step(entry)].name} are the same step")
        by_step[_step(entry)] = entry
    return by_step


def _named_checkpoints(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if CHECKPOINT.match(entry.name)] if folder.is_dir() else []


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _read_all(folders: list[Path]) -> list[Checkpoint]:
    """The checkpoints in the folders, which must be of one format."""
    first = format_of(folders[0]) or LORA
    for folder in folders:
        found = format_of(folder) or first  # the reader says which file is missing
        if found != first:
            raise InputError(f"{folder} holds a {found}, but {folders[0].name} a {first}; are these steps of one run?")
    return [FORMATS[first][1](folder) for folder in folders]


def _check_same(first: Checkpoint, other: Checkpoint) -> None:
    """Every step of a path belongs to one run: same base, sites, shapes and scaling."""
    for what, expected, found in (
        ("base model", first.base, other.base),
        ("sites", ", ".join(first.A), ", ".join(other.A)),
        *(
            (f"{name} of {site}", at_first[site].shape, at_other[site].shape)
            for name, at_first, at_other in (("lora_A", first.A, other.A), ("lora_B", first.B, other.B))
            for site in at_first
            if site in at_other
        ),
        ("scaling", first.scaling, other.scaling),
    ):
        if expected != found:
            where = f"{first.file.parent.name} has {expected}"
            raise InputError(f"{other.file}: {what} is {found}, but {where}; are these steps of one run?")


def _stack(
    matrices: list[np.ndarray], name: str, checkpoints: list[Checkpoint]
) -> Float32[np.ndarray, "step row column"]:
    stacked = np.stack(matrices)
    bad: Int[np.ndarray, " bad"] = np.flatnonzero(~np.isfinite(stacked).all(axis=(1, 2)))
    if len(bad):
        file = checkpoints[bad[0]].file
        raise InputError(f"{file}: {name} holds NaN or infinity; expected finite numbers (did training diverge?)")
    return stacked


def read_log(folders: list[Path]) -> pd.DataFrame:
    """The log by step, from the first of `folders` that has a `trainer_state.json`; empty where none has.

    Columns are those of METRICS that were logged, NaN at steps without them. `cumulative_lr`, where the run did not
    log it, is the sum of the learning rates so far, taking each as constant since the logged step before.
    """
    files = [folder / LOG_FILE for folder in folders if (folder / LOG_FILE).is_file()]
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
