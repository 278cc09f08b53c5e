"""A sweep on disk: `sweep.json`, a CSV for each table, and one self-contained page that compares the runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.comparison.page import LIMITS
from em_interp.errors import InputError
from em_interp.files import check_free, read_text, remove, resumable, write_json, write_text
from em_interp.organisms.bases import BUILT_IN
from em_interp.reports.page import embedded, render
from em_interp.run import claim_run
from em_interp.stages import is_watched
from em_interp.sweeps.grid import REPLICATE, Cell, Grid, load_sweep
from em_interp.sweeps.jobs import (
    Backend,
    Outcome,
    analyse_run,
    cores,
    is_analysed,
    is_made,
    make_run,
    run_path,
    workers,
)
from em_interp.sweeps.result import (
    FOLDER,
    SIGNALS,
    TABLES,
    TITLES,
    Candidate,
    CellResult,
    Sweep,
    WithinBase,
    across_bases,
    read_cell,
    within_bases,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from em_interp.transition.result import Transition


def write_sweep(found: Sweep) -> None:
    """Write what was found into the sweep's folder, in place of what an earlier part of it had found."""
    with resumable(found.out):
        write_json(found.out / "sweep.json", found.to_dict())
        for table in TABLES:
            write_text(found.out / f"{table}.csv", found.frame(table).to_csv(index=False, float_format="%.9g"))  # type: ignore[arg-type]
        write_text(found.page, sweep_page(found))


def sweep_page(found: Sweep) -> str:
    """The page: counts, every run's steps as a figure, pooled steps, every run's numbers, why some have none."""
    return render(
        "sweep",
        found=found,
        titles=TITLES,
        grid=embedded(found.plot()),
        pooled=found.pooled(),
        without=list(_without(found)),
        within=[(one, [embedded(figure) for figure in _figures(one)]) for one in found.within],
        across=[] if found.across is None else [embedded(figure) for figure in found.across.figures()],
        limits=LIMITS,
        asked=read_text(found.out / "sweep.yaml"),
        folder=shlex.quote(str(found.out)),
    )


def _without(found: Sweep) -> Iterator[tuple[CellResult, str, Transition]]:
    """Every signal that a run does not have, with its verdict and reason."""
    for one in found.cells:
        for name in SIGNALS:
            signal = one.signals.get(name)
            if signal is not None and not signal.found:
                yield one, TITLES[name], signal


def _figures(one: WithinBase) -> list[go.Figure]:
    """Of the runs of a base: their directions at the end against chance, and their paths in one plane."""
    if one.comparison is None:
        return []
    return [one.comparison.plot("pairs"), one.comparison.plot("plane", one.comparison.planes[0].of)]


# --------
# `em-interp sweep`: every run of a grid trained, asked, judged, located and aligned, then told on one page.


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
    """Carry out every run of a grid and compare what they found.

    A run that fails ends alone: it is among `failures` of the result, with its traceback in `failures/`, and is tried
    again with `resume`. What is made is the same to the byte whatever `jobs`, `backend` and interruptions.

    Args:
        config: a YAML file or a mapping; `grid.load_sweep` says what it may hold.
        out: where it writes, by default checkpoints/<name of the config file>: a folder for each run in `runs`,
            `sweep.yaml`, `sweep.html`, `sweep.json` and a CSV for each table.
        resume: keep what is complete; the grid may have grown.
        overwrite: replace a sweep that is there.
        jobs: runs that are carried out at a time, each on one thread; by default one for each core where all bases are
            built in, else one.
        backend: joblib's, `loky` (this machine) or `ray` (a cluster).
        progress: whether a bar is shown; by default in a terminal and in Jupyter.
        log: called with a line at each stage.

    Returns:
        The sweep: every run's transitions, the pooled steps, and the runs that failed.

    Raises:
        InputError: before anything runs, for a config that cannot be used, a folder that holds a sweep already (without
            `resume` or `overwrite`) or other runs of the same names, and a backend that is not there.
    """
    grid = load_sweep(config)
    out = Path(out or Path("checkpoints") / (Path(config).stem if not isinstance(config, dict) else "sweep")).resolve()
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be 1 or more; it is {jobs}")
    jobs = min(jobs or _default_jobs(grid), len(grid.runs))
    progress = is_watched() if progress is None else progress
    with resumable(out):
        _claim(grid, out, resume, overwrite)
        with workers(backend, jobs) as do:
            for line in plan(grid, out, jobs, backend):
                log(line)
            if overwrite:
                remove(*(out / name for name in CONTENTS))
            write_text(out / "sweep.yaml", grid.to_yaml())
            errors = _make_all(grid, out, do, progress)
            errors |= _analyse_all(grid, out, do, errors, progress)
        found = _gather(grid, out, errors, log)
        write_sweep(found)
    return found


