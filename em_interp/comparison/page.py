"""A comparison on disk: the findings as JSON, one HTML page with every figure, and the tables behind them as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from em_interp.comparison.cross_base.result import CROSS_BASE_TABLES, CrossBaseComparison
from em_interp.comparison.result import TABLES, DirectionComparison
from em_interp.reports.findings import save_result
from em_interp.reports.page import embedded, render
from em_interp.results import html_table
from em_interp.utils.files import resumable, write_csv, write_text
from em_interp.utils.lock import write_lock

if TYPE_CHECKING:
    import plotly.graph_objects as go

Comparison = DirectionComparison | CrossBaseComparison
LIMITS = (
    "Cosines belong to one base and its coordinates. Similarity beyond the band says that two adapters use the same "
    "directions, not that they do so for the same reason. Runs that started from the same A have similar A from the "
    "start."
)
CROSS_BASE_LIMITS = (
    "Across bases only what needs no common coordinates is compared. Similarity beyond the nulls says that two "
    "adapters change the same texts alike or favour the same words more than random adapters of their norms do, not "
    "that they do so by the same mechanism, nor that other training data would not have done the same."
)


class _Layout(NamedTuple):
    """How one kind of comparison is written."""

    name: str  # of its files
    heading: str
    limits: str
    tables: tuple[str, ...]
    page_table: str  # the table on the page
    rows: str  # what its rows are


WITHIN_BASE = _Layout(
    "comparison", "Comparison of runs", LIMITS, TABLES, "pairs", "Every pair and site at the last steps"
)
ACROSS_BASES = _Layout(
    "cross_base",
    "Comparison across bases",
    CROSS_BASE_LIMITS,
    CROSS_BASE_TABLES,
    "similarity",
    "Every pair, measure and depth",
)


def write_comparison(comparison: Comparison, folder: str | Path, overwrite: bool = False) -> Path:
    """Write `<name>.json`, a CSV for each table that has rows, and the page `<name>.html`, whose path is returned.

    `<name>` is comparison, or cross_base for a comparison across bases. Raises InputError where the folder holds
    another comparison (without `overwrite`) and where it cannot be written.
    """
    layout, folder = _layout(comparison), Path(folder)
    with write_lock(folder), resumable(folder):
        save_result(comparison.to_dict(), folder / f"{layout.name}.json", overwrite)
        for table in layout.tables:
            rows, file = comparison.frame(table), folder / f"{table}.csv"  # type: ignore[arg-type]
            if len(rows):
                write_csv(file, rows)
            else:
                file.unlink(missing_ok=True)  # of the comparison that was there
        write_text(folder / f"{layout.name}.html", comparison_page(comparison))
    return folder / f"{layout.name}.html"


def _layout(comparison: Comparison) -> _Layout:
    return WITHIN_BASE if isinstance(comparison, DirectionComparison) else ACROSS_BASES


def comparison_page(comparison: Comparison) -> str:
    """A self-contained page: what was compared, the findings line by line, the figures and a table."""
    layout = _layout(comparison)
    title, *lines = comparison.sentence().splitlines()
    return render(
        "comparison",
        heading=layout.heading,
        title=title,
        lines=lines,
        limits=layout.limits,
        figures=[embedded(figure) for figure in figures(comparison)],
        rows_are=layout.rows,
        table=html_table(comparison.frame(layout.page_table), classes="numbers"),  # type: ignore[arg-type]
    )


def figures(comparison: Comparison) -> list[go.Figure]:
    """Every figure of a comparison, in the order of the page."""
    if isinstance(comparison, CrossBaseComparison):
        tokens = (
            [comparison.plot("tokens", "final"), comparison.plot("tokens", "write")] if len(comparison.tokens) else []
        )
        transferred = [comparison.plot("steering_transfer")] if len(comparison.steering_transfer) else []
        return [comparison.plot("similarity"), *tokens, *transferred, comparison.plot("profiles")]
    drawn = [comparison.plot("pairs")]
    drawn += [comparison.plot("direction_onset", of) for of in ("B", "delta")]
    drawn += [comparison.plot("steps", of) for of in ("B", "delta")]
    drawn += [comparison.plot("plane", of) for of in comparison.plane["measure"].unique()]
    return [*drawn, *(agreement.plot() for agreement in comparison.agreements)]
