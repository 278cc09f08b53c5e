"""Behaviour along a run: EM and coherent rates by step, for each adapter scale; and by question, for one table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from em_interp.behaviour.curve import BehaviourCurve
from em_interp.behaviour.scores import ScoredResponses
from em_interp.figures.style import (
    BLUE,
    INK,
    QUESTIONS_COLOUR,
    STEP,
    VERMILLION,
    em_range,
    new_figure,
    ribbon,
    said,
    set_colours,
    step_label,
)
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    import pandas as pd

ROWS = {"em": "EM rate<br>(% of scored answers)", "coherent": "Coherent rate<br>(% of scored answers)"}


def behaviour(
    curve: BehaviourCurve, control: BehaviourCurve | None = None, onsets: Sequence[Transition] = ()
) -> go.Figure:
    """EM and coherent rates by step with intervals; a column for each adapter scale, then the control's on one axis.

    A step whose answers could not be scored is a gap. The intervals are for other answers to the same questions.

    Args:
        curve: of a run.
        control: the curve of a run on careful data.
        onsets: those of EM are drawn as diamonds half-way up the rise, with their intervals.

    Returns:
        The figure.
    """
    columns = [(f"adapter ×{scale:g}", curve, scale) for scale in _scales(curve)]
    if control is not None:
        columns += [(f"control ×{scale:g}", control, scale) for scale in _scales(control)]
    titles = [name for name, _, _ in columns]
    figure = new_figure(
        "Behaviour along the run",
        f"Bands: {curve.level:.0%} intervals for other answers to the same questions.",
        520,
        rows=2,
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=titles if len(titles) > 1 else None,
        headroom=20 * (len(titles) > 1),
        least_width=190 + 150 * len(columns),
        vertical_spacing=0.09,
        horizontal_spacing=0.04,
    )
    colours = set_colours(_question_sets(curve))
    for column, (_, shown, scale) in enumerate(columns, 1):
        rates = shown.frame()
        _draw_column(figure, rates[rates["scale"] == scale], colours, column)
        for onset in onsets if shown is curve else ():
            if onset.scale == scale and onset.of == "em" and onset.step is not None:
                _mark_onset(figure, onset, colours.get(onset.questions or "", VERMILLION), column)
    highest = np.concatenate([shown.frame()["em_high"] for _, shown, _ in columns])
    figure.update_yaxes(range=em_range(100 * highest), row=1)
    figure.update_yaxes(range=[-3, 102], row=2)
    for row, (_, title) in enumerate(ROWS.items(), 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text=STEP, row=2)
    return figure


def _scales(curve: BehaviourCurve) -> list[float]:
    return sorted(curve.answers["scale"].unique())


def _question_sets(curve: BehaviourCurve) -> list[str]:
    """Known sets in their usual order, then the others."""
    there = {str(name) for name in curve.answers["questions"]}
    return [name for name in QUESTIONS_COLOUR if name in there] + sorted(there - set(QUESTIONS_COLOUR))


def _draw_column(figure: go.Figure, rates: pd.DataFrame, colours: dict[str, str], column: int) -> None:
    parts = {questions: rates[rates["questions"] == questions] for questions in colours}
    for row, metric in enumerate(ROWS, 1):
        for questions, part in parts.items():
            low, high = (100 * part[metric + end].to_numpy() for end in ("_low", "_high"))
            band = ribbon(part["step"].to_numpy(), low, high, colours[questions], "interval", showlegend=False)
            figure.add_trace(band.update(legendgroup=questions), row=row, col=column)
        for questions, part in parts.items():
            hover = "step %{x}<br>%{y:.1f}% of %{customdata[0]} scored answers<br>%{customdata[1]} without a score"
            counts = np.stack([part["scored"], part["n"] - part["scored"]], axis=1)
            line = go.Scatter(x=part["step"], y=100 * part[metric], mode="lines+markers", customdata=counts)
            line.update(
                line={"color": colours[questions], "width": 1.8}, marker={"size": 4}, name=escape(said(questions))
            )
            line.update(hovertemplate=hover, legendgroup=questions, showlegend=row == 1 and column == 1)
            figure.add_trace(line, row=row, col=column)


def _mark_onset(figure: go.Figure, onset: Transition, colour: str, column: int) -> None:
    """A diamond half-way up the fitted rise, with the interval of its step."""
    if onset.step is None or "fit_rate" not in onset.evidence:
        return
    height = 100 * float(np.interp(onset.step, onset.evidence["fit_steps"], onset.evidence["fit_rate"]))
    low, high = onset.interval or (onset.step, onset.step)
    bars = {"array": [high - onset.step], "arrayminus": [onset.step - low], "symmetric": False, "thickness": 2}
    mark = go.Scatter(x=[onset.step], y=[height], mode="markers", error_x={**bars, "width": 5, "color": INK})
    mark.update(marker={"symbol": "diamond", "size": 11, "color": colour, "line": {"color": INK, "width": 1.2}})
    mark.update(showlegend=False, name="onset", hovertemplate=f"onset: {step_label(onset)}<extra></extra>")
    figure.add_trace(mark, row=1, col=column)


def scores(scored: ScoredResponses) -> go.Figure:
    """EM and coherent rates by question with their intervals, and those of all answers together.

    Args:
        scored: what `em_interp.score_responses` found.

    Returns:
        The figure.
    """
    table = scored.frame()
    lost = sum(scored.unscored.values())
    subtitle = f"{scored.n} answers, {lost} without a score. Bars: {scored.level:.0%} intervals."
    height = 80 + 24 * (len(table) + 1)
    figure = new_figure(
        "Scores by question", subtitle, height, least_width=560, cols=2, shared_yaxes=True, horizontal_spacing=0.05
    )
    names = [escape(_short(str(name))) for name in table["question"]]
    for column, (metric, colour, title) in enumerate(
        (("em", VERMILLION, "EM rate"), ("coherent", BLUE, "Coherent rate")), 1
    ):
        pooled = getattr(scored, metric)
        rate, low, high = (
            100 * np.append(table[metric + end], value)
            for end, value in (("", pooled.rate), ("_low", pooled.interval[0]), ("_high", pooled.interval[1]))
        )
        bars = {"array": high - rate, "arrayminus": rate - low, "symmetric": False, "thickness": 1.2, "width": 3}
        points = go.Scatter(x=rate, y=[*names, "<b>all</b>"], mode="markers", error_x=bars, showlegend=False)
        points.update(
            marker={"color": colour, "size": 7}, hovertemplate="%{y}<br>%{x:.1f} %<extra></extra>", name=title
        )
        figure.add_trace(points, row=1, col=column)
        figure.update_xaxes(title_text=f"{title} (% of scored answers)", range=[-2, 102], row=1, col=column)
    figure.update_yaxes(range=[len(names) + 0.6, -0.6], type="category")
    figure.update_yaxes(title_text="Question (id)", row=1, col=1)
    return figure


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
