"""The signals of a run, each with its null, and the log of its training.

Where a figure draws a null, it is the curve of the null hypothesis that is nearest to the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from em_interp.behaviour.rates import rate_of
from em_interp.errors import InputError
from em_interp.figures.style import (
    FAINT,
    HEADROOM,
    INK,
    MUTED,
    PART_COLOUR,
    QUESTIONS_COLOUR,
    STEP,
    VERMILLION,
    error_bars,
    mark_step,
    new_figure,
    note,
    onset_curves,
    place,
    readable,
    signal_table,
    step_label,
    verdict_text,
)
from em_interp.figures.turning import about, rotation
from em_interp.trajectory.load import TrajectorySource, as_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.onsets.onset import METRICS
from em_interp.transition.result import Transition
from em_interp.transition.signals.series import SKIPPED
from em_interp.utils.checks import as_list, checked

SHADED = "Shaded at the start: not searched."
NULL_LINE = {"color": VERMILLION, "width": 1.5, "dash": "dot"}
LOGGED = {
    "loss": "Loss<br>(nats a token)",
    "grad_norm": "Gradient norm<br>(nats a weight unit)",
    "learning_rate": "Learning rate<br>(a step)",
}


@checked
def transition(transition: Transition) -> go.Figure:
    """The figure of a transition's signal: the data, the null, and the estimate with its interval.

    Args:
        transition: any answer of `find_transition`.

    Returns:
        The figure that `rotation`, `gradient_norm`, `norm_onset`, `lock_in`, `composition` or `onset` would draw.

    Raises:
        InputError: for a signal without a figure.
    """
    if transition.signal not in FIGURES:
        raise InputError(f"there is no figure of the signal {transition.signal!r} (there are: {', '.join(FIGURES)})")
    return FIGURES[transition.signal](transition)


@checked
def gradient_norm(transition: Transition) -> go.Figure:
    """The logged gradient norm, smoothed, its peak with the interval, and the nearest trend without a hump (dotted).

    Args:
        transition: the answer of `find_transition(path, "gradient_norm")`.

    Returns:
        The figure; the part left out at the start is shaded.
    """
    seen, nothing = transition.evidence, np.empty(0)
    null = _valley(seen["smooth"]) if "smooth" in seen else nothing
    curves = {
        "logged": {"step": seen.get("steps", nothing), "grad_norm": seen.get("grad_norm", nothing)},
        "smoothed": {"step": seen.get("smooth_steps", nothing), "grad_norm": seen.get("smooth", nothing), "null": null},
    }
    table = signal_table(curves, [transition])
    figure = new_figure("Gradient norm", f"{verdict_text(transition)}. {transition.reason} {SHADED}", numbers=table)
    figure.update_xaxes(title_text=STEP)
    figure.update_yaxes(title_text="Gradient norm (nats a weight unit)", rangemode="tozero")
    if "grad_norm" not in seen:
        note(figure, transition.reason)
        return figure
    hover = "step %{x}<br>gradient norm %{y:.4g}<extra></extra>"
    figure.add_trace(_line(seen["steps"], seen["grad_norm"], "logged", hover, FAINT, 1))
    first, last = float(seen["steps"][0]), float(seen["steps"][-1])
    figure.add_vrect(first, first + SKIPPED * (last - first), fillcolor=FAINT, opacity=0.2, line_width=0, layer="below")
    if "smooth" in seen:
        figure.add_trace(_line(seen["smooth_steps"], seen["smooth"], "smoothed", hover, INK, 2))
        figure.add_trace(_null_line(seen["smooth_steps"], null, "null: no hump"))
    if transition.step is not None:
        figure.update_yaxes(range=[0, HEADROOM * float(np.nanmax(seen["grad_norm"]))])
        mark_step(figure, transition, MUTED, step_label(transition))
    return figure


@checked
def norm_onset(transition: Transition) -> go.Figure:
    """The norm of ΔW and its growth rate, and the nearest growth that never speeds up (dotted).

    Args:
        transition: the answer of `find_transition(path, "norm_onset")`.

    Returns:
        The figure; growth is per unit of cumulative learning rate.
    """
    seen, nothing = transition.evidence, np.empty(0)
    null = _falling(seen["smooth_rate"]) if "rate" in seen else nothing
    rates = {"step": "rate_steps", "growth": "rate", "growth_smoothed": "smooth_rate"}
    curves = {
        "norm": {"step": seen.get("steps", nothing), "norm_delta": seen.get("delta_norm", nothing)},
        "growth": {name: seen.get(key, nothing) for name, key in rates.items()} | {"null": null},
    }
    text = f"{verdict_text(transition)}. {transition.reason}"
    table = signal_table(curves, [transition])
    figure = new_figure("Growth of ‖ΔW‖", text, 420, numbers=table, rows=2, shared_xaxes=True, vertical_spacing=0.1)
    figure.update_xaxes(title_text=STEP, row=2)
    figure.update_yaxes(title_text="‖ΔW‖<br>(weight units)", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="Growth (weight units<br>a unit of learning rate)", row=2)
    if "delta_norm" not in seen:
        note(figure, transition.reason)
        return figure
    hover, top, bottom = "step %{x:.0f}<br>%{y:.4g}<extra></extra>", place(1, 1), place(2, 1)
    norm = _line(seen["steps"], seen["delta_norm"], "‖ΔW‖", hover, PART_COLOUR["delta"], 2)
    figure.add_trace(norm.update(showlegend=False), **top)
    if "rate" in seen:
        figure.add_trace(_line(seen["rate_steps"], seen["rate"], "growth", hover, FAINT, 1), **bottom)
        figure.add_trace(_line(seen["rate_steps"], seen["smooth_rate"], "smoothed", hover, INK, 2), **bottom)
        figure.add_trace(_null_line(seen["rate_steps"], null, "null: growth that never speeds up"), **bottom)
    if transition.step is not None:
        mark_step(figure, transition, PART_COLOUR["delta"], step_label(transition), top, rising=True)
        mark_step(figure, transition, PART_COLOUR["delta"], None, bottom)
    return figure


def _falling(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The nearest curve (least squares) that never rises."""
    return np.asarray(isotonic_regression(values, increasing=False).x)


