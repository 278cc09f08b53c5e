"""The misaligned direction: by layer, in the models of different steps, and what the adapter writes along it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.style import (
    BLUE,
    DIVERGING,
    MUTED,
    STEP,
    VERMILLION,
    colour_bar,
    fade,
    new_figure,
    place,
    ribbon,
    sentences,
)
from em_interp.results import percent
from em_interp.trajectory.geometry import evenly_spaced


def plot_mean_difference(layers: pd.DataFrame, about: str = "") -> go.Figure:
    """Two panels over the layers. `layers` has columns layer, share_of_stream and reliability."""
    figure = new_figure(
        "Misaligned minus aligned answers, by layer",
        about,
        260,
        least_width=480,
        numbers=layers,
        cols=2,
        horizontal_spacing=0.16,
    )
    panels = (
        ("share_of_stream", "Norm of the difference<br>(share of the residual stream's)", VERMILLION),
        ("reliability", "Cosine between halves<br>of the questions", BLUE),
    )
    for number, (column, title, colour) in enumerate(panels, 1):
        style = {"mode": "lines+markers", "line": {"color": colour}, "showlegend": False}
        hover = "after layer %{x}<br>%{y:.3f}<extra></extra>"
        figure.add_trace(
            go.Scatter(x=layers["layer"], y=layers[column], hovertemplate=hover, **style), **place(1, number)
        )
        top = 1.02 if column == "reliability" else 1.08 * float(layers[column].max())
        low = min(0.0, 1.05 * float(layers[column].min(skipna=True)))
        figure.update_yaxes(title_text=title, range=[low, top], **place(1, number))
    return figure.update_xaxes(title_text="After layer", nticks=min(len(layers), 10), tickformat="d")


STEPS_PANEL = 230  # pixels
MAX_LAYERS = 4


def plot_direction_steps(steps: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel a layer (four of them, evenly, where there are more), a cell for each two steps.

    `steps` has columns layer, step, other_step and cosine.
    """
    layers = sorted(steps["layer"].unique().tolist())
    chosen = [layers[i] for i in evenly_spaced(np.arange(len(layers)), MAX_LAYERS)]
    words = "The answers are the same at every step, so what they say makes all directions alike; compare the shades."
    across = min(len(chosen), 2)
    down = -(-len(chosen) // across)
    figure = new_figure(
        "The misaligned direction in the models of different steps",
        sentences(about, words),
        down * (STEPS_PANEL + 40),
        least_width=480,
        numbers=steps,
        rows=down,
        cols=across,
        horizontal_spacing=0.16,
        vertical_spacing=0.26 / down,
        subplot_titles=[f"After layer {layer}" for layer in chosen],
    )
    for number, layer in enumerate(chosen):
        where = place(number // across + 1, number % across + 1)
        square = steps[steps["layer"] == layer].pivot(index="step", columns="other_step", values="cosine")
        grid = {"x": square.columns.to_numpy(), "y": square.index.to_numpy(), "z": square.to_numpy()}
        hover = "steps %{y} and %{x}<br>%{z:.3f}<extra></extra>"
        figure.add_trace(go.Heatmap(**grid, coloraxis="coloraxis", hovertemplate=hover), **where)
    figure.update_xaxes(nticks=6, showgrid=False).update_xaxes(title_text=STEP, row=down)
    figure.update_yaxes(nticks=6, showgrid=False).update_yaxes(title_text=STEP, col=1)
    lowest = float(np.nanmin(steps["cosine"]))
    shades = [[i / (len(DIVERGING[2:]) - 1), colour] for i, colour in enumerate(DIVERGING[2:])]
    bar = colour_bar("cosine (no unit)", nticks=5, tickformat=".2f")
    floor = np.floor(20 * min(lowest, 0.95)) / 20
    return figure.update_layout(coloraxis={"cmin": floor, "cmax": 1, "colorscale": shades, "colorbar": bar})


WRITES_PANEL = 190  # pixels
MAX_PANELS = 6
WRITE_COLOUR = {"write": VERMILLION, "effect": BLUE}


def plot_writes(cosines: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel a layer: the cosine of each write and of the effect to the direction after it, and the null band.

    `cosines` has columns step, what, layer, site, cosine with its interval, and band. Of many layers six are drawn:
    those with a write first, then evenly.
    """
    rows = cosines[cosines["what"].isin(list(WRITE_COLOUR))]
    layers = _layers_drawn(rows)
    n_drawn = f" {len(layers)} of {rows['layer'].nunique()} layers." if len(layers) < rows["layer"].nunique() else ""
    words = f"Grey: {percent(level)} band of random adapters. Ribbons: other questions.{n_drawn}"
    across = min(len(layers), 2)
    down = -(-len(layers) // across)
    figure = new_figure(
        "Does the adapter write or cause the misaligned direction?",
        sentences(about, words),
        down * WRITES_PANEL + 40,
        headroom=16,
        numbers=rows,
        rows=down,
        cols=across,
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.24 / down,
        horizontal_spacing=0.1,
        subplot_titles=[f"After layer {layer}" for layer in layers],
    )
    for number, layer in enumerate(layers):
        where = place(number // across + 1, number % across + 1)
        _draw_cosines(figure, rows[rows["layer"] == layer], where)
    reach = float(np.nanmax([*rows["cosine_high"].abs(), *rows["cosine_low"].abs(), *rows["band"], 0.1]))
    figure.update_yaxes(range=[-min(1.02, 1.1 * reach), min(1.02, 1.1 * reach)], nticks=5)
    figure.update_yaxes(title_text="Cosine", col=1)
    return figure.update_xaxes(nticks=5).update_xaxes(title_text=STEP, row=down)


def _layers_drawn(rows: pd.DataFrame) -> list[int]:
    written = sorted(rows.loc[rows["what"] == "write", "layer"].unique().tolist())[:MAX_PANELS]
    others = [layer for layer in sorted(rows["layer"].unique().tolist()) if layer not in written]
    room = MAX_PANELS - len(written)
    chosen = [others[i] for i in evenly_spaced(np.arange(len(others)), room)] if room else []
    return sorted([*written, *chosen])


def _draw_cosines(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    # right after the first site the effect equals its write, so the write is drawn last, dashed
    for what in ("effect", "write"):
        for site, curve in rows[rows["what"] == what].groupby("site", sort=False):
            x, colour = curve["step"].to_numpy(float), WRITE_COLOUR[what]
            edges = curve["cosine_low"].to_numpy(float), curve["cosine_high"].to_numpy(float)
            figure.add_trace(ribbon(x, *edges, colour, what, showlegend=False, legendgroup=what), **where)
            line = {"color": colour, "width": 2, "dash": "dash" if what == "write" else "solid"}
            hover = f"{what} {site}<br>step %{{x}}<br>%{{y:.3f}}<extra></extra>"
            in_legend = not any(trace.name == what and trace.showlegend for trace in figure.data)
            style = {"mode": "lines", "line": line, "name": what, "legendgroup": what, "showlegend": in_legend}
            figure.add_trace(go.Scatter(x=x, y=curve["cosine"], hovertemplate=hover, **style), **where)
    band = float(rows["band"].max())
    if np.isfinite(band):  # not before the first site, where there is nothing to compare
        figure.add_hrect(-band, band, fillcolor=fade(MUTED, 0.2), line_width=0, layer="below", **where)
    figure.add_hline(0, line={"color": MUTED, "width": 1}, **where)
