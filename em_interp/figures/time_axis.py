"""Lanes of a time axis: one line for each signal, with its steps, their intervals, and the result in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.signals import colour_of, rate_intervals
from em_interp.figures.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PART_COLOUR,
    STEP,
    em_range,
    fade,
    mark_planted,
    name_of,
    new_figure,
    offset_of,
    place,
    result_of,
    ribbon,
    said,
)
from em_interp.transition.align import Alignment, Offset
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    from em_interp.trajectory.trajectory import AdapterTrajectory

UNDER = 0.24  # of a lane: how far below the marks the arrow of an offset lies


@dataclass(frozen=True)
class Lane:
    """One line of the chart. A lane without transitions only says something."""

    name: str
    result: str
    colour: str
    transitions: tuple[Transition, ...] = ()
    offset: Offset | None = None


def make_lanes(
    transitions: Sequence[Transition], offsets: Mapping[int, Offset], planted: Mapping[float, str]
) -> list[Lane]:
    """First what is known, then a lane for each signal and part, and for each onset."""
    grouped: dict[str, list[int]] = {}
    for index, transition in enumerate(transitions):
        grouped.setdefault(name_of(transition), []).append(index)
    lanes = [Lane("known change (dashed)", f"step {step:.0f}, {what}", INK) for step, what in planted.items()]
    for name, indices in grouped.items():
        members = tuple(sorted((transitions[i] for i in indices), key=lambda t: np.inf if t.step is None else t.step))
        offset = next((offsets[index] for index in indices if index in offsets), None)
        later = "" if offset is None else f"; {offset_of(offset)}"
        lanes.append(Lane(name, "; ".join(map(result_of, members)) + later, _colour(members[0]), members, offset))
    return lanes


def _colour(transition: Transition) -> str:
    if transition.signal == "onset":
        return colour_of(transition)
    return PART_COLOUR.get(transition.of or "", MUTED)


def draw_lanes(figure: go.Figure, lanes: Sequence[Lane], mechanistic: Transition | None, where: dict[str, int]) -> None:
    """The lanes into a panel of a figure, the first on top; arrows lead from the step of `mechanistic`."""
    for height, lane in enumerate(reversed(lanes)):
        _draw_marks(figure, lane, height, where)
        figure.add_hline(height, line={"color": GRID, "width": 1}, layer="below", **where)
        text = f"<b>{escape(lane.name)}</b>: {escape(lane.result)}"
        style = {"xref": "x domain", "x": 0.005, "xanchor": "left", "yanchor": "bottom", "yshift": 7, "font_size": 12}
        style |= {"bgcolor": fade("#ffffff", 0.75), "borderpad": 0, "showarrow": False}
        figure.add_annotation(text=text, y=height, **style, **where)
        if lane.offset is not None and mechanistic is not None:
            _draw_arrow(figure, lane, mechanistic, height - UNDER, where)
    if mechanistic is not None and mechanistic.step is not None:
        line = {"color": PART_COLOUR.get(mechanistic.of or "", INK), "width": 1, "dash": "dot"}
        figure.add_vline(mechanistic.step, line=line, layer="below", **where)
    figure.update_yaxes(range=[-0.5, len(lanes) - 0.25], showticklabels=False, ticks="", showgrid=False, **where)


def _draw_marks(figure: go.Figure, lane: Lane, height: float, where: dict[str, int]) -> None:
    there = [t for t in lane.transitions if t.step is not None]
    step = np.array([t.step for t in there], float)
    low, high = np.array([t.interval or (t.step, t.step) for t in there], float).reshape(-1, 2).T
    bars = {"array": high - step, "arrayminus": step - low, "symmetric": False, "thickness": 5, "width": 0}
    symbols = ["circle" if t.found else "circle-open" for t in there]
    marks = go.Scatter(x=step, y=[height] * len(there), mode="markers", error_x=bars, cliponaxis=False)
    marks.update(marker={"color": lane.colour, "size": 11, "symbol": symbols}, name=escape(lane.name), showlegend=False)
    said = [[escape(result_of(t)), escape(t.reason)] for t in there]
    figure.add_trace(marks.update(customdata=said, hovertemplate="%{customdata[0]}<br>%{customdata[1]}"), **where)


def _draw_arrow(figure: go.Figure, lane: Lane, mechanistic: Transition, height: float, where: dict[str, int]) -> None:
    panel = figure.get_subplot(**where)
    x, y = (axis.plotly_name.replace("axis", "") for axis in (panel.xaxis, panel.yaxis))
    ends = {"x": lane.transitions[0].step, "ax": mechanistic.step, "y": height, "ay": height}
    style = {"showarrow": True, "arrowhead": 2, "arrowsize": 0.9, "arrowwidth": 1.2, "arrowcolor": lane.colour}
    figure.add_annotation(text="", **ends, xref=x, axref=x, yref=y, ayref=y, **style)


# --------
# Everything on one time axis: the log, the behaviour, and every transition with its interval.


HEIGHTS = {"log": 110, "behaviour": 150}  # pixels
LANE = 42
LOGGED = (
    ("grad_norm", "Gradient norm<br>(nats a weight unit)", "solid"),
    ("loss", "Loss<br>(nats a token)", "dot"),
)


def timeline(
    transitions: Sequence[Transition],
    trajectory: AdapterTrajectory | None = None,
    mechanistic: Transition | None = None,
    offsets: Mapping[int, Offset] | None = None,
    planted: Mapping[float, str] | None = None,
    subtitle: str = "",
) -> go.Figure:
    """A lane for each signal with its steps and intervals; above, the log and the behaviour where they are known.

    Args:
        transitions: of any signals.
        trajectory: adds the log, and cumulative learning rate as a second axis.
        mechanistic: the one whose interval is shaded in every panel.
        offsets: by index in `transitions`; drawn as arrows from the step of `mechanistic`.
        planted: what is known to have happened, by step.
        subtitle: of the figure.

    Returns:
        The figure.
    """
    lanes = make_lanes(transitions, offsets or {}, planted or {})
    curves = _curves(transitions)
    logged = trajectory is not None and any(name in trajectory.metrics for name, _, _ in LOGGED)
    rows = ["log"] * logged + ["behaviour"] * bool(curves) + ["lanes"]
    heights = [HEIGHTS.get(row, LANE * len(lanes) + 20) for row in rows]
    learned = None if trajectory is None else _learned(trajectory)
    figure = new_figure(
        "Adapter and behaviour on one time axis" if curves else "Transitions on one time axis",
        subtitle,
        height=80 + sum(heights),
        headroom=0 if learned is None else 52,
        least_width=560,
        rows=len(rows),
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=0.03,
        specs=[[{"secondary_y": row == "log"}] for row in rows],
    )
    for number, row in enumerate(rows, 1):
        if row == "log" and trajectory is not None:
            _draw_log(figure, trajectory, number)
        elif row == "behaviour":
            _draw_behaviour(figure, curves, number)
        else:
            draw_lanes(figure, lanes, mechanistic, place(number, 1))
        mark_planted(figure, planted or {}, place(number, 1))
        if mechanistic is not None and mechanistic.interval is not None:
            colour = fade(PART_COLOUR.get(mechanistic.of or "", INK), 0.15)
            figure.add_vrect(*mechanistic.interval, fillcolor=colour, line_width=0, layer="below", **place(number, 1))
    _span_axes(figure, _ends(transitions, trajectory), len(rows))
    if learned is not None:
        _add_learned(figure, *learned, number=len(rows) + 1)
    return figure


def _curves(transitions: Sequence[Transition]) -> list[Transition]:
    """The onsets with the rates behind them, at the adapter's own scale or the nearest to it."""
    curves = [t for t in transitions if t.signal == "onset" and len(t.evidence.get("rate", ()))]
    scales = [1.0 if t.scale is None else t.scale for t in curves]
    own = min(scales, key=lambda scale: abs(scale - 1), default=1.0)
    return [curve for curve, scale in zip(curves, scales, strict=True) if scale == own]


