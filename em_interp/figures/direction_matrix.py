"""How alike the final directions of several runs are, each measure beside what random directions would give."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from em_interp.figures.template import INK, MUTED, new_figure, place
from em_interp.figures.words import number

TITLES = {"B": "|cos B|", "A": "|cos A|", "delta": "cos ΔW", "composition": "composition score"}
SCALE = ("#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806")  # blue below zero, orange above
CELL, GAP = 64, 110  # pixels
MOST = 12  # runs up to which the numbers are written


def plot_direction_matrix(
    pairs: pd.DataFrame, level: float = 0.95, about: str = "", site: str | None = None
) -> go.Figure:
    """A panel for each measure, runs against runs; what random directions reach too is in grey type.

    `pairs` has columns run, other, measure, site, value and random_band; of its first site where `site` is None.
    """
    rows = pairs[pairs["site"] == (site or pairs["site"].iloc[0])]
    measures = [name for name in TITLES if (rows["measure"] == name).any()]
    names = list(dict.fromkeys([*rows["run"], *rows["other"]]))
    across = min(len(measures), 2)
    down = -(-len(measures) // across)
    panel = max(CELL * min(len(names), 8), 200)
    grey = (
        f"Grey numbers: within the {level:.0%} band of random directions of the same norms (its edge is in the titles)."
    )
    figure = new_figure(
        "Final directions of the runs",
        f"{about}. {grey}" if about else grey,
        down * panel + (down - 1) * GAP + 90,
        least_width=480,
        rows=down,
        cols=across,
        subplot_titles=[_title(rows[rows["measure"] == name], name, level) for name in measures],
        horizontal_spacing=0.16,
        vertical_spacing=GAP / (down * panel + (down - 1) * GAP),
    )
    for panel_number, name in enumerate(measures):
        where = place(panel_number // across + 1, panel_number % across + 1)
        _draw(figure, rows[rows["measure"] == name], names, where)
    figure.update_xaxes(title_text="Run", tickangle=-30, showgrid=False, ticks="")
    figure.update_yaxes(title_text="Run", autorange="reversed", showgrid=False, ticks="")
    return figure.update_layout(coloraxis=_colours())


def _colours() -> dict[str, object]:
    shades = [[position / (len(SCALE) - 1), colour] for position, colour in enumerate(SCALE)]
    title = {"text": "cosine, score (no unit)", "side": "right"}
    bar = {"title": title, "thickness": 10, "outlinewidth": 0, "nticks": 5}
    return {"cmin": -1, "cmax": 1, "colorscale": shades, "colorbar": bar}


def _title(rows: pd.DataFrame, name: str, level: float) -> str:
    bands = rows["random_band"].dropna()
    if bands.empty:
        return f"{TITLES[name]} (no band)"
    low, high = bands.min(), bands.max()
    edges = [number(low, ".2g"), number(high, ".2g")]
    edge = edges[1] if edges[0] == edges[1] else " to ".join(edges)
    return f"{TITLES[name]} (random {level:.0%}: {'±' if name == 'delta' else ''}{edge})"


def _draw(figure: go.Figure, rows: pd.DataFrame, names: list[str], where: dict[str, int]) -> None:
    values, inside = _square(rows, names)
    ticks = [escape(name) for name in names]
    hover = "%{y}, %{x}<br>%{z:.3f}<extra></extra>"
    cells = go.Heatmap(z=values, x=ticks, y=ticks, coloraxis="coloraxis", xgap=2, ygap=2, hovertemplate=hover)
    figure.add_trace(cells.update(hoverongaps=False), **where)
    if len(names) > MOST:
        return
    for y, x in np.ndindex(*values.shape):
        if np.isfinite(values[y, x]):
            said = number(float(values[y, x]), ".2g")
            colour = "white" if values[y, x] > 0.8 else MUTED if inside[y, x] else INK
            text = said if inside[y, x] or x == y else f"<b>{said}</b>"
            style = {"showarrow": False, "font": {"size": 12, "color": colour}}
            figure.add_annotation(x=ticks[x], y=ticks[y], text=text, **style, **where)


def _square(rows: pd.DataFrame, names: list[str]) -> tuple[Float[np.ndarray, "run run"], np.ndarray]:
    """The values with a diagonal of one, and which lie within their band."""
    values, inside = np.eye(len(names)), np.zeros((len(names), len(names)), bool)
    for run, other, value, band in rows[["run", "other", "value", "random_band"]].itertuples(index=False):
        i, j = names.index(run), names.index(other)
        values[i, j] = values[j, i] = value
        inside[i, j] = inside[j, i] = abs(value) <= band
    return values, inside
