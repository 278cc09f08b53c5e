"""The curve of a null hypothesis that lies nearest to what was seen, for drawing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from em_interp.behaviour.rates import rate_of
from em_interp.errors import InputError
from em_interp.figures.path import about, rotation
from em_interp.figures.style import (
    FAINT,
    HEADROOM,
    INK,
    MUTED,
    PART_COLOUR,
    QUESTIONS_COLOUR,
    STEP,
    VERMILLION,
    mark_step,
    new_figure,
    note,
    place,
    said,
    step_label,
)
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.onset import METRICS
from em_interp.transition.result import Transition
from em_interp.transition.series import SKIPPED

NULL_LINE = {"color": VERMILLION, "width": 1.5, "dash": "dot"}


def falling(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The nearest curve (least squares) that never rises."""
    return np.asarray(isotonic_regression(values, increasing=False).x)


def valley(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The nearest curve (least squares) without a hump: it falls up to somewhere, and rises from there."""
    turned = [np.concatenate([falling(values[:low]), -falling(-values[low:])]) for low in range(1, len(values))]
    monotone = [falling(values), -falling(-values)]
    return min([*monotone, *turned], key=lambda curve: float(np.sum((curve - values) ** 2)))


# --------
# The hump of the logged gradient norm.


def gradient_norm(transition: Transition) -> go.Figure:
    """The log, smoothed, the part left out at the start, and the peak with its interval where one was found.

    Dotted is the nearest trend of the null, which has no hump.

    Args:
        transition: of the signal `gradient_norm`.

    Returns:
        The figure.
    """
    figure = new_figure("Gradient norm", f"{transition.verdict}. {transition.reason}")
    figure.update_xaxes(title_text=STEP)
    figure.update_yaxes(title_text="Gradient norm (nats a weight unit)", rangemode="tozero")
    seen = transition.evidence
    if "grad_norm" not in seen:
        note(figure, transition.reason)
        return figure
    hover = "step %{x}<br>gradient norm %{y:.4g}<extra></extra>"
    logged = go.Scatter(x=seen["steps"], y=seen["grad_norm"], mode="lines", line={"color": FAINT, "width": 1})
    figure.add_trace(logged.update(name="logged", hovertemplate=hover))
    first, last = float(seen["steps"][0]), float(seen["steps"][-1])
    figure.add_vrect(first, first + SKIPPED * (last - first), fillcolor=FAINT, opacity=0.2, line_width=0, layer="below")
    if "smooth" in seen:
        smooth = go.Scatter(x=seen["smooth_steps"], y=seen["smooth"], mode="lines", line={"color": INK, "width": 2})
        figure.add_trace(smooth.update(name="smoothed", hovertemplate=hover))
        null = {"x": seen["smooth_steps"], "y": valley(seen["smooth"]), "mode": "lines", "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(**null, line=NULL_LINE, name="null: no hump"))
    if transition.step is not None:
        figure.update_yaxes(range=[0, HEADROOM * float(np.nanmax(seen["grad_norm"]))])
        mark_step(figure, transition, MUTED, step_label(transition))
    return figure


# --------
# Where the norm of ΔW starts to grow faster: its growth rate per learning rate.


def norm_onset(transition: Transition) -> go.Figure:
    """The norm, and below it its growth rate, smoothed, with the estimate where a bend was found.

    Dotted is the nearest growth of the null, which never speeds up.

    Args:
        transition: of the signal `norm_onset`.

    Returns:
        The figure.
    """
    figure = new_figure(
        "Growth of ‖ΔW‖",
        f"{transition.verdict}. {transition.reason}",
        420,
        rows=2,
        shared_xaxes=True,
        vertical_spacing=0.1,
    )
    figure.update_xaxes(title_text=STEP, row=2)
    figure.update_yaxes(title_text="‖ΔW‖<br>(weight units)", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="Growth (weight units<br>a unit of learning rate)", row=2)
    seen = transition.evidence
    if "delta_norm" not in seen:
        note(figure, transition.reason)
        return figure
    hover = "step %{x:.0f}<br>%{y:.4g}<extra></extra>"
    norm = go.Scatter(x=seen["steps"], y=seen["delta_norm"], mode="lines", line_color=PART_COLOUR["delta"])
    figure.add_trace(norm.update(name="‖ΔW‖", hovertemplate=hover, showlegend=False), row=1, col=1)
    if "rate" in seen:
        rate = go.Scatter(x=seen["rate_steps"], y=seen["rate"], mode="lines", line={"color": FAINT, "width": 1})
        smooth = go.Scatter(x=seen["rate_steps"], y=seen["smooth_rate"], mode="lines", line={"color": INK, "width": 2})
        figure.add_trace(rate.update(name="growth", hovertemplate=hover), row=2, col=1)
        figure.add_trace(smooth.update(name="smoothed", hovertemplate=hover), row=2, col=1)
        null = {"x": seen["rate_steps"], "y": falling(seen["smooth_rate"]), "mode": "lines", "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(**null, line=NULL_LINE, name="null: growth that never speeds up"), row=2, col=1)
    if transition.step is not None:
        mark_step(figure, transition, PART_COLOUR["delta"], step_label(transition), {"row": 1, "col": 1}, rising=True)
        mark_step(figure, transition, PART_COLOUR["delta"], None, {"row": 2, "col": 1})
    return figure


# --------
# From which step on ΔW points where it ends.


def lock_in(transition: Transition) -> go.Figure:
    """The cosine of ΔW to its end by step, the threshold, and the first step from which on it stays above.

    Args:
        transition: of the signal `lock_in`.

    Returns:
        The figure.
    """
    seen, colour = transition.evidence, PART_COLOUR["delta"]
    figure = new_figure("Lock-in of ΔW", transition.reason)
    hover = "step %{x}<br>cosine %{y:.3f}<extra></extra>"
    cosine = go.Scatter(x=seen["steps"], y=seen["cos_to_final"], mode="lines", line_color=colour, hovertemplate=hover)
    figure.add_trace(cosine.update(name="cosine", showlegend=False))
    figure.add_hline(seen["threshold"], line={"color": MUTED, "width": 1, "dash": "dot"})
    label = None if transition.step is None else f"step {transition.step:.0f}<br>(descriptive, no interval)"
    mark_step(figure, transition, colour, label, rising=True)
    figure.update_xaxes(title_text=STEP)
    figure.update_yaxes(title_text="Cosine of ΔW to its end (no unit)", range=[None, 1.02])
    return figure


# --------
# From which step on several adapters write together what they write at the end.


def composition(transition: Transition) -> go.Figure:
    """The composition score with the end by step, the threshold, and the first step from which on it stays above.

    Args:
        transition: of the signal `composition`.

    Returns:
        The figure.
    """
    seen, colour = transition.evidence, PART_COLOUR["B"]
    figure = new_figure("Composition of the adapters", transition.reason)
    hover = "step %{x}<br>score %{y:.3f}<extra></extra>"
    score = go.Scatter(x=seen["steps"], y=seen["score"], mode="lines", line_color=colour, hovertemplate=hover)
    figure.add_trace(score.update(name="score", showlegend=False))
    figure.add_hline(seen["threshold"], line={"color": MUTED, "width": 1, "dash": "dot"})
    label = None if transition.step is None else f"step {transition.step:.0f}<br>(descriptive, no interval)"
    mark_step(figure, transition, colour, label)
    figure.update_xaxes(title_text=STEP)
    figure.update_yaxes(title_text="Composition score with the end (no unit)", range=[None, 1.02])
    return figure


# --------
# The onset of a behavioural metric: its value by step, the fitted rise, the control, and the step half-way.


def onset(transition: Transition) -> go.Figure:
    """The metric by step with intervals, the fit, and the control's (or, without one, the level of the first step).

    Args:
        transition: of the signal `onset`.

    Returns:
        The figure.
    """
    if transition.of == "preference":
        from em_interp.figures.preference import shift_onset

        return shift_onset(transition)
    asked = "" if transition.questions is None else f", {said(transition.questions)} questions"
    scale = "" if transition.scale in (None, 1) else f", adapter ×{transition.scale:g}"
    title = f"Onset of the {METRICS.get(transition.of or '', 'metric')}{asked}{scale}"
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
        return f"{METRICS[metric].capitalize()} (0–100)"
    name = METRICS.get(metric or "", "rate")
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


# --------
# What the trainer logged: loss, gradient norm and learning rate.


LOGGED = {
    "loss": "Loss<br>(nats a token)",
    "grad_norm": "Gradient norm<br>(nats a weight unit)",
    "learning_rate": "Learning rate<br>(a step)",
}


def training_log(trajectory: AdapterTrajectory, transitions: Sequence[Transition] = ()) -> go.Figure:
    """Loss, gradient norm and learning rate by step.

    Args:
        trajectory: a path whose run has a log.
        transitions: a gradient-norm peak among them is marked.

    Returns:
        The figure.
    """
    there = [name for name in LOGGED if name in trajectory.metrics]
    figure = new_figure(
        "Training log",
        about(trajectory),
        100 + 130 * max(len(there), 1),
        rows=max(len(there), 1),
        shared_xaxes=True,
        vertical_spacing=0.1,
    )
    if not there:
        note(figure, "This run has no log of its training.")
        figure.update_yaxes(title_text=LOGGED["loss"])
    for row, name in enumerate(there, 1):
        draw_logged(figure, trajectory, name, row, 1)
        if name == "grad_norm":
            for peak in (t for t in transitions if t.signal == "gradient_norm"):
                label = None if peak.step is None else f"peak at {peak.step:.0f}"
                mark_step(figure, peak, MUTED, label, place(row, 1))
                figure.update_yaxes(range=[0, HEADROOM * trajectory.metrics[name].max()], **place(row, 1))
    figure.update_xaxes(range=[float(trajectory.steps[0]), float(trajectory.steps[-1])])
    figure.update_xaxes(title_text=STEP, row=max(len(there), 1))
    return figure


def draw_logged(
    figure: go.Figure, trajectory: AdapterTrajectory, name: str, row: int | None = None, col: int | None = None
) -> None:
    """One column of the log into a panel of a figure; gaps where nothing was logged for a while are joined."""
    logged = trajectory.metrics[name].dropna()
    hover = f"step %{{x}}<br>{name.replace('_', ' ')} %{{y:.4g}}<extra></extra>"
    line = go.Scatter(x=logged.index, y=logged, mode="lines", line={"color": MUTED, "width": 1.3}, hovertemplate=hover)
    figure.add_trace(line.update(name=name, showlegend=False), **place(row, col))
    figure.update_yaxes(title_text=LOGGED[name], rangemode="tozero", nticks=5, **place(row, col))


# --------
# The figure of one transition: what was looked at, the null, and the estimate with its interval.


FIGURES = {
    "rotation": rotation,
    "gradient_norm": gradient_norm,
    "norm_onset": norm_onset,
    "lock_in": lock_in,
    "composition": composition,
    "onset": onset,
}


def transition(transition: Transition) -> go.Figure:
    """The figure of a transition's signal.

    Args:
        transition: of any signal.

    Returns:
        The figure.

    Raises:
        InputError: for a signal that has none.
    """
    if transition.signal not in FIGURES:
        raise InputError(f"there is no figure of the signal {transition.signal!r} (there are: {', '.join(FIGURES)})")
    return FIGURES[transition.signal](transition)
