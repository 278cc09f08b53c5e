"""Everything on one time axis: the log, the behaviour, and a lane for each transition with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.signals import onset_colour, rate_intervals
from em_interp.figures.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PART_COLOUR,
    STEP,
    em_axis_range,
    error_bars,
    fade,
    mark_known_changes,
    new_figure,
    offset_text,
    place,
    readable,
    result_text,
    ribbon,
    signal_table,
)
from em_interp.run import trained_scale
from em_interp.trajectory.load import TrajectorySource, as_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.align import Alignment, Offset
from em_interp.transition.result import Transition
from em_interp.utils.checks import as_list, checked

PANEL_HEIGHTS = {"log": 110, "behaviour": 150}  # pixels
LANE_HEIGHT = 42  # pixels
ARROW_DROP = 0.24  # of a lane: how far below its marks the arrow of an offset is
MARKS = "Bars: intervals. Hollow: no transition, or not a test."
ARROWS = " Arrows: offsets from the adapter's step (dotted)."
LOGGED = (
    ("grad_norm", "Gradient norm<br>(nats a weight unit)", "solid"),
    ("loss", "Loss<br>(nats a token)", "dot"),
)


@checked
def alignment(
    alignment: Alignment,
    path: TrajectorySource | None = None,
    transitions: Transition | Sequence[Transition] = (),
    known_changes: Mapping[float, str] | None = None,
) -> go.Figure:
    """The mechanistic and the behavioural transitions on one time axis, with their offsets as arrows.

    Args:
        alignment: the answer of `em.align`.
        path: the trajectory (or a run, folder or Hub id) whose log and cumulative learning rate are shown as well.
        transitions: more transitions to show, such as other rotations of the path.
        known_changes: what is known to have happened, by step; drawn dashed.

    Returns:
        The figure of `timeline`.
    """
    others = [t for t in as_list(transitions) if t != alignment.mechanistic]
    first = 1 + len(others)
    offsets = {first + offset.behavioural: offset for offset in alignment.offsets}
    return timeline(
        [alignment.mechanistic, *others, *alignment.behavioural],
        path,
        alignment.mechanistic,
        offsets,
        known_changes,
        f"{alignment.claim}.",
    )


@checked
def timeline(
    transitions: Transition | Sequence[Transition],
    path: TrajectorySource | None = None,
    mechanistic: Transition | None = None,
    offsets: Mapping[int, Offset] | None = None,
    known_changes: Mapping[float, str] | None = None,
    subtitle: str = "",
) -> go.Figure:
    """A lane for each signal with its steps and intervals; above, the log and the behaviour where they are known.

    Args:
        transitions: transitions of one run, of any signals.
        path: the trajectory (or a run, folder or Hub id) whose log and cumulative learning rate are shown as well.
        mechanistic: the transition that offsets start from; its interval is shaded in every panel.
        offsets: offsets by index in `transitions`, drawn as arrows.
        known_changes: what is known to have happened, by step; drawn dashed.
        subtitle: a sentence under the title.

    Returns:
        The figure; a second axis at the top is the cumulative learning rate.
    """
    trajectory, transitions = None if path is None else as_trajectory(path), as_list(transitions)
    changes, curves = known_changes or {}, _curves(transitions)
    lanes = _lanes(transitions, offsets or {}, changes)
    panels = _panels(trajectory, curves)
    heights = [PANEL_HEIGHTS.get(panel, LANE_HEIGHT * len(lanes) + 20) for panel in panels]
    learned = None if trajectory is None else _learned(trajectory)
    figure = new_figure(
        "Adapter and behaviour on one time axis" if curves else "Transitions on one time axis",
        f"{subtitle} {MARKS}{ARROWS if offsets else ''}".strip(),
        height=80 + sum(heights),
        headroom=0 if learned is None else 52,
        least_width=560,
        numbers=signal_table({}, transitions) if transitions else None,
        rows=len(panels),
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=0.03,
        specs=[[{"secondary_y": panel == "log"}] for panel in panels],
    )
    for row, panel in enumerate(panels, 1):
        if panel == "log" and trajectory is not None:
            _draw_log(figure, trajectory, row)
        elif panel == "behaviour":
            _draw_behaviour(figure, curves, row)
        else:
            _draw_lanes(figure, lanes, mechanistic, place(row, 1))
        mark_known_changes(figure, changes, place(row, 1))
        _shade_interval(figure, mechanistic, place(row, 1))
    if (ends := _step_range(transitions, trajectory)) is not None:
        figure.update_xaxes(range=list(ends))
    figure.update_xaxes(title_text=STEP, row=len(panels))
    if learned is not None:
        _add_learned_axis(figure, *learned, number=len(panels) + 1)
    return figure


def _panels(trajectory: AdapterTrajectory | None, curves: Sequence[Transition]) -> list[str]:
    """What there is to show, from the top: the log and the behaviour where they are known, then the lanes."""
    logged = trajectory is not None and any(name in trajectory.metrics for name, _, _ in LOGGED)
    return ["log"] * logged + ["behaviour"] * bool(curves) + ["lanes"]


def _shade_interval(figure: go.Figure, mechanistic: Transition | None, where: dict[str, int]) -> None:
    if mechanistic is not None and mechanistic.interval is not None:
        colour = fade(PART_COLOUR.get(mechanistic.of or "", INK), 0.15)
        figure.add_vrect(*mechanistic.interval, fillcolor=colour, line_width=0, layer="below", **where)


@dataclass(frozen=True)
class _Lane:
    """One line of the chart. A lane without transitions has words only."""

    name: str
    result: str
    colour: str
    transitions: tuple[Transition, ...] = ()
    offset: Offset | None = None


def _lanes(
    transitions: Sequence[Transition], offsets: Mapping[int, Offset], known_changes: Mapping[float, str]
) -> list[_Lane]:
    """First what is known, then a lane for each signal and part, and for each onset."""
    grouped: dict[str, list[int]] = {}
    for index, transition in enumerate(transitions):
        grouped.setdefault(transition.name, []).append(index)
    lanes = [_Lane("known change (dashed)", f"step {step:.0f}, {what}", INK) for step, what in known_changes.items()]
    for name, indices in grouped.items():
        group = tuple(sorted((transitions[i] for i in indices), key=lambda t: np.inf if t.step is None else t.step))
        offset = next((offsets[index] for index in indices if index in offsets), None)
        later = "" if offset is None else f"; {offset_text(offset)}"
        lanes.append(_Lane(name, "; ".join(map(result_text, group)) + later, _colour(group[0]), group, offset))
    return lanes


def _colour(transition: Transition) -> str:
    if transition.signal == "onset":
        return onset_colour(transition)
    return PART_COLOUR.get(transition.of or "", MUTED)


def _draw_lanes(
    figure: go.Figure, lanes: Sequence[_Lane], mechanistic: Transition | None, where: dict[str, int]
) -> None:
    """The lanes into a panel, the first on top; arrows lead from the step of `mechanistic`."""
    for height, lane in enumerate(reversed(lanes)):
        _draw_marks(figure, lane, height, where)
        ends = {"x0": 0, "x1": 1, "xref": "x domain", "y0": height, "y1": height}
        figure.add_shape(type="line", **ends, line={"color": GRID, "width": 1}, layer="below", **where)
        text = f"<b>{escape(lane.name)}</b>: {escape(lane.result)}"
        style = {"xref": "x domain", "x": 0.005, "xanchor": "left", "yanchor": "bottom", "yshift": 7, "font_size": 12}
        style |= {"bgcolor": fade("#ffffff", 0.75), "borderpad": 0, "showarrow": False}
        figure.add_annotation(text=text, y=height, **style, **where)
        if lane.offset is not None and mechanistic is not None:
            _draw_arrow(figure, lane, mechanistic, height - ARROW_DROP, where)
    if mechanistic is not None and mechanistic.step is not None:
        line = {"color": PART_COLOUR.get(mechanistic.of or "", INK), "width": 1, "dash": "dot"}
        figure.add_vline(mechanistic.step, line=line, layer="below", **where)
    figure.update_yaxes(range=[-0.5, len(lanes) - 0.25], showticklabels=False, ticks="", showgrid=False, **where)


def _draw_marks(figure: go.Figure, lane: _Lane, height: float, where: dict[str, int]) -> None:
    located = [t for t in lane.transitions if t.step is not None]
    step = np.array([t.step for t in located], float)
    low, high = np.array([t.interval or (t.step, t.step) for t in located], float).reshape(-1, 2).T
    bars = error_bars(step, low, high, thickness=5, width=0)
    symbols = ["circle" if t.found else "circle-open" for t in located]
    marks = go.Scatter(x=step, y=[height] * len(located), mode="markers", error_x=bars, cliponaxis=False)
    marks.update(marker={"color": lane.colour, "size": 11, "symbol": symbols}, name=escape(lane.name), showlegend=False)
    texts = [[escape(result_text(t)), escape(t.reason)] for t in located]
    figure.add_trace(marks.update(customdata=texts, hovertemplate="%{customdata[0]}<br>%{customdata[1]}"), **where)


def _draw_arrow(figure: go.Figure, lane: _Lane, mechanistic: Transition, height: float, where: dict[str, int]) -> None:
    panel = figure.get_subplot(**where)
    x, y = (axis.plotly_name.replace("axis", "") for axis in (panel.xaxis, panel.yaxis))
    ends = {"x": lane.transitions[0].step, "ax": mechanistic.step, "y": height, "ay": height}
    style = {"showarrow": True, "arrowhead": 2, "arrowsize": 0.9, "arrowwidth": 1.2, "arrowcolor": lane.colour}
    figure.add_annotation(text="", **ends, xref=x, axref=x, yref=y, ayref=y, **style)


def _curves(transitions: Sequence[Transition]) -> list[Transition]:
    """The onsets of EM, at the adapter's own scale or the nearest to it; other metrics have figures of their own."""
    rates = [t for t in transitions if t.signal == "onset" and t.of == "em"]
    curves = [t for t in rates if len(t.evidence.get("rate", ()))]
    scales = [1.0 if t.scale is None else t.scale for t in curves]
    own = trained_scale(scales)
    return [curve for curve, scale in zip(curves, scales, strict=True) if scale == own]


