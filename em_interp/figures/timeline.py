"""Everything on one time axis: the log, the behaviour, and every transition with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.lanes import draw_lanes, make_lanes
from em_interp.figures.onset import colour_of, rate_intervals
from em_interp.figures.template import (
    FAINT,
    INK,
    MUTED,
    PART_COLOUR,
    STEP,
    em_range,
    fade,
    mark_planted,
    new_figure,
    place,
    ribbon,
)
from em_interp.figures.words import said
from em_interp.transition.align import Offset
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    from em_interp.trajectory.adapter import AdapterTrajectory

HEIGHTS = {"log": 110, "behaviour": 150}  # pixels
LANE = 42
LOGGED = (
    ("grad_norm", "Gradient norm<br>(nats a weight unit)", "solid"),
    ("loss", "Loss<br>(nats a token)", "dot"),
)


def plot_timeline(
    transitions: Sequence[Transition],
    trajectory: AdapterTrajectory | None = None,
    mechanistic: Transition | None = None,
    offsets: Mapping[int, Offset] | None = None,
    planted: Mapping[float, str] | None = None,
    subtitle: str = "",
) -> go.Figure:
    """A lane for each signal with its steps and intervals; above, the log and the behaviour where they are known.

    `offsets` (by index in `transitions`) are drawn as arrows from the step of `mechanistic`, whose interval is shaded
    in every panel. `planted` says what is known to have happened at a step. The second axis, above, is the cumulative
    learning rate, where `trajectory` has it.
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
