"""From which step on several adapters write together what they write at the end."""

from __future__ import annotations

import plotly.graph_objects as go

from em_interp.figures.template import MUTED, PART_COLOUR, STEP, mark_step, new_figure
from em_interp.transition.result import Transition


def plot_composition(transition: Transition) -> go.Figure:
    """The composition score with the end by step, the threshold, and the first step from which on it stays above."""
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