def _draw_log(figure: go.Figure, trajectory: AdapterTrajectory, row: int) -> None:
    for column, title, dash in LOGGED:
        if column not in trajectory.metrics:
            continue
        logged, name = trajectory.metrics[column].dropna(), said(column).replace("grad ", "gradient ")
        line = go.Scatter(x=logged.index, y=logged, mode="lines", line={"color": FAINT, "width": 1.2, "dash": dash})
        line.update(name=name, hovertemplate=f"step %{{x}}: {name} %{{y:.4g}}<extra></extra>")
        figure.add_trace(line, row=row, col=1, secondary_y=column == "loss")
        style: dict[str, Any] = {"showgrid": False, "rangemode": "tozero", "nticks": 4, "tickmode": "auto"}
        style |= {"tickfont_color": MUTED, "title_font_size": 12}
        figure.update_yaxes(title_text=title, row=row, col=1, secondary_y=column == "loss", **style)


def _draw_behaviour(figure: go.Figure, curves: Sequence[Transition], row: int) -> None:
    for curve in curves:
        seen, colour = curve.evidence, colour_of(curve)
        name = escape(said(curve.questions or "this run"))
        points = {"x": seen["steps"], "y": 100 * seen["rate"], "customdata": seen["answers"]}
        hover = f"step %{{x}}<br>{name}: %{{y:.1f}}% of %{{customdata}} answers<extra></extra>"
        low, high = 100 * rate_intervals(seen["rate"], seen["answers"]).T
        band = ribbon(seen["steps"], low, high, colour, "95% interval", showlegend=False, legendgroup=name)
        figure.add_trace(band, row=row, col=1)
        trace = go.Scatter(**points, mode="lines+markers", name=name, hovertemplate=hover, cliponaxis=False)
        trace.update(legendgroup=name)
        figure.add_trace(trace.update(line={"color": colour, "width": 1.6}, marker_size=4), row=row, col=1)
    rates = np.concatenate([curve.evidence["rate"] for curve in curves])
    figure.update_yaxes(title_text="EM rate (%)", range=em_range(100 * rates), nticks=5, row=row, col=1)


