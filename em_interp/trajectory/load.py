"""Reading a trajectory: a run directory, a folder of checkpoints in any of LAYOUTS, one packed file, or the Hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from em_interp.errors import InputError, listed
from em_interp.hub.download import is_hub_id
from em_interp.layouts import LAYOUTS, LOG_FILE, MAX_STEP, STEP_FILES, SavedStep, listing_of, saved_steps
from em_interp.run import Run, RunLike, open_run
from em_interp.trajectory.checkpoint import Checkpoint
from em_interp.trajectory.checkpoint_formats import read_checkpoint
from em_interp.trajectory.packed import SUFFIX, packed_identity, read_packed
from em_interp.trajectory.stacked import read_steps
from em_interp.trajectory.training_log import LOG_SUFFIXES, find_log, log_rows, read_log
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.utils.checks import check_type, described
from em_interp.utils.files import read_json

MIN_STEPS = 21  # checkpoints from which a turn of the path can be told from noise
MAX_STEPS = 10_000  # checkpoints of one path: a Gram matrix of them is 800 MB

TrajectorySource = AdapterTrajectory | Run | str | Path  # a run or its path stand for its trajectory


def load_trajectory(
    source: str | Path | Run, revision: str | None = None, adapter: str | None = None
) -> AdapterTrajectory:
    """Read the adapters of every saved step of one run.

    Steps are ordered by number. An adapter at the root of a folder is not part of the path (in the public organisms it
    is not always the last checkpoint). The log is the run's `trainer_state.json` or that of the last checkpoint that
    has one, whichever reaches further; the checkpoint's where the two differ. A learned steering vector and full
    fine-tuning are paths too; `checkpoint_formats` says what stands in A and B then. No pickle is executed.

    Args:
        source: A run, a run directory, a folder of checkpoints in it or in its `checkpoints/` (`docs/layouts.md` lists
            the names), a packed file (`.safetensors`), a log alone (`trainer_state.json`, or JSON lines with `step`),
            or a repository on the Hub, `organisation/name`, which is fetched into the user's cache once. Without
            `revision`, `a/b` is a path where a folder `a` exists.
        revision: Branch, tag or commit of the repository on the Hub.
        adapter: The adapter to read where the checkpoints hold several.

    Returns:
        The path, with `source` naming where it was read from, and in `notes` what was left out. A log alone is a path
        without sites, of kind "log".

    Raises:
        InputError: Naming the file, where a checkpoint is missing a file, is truncated or holds NaN, where steps differ
            in sites, shapes, scaling or base model, and where there are fewer than two steps.
    """
    check_type("source", source, (str, Path, Run), "a run, the path of one, a folder of checkpoint-<step> or a Hub id")
    check_type("revision", revision, (str, type(None)), "a branch, tag or commit of a Hub repository")
    check_type("adapter", adapter, (str, type(None)), "the name of an adapter")
    if not isinstance(source, Run) and Path(source).is_file() and Path(source).suffix in (SUFFIX, *LOG_SUFFIXES):
        return _read_file(Path(source), revision, adapter)
    root, name = _locate(source, revision)
    saved = _saved_by_step(root, adapter)
    stacked, steps = read_steps(root, saved, adapter), list(saved)
    first = stacked.first
    log = find_log(root, (root / saved[step].path for step in reversed(steps)), last=steps[-1])
    return AdapterTrajectory(
        steps=np.array(steps),
        A=stacked.A,
        B=stacked.B,
        scale=first.scaling,
        metrics=log.table,
        base=first.base,
        kind=first.kind,
        source=name,
        magnitude=stacked.magnitude,
        extra_tensors=first.extra_tensors,
        notes=(*_notes(first, steps), *log.notes),
    )


def as_trajectory(source: TrajectorySource) -> AdapterTrajectory:
    """A trajectory itself, or the one that `load_trajectory` reads from a run or its path."""
    return source if isinstance(source, AdapterTrajectory) else load_trajectory(source)


def checkpoint_folders(source: str | Path) -> dict[int, Path]:
    """The folder of each saved step of a run, a folder of checkpoints, or a repository on the Hub; two or more."""
    root = _locate(source, None)[0]
    return {step: root / saved.place for step, saved in _saved_by_step(root).items()}


def open_checkpoints(source: RunLike) -> Run:
    """The run in a folder; a folder of checkpoints that another trainer saved is one without config and manifest.

    Raises InputError where the folder holds neither a run nor two checkpoints.
    """
    run = source if isinstance(source, Run) else Run(Path(source))
    if not run.path.is_dir() or run.checkpoints.is_dir() or run.config_file.is_file():
        return open_run(run.path)
    checkpoint_folders(run.path)
    return run


def run_folder(source: str | Path) -> Path:
    """The folder with the config and the manifest, where there are any, of what `load_trajectory` reads from `source`.

    Of a repository on the Hub it is in the user's cache; of the `checkpoints` of a run it is the run. Of a file it is
    the file.
    """
    if Path(source).is_file():
        return Path(source)
    folder = _locate(source, None)[0].absolute()
    return folder.parent if folder.name == "checkpoints" else folder


def source_run(source: TrajectorySource) -> Run:
    """The run with the manifest of a source, a packed file in its place; a trajectory in memory stands beside none."""
    if isinstance(source, Run):
        return source
    if not isinstance(source, AdapterTrajectory):
        return Run(run_folder(source))
    place = Path(source.source or "memory")
    return Run(run_folder(place) if place.exists() else place)


def base_identity(run: Run) -> str | None:
    """The identity of the base of a run, or of a packed file in its place; None where it is not recorded."""
    if run.path.suffix == SUFFIX and run.path.is_file():
        return packed_identity(run.path)
    return run.base().get("identity") or None


def check_identity(run: Run, identity: str) -> None:
    """Raise InputError where the run was trained on other weights than a base's, whatever either is called."""
    expected = base_identity(run)
    if expected is not None and not same_weights(expected, identity):
        raise InputError(f"the adapters of {run.path} were trained on {expected}; the base given is {identity}")


