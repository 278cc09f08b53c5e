"""A comparison of families on disk: `families.json`, one HTML page with every figure, and the tables as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.comparison.family_result import TABLES, FamilyComparison
from em_interp.comparison.page import page_of, write_files

if TYPE_CHECKING:
    import plotly.graph_objects as go

LIMITS = (
    "Across bases only what needs no common coordinates is compared. Likeness beyond the nulls says that two adapters "
    "change the same texts alike or favour the same words more than random adapters of their norms do, not that they "
    "do so by the same mechanism, nor that other training data would not have done the same."
)


def write_families(comparison: FamilyComparison, folder: str | Path, resume: bool = False) -> Path:
    """Write `families.json`, `families.html` and a CSV for each table into `folder`; returns the page.

    Raises InputError where the folder holds another comparison (without `resume`) and where it cannot be written.
    """
    return write_files("families", comparison, TABLES, families_page, Path(folder), resume)


def families_page(comparison: FamilyComparison) -> str:
    """One self-contained HTML page: the words, every figure and the table of likeness."""
    rows = comparison.frame("likeness")
    return page_of(
        "Comparison of families",
        comparison.sentence(),
        LIMITS,
        figures(comparison),
        "Every pair, measure and depth",
        rows,
    )


def figures(comparison: FamilyComparison) -> list[go.Figure]:
    """Every figure of a comparison, in the order of the page."""
    drawn = [comparison.plot("likeness"), comparison.plot("tokens", "final"), comparison.plot("tokens", "write")]
    used = [comparison.plot("use")] if len(comparison.use) else []
    return [*drawn, *used, comparison.plot("profiles")]
