"""What the adapter writes and causes, held against the mean-difference direction, by step."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, MUTED, STEP, VERMILLION, fade, new_figure, place, ribbon

PANEL = 190  # pixels
MOST = 6  # panels
COLOUR = {"write": VERMILLION, "effect": BLUE}


def plot_writes(cosines: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel a layer: the cosine of each write and of the effect to the direction after it, and the band of chance.

    `cosines` has columns step, what, layer, site, cosine, low, high and band. Of many layers six are drawn: those with
    a write first, then evenly.
    """
    rows = cosines[cosines["what"].isin(list(COLOUR))]
    layers = _layers(rows)
    left = f" {len(layers)} of {rows['layer'].nunique()} layers." if len(layers) < rows["layer"].nunique() else ""
    words = f"Grey: {level:.0%} band of adapters with a random B. Ribbons: other questions.{left}"
    across = min(len(layers), 2)
    down = -(-len(layers) // across)
    figure = new_figure(
        "Does the adapter write or cause the misaligned direction?",
        f"{about}. {words}" if about else words,
        down * PANEL + 40,
        rows=down,
        cols=across,
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.24 / down,
        horizontal_spacing=0.06,
        subplot_titles=[f"After layer {layer}" for layer in layers],
    )
    for number, layer in enumerate(layers):
        where = place(number // across + 1, number % across + 1)
        _draw(figure, rows[rows["layer"] == layer], where, first=number == 0)
    reach = float(np.nanmax([*rows["high"].abs(), *rows["low"].abs(), *rows["band"], 0.1]))
    figure.update_yaxes(range=[-min(1.02, 1.1 * reach), min(1.02, 1.1 * reach)], nticks=5)
    figure.update_yaxes(title_text="Cosine", col=1)
    return figure.update_xaxes(title_text=STEP, row=down)


def _layers(rows: pd.DataFrame) -> list[int]:
    written = sorted(rows.loc[rows["what"] == "write", "layer"].unique().tolist())[:MOST]
    others = [layer for layer in sorted(rows["layer"].unique().tolist()) if layer not in written]
    room = min(MOST - len(written), len(others))
    chosen = [others[i] for i in np.unique(np.linspace(0, len(others) - 1, room).round().astype(int))] if room else []
    return sorted([*written, *chosen])


def _draw(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int], first: bool) -> None:
    # the write of a first site is its layer's effect: drawn last and dashed, it stays to be seen
    for what in ("effect", "write"):
        for site, curve in rows[rows["what"] == what].groupby("site", sort=False):
            x, colour = curve["step"].to_numpy(float), COLOUR[what]
            edges = curve["low"].to_numpy(float), curve["high"].to_numpy(float)
            figure.add_trace(ribbon(x, *edges, colour, what, showlegend=False, legendgroup=what), **where)
            line = {"color": colour, "width": 2, "dash": "dash" if what == "write" else "solid"}
            hover = f"{what} {site}<br>step %{{x}}<br>%{{y:.3f}}<extra></extra>"
            shown = not any(trace.name == what and trace.showlegend for trace in figure.data)
            style = {"mode": "lines", "line": line, "name": what, "legendgroup": what, "showlegend": shown}
            figure.add_trace(go.Scatter(x=x, y=curve["cosine"], hovertemplate=hover, **style), **where)
    band = float(rows["band"].max())
    if np.isfinite(band):  # not before the first site, where there is nothing to compare
        figure.add_hrect(-band, band, fillcolor=fade(MUTED, 0.2), line_width=0, layer="below", **where)
    figure.add_hline(0, line={"color": MUTED, "width": 1}, **where)