def weights_of(identity: str) -> str:
    """The hash of the weights in the identity of a base, `name@hash`: the name may change, and they are the same."""
    return identity.rpartition("@")[2]


def same_weights(identity: str, other: str) -> bool:
    """Whether two identities of bases are of the same weights, whatever they are called."""
    return weights_of(identity) == weights_of(other)


def _read_file(file: Path, revision: str | None, adapter: str | None) -> AdapterTrajectory:
    """A path that is one file: packed, or a log alone."""
    if revision is not None or adapter is not None:
        given = f"revision={revision!r}" if revision is not None else f"adapter={adapter!r}"
        raise InputError(f"{file} is one file, of which nothing can be chosen; found {given}: leave it out")
    return read_packed(file) if file.suffix == SUFFIX else _log_alone(file)


def _log_alone(file: Path) -> AdapterTrajectory:
    """A path without sites: the log in a file."""
    log = read_log(file)
    if log.table.empty:
        found = listed(f"{key} {described(value)}" for row in log_rows(file)[:1] for key, value in row.items())
        raise InputError(
            f"{file} has no row with a step (a whole number) and a loss, grad_norm or learning_rate by these names; "
            f"found {found or 'no row'}"
        )
    steps = log.table.index.to_numpy()
    return AdapterTrajectory(steps, {}, {}, {}, log.table, source=str(file), kind="log", notes=log.notes)


def read_position(folder: Path) -> Float32[np.ndarray, " coordinate"]:
    """B of all sites of one saved step, flattened, as in a row of `AdapterTrajectory.vectors("B")`."""
    return np.concatenate([matrix.ravel() for matrix in read_checkpoint(folder).B.values()])


def _locate(source: str | Path | Run, revision: str | None) -> tuple[Path, str]:
    """The folder meant by `source`, and what to call it: a repository on the Hub by its name and commit."""
    root = source.path if isinstance(source, Run) else Path(source)
    if root.is_dir():
        if revision is not None:
            raise InputError(f"revision {revision!r} belongs to a Hub id; {root} is a folder on this machine")
        return root, str(root)
    if root.exists():
        files = f", a {SUFFIX}, or a log ({', '.join(LOG_SUFFIXES)}) with step, loss, grad_norm in each row"
        one_file = "" if root.suffix in (SUFFIX, *LOG_SUFFIXES) else files  # such a file is no folder of a run
        raise InputError(f"{root} is a file; expected a run directory, a folder of checkpoint-<step>{one_file}")
    if isinstance(source, str) and is_hub_id(source) and (revision is not None or not root.parent.exists()):
        from em_interp.hub.download import fetch

        fetched = fetch(source, revision)
        return fetched, f"{source}@{fetched.name}"
    raise InputError(f"{root} does not exist; expected a run directory or a folder of checkpoint-<step>")


def _saved_by_step(root: Path, adapter: str | None = None) -> dict[int, SavedStep]:
    """The checkpoints by step, increasing."""
    saved = saved_steps(listing_of(root), str(root), adapter)
    if len(saved) < 2:
        raise InputError(f"{root}: a path needs two or more checkpoint-<step> folders; {_found_in_words(root, saved)}")
    if len(saved) > MAX_STEPS:
        gigabytes = len(saved) ** 2 * 8 / 2**30
        raise InputError(
            f"{root} has {len(saved)} checkpoints, whose Gram matrices are {gigabytes:.0f} GiB each; up to {MAX_STEPS} "
            "are read: move some of them elsewhere, such as every second"
        )
    by_step, before = dict[int, SavedStep](), -1
    for checkpoint in saved:
        step = checkpoint.number if checkpoint.layout.counts == "steps" else _step_of_epoch(root, checkpoint)
        if step <= before:
            raise InputError(f"{root}: {checkpoint.name} is step {step}, which is not after the step of the one before")
        by_step[step], before = checkpoint, step
    return by_step


def _found_in_words(root: Path, saved: list[SavedStep]) -> str:
    words = f"found one ({saved[0].name})" if saved else "found none"
    if any((root / file).is_file() for file in STEP_FILES):
        words += "; the adapter at its root is one step, not a path"
    if (root / LOG_FILE).is_file():
        words += f"; give {root / LOG_FILE} to read the log alone"
    names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    known = ", ".join(layout.name for layout in LAYOUTS)
    return words if saved or not names else f"{words} (it holds {listed(names)}; names that are read: {known})"


def _step_of_epoch(root: Path, saved: SavedStep) -> int:
    """The step of a checkpoint that is named after its epoch, from the trainer's state in it."""
    file = root / saved.path / LOG_FILE
    state = read_json(file) if file.is_file() else {}
    step = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(step, int) or not 0 <= step <= MAX_STEP:
        raise InputError(f"{root / saved.path} is named after an epoch; expected its global_step in {file}")
    return step


def _notes(first: Checkpoint, steps: list[int]) -> list[str]:
    """Notes about the path: what was left out, and whether it has few checkpoints."""
    notes = []
    if first.extra_tensors:
        notes.append(
            f"left out of the path: {listed(first.extra_tensors)}; base and adapter alone are not the trained model, "
            "so that it is neither asked nor merged"
        )
    if len(steps) < MIN_STEPS:
        every = max(1, (steps[-1] - steps[0]) // 100)
        notes.append(
            f"{len(steps)} checkpoints are too few to tell a turn from noise: save {MIN_STEPS} or more, better 100 "
            f"(here every {every} steps)"
        )
    return notes
