"""The hump of the logged gradient norm."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.nulls import NULL_LINE, valley
from em_interp.figures.template import FAINT, HEADROOM, INK, MUTED, STEP, mark_step, new_figure, note
from em_interp.figures.words import step_label
from em_interp.transition.result import Transition
from em_interp.transition.series import SKIPPED


def plot_gradient_norm(transition: Transition) -> go.Figure:
    """The log, smoothed, the part left out at the start, and the peak with its interval where one was found.

    Dotted is the nearest trend of the null, which has no hump.
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
