"""The onset of a behavioural metric: its value by step, the fitted rise, the control, and the step half-way."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from em_interp.behaviour.rates import rate_of
from em_interp.figures.template import (
    FAINT,
    MUTED,
    QUESTIONS_COLOUR,
    STEP,
    VERMILLION,
    mark_step,
    new_figure,
    note,
    place,
)
from em_interp.figures.words import said, step_label
from em_interp.transition.onset import NAMES
from em_interp.transition.result import Transition


def plot_onset(transition: Transition) -> go.Figure:
    """The metric by step with intervals, the fit, the control's (or, without one, the level of the first step)."""
    asked = "" if transition.questions is None else f", {said(transition.questions)} questions"
    scale = "" if transition.scale in (None, 1) else f", adapter ×{transition.scale:g}"
    title = f"Onset of the {NAMES.get(transition.of or '', 'metric')}{asked}{scale}"
    figure = new_figure(title, f"{transition.verdict}: {transition.reason}")
    figure.update_xaxes(title_text=STEP)
    figure.update_yaxes(title_text=axis_of(transition.of), range=[-2, 102])
    draw_onset(figure, transition)
    if transition.step is not None:
        mark_step(figure, transition, colour_of(transition), step_label(transition))
    return figure


def axis_of(metric: str | None) -> str:
    """The title of the metric's axis, with its unit."""
    if metric is not None and metric.endswith("_mean"):
        return f"{NAMES[metric].capitalize()} (0–100)"
    name = NAMES.get(metric or "", "rate")
    return f"{name[0].upper()}{name[1:]} (% of scored answers)"


def colour_of(transition: Transition) -> str:
    """The colour of the transition's question set."""
    return QUESTIONS_COLOUR.get(transition.questions or "", VERMILLION)


def draw_onset(figure: go.Figure, transition: Transition, row: int | None = None, col: int | None = None) -> None:
    """Values, fit and control into a panel of a figure; in per cent or points of 100."""
    seen, where, colour = transition.evidence, place(row, col), colour_of(transition)
    if not len(seen.get("steps", ())):
        note(figure, transition.reason)
        return
    if "control_rate" in seen:
        control = {"x": seen["control_steps"], "y": 100 * seen["control_rate"], "mode": "lines+markers"}
        style = {"line": {"color": FAINT, "width": 1}, "marker": {"color": MUTED, "size": 4}, "name": "control"}
        figure.add_trace(go.Scatter(**control, **style), **where)
    elif row is None:
        figure.add_hline(100 * seen["rate"][0], line={"color": MUTED, "width": 1, "dash": "dot"})
    if "fit_steps" in seen:
        fit = go.Scatter(x=seen["fit_steps"], y=100 * seen["fit_rate"], mode="lines", line_color=colour)
        figure.add_trace(fit.update(name="fitted rise", hoverinfo="skip"), **where)
    hover = "step %{x}<br>%{y:.1f} % of %{customdata} answers<extra></extra>"
    points = go.Scatter(x=seen["steps"], y=100 * seen["rate"], mode="markers", customdata=seen["answers"])
    points.update(marker={"color": colour, "size": 6}, hovertemplate=hover, name="this run")
    if not (transition.of or "").endswith("_mean"):
        points.update(error_y=_bars(seen["rate"], seen["answers"], colour))
    figure.add_trace(points, **where)


def _bars(rate: Float[np.ndarray, " step"], answers: Float[np.ndarray, " step"], colour: str) -> dict[str, Any]:
    low, high = 100 * rate_intervals(rate, answers).T
    bars = {"array": high - 100 * rate, "arrayminus": 100 * rate - low, "symmetric": False}
    return {**bars, "color": colour, "thickness": 1, "width": 0}


def rate_intervals(
    rate: Float[np.ndarray, " step"], answers: Float[np.ndarray, " step"]
) -> Float[np.ndarray, "step 2"]:
    """95 % intervals of pooled shares: the lower and the upper end at each step."""
    pooled = (rate_of(np.array([share * n]), np.array([n])) for share, n in zip(rate, answers, strict=True))
    return np.array([one.interval for one in pooled])
