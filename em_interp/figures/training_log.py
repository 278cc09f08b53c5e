"""What the trainer logged: loss, gradient norm and learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from em_interp.figures.norms import about
from em_interp.figures.template import HEADROOM, MUTED, STEP, mark_step, new_figure, note, place
from em_interp.trajectory.adapter import AdapterTrajectory
from em_interp.transition.result import Transition

LOGGED = {
    "loss": "Loss<br>(nats a token)",
    "grad_norm": "Gradient norm<br>(nats a weight unit)",
    "learning_rate": "Learning rate<br>(a step)",
}


def plot_training_log(trajectory: AdapterTrajectory, transitions: Sequence[Transition] = ()) -> go.Figure:
    """Loss, gradient norm and learning rate by step; a gradient-norm peak among `transitions` is marked."""
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
