"""How far the path turns at each step beyond its own curvature, and where a turn was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from em_interp.errors import InputError
from em_interp.figures.template import (
    INK,
    MUTED,
    PART_COLOUR,
    PART_NAME,
    STEP,
    fade,
    mark_step,
    new_figure,
    note,
    place,
    ribbon,
)
from em_interp.figures.words import span
from em_interp.transition.result import Transition
from em_interp.transition.rotation import LEAST_TURN

NORMAL_95 = 1.96


def plot_rotation(transitions: Transition | Sequence[Transition]) -> go.Figure:
    """The turn at each step with its pointwise 95 % interval, the null (20° or less), and each estimate's interval.

    Where the path turns less than its steady curvature would, 0 is drawn; pointing at it tells the number.
    Several transitions must be of one part of one path: its rotations, in the order of their steps.
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
    null = go.Scatter(x=[None], y=[None], mode="markers", name=f"null: {LEAST_TURN:.0f}° or less")
    null.update(marker={"symbol": "square", "size": 11, "color": fade(MUTED, 0.3)})
    figure.add_trace(ribbon(step, low, high, colour, "95% interval"), **where)
    figure.add_trace(line.update(name="turn", line_color=colour, hovertemplate=hover), **where)
    figure.add_trace(null, **where)
    figure.add_hrect(0, LEAST_TURN, fillcolor=fade(MUTED, 0.18), line_width=0, layer="below", **where)
    for number, found in enumerate(turns):
        angle = "" if found.angle_deg is None else f"<br>{found.angle_deg:.0f}° in all"
        at = "" if found.step is None else f"step {found.step:.0f}"
        mark_step(figure, found, colour, at + angle, where, under=number)
    top = float(np.nanmax(np.maximum(turn, 0), initial=50)) * 1.25
    figure.update_yaxes(range=[0, min(top, 185)], **where)
    figure.update_xaxes(range=[step[0], step[-1]], **where)
