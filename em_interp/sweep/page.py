"""A sweep on disk: `sweep.json`, a CSV for each table, and one self-contained page that compares the runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from em_interp.comparison.page import LIMITS
from em_interp.render import embedded, render
from em_interp.runs import read_text, resumable, write_json, write_text
from em_interp.sweep.result import SIGNALS, TABLES, TITLES, CellResult, Sweep
from em_interp.sweep.within import WithinBase

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
