"""The mean-difference directions of different steps against each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.direction_matrix import SCALE
from em_interp.figures.template import STEP, new_figure, place

PANEL = 230  # pixels
MOST = 4  # layers


def plot_direction_steps(steps: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel a layer (four of them, evenly, where there are more), a cell for each two steps.

    `steps` has columns layer, step, other_step and cosine.
    """
    layers = sorted(steps["layer"].unique().tolist())
    chosen = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, min(MOST, len(layers))).round().astype(int))]
    words = "The answers are the same at every step, so what they say makes all directions alike; compare the shades."
    across = min(len(chosen), 2)
    down = -(-len(chosen) // across)
    figure = new_figure(
        "The misaligned direction in the models of different steps",
        f"{about}. {words}" if about else words,
        down * (PANEL + 40),
        least_width=480,
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
    figure.update_xaxes(title_text=STEP, nticks=6, showgrid=False)
    figure.update_yaxes(title_text=STEP, nticks=6, showgrid=False)
    lowest = float(np.nanmin(steps["cosine"]))
    shades = [[i / (len(SCALE[2:]) - 1), colour] for i, colour in enumerate(SCALE[2:])]
    bar = {"title": {"text": "cosine (no unit)", "side": "right"}, "thickness": 10, "outlinewidth": 0, "nticks": 5}
    floor = np.floor(20 * min(lowest, 0.95)) / 20
    return figure.update_layout(coloraxis={"cmin": floor, "cmax": 1, "colorscale": shades, "colorbar": bar})
