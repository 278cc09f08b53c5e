"""A comparison on disk: the findings as JSON, one HTML page with every figure, and the tables behind them as CSV."""

from __future__ import annotations

from pathlib import Path

from em_interp.comparison.cross_base.result import CrossBaseComparison
from em_interp.comparison.result import DirectionComparison
from em_interp.reports.findings import save_result
from em_interp.reports.page import embedded, render
from em_interp.results import html_table
from em_interp.utils.files import resumable, write_csv, write_text
from em_interp.utils.lock import write_lock

Comparison = DirectionComparison | CrossBaseComparison


def write_comparison(comparison: Comparison, folder: str | Path, overwrite: bool = False) -> Path:
    """Write `<name>.json`, a CSV for each table that has rows, and the page `<name>.html`, whose path is returned.

    `<name>` is comparison, or cross_base for a comparison across bases. Raises InputError where the folder holds
    another comparison (without `overwrite`) and where it cannot be written.
    """
    name, folder = comparison.NAME, Path(folder)
    with write_lock(folder), resumable(folder):
        save_result(comparison.to_dict(), folder / f"{name}.json", overwrite)
        for table in comparison.TABLES:
            rows, file = comparison.frame(table), folder / f"{table}.csv"
            if len(rows):
                write_csv(file, rows)
            else:
                file.unlink(missing_ok=True)  # of the comparison that was there
        write_text(folder / f"{name}.html", comparison_page(comparison))
    return folder / f"{name}.html"


def comparison_page(comparison: Comparison) -> str:
    """A self-contained page: what was compared, the findings line by line, the figures and a table."""
    title, *lines = comparison.sentence().splitlines()
    return render(
        "comparison",
        heading=comparison.HEADING,
        title=title,
        lines=lines,
        limits=comparison.LIMITS,
        figures=[embedded(figure) for figure in comparison.figures()],
        rows_are=comparison.ROWS,
        table=html_table(comparison.frame(), classes="numbers"),
    )
