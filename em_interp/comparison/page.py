"""A comparison on disk: `comparison.json`, one HTML page with every figure, and the numbers behind them as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.comparison.cross_base.result import CROSS_BASE_TABLES, CrossBaseComparison
from em_interp.comparison.result import TABLES, DirectionComparison
from em_interp.files import resumable, write_text
from em_interp.findings import keep
from em_interp.reports.page import embedded, render

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.comparison.cross_base.result import CrossBaseComparison

LIMITS = (
    "Cosines belong to one base and its coordinates. Likeness beyond the band says that two adapters use the same "
    "directions, not that they do so for the same reason. Runs that started from the same A are alike in A from the "
    "start."
)


def write_comparison(comparison: DirectionComparison, folder: str | Path, overwrite: bool = False) -> Path:
    """Write `comparison.json`, `comparison.html` and a CSV for each table into `folder`; returns the page.

    Raises InputError where the folder holds another comparison (without `overwrite`) and where it cannot be written.
    """
    return write_files("comparison", comparison, TABLES, comparison_page, Path(folder), overwrite)


def write_files(
    name: str,
    comparison: DirectionComparison | CrossBaseComparison,
    tables: Sequence[Any],
    page: Callable[[Any], str],
    folder: Path,
    overwrite: bool,
) -> Path:
    """Write `<name>.json`, a CSV for each table that has rows, and the page `<name>.html`, whose path is returned."""
    keep(comparison.to_dict(), folder / f"{name}.json", overwrite)
    with resumable(folder):
        for table in tables:
            rows, file = comparison.frame(table), folder / f"{table}.csv"
            if len(rows):
                write_text(file, rows.to_csv(index=False, float_format="%.9g"))
            else:
                file.unlink(missing_ok=True)  # of the comparison that was there
        write_text(folder / f"{name}.html", page(comparison))
    return folder / f"{name}.html"


def comparison_page(comparison: DirectionComparison) -> str:
    """One self-contained HTML page: the words, the table of pairs and every figure."""
    return page_of(
        "Comparison of runs",
        comparison.sentence(),
        LIMITS,
        figures(comparison),
        "Every pair and site at the last steps",
        comparison.frame("pairs"),
    )


def page_of(
    heading: str, sentence: str, limits: str, drawn: Sequence[go.Figure], rows_are: str, rows: pd.DataFrame
) -> str:
    """A self-contained page: what was compared, what was found line by line, the figures and a table."""
    title, *lines = sentence.splitlines()
    return render(
        "comparison",
        heading=heading,
        title=title,
        lines=lines,
        limits=limits,
        figures=[embedded(figure) for figure in drawn],
        rows_are=rows_are,
        table=rows.to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0, classes="numbers"),
    )


def figures(comparison: DirectionComparison) -> list[go.Figure]:
    """Every figure of a comparison, in the order of the page."""
    drawn = [comparison.plot("pairs")]
    drawn += [comparison.plot("presence", of) for of in ("B", "delta")]
    drawn += [comparison.plot("steps", of) for of in ("B", "delta")]
    drawn += [comparison.plot("plane", plane.of) for plane in comparison.planes]
    return [*drawn, *(comparison.plot("agreement", signal=one.signal) for one in comparison.agreements)]


# --------
# A comparison of families on disk: `families.json`, one HTML page with every figure, and the tables as CSV.


CROSS_BASE_LIMITS = (
    "Across bases only what needs no common coordinates is compared. Likeness beyond the nulls says that two adapters "
    "change the same texts alike or favour the same words more than random adapters of their norms do, not that they "
    "do so by the same mechanism, nor that other training data would not have done the same."
)


def write_families(comparison: CrossBaseComparison, folder: str | Path, overwrite: bool = False) -> Path:
    """Write `families.json`, `families.html` and a CSV for each table into `folder`; returns the page.

    Raises InputError where the folder holds another comparison (without `overwrite`) and where it cannot be written.
    """
    return write_files("families", comparison, CROSS_BASE_TABLES, families_page, Path(folder), overwrite)


def families_page(comparison: CrossBaseComparison) -> str:
    """One self-contained HTML page: the words, every figure and the table of likeness."""
    rows = comparison.frame("likeness")
    return page_of(
        "Comparison of families",
        comparison.sentence(),
        CROSS_BASE_LIMITS,
        cross_base_figures(comparison),
        "Every pair, measure and depth",
        rows,
    )


def cross_base_figures(comparison: CrossBaseComparison) -> list[go.Figure]:
    """Every figure of a comparison, in the order of the page."""
    drawn = [comparison.plot("likeness"), comparison.plot("tokens", "final"), comparison.plot("tokens", "write")]
    used = [comparison.plot("use")] if len(comparison.use) else []
    return [*drawn, *used, comparison.plot("profiles")]
