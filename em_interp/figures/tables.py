"""The numbers behind a figure, read back from it: what is drawn and what is written beside it cannot differ."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from em_interp.figures.template import GRID

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = ["panel", "panel_title", "kind", "name", "group", "x_axis", "y_axis"]
COLUMNS += ["x", "x_low", "x_high", "y", "y_low", "y_high", "value"]
Place = tuple[str, str]  # what plotly calls a panel's axes, such as ("x2", "y2")


def numbers(figure: go.Figure) -> pd.DataFrame:
    """A row for each point, step of a band, cell of a matrix, and line or shaded region of the figure.

    Columns: `panel` (counted from the first) and its `panel_title`, `kind` (values, band, cells, region), `name` and
    `group` (what belongs together, such as a curve and its band), what the axes are (`x_axis`, `y_axis`: title with
    unit), `x`, `y`, ends of intervals (`x_low` … `y_high`), the `value` of a cell, and `detail_1` … for what pointing
    at a mark tells (such as the step of a point on a path). Empty columns are left out.
    """
    drawn: list[tuple[Place, pd.DataFrame]] = []
    for trace in figure.data:
        rows = _of_trace(trace)
        if rows is not None and len(rows):
            place = (trace.xaxis or "x", trace.yaxis or "y")
            drawn.append((place, rows.assign(name=_words(trace.name), group=_words(trace.legendgroup))))
    for shape in figure.layout.shapes:
        if shape.line.color != GRID:
            x, y = (str(ref).removesuffix(" domain") for ref in (shape.xref, shape.yref))
            drawn.append(((x, y), _of_shape(shape)))
    axes, places = _axis_titles(figure), list(dict.fromkeys(place for place, _ in drawn))
    tables = []
    for place, rows in drawn:
        said = {"x_axis": axes.get(place[0]), "y_axis": axes.get(place[1]), "panel_title": _panel_title(figure, place)}
        tables.append(rows.assign(panel=places.index(place) + 1, **said))
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.concat([one.dropna(axis=1, how="all") for one in tables], ignore_index=True)
    known = [column for column in COLUMNS if column in table]
    return table[[*known, *(column for column in table if column not in COLUMNS)]].replace("", np.nan)


def _panel_title(figure: go.Figure, place: Place) -> str | None:
    """The title above a panel or above its column: an annotation in the middle of its width and not below its top."""
    try:
        x, y = (figure.layout[f"{axis[0]}axis{axis[1:]}"] for axis in place)
    except (KeyError, ValueError):
        return None
    (left, right), (_, top) = x.domain or (0, 1), y.domain or (0, 1)
    above = [
        note
        for note in figure.layout.annotations
        if note.xref == note.yref == "paper" and note.yanchor == "bottom" and note.y > top - 1e-6
        if abs(note.x - (left + right) / 2) < 1e-6
    ]
    return _words(min(above, key=lambda note: note.y).text) if above else None


def _axis_titles(figure: go.Figure) -> dict[str, str]:
    """What each axis is; an axis without a title of its own has that of those it moves with."""
    axes = {key.replace("axis", ""): figure.layout[key] for key in figure.layout if re.fullmatch(r"[xy]axis\d*", key)}
    titles = {name: _words(axis.title.text) for name, axis in axes.items()}
    for name, axis in axes.items():
        leader = axis.matches or name
        group = [n for n, a in axes.items() if (n == leader or a.matches == leader) and not a.overlaying]
        titles[name] = titles[name] or next((titles[n] for n in group if titles[n]), "")
    return titles


def _words(text: str | None) -> str:
    """What a person reads: without the tags of plotly's labels."""
    return unescape(" ".join(re.sub(r"</?(?:b|br|i|sub|sup)>", " ", text or "").split()))


def _of_trace(trace: Any) -> pd.DataFrame | None:
    """The rows of one trace; None for a mark of the legend, which shows no number."""
    if trace.type in ("heatmap", "contour"):
        return _cells(trace) if trace.type == "heatmap" else None
    if trace.x is None or trace.y is None or not any(value is not None for value in trace.x):
        return None
    if trace.fill == "toself":
        return _band(np.asarray(trace.x, float), np.asarray(trace.y, float))
    rows = pd.DataFrame({"kind": "values", "x": _plain(trace.x), "y": _plain(trace.y)})
    for axis in ("x", "y"):
        bars = getattr(trace, f"error_{axis}")
        if bars is not None and bars.array is not None:
            above = np.asarray(bars.array, float)
            below = above if bars.arrayminus is None else np.asarray(bars.arrayminus, float)
            rows[f"{axis}_low"], rows[f"{axis}_high"] = rows[axis].astype(float) - below, rows[axis] + above
    return rows.assign(**_details(trace, len(rows)))


def _details(trace: Any, count: int) -> dict[str, Any]:
    """Numbers and words that pointing at the marks tells."""
    if trace.customdata is None:
        return {}
    held = np.asarray(trace.customdata, object).reshape(count, -1)
    return {f"detail_{k}": _plain(column) for k, column in enumerate(held.T, 1)}


def _plain(values: Any) -> list[Any]:
    return [_words(value) if isinstance(value, str) else value for value in values]


def _band(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    """A ribbon's polygons, each there along its upper edge and back along its lower one, as intervals again.

    Another shape, such as the diamond of a pooled estimate, is a region.
    """
    if np.isfinite(x).all():
        ends = {"x_low": x.min(), "x_high": x.max(), "y_low": y.min(), "y_high": y.max()}
        return pd.DataFrame([{"kind": "region", **ends}])
    rows = []
    for stretch in np.split(np.arange(len(x)), np.flatnonzero(~np.isfinite(x))):
        inside = stretch[np.isfinite(x[stretch])]
        half = len(inside) // 2
        there, back = inside[:half], inside[half:][::-1]
        rows.append(pd.DataFrame({"kind": "band", "x": x[there], "y_low": y[back], "y_high": y[there]}))
    return pd.concat(rows, ignore_index=True)


def _cells(trace: Any) -> pd.DataFrame:
    z = np.asarray(trace.z, float)
    row, column = np.indices(z.shape).reshape(2, -1)
    x, y = _plain(trace.x), _plain(trace.y)
    cells = {"x": [x[j] for j in column], "y": [y[i] for i in row], "value": z.ravel()}
    return pd.DataFrame({"kind": "cells", **cells})


def _of_shape(shape: Any) -> pd.DataFrame:
    """A line or a shaded region: its ends along the axes whose numbers it is in (a whole panel has none)."""
    row: dict[str, Any] = {"kind": "region"}
    for axis in ("x", "y"):
        ref, low, high = (getattr(shape, f"{axis}{end}") for end in ("ref", "0", "1"))
        if not str(ref).endswith("domain") and ref != "paper":
            row |= {axis: low} if low == high else {f"{axis}_low": low, f"{axis}_high": high}
    return pd.DataFrame([row])
