"""Behaviour along a run: EM and coherent rates by step, for each adapter scale; and by question, for one table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from em_interp.behaviour.curve import BehaviourCurve, behaviour_curve
from em_interp.behaviour.scores import ScoredResponses
from em_interp.figures.style import (
    BLUE,
    QUESTIONS_COLOUR,
    STEP,
    VERMILLION,
    em_axis_range,
    error_bars,
    mark_on_curve,
    new_figure,
    place,
    question_colours,
    readable,
    ribbon,
)
from em_interp.results import percent
from em_interp.run import Run
from em_interp.transition.result import Transition
from em_interp.utils.checks import as_list, checked

if TYPE_CHECKING:
    import pandas as pd

ROWS = {"em": "EM rate<br>(% of scored answers)", "coherent": "Coherent rate<br>(% of scored answers)"}
MAX_NAME = 40  # characters of a question's id


@checked
def behaviour(
    curve: BehaviourCurve | Run | str | Path,
    control: BehaviourCurve | Run | str | Path | None = None,
    onsets: Transition | Sequence[Transition] = (),
) -> go.Figure:
    """EM and coherent rates by step with intervals, a column for each adapter scale.

    Args:
        curve: the behaviour along a run; or a judged run or its path.
        control: that of a run on careful data with the same questions; it has columns of its own on the same axis.
        onsets: onsets of this curve; those of EM are diamonds half-way up the rise, with their intervals.

    Returns:
        The figure. A step whose answers have no score is a gap; the intervals are for other answers to the same
        questions.
    """
    curve, onsets = _opened(curve), as_list(onsets)
    control = None if control is None else _opened(control)
    columns = [(f"adapter ×{scale:g}", curve, scale) for scale in _scales(curve)]
    if control is not None:
        columns += [(f"control ×{scale:g}", control, scale) for scale in _scales(control)]
    titles = [name for name, _, _ in columns]
    diamonds = " Diamonds: onsets of EM, half-way up the rise, with their intervals." if onsets else ""
    figure = new_figure(
        "Behaviour along the run",
        f"Bands: {percent(curve.level)} intervals for other answers to the same questions.{diamonds}",
        520,
        headroom=20 * (len(titles) > 1),
        least_width=190 + 150 * len(columns),
        numbers=_numbers(curve, control),
        rows=2,
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        column_titles=titles if len(titles) > 1 else None,
        vertical_spacing=0.09,
        horizontal_spacing=0.04,
    )
    colours = question_colours(_question_sets(curve))
    for column, (_, drawn, scale) in enumerate(columns, 1):
        rates = drawn.frame()
        _draw_column(figure, rates[rates["scale"] == scale], colours, column)
        for onset in onsets if drawn is curve else ():
            if onset.scale == scale and onset.of == "em" and onset.step is not None and "fit_rate" in onset.evidence:
                height = 100 * float(np.interp(onset.step, onset.evidence["fit_steps"], onset.evidence["fit_rate"]))
                colour = colours.get(onset.questions or "", VERMILLION)
                mark_on_curve(figure, "onset", onset, height, colour, place(1, column))
    highest = np.concatenate([drawn.frame()["em_high"] for _, drawn, _ in columns])
    figure.update_yaxes(range=em_axis_range(100 * highest), row=1)
    figure.update_yaxes(range=[-3, 102], row=2)
    for row, title in enumerate(ROWS.values(), 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    return figure.update_xaxes(title_text=STEP, row=2)


def _opened(curve: BehaviourCurve | Run | str | Path) -> BehaviourCurve:
    """The curve of a judged run; a curve is returned unchanged."""
    return curve if isinstance(curve, BehaviourCurve) else behaviour_curve(curve)


def _numbers(curve: BehaviourCurve, control: BehaviourCurve | None) -> pd.DataFrame:
    """The rates of both runs in one table."""
    import pandas as pd

    runs = {"this run": curve, **({} if control is None else {"control": control})}
    tables = [of_run.frame().assign(run=name).dropna(axis=1, how="all") for name, of_run in runs.items()]
    return pd.concat(tables, ignore_index=True)


def _scales(curve: BehaviourCurve) -> list[float]:
    return sorted(curve.answers["scale"].unique())


def _question_sets(curve: BehaviourCurve) -> list[str]:
    """Known sets in their usual order, then the others."""
    names = {str(name) for name in curve.answers["questions"]}
    return [name for name in QUESTIONS_COLOUR if name in names] + sorted(names - set(QUESTIONS_COLOUR))


def _draw_column(figure: go.Figure, rates: pd.DataFrame, colours: dict[str, str], column: int) -> None:
    parts = {questions: rates[rates["questions"] == questions] for questions in colours}
    hover = "step %{x}<br>%{y:.1f}% of %{customdata[0]} scored answers<br>%{customdata[1]} without a score"
    for row, metric in enumerate(ROWS, 1):
        for questions, part in parts.items():
            low, high = (100 * part[metric + end].to_numpy() for end in ("_low", "_high"))
            band = ribbon(part["step"].to_numpy(), low, high, colours[questions], "interval", showlegend=False)
            figure.add_trace(band.update(legendgroup=questions), row=row, col=column)
        for questions, part in parts.items():
            counts = np.stack([part["scored"], part["n"] - part["scored"]], axis=1)
            line = go.Scatter(x=part["step"], y=100 * part[metric], mode="lines+markers", customdata=counts)
            line.update(line={"color": colours[questions], "width": 1.8}, marker={"size": 4}, hovertemplate=hover)
            line.update(name=escape(readable(questions)), legendgroup=questions)
            figure.add_trace(line.update(showlegend=row == 1 and column == 1), row=row, col=column)


@checked
def scores(scored: ScoredResponses) -> go.Figure:
    """EM and coherent rates by question, and of all answers together.

    Args:
        scored: judged answers, from `em.score_responses` or `curve.at(step)`.

    Returns:
        A line for each question with its interval.
    """
    table = scored.frame()
    unscored = sum(scored.unscored.values())
    figure = new_figure(
        "Scores by question",
        f"{scored.n} answers, {unscored} without a score. Bars: {percent(scored.level)} intervals.",
        80 + 24 * (len(table) + 1),
        least_width=560,
        numbers=table,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
    )
    names = [*(escape(_shortened(str(name))) for name in table["question"]), "<b>all</b>"]
    panels = (("em", VERMILLION, "EM rate"), ("coherent", BLUE, "Coherent rate"))
    for column, (metric, colour, title) in enumerate(panels, 1):
        pooled = getattr(scored, metric)
        ends = (("", pooled.rate), ("_low", pooled.interval[0]), ("_high", pooled.interval[1]))
        rate, low, high = (100 * np.append(table[metric + end], value) for end, value in ends)
        bars = error_bars(rate, low, high, thickness=1.2, width=3)
        points = go.Scatter(x=rate, y=names, mode="markers", error_x=bars, showlegend=False, name=title)
        points.update(marker={"color": colour, "size": 7}, hovertemplate="%{y}<br>%{x:.1f} %<extra></extra>")
        figure.add_trace(points, row=1, col=column)
        figure.update_xaxes(title_text=f"{title} (% of scored answers)", range=[-2, 102], row=1, col=column)
    figure.update_yaxes(range=[len(names) - 0.4, -0.6], type="category")
    return figure.update_yaxes(title_text="Question (id)", row=1, col=1)


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