def _draw_log(figure: go.Figure, path: AdapterTrajectory, row: int) -> None:
    for column, title, dash in LOGGED:
        if column not in path.metrics:
            continue
        logged, name = path.metrics[column].dropna(), readable(column).replace("grad ", "gradient ")
        line = go.Scatter(x=logged.index, y=logged, mode="lines", line={"color": FAINT, "width": 1.2, "dash": dash})
        line.update(name=name, hovertemplate=f"step %{{x}}: {name} %{{y:.4g}}<extra></extra>")
        figure.add_trace(line, row=row, col=1, secondary_y=column == "loss")
        style: dict[str, Any] = {"showgrid": False, "rangemode": "tozero", "nticks": 4, "tickmode": "auto"}
        style |= {"tickfont_color": MUTED, "title_font_size": 12}
        figure.update_yaxes(title_text=title, row=row, col=1, secondary_y=column == "loss", **style)


def _draw_behaviour(figure: go.Figure, curves: Sequence[Transition], row: int) -> None:
    highest = []
    for curve in curves:
        seen, colour = curve.evidence, onset_colour(curve)
        name = escape(readable(curve.questions or "this run"))
        hover = f"step %{{x}}<br>{name}: %{{y:.1f}}% of %{{customdata}} answers<extra></extra>"
        low, high = 100 * rate_intervals(seen["rate"], seen["answers"]).T
        highest.append(high)
        band = ribbon(seen["steps"], low, high, colour, "95% interval", showlegend=False, legendgroup=name)
        figure.add_trace(band, row=row, col=1)
        trace = go.Scatter(x=seen["steps"], y=100 * seen["rate"], customdata=seen["answers"], mode="lines+markers")
        trace.update(name=name, legendgroup=name, hovertemplate=hover, cliponaxis=False)
        figure.add_trace(trace.update(line={"color": colour, "width": 1.6}, marker_size=4), row=row, col=1)
    axis = em_axis_range(np.concatenate(highest))
    figure.update_yaxes(title_text="EM rate (%)", range=axis, nticks=5, row=row, col=1)


def _step_range(transitions: Sequence[Transition], path: AdapterTrajectory | None) -> tuple[float, float] | None:
    """The first and the last step, as far as they are known."""
    if path is not None:
        return float(path.steps[0]), float(path.steps[-1])
    seen = [t.evidence[key] for t in transitions for key in ("steps", "step") if len(t.evidence.get(key, ()))]
    return (float(min(map(np.min, seen))), float(max(map(np.max, seen)))) if seen else None


def _learned(path: AdapterTrajectory) -> tuple[np.ndarray, np.ndarray] | None:
    """Saved steps and their cumulative learning rate, where it is known and grows."""
    known = np.isfinite(path.cumulative_lr)
    learned = path.cumulative_lr[known]
    return (path.steps[known], learned) if len(learned) and learned[-1] > 0 else None


def _add_learned_axis(figure: go.Figure, steps: np.ndarray, learned: np.ndarray, number: int) -> None:
    """The axis of cumulative learning rate above the first panel: even amounts, at the steps they are reached."""
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
