"""The looks of a live monitor: the p-value of each for the whole run, and where it raised an alarm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.style import MUTED, PART_COLOUR, STEP, VERMILLION, fade, new_figure, with_numbers
from em_interp.utils.checks import checked

if TYPE_CHECKING:
    from em_interp.transition.monitoring.monitor import Monitor

COLOUR = {"rotation": PART_COLOUR["B"], "gradient_norm": MUTED}
MIN_P = 1e-6  # smaller ones are drawn as this


@checked
def monitor(monitor: Monitor) -> go.Figure:
    """The p-value of each look for the whole run, the level, and each alarm with the estimate it is about.

    Args:
        monitor: what `em.watch` returned, or the `monitor` of an `em.MonitorCallback`.

    Returns:
        The figure; p = 1 is at the foot, and p-values below 10⁻⁶ are drawn as 10⁻⁶, at the top.
    """
    said, bands = monitor.sentence(), "Light bands: intervals of the transitions that raised an alarm"
    figure = new_figure("Live monitor", f"{said[0].upper()}{said[1:]}. Dotted: the level. {bands}")
    figure.update_xaxes(title_text=STEP, range=[0, monitor.last])
    figure.update_yaxes(title_text="p-value for the whole run", type="log", range=[0.2, np.log10(MIN_P) - 0.3])
    for signal in monitor.signals:
        looks = [look for look in monitor.looks if look.signal == signal]
        line = go.Scatter(x=[look.step for look in looks], y=[max(look.run_p, MIN_P) for look in looks])
        line.update(mode="lines+markers", line={"color": COLOUR[signal]}, name=signal.replace("_", " "))
        figure.add_trace(line.update(hovertemplate="look at step %{x}<br>p = %{y:.2g}<extra></extra>"))
    figure.add_hline(monitor.level, line={"color": VERMILLION, "width": 1.5, "dash": "dot"})
    for look in monitor.alarms:
        low, high = look.transition.interval or (look.step, look.step)
        figure.add_vrect(low, high, fillcolor=fade(COLOUR[look.signal], 0.25), line_width=0, layer="below")
        figure.add_vline(look.step, line={"color": COLOUR[look.signal], "width": 1.5})
        label = {"text": f"alarm at {look.step}", "x": look.step, "y": 1, "yref": "y domain", "showarrow": False}
        figure.add_annotation(**label, xanchor="right", yanchor="top", xshift=-4)
    return with_numbers(figure, monitor.frame())
