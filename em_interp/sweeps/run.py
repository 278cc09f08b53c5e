"""`em.sweep`: every run of a grid trained, judged, located and aligned, then compared on one page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from em_interp.comparison.result import DirectionComparison
from em_interp.errors import InputError
from em_interp.organisms.bases import BUILT_IN
from em_interp.reports.page import embedded, render
from em_interp.run import OUTSIDE_SETS, claim_run
from em_interp.sweeps.grid import REPLICATE, PlannedRun, SweepGrid, load_sweep
from em_interp.sweeps.groups import ACROSS_FOLDER, Candidate, across_bases, within_bases
from em_interp.sweeps.jobs import (
    Backend,
    Outcome,
    analyse_run,
    cores,
    is_analysed,
    is_complete,
    make_run,
    run_path,
    workers,
)
from em_interp.sweeps.result import SIGNAL_TITLES, SIGNALS, TABLES, RunResult, Sweep
from em_interp.transition.result import Transition
from em_interp.utils.checks import checked
from em_interp.utils.files import (
    check_names_free,
    check_replaceable,
    read_text,
    remove,
    resumable,
    write_csv,
    write_json,
    write_text,
)
from em_interp.utils.lock import write_lock
from em_interp.utils.progress import is_watched

CSV_FILES = tuple(f"{table}.csv" for table in TABLES)
CONTENTS = ("sweep.html", "sweep.json", "runs", "failures", ACROSS_FOLDER, *CSV_FILES, "sweep.yaml")  # of its folder
Do = Callable[..., list[Outcome]]  # does the work of each task, by the workers


@checked
def sweep(
    config: str | Path | dict[str, Any],
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    backend: Backend = "loky",
    progress: bool | None = None,
    log: Callable[[str], None] = lambda says: None,
) -> Sweep:
    """Train, judge and analyse every run of a grid, and compare them.

    Args:
        config: a YAML file or a mapping with `base`, `settings`, `grid`, `control` and `across`; see
            configs/tiny-sweep.yaml.
        out: the folder to write to, by default checkpoints/<name of the config file>: a folder for each run in `runs`,
            `sweep.yaml`, `sweep.html`, `sweep.json` and a CSV for each table.
        resume: keep what is complete; the grid may have grown. The result is the same to the byte whatever `jobs`,
            `backend` and interruptions.
        overwrite: replace a sweep that is in the folder.
        jobs: runs at a time, each on one thread; by default one for each core with built-in bases, else one.
        backend: loky (processes of this machine) or ray (the cluster of RAY_ADDRESS).
        progress: show progress bars; by default in a terminal and in Jupyter.
        log: called with lines that say what is about to be done.

    Returns:
        The sweep. A run that fails ends alone: it is among `failures`, with its traceback in `failures/`, and is tried
        again with `resume`.

    Raises:
        InputError: before anything runs, for a config that cannot be used, a folder that holds a sweep already
            (without `resume`) or other runs of the same names, and a backend that is not installed.
    """
    grid = load_sweep(config)
    out = Path(out or Path("checkpoints") / (Path(config).stem if not isinstance(config, dict) else "sweep")).resolve()
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be 1 or more; it is {jobs}")
    jobs = min(jobs or _default_jobs(grid), len(grid.all))
    progress = is_watched() if progress is None else progress
    with write_lock(out), resumable(out):
        _claim(grid, out, resume, overwrite)
        with workers(backend, jobs) as do:
            if overwrite:
                remove(*(out / name for name in CONTENTS))
            for line in plan(grid, out, jobs, backend):
                log(line)
            write_text(out / "sweep.yaml", grid.to_yaml())
            errors = _make_all(grid, out, do, progress)
            errors |= _analyse_all(grid, out, do, errors, progress)
        result = _gather(grid, out, errors, log)
        write_sweep(result)
    return result


def _default_jobs(grid: SweepGrid) -> int:
    """Other bases may need all the memory there is, or the one GPU."""
    return cores() if all(run.config.model in BUILT_IN for run in grid.all) else 1


def _claim(grid: SweepGrid, out: Path, resume: bool, overwrite: bool) -> None:
    """Raise InputError where the folder holds a sweep already, or other runs under the names of these.

    With `overwrite` where a place of the sweep holds something else: only a sweep is replaced.
    """
    check_names_free(out, ("sweep.yaml", "runs", "sweep.html"), resume, overwrite)
    if overwrite:
        check_replaceable((out / name for name in CONTENTS), (out / "sweep.yaml").exists(), "a sweep")
    for run in grid.all if not overwrite else ():
        claim_run(run_path(out, run.name), run.config, resume=True)


def plan(grid: SweepGrid, out: Path, jobs: int, backend: str) -> list[str]:
    """What a sweep is about to do, in words."""
    axes = " × ".join(f"{len(values)} {key}" for key, values in grid.axes.items())
    complete = sum(is_complete(out, run.name, run.config) for run in grid.all)
    checkpoints = sorted({_checkpoints(run) for run in grid.all})
    return [
        f"runs: {len(grid.runs)} ({axes}); controls: {len(grid.controls)}; complete already: {complete}",
        f"each writes {run_path(out, '<name>')}: {' or '.join(checkpoints)}, the answers to its questions, their "
        "scores, and its transitions",
        f"{jobs} at a time through {backend}, one thread each; then {out / 'sweep.html'}, sweep.json and tables as CSV",
    ]


def _checkpoints(run: PlannedRun) -> str:
    steps = [phase.steps for phase in run.config.data]
    if not steps or None in steps:
        return f"checkpoints ({run.config.snapshots.text})"
    return f"{len(run.config.snapshots.steps(sum(step or 0 for step in steps)))} checkpoints"


def _make_all(grid: SweepGrid, out: Path, do: Do, progress: bool) -> dict[str, str]:
    """Train and judge what is not complete; returns why, for each that failed."""
    tasks = [(run.name, run.config, out) for run in grid.all if not is_complete(out, run.name, run.config)]
    return _errors(do(make_run, tasks, "train, ask, judge", progress))


def _analyse_all(grid: SweepGrid, out: Path, do: Do, failed: dict[str, str], progress: bool) -> dict[str, str]:
    """Locate and align what is complete and not analysed with its control; without a control that failed."""
    wanted = {run.name: None if run.control in failed else run.control for run in grid.all if run.name not in failed}
    tasks = [(name, control, out) for name, control in wanted.items() if not is_analysed(out, name, control)]
    return _errors(do(analyse_run, tasks, "locate, align", progress))


def _errors(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.error for outcome in outcomes if outcome.error is not None}


def _gather(grid: SweepGrid, out: Path, errors: dict[str, str], log: Callable[[str], None]) -> Sweep:
    runs, controls = (
        tuple(RunResult.read(run, out, errors.get(run.name)) for run in group) for group in (grid.runs, grid.controls)
    )
    candidates = [_candidate(run) for run in runs if run.summary]
    within = within_bases([(candidate.base, candidate.path) for candidate in candidates])
    across = across_bases(candidates, grid.config.across, out, log)
    return Sweep(out, runs, controls, within, across, tuple(grid.axes))


def _candidate(run: RunResult) -> Candidate:
    base = str(run.summary.get("base") or run.plan.config.model)
    setting = {key: value for key, value in run.plan.values.items() if key not in ("model", REPLICATE)}
    return Candidate(run.plan.name, base, str(setting), run.path)


def write_sweep(result: Sweep) -> None:
    """Write the findings to the sweep's folder, replacing those of an earlier part of it."""
    with resumable(result.out):
        write_json(result.out / "sweep.json", result.to_dict())
        for table in TABLES:
            write_csv(result.out / f"{table}.csv", result.frame(table))  # type: ignore[arg-type]
        write_text(result.page, sweep_page(result))


def sweep_page(result: Sweep) -> str:
    """The page: counts, every run's steps as a figure, pooled steps, every run's numbers, why some have none."""
    return render(
        "sweep",
        result=result,
        titles=SIGNAL_TITLES,
        grid=embedded(result.plot()),
        pooled=result.pooled(),
        without=list(_without(result)),
        within=[(group, [embedded(figure) for figure in group.figures()]) for group in result.within],
        across=[] if result.across is None else [embedded(figure) for figure in result.across.figures()],
        limits=DirectionComparison.LIMITS,
        outside=OUTSIDE_SETS,
        built_in=any(run.plan.config.model in BUILT_IN for run in result.runs),
        config=read_text(result.out / "sweep.yaml"),
        folder=shlex.quote(str(result.out)),
    )


def _without(result: Sweep) -> Iterator[tuple[RunResult, str, Transition]]:
    """Every signal that a run does not have, with its verdict and reason."""
    for run in result.runs:
        for name in SIGNALS:
            signal = run.signals.get(name)
            if signal is not None and not signal.found:
                yield run, SIGNAL_TITLES[name], signal
