"""How far the path turns at each step beyond its own curvature, and where a turn was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from em_interp.errors import InputError
from em_interp.figures.style import (
    FAINT,
    INK,
    MUTED,
    PART_COLOUR,
    PART_NAME,
    STEP,
    STEP_SCALE,
    VERMILLION,
    fade,
    mark_planted,
    mark_step,
    new_figure,
    note,
    place,
    ribbon,
    span,
)
from em_interp.trajectory import geometry
from em_interp.trajectory.trajectory import AdapterTrajectory, Matrix
from em_interp.transition.local_cosine import straight_angles
from em_interp.transition.result import Transition
from em_interp.transition.rotation import MIN_TURN

NORMAL_95 = 1.96


def rotation(transitions: Transition | Sequence[Transition]) -> go.Figure:
    """The turn at each step with its pointwise 95 % interval, the null (20° or less), and each estimate's interval.

    Where the path turns less than its steady curvature would, 0 is drawn; pointing at it tells the number.

    Args:
        transitions: one rotation, or several of one part of one path in the order of their steps.

    Returns:
        The figure.
    """
    turns = [transitions] if isinstance(transitions, Transition) else list(transitions)
    if not turns or any(t.signal != "rotation" or t.of != turns[0].of for t in turns):
        raise InputError(f"expected rotations of one part of a path; found {[(t.signal, t.of) for t in turns]}")
    name = PART_NAME.get(turns[0].of or "", "the path")
    verdicts = "; ".join(_verdict(turn) for turn in turns)
    said = f"{verdicts}. {turns[0].reason}"
    if turns[0].step is not None:
        said += " The step is the middle of the ramp fitted to the heading, not the top of the curve."
    figure = new_figure(f"Turns of {name}", said, 300)
    draw_rotation(figure, turns)
    figure.update_xaxes(title_text=STEP)
    return figure


def _verdict(turn: Transition) -> str:
    where = f" at step {turn.step:.0f} ({span(turn.interval, turn.level)})" if turn.step is not None else ""
    return f"{turn.verdict}{where}"


def draw_rotation(
    figure: go.Figure, turns: Sequence[Transition], row: int | None = None, col: int | None = None
) -> None:
    """The same into a panel of a figure."""
    where, evidence = place(row, col), turns[0].evidence
    figure.update_yaxes(title_text="Turn beyond steady<br>curvature (degrees)", **where)
    if not np.isfinite(evidence.get("turn_deg", np.nan)).any():
        figure.update_yaxes(range=[0, 120], **where)
        figure.update_xaxes(showticklabels=False, **where)
        note(figure, turns[0].reason, where)
        return
    colour = PART_COLOUR.get(turns[0].of or "", INK)
    step, turn, error = (evidence[key] for key in ("step", "turn_deg", "error_deg"))
    reach = np.where(np.isfinite(error), NORMAL_95 * error, np.nan)
    low, high = np.clip(turn - reach, 0, 180), np.clip(turn + reach, 0, 180)
    hover = "step %{x}<br>turn %{customdata[0]:.0f}° ± %{customdata[1]:.0f}°<extra></extra>"
    line = go.Scatter(x=step, y=np.maximum(turn, 0), customdata=np.stack([turn, reach], 1), mode="lines")
    null = go.Scatter(x=[None], y=[None], mode="markers", name=f"null: {MIN_TURN:.0f}° or less")
    null.update(marker={"symbol": "square", "size": 11, "color": fade(MUTED, 0.3)})
    figure.add_trace(ribbon(step, low, high, colour, "95% interval"), **where)
    figure.add_trace(line.update(name="turn", line_color=colour, hovertemplate=hover), **where)
    figure.add_trace(null, **where)
    figure.add_hrect(0, MIN_TURN, fillcolor=fade(MUTED, 0.18), line_width=0, layer="below", **where)
    for number, found in enumerate(turns):
        angle = "" if found.angle_deg is None else f"<br>{found.angle_deg:.0f}° in all"
        at = "" if found.step is None else f"step {found.step:.0f}"
        mark_step(figure, found, colour, at + angle, where, under=number)
    top = float(np.nanmax(np.maximum(turn, 0), initial=50)) * 1.25
    figure.update_yaxes(range=[0, min(top, 185)], **where)
    figure.update_xaxes(range=[step[0], step[-1]], **where)


# --------
# The path seen in the plane of its two largest principal components.


MARGIN = 0.12  # of the path's size, around it
LABEL = np.array([0.1, 0.025])  # half the width and height of a label, in the path's size
NO_EVIDENCE = "A bend and a large share of variance in this plane are no evidence of a turn: any smooth path has both."


def pca(
    trajectory: AdapterTrajectory, of: Matrix = "B", site: str | None = None, transitions: Sequence[Transition] = ()
) -> go.Figure:
    """The path of B, A or ΔW in two components, coloured by step.

    Both axes have one scale, so that angles are what they look like in this plane. See `principal_components` for
    what such a picture cannot show.

    Args:
        trajectory: the path.
        of: the part of the adapter: B, A or delta.
        site: one adapted module; by default all together.
        transitions: the rotations of this part among them are marked.

    Returns:
        The figure.
    """
    figure = new_figure(f"Path of {PART_NAME[of]} in two components", f"{about(trajectory, site)}. {NO_EVIDENCE}", 420)
    draw_path(figure, trajectory, of, site, transitions)
    return figure


def draw_path(
    figure: go.Figure,
    trajectory: AdapterTrajectory,
    of: Matrix = "B",
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


# --------
# How large the adapter is along the run: the norms of B, A and ΔW.


PARTS: tuple[Matrix, ...] = ("B", "A", "delta")


def norms(trajectory: AdapterTrajectory, site: str | None = None) -> go.Figure:
    """‖B‖, ‖A‖ and ‖ΔW‖ by step, each on its own axis.

    Args:
        trajectory: the path.
        site: one adapted module; by default all together.

    Returns:
        The figure.
    """
    figure = new_figure(
        "Size of the adapter", about(trajectory, site), 380, rows=3, shared_xaxes=True, vertical_spacing=0.1
    )
    for row, of in enumerate(PARTS, 1):
        draw_norm(figure, trajectory, of, site, row, 1)
    figure.update_xaxes(title_text=STEP, row=3)
    return figure


def draw_norm(
    figure: go.Figure,
    trajectory: AdapterTrajectory,
    of: Matrix,
    site: str | None = None,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """One norm into a panel of a figure."""
    name = f"‖{PART_NAME[of]}‖"
    norm = geometry.norms(trajectory.gram(of, site))
    hover = f"step %{{x}}<br>{name} = %{{y:.4g}}<extra></extra>"
    line = go.Scatter(x=trajectory.steps, y=norm, mode="lines", line_color=PART_COLOUR[of], hovertemplate=hover)
    figure.add_trace(line.update(name=name, showlegend=False), **place(row, col))
    figure.update_yaxes(title_text=f"{name}<br>(weight units)", rangemode="tozero", nticks=5, **place(row, col))


def about(trajectory: AdapterTrajectory, site: str | None = None) -> str:
    """Whose path it is, for a subtitle: base, site and steps."""
    sites = site or (trajectory.sites[0] if len(trajectory.sites) == 1 else f"{len(trajectory.sites)} sites together")
    steps = f"{len(trajectory.steps)} saved steps, {trajectory.steps[0]} to {trajectory.steps[-1]}"
    return " · ".join(part for part in (trajectory.base, sites, steps) if part)


# --------
# Turning angles at several spacings, as they are published, beside what a path that nowhere turns would show.


SPACINGS = (5, 10, 20)  # training steps; 2506.11613 uses 5, 10 and 15
COLOURS = ("#9ecae1", "#4292c6", "#08306b")
DASHES = ("dot", "dash", "solid")
EXPLAINED = (
    "Lines: angle between the moves k steps before and after. Bands of the same colours: where 95% of the angles of a "
    "straight path with this run's speed and noise would lie."
)


def turning_angle(
    trajectory: AdapterTrajectory,
    of: Matrix = "B",
    site: str | None = None,
    transitions: Sequence[Transition] = (),
    planted: Mapping[float, str] | None = None,
) -> go.Figure:
    """Turning angles at 5, 10 and 20 steps where saved, each with its null band; above them the rotation's own test.

    Args:
        trajectory: the path.
        of: the part of the adapter: B, A or delta.
        site: one adapted module; by default all together.
        transitions: where rotations of this part are among them, the upper panel shows their test.
        planted: what is known to have happened, by step.

    Returns:
        The figure.
    """
    turns = [t for t in transitions if t.signal == "rotation" and t.of == of]
    title, rows = f"Turning of {PART_NAME[of]}", 2 if turns else 1
    subtitle = f"{about(trajectory, site)}. {EXPLAINED}"
    figure = new_figure(
        title,
        subtitle,
        290 + 210 * (rows - 1),
        rows=rows,
        shared_xaxes=True,
        vertical_spacing=0.1,
    )
    if turns:
        draw_rotation(figure, turns, 1, 1)
    draw_turning(figure, trajectory, of, site, rows, 1)
    for row in range(1, rows + 1):
        mark_planted(figure, planted or {}, place(row, 1), label=row == 1)
    for turn in turns:
        mark_step(figure, turn, PART_COLOUR[of], where=place(rows, 1))
    figure.update_xaxes(title_text=STEP, row=rows)
    return figure


def draw_turning(
    figure: go.Figure,
    trajectory: AdapterTrajectory,
    of: Matrix = "B",
    site: str | None = None,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """Turning angles with their null bands into a panel of a figure."""
    where, gram = place(row, col), trajectory.gram(of, site)
    drawn = 0
    for k, colour, dash in zip(SPACINGS, COLOURS, DASHES, strict=True):
        angle = geometry.turning_angle(gram, trajectory.steps, k)
        if np.isnan(angle).all():
            continue
        drawn += 1
        low, high = straight_angles(gram, trajectory.steps, k)
        figure.add_trace(ribbon(trajectory.steps, low, high, colour, f"null, k = {k}", showlegend=False), **where)
        hover = f"step %{{x}}<br>%{{y:.0f}}° at k = {k}<extra></extra>"
        line = {"color": colour, "width": 1.6, "dash": dash}
        trace = go.Scatter(x=trajectory.steps, y=angle, mode="lines", line=line, hovertemplate=hover, connectgaps=False)
        figure.add_trace(trace.update(name=f"k = {k} steps"), **where)
    if not drawn:
        note(figure, f"No steps were saved {', '.join(map(str, SPACINGS))} steps apart.", where)
    figure.update_yaxes(title_text="Turning angle<br>(degrees)", rangemode="tozero", **where)


# --------
# A whole path at a glance: norms, the path in two components, and turning angles.


def trajectory(trajectory: AdapterTrajectory, of: Matrix = "B", site: str | None = None) -> go.Figure:
    """Norms of B, A and ΔW; the path in two components, coloured by step; its turning angles with their nulls.

    For each panel alone see `norms`, `pca` and `turning_angle`.

    Args:
        trajectory: the path.
        of: the part of the adapter: B, A or delta.
        site: one adapted module; by default all together.

    Returns:
        The figure.
    """
    figure = new_figure(
        "Path of the adapter",
        about(trajectory, site),
        800,
        least_width=560,
        rows=3,
        cols=3,
        specs=[[{}, {}, {}], [{"colspan": 3}, None, None], [{"colspan": 3}, None, None]],
        row_heights=[0.24, 0.42, 0.34],
        vertical_spacing=0.13,
        horizontal_spacing=0.13,
        subplot_titles=["", "", "", f"Path of {PART_NAME[of]}", f"Turning of {PART_NAME[of]}"],
    )
    for column, part in enumerate(PARTS, 1):
        draw_norm(figure, trajectory, part, site, 1, column)
    draw_path(figure, trajectory, of, site, row=2, col=1)
    draw_turning(figure, trajectory, of, site, row=3, col=1)
    figure.update_xaxes(title_text=STEP, row=1)
    figure.update_xaxes(title_text=STEP, row=3)
    return figure
