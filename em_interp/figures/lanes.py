"""Lanes of a time axis: one line for each signal, with its steps, their intervals, and the result in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.onset import colour_of
from em_interp.figures.template import GRID, INK, MUTED, PART_COLOUR, fade
from em_interp.figures.words import name_of, offset_of, result_of
from em_interp.transition.align import Offset
from em_interp.transition.result import Transition

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
