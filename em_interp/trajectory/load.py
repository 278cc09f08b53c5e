"""Reading a trajectory: a run directory, a folder of checkpoints in any of LAYOUTS, one packed file, or the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from em_interp.checks import check_type
from em_interp.errors import InputError, listed
from em_interp.files import read_json
from em_interp.hub.download import is_hub_id
from em_interp.layouts import LAYOUTS, LOG_FILE, MAX_STEP, STEP_FILES, SavedStep, listing_of, saved_steps
from em_interp.run import Run
from em_interp.trajectory.checkpoint import Checkpoint
from em_interp.trajectory.checkpoint_formats import LORA, format_of, read_checkpoint
from em_interp.trajectory.packed import SUFFIX, read_packed
from em_interp.trajectory.training_log import LOG_SUFFIXES, find_log, read_log
from em_interp.trajectory.trajectory import AdapterTrajectory

MIN_STEPS = 21  # checkpoints from which a turn of the path can be told from noise
MAX_STEPS = 10_000  # checkpoints of one path: a Gram matrix of them is 800 MB
_MAX_STEPS_LOGGED = re.compile(rb'"max_steps": (\d+)')
_TAIL = 4096  # bytes at the end of a trainer_state.json, after the rows, that hold max_steps

TrajectorySource = AdapterTrajectory | Run | str | Path  # a run or its path stand for its trajectory


def load_trajectory(
    source: str | Path | Run, revision: str | None = None, adapter: str | None = None
) -> AdapterTrajectory:
    """Read the adapters of every saved step of one run.

    Steps are ordered by number. An adapter at the root of a folder is not part of the path (in the public organisms it
    is not always the last checkpoint). The log is the run's `trainer_state.json` or that of the last checkpoint that
    has one, whichever reaches further. A learned steering vector and full fine-tuning are paths too;
    `checkpoint_formats` says what stands in A and B then. No pickle is executed.

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
    if not isinstance(source, Run) and Path(source).is_file():
        if Path(source).suffix == SUFFIX:
            return read_packed(source)
        if Path(source).suffix in LOG_SUFFIXES:
            return _log_alone(Path(source))
    root, name = _locate(source, revision)
    saved = _saved_by_step(root, adapter)
    checkpoints = _read_all(root, saved, adapter)
    first, steps = checkpoints[0], list(saved)
    log = find_log(root, [root / saved[step].path for step in reversed(steps)], last=steps[-1])
    return AdapterTrajectory(
        steps=np.array(steps),
        A={site: _stack([c.A[site] for c in checkpoints], f"lora_A of {site}", checkpoints) for site in first.A},
        B={site: _stack([c.B[site] for c in checkpoints], f"lora_B of {site}", checkpoints) for site in first.B},
        scale=first.scaling,
        metrics=log.table,
        base=first.base,
        kind=first.kind,
        source=name,
        magnitude={site: np.stack([c.magnitude[site] for c in checkpoints]) for site in first.magnitude},
        besides=first.besides,
        notes=(*_notes(first, steps), *log.notes),
    )


def as_trajectory(source: TrajectorySource) -> AdapterTrajectory:
    """A trajectory itself, or the one that `load_trajectory` reads from a run or its path."""
    return source if isinstance(source, AdapterTrajectory) else load_trajectory(source)


def checkpoint_folders(source: str | Path) -> dict[int, Path]:
    """The folder of each saved step of a run, a folder of checkpoints, or a repository on the Hub; two or more."""
    root = _locate(source, None)[0]
    return {step: root / saved.place for step, saved in _saved_by_step(root).items()}


def _log_alone(file: Path) -> AdapterTrajectory:
    """A path without sites: the log in a file."""
    log = read_log(file)
    if log.table.empty:
        raise InputError(f"{file} has no row with a step and a loss, grad_norm or learning_rate")
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
        expected = f"a run directory, a folder of checkpoint-<step>, a {SUFFIX}, or a log ({', '.join(LOG_SUFFIXES)})"
        raise InputError(f"{root} is a file; expected {expected}")
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
    by_step: dict[int, SavedStep] = {}
    for checkpoint in saved:
        step = checkpoint.number if checkpoint.layout.counts == "steps" else _step_of_epoch(root, checkpoint)
        if by_step and step <= max(by_step):
            raise InputError(f"{root}: {checkpoint.name} is step {step}, which is not after the step of the one before")
        by_step[step] = checkpoint
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


