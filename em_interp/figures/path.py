"""Where the adapter goes: its norms, its path in two principal components, and both with the turning angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from em_interp.figures.style import (
    FAINT,
    INK,
    PART_COLOUR,
    PART_NAME,
    STEP,
    STEP_SCALE,
    VERMILLION,
    colour_bar,
    new_figure,
    place,
)
from em_interp.figures.turning import ANGLES, about, draw_turning
from em_interp.trajectory import geometry
from em_interp.trajectory.load import TrajectorySource, as_trajectory
from em_interp.trajectory.trajectory import MATRICES, AdapterTrajectory, Matrix, as_matrix
from em_interp.transition.result import Transition
from em_interp.utils.checks import as_list, checked

MARGIN = 0.12  # around the path, as a share of its size
LABEL = np.array([0.1, 0.025])  # half the width and height of a label, as shares of the path's size
NO_EVIDENCE = "A bend and a large share of variance in this plane are no evidence of a turn: any smooth path has both."


@checked
def norms(path: TrajectorySource, site: str | None = None) -> go.Figure:
    """The norms of B, A and ΔW by step, each on its own axis.

    Args:
        path: a trajectory, or a run, folder of checkpoints or Hub id to load.
        site: one adapted module; all of them together by default.

    Returns:
        The figure; norms are in the units of the weights.
    """
    path = as_trajectory(path)
    table = path.frame(site=site).reset_index().reindex(columns=["step", *(f"norm_{of}" for of in MATRICES)])
    figure = new_figure(
        "Size of the adapter", about(path, site), numbers=table, rows=3, shared_xaxes=True, vertical_spacing=0.1
    )
    for row, of in enumerate(MATRICES, 1):
        _draw_norm(figure, path, of, site, row, 1)
    figure.update_xaxes(title_text=STEP, row=3)
    return figure


@checked
def pca(
    path: TrajectorySource,
    of: Matrix = "B",
    site: str | None = None,
    transitions: Transition | Sequence[Transition] = (),
) -> go.Figure:
    """The path of B, A or ΔW in its two largest principal components, coloured by step.

    Both axes have one scale, so that angles are what they look like in this plane. A bend in it is no evidence of a
    turn; see `principal_components` for what such a picture cannot show.

    Args:
        path: a trajectory, or a run, folder of checkpoints or Hub id to load.
        of: B, A or delta (ΔW).
        site: one adapted module; all of them together by default.
        transitions: answers of `find_transitions`; rotations of this part are ringed.

    Returns:
        The figure; coordinates are in the units of the weights.
    """
    path, of = as_trajectory(path), as_matrix(of)
    scores = geometry.principal_components(path.gram(of, site)).scores
    table = pd.DataFrame({"step": path.steps, "component_1": scores[:, 0], "component_2": scores[:, 1]})
    subtitle = f"{about(path, site)}. {NO_EVIDENCE}"
    figure = new_figure(f"Path of {PART_NAME[of]} in two components", subtitle, 420, numbers=table)
    _draw_pca(figure, path, of, site, as_list(transitions))
    return figure


@checked
def trajectory(path: TrajectorySource, of: Matrix = "B", site: str | None = None) -> go.Figure:
    """A path at a glance: norms of B, A and ΔW, the path in two components, and its turning angles with their nulls.

    Args:
        path: a trajectory, or a run, folder of checkpoints or Hub id to load.
        of: the part shown in two components and by its turning angles: B, A or delta (ΔW).
        site: one adapted module; all of them together by default.

    Returns:
        The figure. For each panel alone see `norms`, `pca` and `turning_angle`.
    """
    path, of = as_trajectory(path), as_matrix(of)
    figure = new_figure(
        "Path of the adapter",
        f"{about(path, site)}. {ANGLES}",
        800,
        least_width=560,
        numbers=path.frame(site=site).reset_index(),
        rows=3,
        cols=3,
        specs=[[{}, {}, {}], [{"colspan": 3}, None, None], [{"colspan": 3}, None, None]],
        row_heights=[0.24, 0.42, 0.34],
        vertical_spacing=0.13,
        horizontal_spacing=0.13,
        subplot_titles=["", "", "", f"Path of {PART_NAME[of]}", f"Turning of {PART_NAME[of]}"],
    )
    for column, part in enumerate(MATRICES, 1):
        _draw_norm(figure, path, part, site, 1, column)
    _draw_pca(figure, path, of, site, row=2, col=1)
    draw_turning(figure, path, of=of, site=site, row=3, col=1)
    figure.update_xaxes(title_text=STEP, row=1)
    figure.update_xaxes(title_text=STEP, row=3)
    return figure


def _draw_norm(figure: go.Figure, path: AdapterTrajectory, of: Matrix, site: str | None, row: int, col: int) -> None:
    name = f"‖{PART_NAME[of]}‖"
    hover = f"step %{{x}}<br>{name} = %{{y:.4g}}<extra></extra>"
    line = go.Scatter(x=path.steps, y=geometry.norms(path.gram(of, site)), mode="lines", hovertemplate=hover)
    figure.add_trace(line.update(name=name, showlegend=False, line_color=PART_COLOUR[of]), row=row, col=col)
    figure.update_yaxes(title_text=f"{name}<br>(weight units)", rangemode="tozero", nticks=5, row=row, col=col)


def _draw_pca(
    figure: go.Figure,
    path: AdapterTrajectory,
    of: Matrix,
    site: str | None,
    transitions: Sequence[Transition] = (),
    row: int | None = None,
    col: int | None = None,
) -> None:
    """The path in two components into a panel of a figure."""
    where, steps = place(row, col), path.steps
    scores, explained = geometry.principal_components(path.gram(of, site))
    panel = figure.get_subplot(row or 1, col or 1)
    (_, right), (low, high) = panel.xaxis.domain, panel.yaxis.domain
    bar = colour_bar(STEP, x=right + 0.01, xpad=4, y=(low + high) / 2, len=0.9 * (high - low), nticks=None)
    hover = "step %{customdata}<br>%{x:.4g}, %{y:.4g}<extra></extra>"
    line = go.Scatter(x=scores[:, 0], y=scores[:, 1], mode="lines+markers", customdata=steps, hovertemplate=hover)
    line.update(marker={"color": steps, "colorscale": STEP_SCALE, "size": 5, "colorbar": bar})
    figure.add_trace(line.update(line={"color": FAINT, "width": 1}, name=STEP, showlegend=False), **where)
    for turn in transitions:
        if turn.signal == "rotation" and turn.of == of and turn.found and turn.step is not None:
            nearest_row = int(np.argmin(np.abs(steps - turn.step)))
            figure.add_trace(_ring(scores, nearest_row, f"turn at {turn.step:.0f}", VERMILLION), **where)
    figure.add_trace(_ring(scores, 0, f"step {steps[0]}", INK), **where)
    for axis, update in enumerate((figure.update_xaxes, figure.update_yaxes)):
        share = "" if np.isnan(explained[axis]) else f", {explained[axis]:.0%} of variance"
        title = f"Component {axis + 1} (weight units{share})"
        ends = _with_margin(scores[:, axis], float(np.ptp(scores)))
        update(title_text=title, nticks=6, range=ends, exponentformat="power", **where)
    figure.update_yaxes(scaleanchor=panel.xaxis.plotly_name.replace("axis", ""), scaleratio=1, **where)


def _ring(scores: Float[np.ndarray, "step 2"], index: int, label: str, colour: str) -> go.Scatter:
    """A ring round one point of the path, with a label on the side where the path is not."""
    ring = {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 2}}
    mark = go.Scatter(x=scores[index, :1], y=scores[index, 1:], mode="markers+text", marker=ring, text=[label])
    mark.update(textposition=_free_side(scores, index), textfont={"color": colour, "size": 12})
    return mark.update(hoverinfo="skip", cliponaxis=False, showlegend=False)


def _with_margin(values: Float[np.ndarray, " step"], size: float) -> list[float]:
    """A range with room for labels around the path."""
    margin = MARGIN * size or 1.0
    return [float(values.min()) - margin, float(values.max()) + margin]


def _free_side(scores: Float[np.ndarray, "step 2"], index: int) -> str:
    """The side on which a label is furthest from the path and the frame, in plotly's words."""
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
