"""Where the norm of ΔW starts to grow faster: its growth rate per learning rate."""

from __future__ import annotations

import plotly.graph_objects as go

from em_interp.figures.nulls import NULL_LINE, falling
from em_interp.figures.template import FAINT, INK, PART_COLOUR, STEP, mark_step, new_figure, note
from em_interp.figures.words import step_label
from em_interp.transition.result import Transition


def plot_norm_onset(transition: Transition) -> go.Figure:
    """The norm, and below it its growth rate, smoothed, with the estimate where a bend was found.

    Dotted is the nearest growth of the null, which never speeds up.
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
