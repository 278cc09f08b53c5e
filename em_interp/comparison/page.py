"""A comparison on disk: `comparison.json`, one HTML page with every figure, and the numbers behind them as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.comparison.result import TABLES, DirectionComparison
from em_interp.findings import keep
from em_interp.runs import resumable, write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

STYLE = "body{font:15px/1.5 sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1f1f1f}"
STYLE += "table{border-collapse:collapse;font-size:13px}"
STYLE += "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ececec}"
LIMITS = (
    "Cosines belong to one base and its coordinates. Likeness beyond the band says that two adapters use the same "
    "directions, not that they do so for the same reason. Runs that started from the same A are alike in A from the "
    "start."
)


def write_comparison(comparison: DirectionComparison, folder: str | Path, resume: bool = False) -> Path:
    """Write `comparison.json`, `comparison.html` and a CSV for each table into `folder`; returns the page.

    Raises InputError where the folder holds another comparison (without `resume`) and where it cannot be written.
    """
    folder = Path(folder)
    page = folder / "comparison.html"
    keep(comparison.to_dict(), folder / "comparison.json", resume)
    with resumable(folder):
        for table in TABLES:
            write_text(folder / f"{table}.csv", comparison.frame(table).to_csv(index=False, float_format="%.9g"))  # type: ignore[arg-type]
        write_text(page, comparison_page(comparison))
    return page


def comparison_page(comparison: DirectionComparison) -> str:
    """One self-contained HTML page: the words, the table of pairs and every figure."""
    title, *lines = comparison.sentence().splitlines()
    table = comparison.frame("pairs").to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0)
    tables = f"<h2>Every pair and site at the last steps</h2>{table}"
    return page_of("Comparison of runs", title, lines, LIMITS, figures(comparison), tables)


def page_of(
    heading: str, title: str, lines: Sequence[str], limits: str, drawn: Sequence[go.Figure], tables: str
) -> str:
    """A self-contained page: what was compared, what was found line by line, the figures, and HTML of tables."""
    said = "".join(f"<li>{escape(line)}</li>" for line in lines)
    head = f'<meta charset="utf-8"><title>{heading}</title><style>{STYLE}</style>{_plotly()}'
    parts = [f"<h1>{heading}</h1><p>{escape(title)}</p><ul>{said}</ul><p>{escape(limits)}</p>"]
    parts += [_embedded(figure, number) for number, figure in enumerate(drawn)]
    body = "\n".join([*parts, tables])
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def figures(comparison: DirectionComparison) -> list[go.Figure]:
    """Every figure of a comparison, in the order of the page."""
    drawn = [comparison.plot("pairs")]
    drawn += [comparison.plot("presence", of) for of in ("B", "delta")]
    drawn += [comparison.plot("steps", of) for of in ("B", "delta")]
    drawn += [comparison.plot("plane", plane.of) for plane in comparison.planes]
    return [*drawn, *(comparison.plot("agreement", signal=one.signal) for one in comparison.agreements)]


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _embedded(figure: go.Figure, number: int) -> str:
    """The figure as JSON that cannot end the script that holds it, and the place where it is drawn."""
    held = figure.to_json().replace("<", "\\u003c")
    draw = f"const f{number}={held};Plotly.newPlot('f{number}',f{number}.data,f{number}.layout,{{responsive:true}})"
    return f'<div id="f{number}"></div><script>{draw}</script>'
