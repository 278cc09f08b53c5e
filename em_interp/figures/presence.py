"""How early the final direction of one run is present in the others."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.direction_matrix import TITLES
from em_interp.figures.template import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    STEP,
    VERMILLION,
    fade,
    new_figure,
    place,
)

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("solid", "dash", "dot")
PANEL = 190  # pixels


def run_style(names: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each run, the same in every figure of one comparison."""
    return {name: (COLOURS[k % 6], DASHES[k // 6 % 3]) for k, name in enumerate(names)}


def plot_presence(presence: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each run whose end is looked for, a curve for each run it is looked for in, the random band shaded.

    A ring marks the first step from which on the curve stays above the band. `presence` has columns measure (one of
    them), final_of, inside, step, value, random_band and first_step.
    """
    measure = str(presence["measure"].iloc[0])
    finals = list(dict.fromkeys(presence["final_of"]))
    style = run_style(finals)
    words = f"Shaded: the {level:.0%} band of random directions, at each step by itself. Ring: above it from here on."
    figure = new_figure(
        f"{TITLES[measure]} with the end of another run",
        f"{about}. {words}" if about else words,
        len(finals) * PANEL + 60,
        rows=len(finals),
        shared_xaxes=True,
        vertical_spacing=0.15 / len(finals),
    )
    for number, name in enumerate(finals, 1):
        rows = presence[presence["final_of"] == name]
        _draw(figure, rows, style, place(number, 1))
        figure.update_yaxes(title_text=f"{TITLES[measure]} to<br>the end of {escape(name)}", row=number, col=1)
    lowest = min(0.0, float(presence["value"].min()), -float(presence["random_band"].max()) * (measure == "delta"))
    figure.update_yaxes(range=[1.08 * lowest, 1.02], nticks=5)
    figure.update_xaxes(title_text=STEP, row=len(finals), col=1)
    return figure


def _draw(figure: go.Figure, rows: pd.DataFrame, style: dict[str, tuple[str, str]], where: dict[str, int]) -> None:
    band = float(rows["random_band"].max())
    low = -band if rows["measure"].iloc[0] == "delta" else 0.0
    for inside, curve in rows.groupby("inside", sort=False):
        colour, dash = style[str(inside)]
        name = escape(str(inside))
        hover = f"{name}, step %{{x}}<br>%{{y:.3f}}<extra></extra>"
        line = go.Scatter(x=curve["step"], y=curve["value"], mode="lines", line={"color": colour, "dash": dash})
        shown = not any(trace.name == name for trace in figure.data)
        figure.add_trace(
            line.update(
                name=name,
                legendgroup=name,
                showlegend=shown,
                legendrank=1 + [*style].index(str(inside)),
                hovertemplate=hover,
            ),
            **where,
        )
        first = float(curve["first_step"].iloc[0])
        if np.isfinite(first):
            ring = {"size": 12, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 2}}
            there = curve.loc[curve["step"] == first, "value"]
            mark = go.Scatter(x=[first], y=there, mode="markers", marker=ring, showlegend=False, cliponaxis=False)
            said = f"{name}: above the band from step {first:.0f} on<extra></extra>"
            figure.add_trace(mark.update(legendgroup=name, name="first step", hovertemplate=said), **where)
    # after the curves: plotly drops a mark from a panel that has no trace yet
    figure.add_hrect(low, band, fillcolor=fade(MUTED, 0.2), line_width=0, layer="below", **where)
