"""Do runs change at the same step? Each run's step with its interval, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.template import INK, MUTED, STEP, VERMILLION, fade, new_figure, note
from em_interp.figures.words import name_of, result_of
from em_interp.transition.result import Transition

LANE = 34  # pixels


def plot_agreement(
    names: Sequence[str],
    transitions: Sequence[Transition],
    mean: float | None = None,
    interval: tuple[float, float] | None = None,
    level: float = 0.95,
    sentence: str = "",
) -> go.Figure:
    """A line for each run with its step and interval, or its verdict where it has none; the pooled step below.

    `mean` and `interval` are the pooled step and its interval, None where nothing could be pooled.
    """
    figure = new_figure(f"Agreement of runs: {name_of(transitions[0])}", sentence, LANE * (len(names) + 1) + 70)
    lanes = [escape(name) for name in names]
    _draw_runs(figure, lanes, transitions)
    ticks, heights = [*lanes], [*range(len(names), 0, -1)]
    if mean is not None and interval is not None:
        _draw_pooled(figure, mean, interval, level)
        ticks, heights = [*ticks, "<b>pooled</b>"], [*heights, 0]
    figure.update_yaxes(title_text="Run", tickvals=heights, ticktext=ticks, showgrid=False, ticks="")
    figure.update_yaxes(range=[min(heights) - 0.6, len(names) + 0.6])
    ends = [end for t in transitions for end in (t.step, *(t.interval or ())) if end is not None]
    ends += [mean, *interval] if mean is not None and interval is not None else []
    if ends:
        room = 0.1 * float(np.ptp(ends)) or 10.0
        figure.update_xaxes(range=[min(ends) - room, max(ends) + room])
    else:
        figure.update_xaxes(range=[0, 1], showticklabels=False)
        note(figure, "no run has a step to show")
    return figure.update_xaxes(title_text=STEP)


def _draw_runs(figure: go.Figure, lanes: Sequence[str], transitions: Sequence[Transition]) -> None:
    for height, (lane, transition) in zip(range(len(lanes), 0, -1), zip(lanes, transitions, strict=True), strict=True):
        if transition.step is None:
            style = {"xref": "x domain", "x": 0.01, "xanchor": "left", "showarrow": False, "font_color": MUTED}
            figure.add_annotation(text=transition.verdict, y=height, **style)
            continue
        low, high = transition.interval or (transition.step, transition.step)
        bars = {"array": [high - transition.step], "arrayminus": [transition.step - low], "symmetric": False}
        marker = {"color": INK if transition.found else MUTED, "size": 9}
        marker["symbol"] = "circle" if transition.found else "circle-open"
        mark = go.Scatter(x=[transition.step], y=[height], mode="markers", marker=marker, showlegend=False, name=lane)
        hover = f"{lane}: {escape(result_of(transition))}<extra></extra>"
        figure.add_trace(mark.update(error_x={**bars, "thickness": 2, "width": 4}, hovertemplate=hover))


def _draw_pooled(figure: go.Figure, mean: float, interval: tuple[float, float], level: float) -> None:
    low, high = interval
    figure.add_vrect(low, high, fillcolor=fade(VERMILLION, 0.14), line_width=0, layer="below")
    figure.add_vline(mean, line={"color": VERMILLION, "width": 1.2, "dash": "dot"})
    shape = go.Scatter(x=[low, mean, high, mean, low], y=[0, 0.22, 0, -0.22, 0], fill="toself", mode="lines")
    hover = f"pooled: step {mean:.0f}, {level:.0%} interval {low:.0f} to {high:.0f}"
    figure.add_trace(shape.update(line_color=VERMILLION, fillcolor=VERMILLION, name=hover, hoverinfo="name"))
    figure.update_traces(showlegend=False)
