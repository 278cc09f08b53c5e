"""One run's steps against another's: where along training two runs point the same way."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.direction_matrix import SCALE, TITLES
from em_interp.figures.template import INK, new_figure, place

PANEL = 260  # pixels
MOST = 6  # pairs in one figure


def plot_step_cosines(steps: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each pair of runs (the first six), a cell for each two of their steps, the band's edge as a line.

    `steps` has columns measure (one of them), run, other, step, other_step, value and random_band.
    """
    name = TITLES[str(steps["measure"].iloc[0])]
    pairs = [(key, rows) for key, rows in steps.groupby(["run", "other"], sort=False)]
    left = f" The first {MOST} of {len(pairs)} pairs." if len(pairs) > MOST else ""
    pairs = pairs[:MOST]
    across = min(len(pairs), 2)
    down = -(-len(pairs) // across)
    line = (
        f"Black line: the edge of the {level:.0%} band of random directions; what lies below it is no likeness.{left}"
    )
    figure = new_figure(
        f"{name} of one run's steps with another's",
        f"{about}. {line}" if about else line,
        down * (PANEL + 60),
        least_width=480,
        rows=down,
        cols=across,
        horizontal_spacing=0.16,
        vertical_spacing=0.24 / down,
    )
    for number, ((run, other), rows) in enumerate(pairs):
        where = place(number // across + 1, number % across + 1)
        _draw(figure, rows, where)
        figure.update_xaxes(title_text=f"Training step of {escape(str(other))}", nticks=6, showgrid=False, **where)
        figure.update_yaxes(title_text=f"Training step of {escape(str(run))}", nticks=6, showgrid=False, **where)
    signed = bool((steps["value"] < 0).any())
    shades = SCALE if signed else SCALE[2:]
    bar = {"title": {"text": f"{name} (no unit)", "side": "right"}, "thickness": 10, "outlinewidth": 0, "nticks": 6}
    colours = [[position / (len(shades) - 1), colour] for position, colour in enumerate(shades)]
    return figure.update_layout(
        coloraxis={"cmin": -1 if signed else 0, "cmax": 1, "colorscale": colours, "colorbar": bar}
    )


def _draw(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    square = rows.pivot(index="step", columns="other_step", values="value")
    grid = {"x": square.columns.to_numpy(), "y": square.index.to_numpy(), "z": square.to_numpy()}
    hover = "steps %{y} and %{x}<br>%{z:.3f}<extra></extra>"
    figure.add_trace(go.Heatmap(**grid, coloraxis="coloraxis", hovertemplate=hover, hoverongaps=False), **where)
    band = float(rows["random_band"].iloc[0])
    edge = {"start": band, "end": band, "size": 1, "coloring": "none"}
    line = go.Contour(**grid, contours=edge, line={"color": INK, "width": 1.5}, showscale=False, hoverinfo="skip")
    figure.add_trace(line.update(name="random band", showlegend=False), **where)
