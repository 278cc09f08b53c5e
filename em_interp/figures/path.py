"""The path seen in the plane of its two largest principal components."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from em_interp.figures.norms import about
from em_interp.figures.template import FAINT, INK, PART_NAME, STEP, STEP_SCALE, VERMILLION, new_figure, place
from em_interp.trajectory import geometry
from em_interp.trajectory.adapter import AdapterTrajectory, Part
from em_interp.transition.result import Transition

MARGIN = 0.12  # of the path's size, around it
LABEL = np.array([0.1, 0.025])  # half the width and height of a label, in the path's size
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
    panel = figure.get_subplot(row or 1, col or 1)
    (_, right), (low, high) = panel.xaxis.domain, panel.yaxis.domain
    bar = {"title": {"text": "step", "side": "top"}, "thickness": 10, "outlinewidth": 0}
    bar |= {"x": right + 0.01, "xpad": 4, "y": (low + high) / 2, "len": 0.85 * (high - low)}
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
            _ring(
                figure,
                scores,
                int(np.argmin(np.abs(steps - turn.step))),
                f"turn at {turn.step:.0f}",
                VERMILLION,
                row,
                col,
            )
    _ring(figure, scores, 0, f"step {steps[0]}", INK, row, col)
    for axis, update in enumerate((figure.update_xaxes, figure.update_yaxes)):
        share = "" if np.isnan(explained[axis]) else f", {explained[axis]:.0%} of variance"
        update(title_text=f"Component {axis + 1} (weight units{share})", nticks=6, **place(row, col))
    for scores_of, update in zip(scores.T, (figure.update_xaxes, figure.update_yaxes), strict=True):
        update(range=_room(scores_of, np.ptp(scores)), **place(row, col))
    figure.update_yaxes(scaleanchor=path_axis(figure, row, col), scaleratio=1, **place(row, col))


def path_axis(figure: go.Figure, row: int | None, col: int | None) -> str:
    """What plotly calls the panel's x axis."""
    if row is None or col is None:
        return "x"
    name: str = figure.get_subplot(row, col).xaxis.plotly_name
    return name.replace("axis", "")


def _ring(
    figure: go.Figure,
    scores: Float[np.ndarray, "step 2"],
    index: int,
    label: str,
    colour: str,
    row: int | None,
    col: int | None,
) -> None:
    """A ring round one point of the path, with a label on the side where the path is not."""
    ring = {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 2}}
    mark = go.Scatter(x=scores[index, :1], y=scores[index, 1:], mode="markers+text", marker=ring, text=[label])
    mark.update(
        textposition=_free_side(scores, index),
        textfont={"color": colour, "size": 12},
        hoverinfo="skip",
        cliponaxis=False,
    )
    figure.add_trace(mark.update(showlegend=False), **place(row, col))


def _room(values: Float[np.ndarray, " step"], size: float) -> list[float]:
    """A range with room for labels around the path."""
    margin = MARGIN * size or 1.0
    return [float(values.min()) - margin, float(values.max()) + margin]


def _free_side(scores: Float[np.ndarray, "step 2"], index: int) -> str:
    """Where a label is clear of the path and of the frame, as far as it can be."""
    size = np.ptp(scores) or 1.0
    points, low, high = scores / size, scores.min(axis=0) / size - MARGIN, scores.max(axis=0) / size + MARGIN

    def clearance(side: tuple[int, int]) -> float:
        """Distances to the middle of the label, in units of its half width and half height."""
        middle = points[index] + [0.02 * side[0], 0.03 * side[1]] + LABEL * side
        to_path = np.max(np.abs(points - middle) / LABEL, axis=1).min()
        return float(min(to_path, *((middle - low) / LABEL), *((high - middle) / LABEL)))

    sides = [(across, up) for up in (1, -1, 0) for across in (0, 1, -1) if across or up]
    across, up = max(sides, key=clearance)
    return f"{('middle', 'top', 'bottom')[up]} {('center', 'right', 'left')[across]}"