def _valley(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The nearest curve (least squares) without a hump: it falls up to some place, and rises from there."""
    turned = [np.concatenate([_falling(values[:low]), -_falling(-values[low:])]) for low in range(1, len(values))]
    monotone = [_falling(values), -_falling(-values)]
    return min([*monotone, *turned], key=lambda curve: float(np.sum((curve - values) ** 2)))


def _line(x: np.ndarray, y: np.ndarray, name: str, hover: str, colour: str, width: float) -> go.Scatter:
    style = {"color": colour, "width": width}
    return go.Scatter(x=x, y=y, mode="lines", line=style, name=name, hovertemplate=hover)


def _null_line(x: np.ndarray, y: np.ndarray, name: str) -> go.Scatter:
    return go.Scatter(x=x, y=y, mode="lines", line=NULL_LINE, name=name, hoverinfo="skip")


@checked
def lock_in(transition: Transition) -> go.Figure:
    """The cosine of ΔW to the final ΔW by step, the threshold, and the first step after which it stays above.

    Args:
        transition: the answer of `find_transition(path, "lock_in")`.

    Returns:
        The figure; lock-in is a description, not a test.
    """
    title, axis = "Lock-in of ΔW", "Cosine of ΔW to its end (no unit)"
    return _threshold(transition, "cos_to_final", "cosine", PART_COLOUR["delta"], title, axis)


@checked
def composition(transition: Transition) -> go.Figure:
    """The composition score with the final adapters by step, and the first step after which it stays above 0.95.

    Args:
        transition: the answer of `find_transition(path, "composition")`.

    Returns:
        The figure; the composition score is a description, not a test.
    """
    title, axis = "Composition of the adapters", "Composition score with the end (no unit)"
    return _threshold(transition, "score", "score", PART_COLOUR["B"], title, axis)


def _threshold(transition: Transition, key: str, name: str, colour: str, title: str, axis: str) -> go.Figure:
    """A descriptive curve with its threshold, and the step from which it stays above."""
    seen = transition.evidence
    if key not in seen:
        figure = new_figure(title, transition.reason, numbers=signal_table({}, [transition]))
        note(figure, transition.reason)
        return figure
    table = signal_table({name: {"step": seen["steps"], name: seen[key]}}, [transition])
    figure = new_figure(title, transition.reason, numbers=table)
    hover = f"step %{{x}}<br>{name} %{{y:.3f}}<extra></extra>"
    figure.add_trace(_line(seen["steps"], seen[key], name, hover, colour, 2).update(showlegend=False))
    figure.add_hline(seen["threshold"], line={"color": MUTED, "width": 1, "dash": "dot"})
    label = None if transition.step is None else f"step {transition.step:.0f}<br>(descriptive, no interval)"
    mark_step(figure, transition, colour, label, rising=True)
    figure.update_xaxes(title_text=STEP)
    return figure.update_yaxes(title_text=axis, range=[None, 1.02])


@checked
def onset(transition: Transition) -> go.Figure:
    """A behavioural metric by step with intervals, the fitted rise, the control's values, and the half-rise step.

    Args:
        transition: an onset, from `find_transition(curve)`.

    Returns:
        The figure; without a control the level of the first step is dotted.
    """
    if transition.of == "preference":
        from em_interp.figures.preferences import shift_onset

        return shift_onset(transition)
    questions = "" if transition.questions is None else f", {readable(transition.questions)} questions"
    scale = "" if transition.scale in (None, 1) else f", adapter ×{transition.scale:g}"
    title = f"Onset of the {METRICS.get(transition.of or '', 'metric')}{questions}{scale}"
    table = signal_table(onset_curves(transition.evidence), [transition])
    bars = "" if (transition.of or "").endswith("_mean") else ". Bars: 95% intervals"
    figure = new_figure(title, f"{verdict_text(transition)}: {transition.reason}{bars}", numbers=table)
    figure.update_xaxes(title_text=STEP)
    figure.update_yaxes(title_text=_metric_axis(transition.of), range=[-2, 102])
    _draw_onset(figure, transition)
    if transition.step is not None:
        mark_step(figure, transition, onset_colour(transition), step_label(transition))
    return figure


def _metric_axis(metric: str | None) -> str:
    """The title of the metric's axis, with its unit."""
    if metric is not None and metric.endswith("_mean"):
        return f"{METRICS[metric].capitalize()} (0–100)"
    name = METRICS.get(metric or "", "rate")
    return f"{name[0].upper()}{name[1:]} (% of scored answers)"


def onset_colour(transition: Transition) -> str:
    """The colour of the transition's question set."""
    return QUESTIONS_COLOUR.get(transition.questions or "", VERMILLION)


def _draw_onset(figure: go.Figure, transition: Transition) -> None:
    """Values, fit and control, in per cent or points of 100."""
    seen, colour = transition.evidence, onset_colour(transition)
    if not len(seen.get("steps", ())):
        note(figure, transition.reason)
        return
    if "control_rate" in seen:
        control = go.Scatter(x=seen["control_steps"], y=100 * seen["control_rate"], mode="lines+markers")
        figure.add_trace(control.update(line={"color": FAINT, "width": 1}, marker={"color": MUTED, "size": 4}))
        figure.data[-1].name = "control"
    else:
        figure.add_hline(100 * seen["rate"][0], line={"color": MUTED, "width": 1, "dash": "dot"})
    if "fit_steps" in seen:
        fit = go.Scatter(x=seen["fit_steps"], y=100 * seen["fit_rate"], mode="lines", line_color=colour)
        figure.add_trace(fit.update(name="fitted rise", hoverinfo="skip"))
    hover = "step %{x}<br>%{y:.1f} % of %{customdata} answers<extra></extra>"
    points = go.Scatter(x=seen["steps"], y=100 * seen["rate"], mode="markers", customdata=seen["answers"])
    points.update(marker={"color": colour, "size": 6}, hovertemplate=hover, name="this run")
    if not (transition.of or "").endswith("_mean"):
        low, high = 100 * rate_intervals(seen["rate"], seen["answers"]).T
        points.update(error_y=error_bars(100 * seen["rate"], low, high, color=colour, thickness=1, width=0))
    figure.add_trace(points)


def rate_intervals(
    rate: Float[np.ndarray, " step"], answers: Float[np.ndarray, " step"]
) -> Float[np.ndarray, "step 2"]:
    """95 % intervals of pooled shares: the lower and the upper end at each step."""
    pooled = (rate_of(np.array([share * n]), np.array([n])) for share, n in zip(rate, answers, strict=True))
    return np.array([rate.interval for rate in pooled])


@checked
def training_log(path: TrajectorySource, transitions: Transition | Sequence[Transition] = ()) -> go.Figure:
    """Loss, gradient norm and learning rate as the trainer logged them.

    Args:
        path: a trajectory, or a run, folder of checkpoints or Hub id to load.
        transitions: answers of `find_transitions`; a gradient-norm peak among them is marked.

    Returns:
        A panel for each quantity logged; a remark where nothing was.
    """
    path = as_trajectory(path)
    logged = [name for name in LOGGED if name in path.metrics]
    count = max(len(logged), 1)
    table = path.metrics[logged].rename_axis("step").reset_index() if logged else pd.DataFrame()
    height = 100 + 130 * count
    figure = new_figure(
        "Training log", about(path), height, numbers=table, rows=count, shared_xaxes=True, vertical_spacing=0.1
    )
    if not logged:
        note(figure, "This run has no log of its training.")
        figure.update_yaxes(title_text=LOGGED["loss"])
    for row, name in enumerate(logged, 1):
        _draw_logged(figure, path, name, row)
        if name == "grad_norm":
            for peak in (t for t in as_list(transitions) if t.signal == "gradient_norm"):
                label = None if peak.step is None else f"peak at {peak.step:.0f}"
                mark_step(figure, peak, MUTED, label, place(row, 1))
                figure.update_yaxes(range=[0, HEADROOM * path.metrics[name].max()], **place(row, 1))
    figure.update_xaxes(range=[float(path.steps[0]), float(path.steps[-1])])
    figure.update_xaxes(title_text=STEP, row=count)
    return figure


def _draw_logged(figure: go.Figure, path: AdapterTrajectory, name: str, row: int) -> None:
    """One quantity of the log into a panel; stretches without a value are joined."""
    logged = path.metrics[name].dropna()
    hover = f"step %{{x}}<br>{readable(name)} %{{y:.4g}}<extra></extra>"
    line = _line(logged.index.to_numpy(), logged.to_numpy(), name, hover, MUTED, 1.3).update(showlegend=False)
    figure.add_trace(line, **place(row, 1))
    figure.update_yaxes(title_text=LOGGED[name], rangemode="tozero", nticks=5, **place(row, 1))


FIGURES = {
    "rotation": rotation,
    "gradient_norm": gradient_norm,
    "norm_onset": norm_onset,
    "lock_in": lock_in,
    "composition": composition,
    "onset": onset,
}