def _ends(transitions: Sequence[Transition], trajectory: AdapterTrajectory | None) -> tuple[float, float] | None:
    """The first and the last step looked at, as far as they are known."""
    if trajectory is not None:
        return float(trajectory.steps[0]), float(trajectory.steps[-1])
    seen = [t.evidence[key] for t in transitions for key in ("steps", "step") if len(t.evidence.get(key, ()))]
    return (float(min(map(np.min, seen))), float(max(map(np.max, seen)))) if seen else None


def _span_axes(figure: go.Figure, ends: tuple[float, float] | None, rows: int) -> None:
    if ends is not None:
        figure.update_xaxes(range=list(ends))
    figure.update_xaxes(title_text=STEP, row=rows)


def _learned(trajectory: AdapterTrajectory) -> tuple[np.ndarray, np.ndarray] | None:
    """Saved steps and their cumulative learning rate, where it is known and grows."""
    known = np.isfinite(trajectory.cumulative_lr)
    learned = trajectory.cumulative_lr[known]
    return (trajectory.steps[known], learned) if len(learned) and learned[-1] > 0 else None


def _add_learned(figure: go.Figure, steps: np.ndarray, learned: np.ndarray, number: int) -> None:
    """The axis of cumulative learning rate above the first panel: even amounts of it, at the steps they are reached."""
    amounts = np.linspace(0, learned[-1], 6)
    axis = {
        "overlaying": "x",
        "anchor": "y",
        "side": "top",
        "matches": figure.layout.xaxis.matches or "x",
        "range": figure.layout.xaxis.range,
        "tickvals": np.interp(amounts, learned, steps),
        "ticktext": [f"{amount:.2g}" for amount in amounts],
        "title": {"text": "Cumulative learning rate (sum over steps)", "font": {"size": 12}},
        "showgrid": False,
    }
    figure.update_layout({f"xaxis{number}": axis})
    figure.add_trace(go.Scatter(x=[None], y=[None], xaxis=f"x{number}", yaxis="y", showlegend=False))


# --------
# The mechanistic and the behavioural transitions on one time axis, with their offsets.


def alignment(
    alignment: Alignment,
    trajectory: AdapterTrajectory | None = None,
    others: Sequence[Transition] = (),
    planted: Mapping[float, str] | None = None,
) -> go.Figure:
    """The transitions of an alignment, each with its interval, and their offsets as arrows.

    Args:
        alignment: what `em_interp.align` found.
        trajectory: adds the log and the axis of cumulative learning rate.
        others: transitions to show as well, such as other rotations.
        planted: what is known to have happened, by step.

    Returns:
        The figure.
    """
    beside = [t for t in others if t != alignment.mechanistic]
    transitions = [alignment.mechanistic, *beside, *alignment.behavioural]
    first = 1 + len(beside)
    offsets = {first + offset.behavioural: offset for offset in alignment.offsets}
    subtitle = f"{alignment.words[0].upper()}{alignment.words[1:]}."
    return timeline(transitions, trajectory, alignment.mechanistic, offsets, planted, subtitle)
