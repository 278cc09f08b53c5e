"""The paths of several runs in one plane."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.presence import run_style
from em_interp.figures.template import INK, PART_NAME, new_figure

NO_EVIDENCE = "Unrelated runs lie in a plane too, as a star around the start: likeness is in the cosines, not here."


def plot_common_plane(plane: pd.DataFrame, about: str = "") -> go.Figure:
    """A path for each run, a dot at its end and the start ringed; both axes have one scale.

    `plane` has columns measure (one of them), run, step, x, y, share_x and share_y.
    """
    measure = str(plane["measure"].iloc[0])
    words = f"{about}. {NO_EVIDENCE}" if about else NO_EVIDENCE
    figure = new_figure(f"Paths of {PART_NAME[measure]} in one plane", words, 440)
    style = run_style(list(dict.fromkeys(plane["run"])))
    for run, rows in plane.groupby("run", sort=False):
        _draw(figure, str(run), rows, *style[str(run)])
    start = plane[plane["step"] == plane["step"].min()]
    ring = {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": INK, "width": 2}}
    first = go.Scatter(x=start["x"].iloc[:1], y=start["y"].iloc[:1], mode="markers", marker=ring, hoverinfo="skip")
    figure.add_trace(first.update(name=f"step {int(start['step'].iloc[0])}"))
    size = 0.08 * max(float(np.ptp(plane["x"])), float(np.ptp(plane["y"]))) or 1.0
    for axis, update in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
        share = float(plane[f"share_{axis}"].iloc[0])
        said = "" if np.isnan(share) else f", {share:.0%} of variance"
        ends = [float(plane[axis].min()) - size, float(plane[axis].max()) + size]
        update(title_text=f"Component {'xy'.index(axis) + 1} (weight units{said})", nticks=6, range=ends)
    return figure.update_yaxes(scaleanchor="x", scaleratio=1)


def _draw(figure: go.Figure, run: str, rows: pd.DataFrame, colour: str, dash: str) -> None:
    name = escape(run)
    sizes = np.zeros(len(rows))
    sizes[-1] = 9
    path = go.Scatter(
        x=rows["x"], y=rows["y"], mode="lines+markers", line={"color": colour, "dash": dash, "width": 1.8}
    )
    hover = f"{name}, step %{{customdata}}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>"
    marker = {"color": colour, "size": sizes, "line_width": 0}
    figure.add_trace(path.update(name=name, marker=marker, customdata=rows["step"], hovertemplate=hover))
