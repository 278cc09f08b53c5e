"""The hump of the logged gradient norm."""

from __future__ import annotations

import plotly.graph_objects as go

from em_interp.figures.template import FAINT, INK, MUTED, STEP, mark_step, new_figure, note
from em_interp.figures.words import step_label
from em_interp.transition.result import Transition
from em_interp.transition.series import SKIPPED


def plot_gradient_norm(transition: Transition) -> go.Figure:
    """The log, its smooth trend, the part left out at the start, and the peak with its interval where one was found."""
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
    if transition.step is not None:
        mark_step(figure, transition, MUTED, step_label(transition))
    return figure