# what a sweep makes in its folder
CONTENTS = ("sweep.yaml", "sweep.html", "sweep.json", "runs", "failures", FOLDER, *(f"{table}.csv" for table in TABLES))


def _default_jobs(grid: Grid) -> int:
    """Other bases may need all the memory there is, or the one GPU."""
    return cores() if all(cell.config.model in BUILT_IN for cell in grid.runs) else 1


def _claim(grid: Grid, out: Path, resume: bool, overwrite: bool) -> None:
    """Raise InputError where the folder holds a sweep already, or other runs under the names of these."""
    for name in ("sweep.yaml", "runs", "sweep.html"):
        if (out / name).exists():
            check_free(out, resume, overwrite, name)
    for cell in grid.runs if not overwrite else ():
        claim_run(run_path(out, cell.name), cell.config, resume=True)


def plan(grid: Grid, out: Path, jobs: int, backend: str) -> list[str]:
    """What a sweep is about to do, in words."""
    axes = " × ".join(f"{len(values)} {key}" for key, values in grid.axes.items())
    done = sum(is_made(out, cell.name, cell.config) for cell in grid.runs)
    kept = sorted({_checkpoints(cell) for cell in grid.runs})
    return [
        f"runs: {len(grid.cells)} ({axes}); controls: {len(grid.controls)}; made already: {done}",
        f"each writes {run_path(out, '<name>')}: {' or '.join(kept)}, the answers to its questions and their scores, "
        "and what is found in them",
        f"{jobs} at a time through {backend}, one thread each; then {out / 'sweep.html'}, sweep.json and tables as CSV",
    ]


def _checkpoints(cell: Cell) -> str:
    steps = [phase.steps for phase in cell.config.data]
    if not steps or None in steps:
        return f"checkpoints ({cell.config.snapshots.text})"
    return f"{len(cell.config.snapshots.steps(sum(step or 0 for step in steps)))} checkpoints"


def _make_all(grid: Grid, out: Path, do: Callable[..., list[Outcome]], progress: bool) -> dict[str, str]:
    """Train, ask and judge what is not there; returns why, for each that failed."""
    tasks = [(c.name, c.config, out) for c in grid.runs if not is_made(out, c.name, c.config)]
    return _errors(do(make_run, tasks, "train, ask, judge", progress))


def _analyse_all(
    grid: Grid, out: Path, do: Callable[..., list[Outcome]], failed: dict[str, str], progress: bool
) -> dict[str, str]:
    """Locate and align what was made and is not analysed beside its control; one that failed is done without."""
    wanted = {c.name: None if c.control in failed else c.control for c in grid.runs if c.name not in failed}
    tasks = [(name, control, out) for name, control in wanted.items() if not is_analysed(out, name, control)]
    return _errors(do(analyse_run, tasks, "locate, align", progress))


def _errors(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.error for outcome in outcomes if outcome.error is not None}


def _gather(grid: Grid, out: Path, errors: dict[str, str], log: Callable[[str], None]) -> Sweep:
    cells, controls = (
        tuple(read_cell(cell, out, errors.get(cell.name)) for cell in group) for group in (grid.cells, grid.controls)
    )
    made = [_candidate(one) for one in cells if one.told]
    within = within_bases([(one.base, one.path) for one in made])
    across = across_bases(made, grid.asked.across, out, log)
    return Sweep(out, cells, controls, within, across, tuple(grid.axes))


def _candidate(one: CellResult) -> Candidate:
    base = str(one.told.get("base") or one.cell.config.model)
    setting = {key: value for key, value in one.cell.values.items() if key not in ("model", REPLICATE)}
    return Candidate(one.cell.name, base, str(setting), one.path)
