"""From which step on ΔW points where it ends."""

from __future__ import annotations

import plotly.graph_objects as go

from em_interp.figures.template import MUTED, PART_COLOUR, STEP, mark_step, new_figure
from em_interp.transition.result import Transition


def plot_lock_in(transition: Transition) -> go.Figure:
    """The cosine of ΔW to its end by step, the threshold, and the first step from which on it stays above."""
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