def _read_all(root: Path, saved: dict[int, SavedStep], adapter: str | None) -> list[Checkpoint]:
    """The checkpoints, which must be of one format and one run."""
    places = [root / step.place for step in saved.values()]
    first = next((kind for place in places if (kind := format_of(place))), LORA)
    for place in places:
        if (format_of(place) or first) != first:  # where there is none, the reader says which file is missing
            before = next(iter(saved.values())).name
            raise InputError(f"{place} holds a {format_of(place)}, but {before} a {first}; are these steps of one run?")
    checkpoints = []
    for place in places:
        checkpoints.append(read_checkpoint(place, first, adapter))
        if len(checkpoints) == 1:
            _check_memory(root, checkpoints[0], len(places))
    facts = [
        {**_facts(checkpoint), "max_steps": _max_steps(root / saved[step].path)}
        for step, checkpoint in zip(saved, checkpoints, strict=True)
    ]
    _check_one_run(root, list(saved), facts)
    return checkpoints


def _check_memory(root: Path, first: Checkpoint, count: int) -> None:
    """Raise InputError where the matrices of all steps would not fit into the memory of this machine."""
    needed = 2 * count * sum(matrix.nbytes for matrices in (first.A, first.B) for matrix in matrices.values())
    available = _memory()
    if needed > available:
        raise InputError(
            f"{root}: {count} steps of {len(first.A)} sites need {needed / 2**30:.1f} GiB and this machine has "
            f"{available / 2**30:.1f} GiB; move some of the checkpoints elsewhere, such as every second"
        )


def _memory() -> int:
    """Bytes of memory of this machine; where the system does not say, as much as anything needs."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**62


def _check_one_run(root: Path, steps: list[int], facts: list[dict[str, Hashable]]) -> None:
    """Raise InputError where the steps differ in what a run has one of, listing the groups of steps that agree."""
    logged = [known["max_steps"] for known in facts if known["max_steps"] is not None]
    for known in facts:
        known["max_steps"] = known["max_steps"] or next(iter(logged), None)  # a step without a log says nothing
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


def _facts(checkpoint: Checkpoint) -> dict[str, Hashable]:
    """What all steps of one run share."""
    return {
        "base model": checkpoint.base,
        "sites": tuple(checkpoint.A),
        "shapes of A and B": tuple((A.shape, checkpoint.B[site].shape) for site, A in checkpoint.A.items()),
        "scaling": tuple(checkpoint.scaling.values()),
        "what is beside A and B": checkpoint.besides,
    }


def _max_steps(checkpoint: Path) -> int | None:
    """`max_steps` in a checkpoint's trainer_state.json, from its end: the rows before it are many."""
    file = checkpoint / LOG_FILE
    if not file.is_file():
        return None
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - _TAIL))
        match = _MAX_STEPS_LOGGED.search(content.read())
    return int(match[1][:20]) if match else None


def _brief(value: Hashable) -> str:
    return listed(value, 2) if isinstance(value, tuple) else str(value)


def _stack(
    matrices: list[np.ndarray], name: str, checkpoints: list[Checkpoint]
) -> Float32[np.ndarray, "step row column"]:
    stacked = np.stack(matrices)
    bad: Int[np.ndarray, " bad"] = np.flatnonzero(~np.isfinite(stacked).all(axis=(1, 2)))
    if len(bad):
        file = checkpoints[bad[0]].file
        raise InputError(f"{file}: {name} holds NaN or infinity; expected finite numbers (did training diverge?)")
    return stacked


def _notes(first: Checkpoint, steps: list[int]) -> list[str]:
    """What a person should know about the path before looking at it."""
    notes = []
    if first.besides:
        notes.append(
            f"left out of the path: {listed(first.besides)}; base and adapter alone are not the trained model, so that "
            "it is neither asked nor merged"
        )
    if len(steps) < MIN_STEPS:
        every = max(1, (steps[-1] - steps[0]) // 100)
        notes.append(
            f"{len(steps)} checkpoints are too few to tell a turn from noise: save {MIN_STEPS} or more, better 100 "
            f"(here every {every} steps)"
        )
    return notes
