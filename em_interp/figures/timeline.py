"""Everything on one time axis: the log, the behaviour, and every transition with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.onset import colour_of
from em_interp.figures.template import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PART_COLOUR,
    STEP,
    mark_planted,
    new_figure,
)
from em_interp.figures.words import name_of, offset_of, result_of, said
from em_interp.transition.align import Offset
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    from em_interp.trajectory.adapter import AdapterTrajectory

LANE = 42  # pixels


@dataclass(frozen=True)
class _Lane:
    """One line of the chart: the transitions of one signal."""

    name: str
    colour: str
    transitions: tuple[Transition, ...]
    offset: Offset | None = None


def plot_timeline(
    transitions: Sequence[Transition],
    trajectory: AdapterTrajectory | None = None,
    mechanistic: Transition | None = None,
    offsets: Mapping[int, Offset] | None = None,
    planted: Mapping[float, str] | None = None,
    title: str = "Everything on one time axis",
) -> go.Figure:
    """A lane for each signal with its steps and intervals; above, the log and the behaviour where they are known.

    `offsets` (by index in `transitions`) are drawn as arrows from the step of `mechanistic`. `planted` says what is
    known to have happened at a step. The second axis, above, is the cumulative learning
    rate, where `trajectory` has it.
    """
    lanes = _lanes(transitions, offsets or {})
    curves = [t for t in transitions if t.signal == "onset" and t.scale in (None, 1) and "rate" in t.evidence]
    logged = trajectory is not None and bool({"loss", "grad_norm"} & set(trajectory.metrics))
    rows = ["log"] * logged + ["behaviour"] * bool(curves) + ["lanes"]
    heights = {"log": 90, "behaviour": 150, "lanes": LANE * len(lanes) + 16}
    figure = new_figure(
        title,
        "",
        80 + sum(heights[row] for row in rows),
        headroom=52 * (trajectory is not None),
        rows=len(rows),
        shared_xaxes=True,
        row_heights=[heights[row] for row in rows],
        vertical_spacing=0.03,
        specs=[[{"secondary_y": row == "log"}] for row in rows],
    )
    for number, row in enumerate(rows, 1):
        if row == "log" and trajectory is not None:
            _draw_log(figure, trajectory, number)
        elif row == "behaviour":
            _draw_behaviour(figure, curves, number)
        else:
            _draw_lanes(figure, lanes, mechanistic, number)
        mark_planted(figure, dict(planted or {}), label=number == 1, row=number, col=1)
    _span_axes(figure, transitions, trajectory, len(rows))
    return figure


def _lanes(transitions: Sequence[Transition], offsets: Mapping[int, Offset]) -> list[_Lane]:
    """Transitions of one signal and part share a lane; each onset has its own."""
    grouped: dict[str, list[int]] = {}
    for index, transition in enumerate(transitions):
        grouped.setdefault(name_of(transition), []).append(index)
    lanes = []
    for name, indices in grouped.items():
        members = tuple(transitions[index] for index in indices)
        first = members[0]
        colour = colour_of(first) if first.signal == "onset" else PART_COLOUR.get(first.of or "", MUTED)
        lanes.append(_Lane(name, colour, members, next((offsets[i] for i in indices if i in offsets), None)))
    return lanes


def _draw_lanes(figure: go.Figure, lanes: Sequence[_Lane], mechanistic: Transition | None, row: int) -> None:
    where = {"row": row, "col": 1}
    if mechanistic is not None and mechanistic.step is not None:
        colour = PART_COLOUR.get(mechanistic.of or "", INK)
        figure.add_vline(mechanistic.step, line={"color": colour, "width": 1, "dash": "dot"}, **where)
    for height, lane in enumerate(reversed(lanes)):
        figure.add_hline(height, line={"color": GRID, "width": 1}, layer="below", **where)
        _draw_marks(figure, lane, height, where)
        if lane.offset is not None and mechanistic is not None:
            _draw_arrow(figure, lane, mechanistic, height, where)
        later = "" if lane.offset is None else f"; {offset_of(lane.offset)}"
        text = f"<b>{escape(lane.name)}</b>: {escape('; '.join(map(result_of, lane.transitions)))}{later}"
        style = {"xref": "x domain", "x": 0.005, "xanchor": "left", "yanchor": "bottom", "yshift": 7, "font_size": 12}
        figure.add_annotation(text=text, y=height, showarrow=False, font_color=lane.colour, **style, **where)
    figure.update_yaxes(range=[-0.4, len(lanes) - 0.25], showticklabels=False, ticks="", showgrid=False, **where)


def _draw_marks(figure: go.Figure, lane: _Lane, height: float, where: dict[str, int]) -> None:
    there = [t for t in lane.transitions if t.step is not None]
    step = np.array([t.step for t in there])
    low, high = np.array([t.interval or (t.step, t.step) for t in there]).reshape(-1, 2).T
    bars = {
        "array": high - step,
        "arrayminus": step - low,
        "symmetric": False,
        "thickness": 5,
        "width": 0,
    }
    symbols = ["circle" if t.found else "circle-open" for t in there]
    marks = go.Scatter(x=step, y=[height] * len(there), mode="markers", error_x=bars)
    marks.update(marker={"color": lane.colour, "size": 11, "symbol": symbols}, name=lane.name, showlegend=False)
    marks.update(
        customdata=[[result_of(t), t.reason] for t in there], hovertemplate="%{customdata[0]}<br>%{customdata[1]}"
    )
    figure.add_trace(marks, **where)


def _draw_arrow(figure: go.Figure, lane: _Lane, mechanistic: Transition, height: float, where: dict[str, int]) -> None:
    ends = {"x": lane.transitions[0].step, "ax": mechanistic.step, "y": height, "ay": height}
    axis = figure.get_subplot(row=where["row"], col=where["col"])
    names = [getattr(axis, side).plotly_name.replace("axis", "") for side in ("xaxis", "yaxis")]
    refs = {"xref": names[0], "axref": names[0], "yref": names[1], "ayref": names[1]}
    style = {"showarrow": True, "arrowhead": 2, "arrowwidth": 1.4, "arrowcolor": lane.colour, "standoff": 6}
    figure.add_annotation(text="", **ends, **refs, **style)


def _draw_behaviour(figure: go.Figure, curves: Sequence[Transition], row: int) -> None:
    for curve in curves:
        seen, colour = curve.evidence, colour_of(curve)
        name = said(curve.questions or "this run")
        points = {"x": seen["steps"], "y": 100 * seen["rate"], "customdata": seen["answers"]}
        hover = f"step %{{x}}<br>{escape(name)}: %{{y:.1f}} % of %{{customdata}} answers<extra></extra>"
        trace = go.Scatter(**points, mode="lines+markers", name=name, hovertemplate=hover)
        trace.update(line={"color": colour, "width": 1.6}, marker_size=4)
        figure.add_trace(trace, row=row, col=1)
    figure.update_yaxes(title_text="EM rate (%)", rangemode="tozero", nticks=5, row=row, col=1)


def _draw_log(figure: go.Figure, trajectory: AdapterTrajectory, row: int) -> None:
    for column, dash, title in (("grad_norm", "solid", "Gradient norm"), ("loss", "dot", "Loss (nats)")):
        if column not in trajectory.metrics:
            continue
        logged, right = trajectory.metrics[column].dropna(), column == "loss"
        line = go.Scatter(x=logged.index, y=logged, mode="lines", name=title.lower().removesuffix(" (nats)"))
        line.update(line={"color": FAINT, "width": 1.2, "dash": dash}, hovertemplate="step %{x}: %{y:.4g}")
        figure.add_trace(line, row=row, col=1, secondary_y=right)
        style = {
            "showgrid": False,
            "rangemode": "tozero",
            "nticks": 4,
            "tickmode": "auto",
            "tickfont_color": MUTED,
            "title_font_size": 12,
        }
        figure.update_yaxes(title_text=title, row=row, col=1, secondary_y=right, **style)


def _span_axes(
    figure: go.Figure, transitions: Sequence[Transition], trajectory: AdapterTrajectory | None, last_row: int
) -> None:
    """One range of steps for all rows, named once; the cumulative learning rate above where it is known."""
    steps = _steps(transitions, trajectory)
    if steps is not None:
        figure.update_xaxes(range=[float(steps[0]), float(steps[-1])])
    figure.update_xaxes(title_text=STEP, row=last_row)
    if trajectory is None or not np.isfinite(trajectory.cumulative_lr).all():
        return
    learned = trajectory.cumulative_lr
    wanted = np.linspace(0, learned[-1], 6)
    at = np.interp(wanted, learned, trajectory.steps)
    name = f"xaxis{last_row + 1}"
    figure.update_layout(
        {
            name: {
                "overlaying": "x",
                "anchor": "y",
                "side": "top",
                "matches": "x",
                "tickvals": at,
                "ticktext": [f"{value:.2g}" for value in wanted],
                "title": {"text": "Cumulative learning rate (sum over steps)", "font": {"size": 12}},
                "showgrid": False,
            }
        }
    )
    figure.add_trace(go.Scatter(x=[None], y=[None], xaxis=name.replace("axis", ""), yaxis="y", showlegend=False))


def _steps(transitions: Sequence[Transition], trajectory: AdapterTrajectory | None) -> np.ndarray | None:
    """The steps looked at, as far as they are known."""
    if trajectory is not None:
        return trajectory.steps
    seen = [t.evidence[key] for t in transitions for key in ("steps", "step") if len(t.evidence.get(key, ()))]
    return np.unique(np.concatenate(seen)) if seen else None
