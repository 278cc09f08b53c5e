"""The path seen in the plane of its two largest principal components."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.norms import about
from em_interp.figures.template import FAINT, INK, PART_NAME, STEP, STEP_SCALE, VERMILLION, new_figure, place
from em_interp.trajectory import geometry
from em_interp.trajectory.adapter import AdapterTrajectory, Part
from em_interp.transition.result import Transition

NO_EVIDENCE = "A bend and a large share of variance in this plane are no evidence of a turn: any smooth path has both."


def plot_path(
    trajectory: AdapterTrajectory, of: Part = "B", site: str | None = None, transitions: Sequence[Transition] = ()
) -> go.Figure:
    """The path of B, A or ΔW in two components, coloured by step, with the rotations among `transitions` of it.

    Both axes have one scale, so that angles are what they look like in this plane. See `principal_components` for
    what such a picture cannot show.
    """
    figure = new_figure(f"Path of {PART_NAME[of]} in two components", f"{about(trajectory, site)}. {NO_EVIDENCE}", 420)
    draw_path(figure, trajectory, of, site, transitions)
    return figure


def draw_path(
    figure: go.Figure,
    trajectory: AdapterTrajectory,
    of: Part = "B",
    site: str | None = None,
    transitions: Sequence[Transition] = (),
    row: int | None = None,
    col: int | None = None,
) -> None:
    """The same into a panel of a figure."""
    steps = trajectory.steps
    scores, explained = geometry.principal_components(trajectory.gram(of, site))
    bar = {"title": {"text": "step", "side": "top"}, "thickness": 10, "len": 0.8, "outlinewidth": 0}
    path = go.Scatter(
        x=scores[:, 0],
        y=scores[:, 1],
        mode="lines+markers",
        line={"color": FAINT, "width": 1},
        marker={"color": steps, "colorscale": STEP_SCALE, "size": 5, "colorbar": bar},
        customdata=steps,
        hovertemplate="step %{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        name=STEP,
        showlegend=False,
    )
    figure.add_trace(path, **place(row, col))
    for turn in transitions:
        if turn.signal == "rotation" and turn.of == of and turn.found and turn.step is not None:
            at = [float(np.interp(turn.step, steps, scores[:, axis])) for axis in (0, 1)]
            _ring(figure, at, f"turn at {turn.step:.0f}", VERMILLION, row, col)
    _ring(figure, scores[0].tolist(), f"step {steps[0]}", INK, row, col)
    for axis, update in enumerate((figure.update_xaxes, figure.update_yaxes)):
        share = "" if np.isnan(explained[axis]) else f", {explained[axis]:.0%} of variance"
        update(title_text=f"Component {axis + 1} (weight units{share})", nticks=6, **place(row, col))
    figure.update_yaxes(scaleanchor=path_axis(figure, row, col), scaleratio=1, **place(row, col))


def path_axis(figure: go.Figure, row: int | None, col: int | None) -> str:
    """What plotly calls the panel's x axis."""
    if row is None or col is None:
        return "x"
    name: str = figure.get_subplot(row, col).xaxis.plotly_name
    return name.replace("axis", "")


def _ring(figure: go.Figure, at: list[float], label: str, colour: str, row: int | None, col: int | None) -> None:
    ring = {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 2}}
    mark = go.Scatter(x=at[:1], y=at[1:], mode="markers+text", marker=ring, text=[label], showlegend=False)
    mark.update(textposition="top center", textfont={"color": colour, "size": 12}, hoverinfo="skip", cliponaxis=False)
    figure.add_trace(mark, **place(row, col))
