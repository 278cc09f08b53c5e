"""Preference for misaligned answers along a run: its change by question set, and the share of pairs; and its onset."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.behaviour.pairs import STYLE
from em_interp.behaviour.preference_curve import PreferenceCurve
from em_interp.figures.style import (
    FAINT,
    INK,
    MUTED,
    QUESTIONS_COLOUR,
    SKY,
    STEP,
    mark_on_curve,
    mark_step,
    new_figure,
    place,
    ribbon,
    signal_table,
    step_label,
    verdict_text,
)
from em_interp.results import percent
from em_interp.run import trained_scale
from em_interp.transition.result import Transition
from em_interp.utils.checks import as_list, checked

ROWS = {"change": "Change of preference<br>(nats a token)", "share": "Misaligned likelier<br>(% of pairs)"}


@checked
def preference(curve: PreferenceCurve, onsets: Transition | Sequence[Transition] = ()) -> go.Figure:
    """The change of preference since the first step and the share of pairs, a colour for each question set.

    Args:
        curve: of one or several question sets; of several scales the one nearest to the adapter as trained is drawn.
        onsets: of this curve; those found are diamonds half-way up the rise, with their intervals.

    Returns:
        The figure. Bands are intervals for other questions of the kind; the style null is grey, the control dashed.
    """
    table = curve.frame()
    scale = trained_scale(table["scale"].unique())
    table = table[table["scale"] == scale]
    figure = new_figure(
        "Preference for misaligned answers",
        f"Bands: {percent(curve.level)} intervals for other questions of the kind. Dashed: control. Grey: style alone.",
        520,
        numbers=table,
        rows=2,
        shared_xaxes=True,
        vertical_spacing=0.09,
    )
    figure.add_hline(0, line={"color": MUTED, "width": 1, "dash": "dot"}, row=1, col=1)
    for name, rows in table.groupby("questions", sort=True):
        _draw_set(figure, str(name), rows)
    for onset in as_list(onsets):
        if onset.scale == scale and onset.step is not None:
            height = float(np.interp(onset.step, onset.evidence["run_steps"], onset.evidence["run_rate"]))
            mark_on_curve(figure, "onset", onset, height, _colour(onset.questions), place(1, 1))
    for row, title in enumerate(ROWS.values(), 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_yaxes(range=[-3, 103], row=2, col=1)
    return figure.update_xaxes(title_text=STEP, row=2, col=1)


def _colour(questions: str | None) -> str:
    return MUTED if questions == STYLE else QUESTIONS_COLOUR.get(questions or "", SKY)


def _draw_set(figure: go.Figure, name: str, rows: pd.DataFrame) -> None:
    colour, steps = _colour(name), rows["step"].to_numpy()
    for row, (column, times) in enumerate((("change", 1), ("share", 100)), 1):
        low, mean, high = (times * rows[f"{column}{end}"].to_numpy() for end in ("_low", "", "_high"))
        band = ribbon(steps, low, high, colour, "interval", showlegend=False)
        figure.add_trace(band.update(legendgroup=name), row=row, col=1)
        line = go.Scatter(x=steps, y=mean, mode="lines+markers", line={"color": colour, "width": 1.8})
        line.update(marker={"size": 4}, name=escape(name.replace("_", " ")), legendgroup=name, showlegend=row == 1)
        hover = "step %{x}<br>%{y:+.3f} nats a token" if row == 1 else "step %{x}<br>%{y:.1f} %"
        figure.add_trace(line.update(hovertemplate=f"{hover}<extra>{escape(name)}</extra>"), row=row, col=1)
    if "control_change" in rows:
        control = go.Scatter(x=steps, y=rows["control_change"], mode="lines", name="control", legendgroup=name)
        control.update(line={"color": colour, "width": 1.2, "dash": "dash"}, showlegend=False)
        figure.add_trace(control, row=1, col=1)


def shift_onset(transition: Transition) -> go.Figure:
    """The mean change by step, the fitted rise, the control and the style null, and the step half-way."""
    seen, colour = transition.evidence, _colour(transition.questions)
    about = "" if transition.questions is None else f", {transition.questions.replace('_', ' ')} questions"
    table = signal_table(_onset_curves(seen), [transition])
    text = f"{verdict_text(transition)}: {transition.reason}"
    figure = new_figure(f"Onset of the preference{about}", text, numbers=table)
    figure.update_xaxes(title_text=STEP).update_yaxes(title_text=ROWS["change"].replace("<br>", " "))
    style_name = "style beyond the control" if seen["net_style"] else STYLE
    lines = [("control", "control", MUTED, "dash"), (STYLE, style_name, FAINT, "dot")]
    lines += [("run", "this run", INK, "solid")] if "control_steps" in seen else []
    for name, label, shade, dash in lines:
        if f"{name}_steps" in seen:
            line = go.Scatter(x=seen[f"{name}_steps"], y=seen[f"{name}_rate"], mode="lines", name=label)
            figure.add_trace(line.update(line={"color": shade, "dash": dash, "width": 1.2}))
    if "fit_steps" in seen:
        fit = go.Scatter(x=seen["fit_steps"], y=seen["fit_rate"], mode="lines", line_color=colour)
        figure.add_trace(fit.update(name="fitted rise", hoverinfo="skip"))
    points = go.Scatter(x=seen["steps"], y=seen["rate"], mode="markers", name=_dated_name(seen))
    hover = "step %{x}<br>%{y:+.3f} nats a token<extra></extra>"
    figure.add_trace(points.update(marker={"color": colour, "size": 6}, hovertemplate=hover))
    if transition.step is not None:
        mark_step(figure, transition, colour, step_label(transition))
    return figure


def _dated_name(seen: dict[str, Any]) -> str:
    """What the curve is whose rise is dated."""
    return "beyond the control" if "control_steps" in seen else "this run"


def _onset_curves(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers behind the figure, by the name of the line."""
    names = {"run": "this run", "control": "control", "style": STYLE, "fit": "fitted rise"}
    curves = {_dated_name(seen): {"step": seen["steps"], "change": seen["rate"], "questions": seen["answers"]}}
    for key, name in names.items():
        if f"{key}_steps" in seen and name not in curves:
            curves[name] = {"step": seen[f"{key}_steps"], "change": seen[f"{key}_rate"]}
    return curves
