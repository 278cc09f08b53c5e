"""Turning angles at several spacings, as they are published, beside what a path that nowhere turns would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.norms import about
from em_interp.figures.rotation import draw_rotation
from em_interp.figures.template import (
    PART_COLOUR,
    PART_NAME,
    STEP,
    mark_planted,
    mark_step,
    new_figure,
    note,
    place,
    ribbon,
)
from em_interp.trajectory import geometry
from em_interp.trajectory.adapter import AdapterTrajectory, Part
from em_interp.transition.result import Transition
from em_interp.transition.straight import straight_angles

SPACINGS = (5, 10, 20)  # training steps; 2506.11613 uses 5, 10 and 15
COLOURS = ("#9ecae1", "#4292c6", "#08306b")
DASHES = ("dot", "dash", "solid")
EXPLAINED = (
    "Lines: angle between the moves k steps before and after. Bands of the same colours: where 95% of the angles of a "
    "straight path with this run's speed and noise would lie."
)


def plot_turning(
    trajectory: AdapterTrajectory,
    of: Part = "B",
    site: str | None = None,
    transitions: Sequence[Transition] = (),
    planted: Mapping[float, str] | None = None,
) -> go.Figure:
    """Turning angles at 5, 10 and 20 steps where saved, each with its null band; above them the rotation's own test.

    The upper panel is there where `transitions` holds rotations of this part. `planted` says what is known to have
    happened at a step.
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
    of: Part = "B",
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
