"""What all figures share: fonts, sizes, colours with one meaning each, marks of a step, and results in words.

Colours are those of Okabe and Ito (2008), apart for every common kind of colour blindness. Steps are coloured by
viridis, perceptually even, without its palest end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from html import escape
from itertools import cycle
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from jaxtyping import Float
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from em_interp.results import interval_columns, interval_text
from em_interp.transition.align import Offset
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    import pandas as pd

if pio.renderers.default == "plotly_mimetype" and "PLOTLY_RENDERER" not in os.environ:
    pio.renderers.default = "plotly_mimetype+notebook"  # plotly's own in Jupyter leaves nothing for nbconvert to show

INK, MUTED, FAINT, GRID = "#1f1f1f", "#666666", "#b3b3b3", "#ececec"
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
DIVERGING = ("#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806")  # blue below zero, orange above

PART_NAME = {"A": "A", "B": "B", "delta": "ΔW"}
PART_COLOUR = {"A": GREEN, "B": BLUE, "delta": INK}
QUESTIONS_COLOUR = {"in_domain": ORANGE, "out_of_domain": VERMILLION, "broad": PURPLE}
_OTHER_COLOURS = (VERMILLION, ORANGE, PURPLE, SKY, GREEN, BLUE)

STEP = "Training step"
STEP_SCALE = sample_colorscale("Viridis", [i / 10 * 0.93 for i in range(11)])
TITLE, LINE, LEGEND = 40, 17, 30  # pixels: a title, a line of a subtitle, a legend of one line
HEADROOM = 1.3  # room for a label above the data, as a share of the data's height
NOTE_WIDTH = 44  # characters of a line of a note: fits a panel of a figure that is one column wide
EM_AXIS_TOPS = (5, 10, 25, 50, 100)  # per cent
FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif"


def template() -> go.layout.Template:
    """White ground, dark ink, hairline grid, axes outside; legible at the width of a paper's column and on a screen."""
    axis = {
        "showline": True,
        "linecolor": INK,
        "linewidth": 1,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": INK,
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    layout = {
        "font": {"family": FONT, "size": 12, "color": INK},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "yanchor": "top", "y": 1, "yref": "container"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(_OTHER_COLOURS),
        "xaxis": {**axis, "exponentformat": "none"},  # steps are 1000, not 1k
        "yaxis": {**axis, "exponentformat": "power"},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container"},
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT, "size": 12, "color": INK}, "align": "left"},
        "margin": {"l": 64, "r": 20, "b": 52},
        "annotationdefaults": {"font": {"size": 12, "color": INK}, "showarrow": False},
    }
    return go.layout.Template(layout=layout)


def new_figure(
    title: str,
    subtitle: str = "",
    height: int = 380,
    headroom: int = 0,
    least_width: int = 340,
    numbers: pd.DataFrame | None = None,
    **subplots: Any,
) -> go.Figure:
    """An empty figure in the project's style; `subplots` goes to plotly's `make_subplots`.

    `height` is that of the panels with their axes, in pixels; title and legend come on top of it. `headroom` is the
    room between the legend and the panels. A page should not show it narrower than `least_width` pixels. `numbers` is
    the table behind the figure, kept in `layout.meta` for `figures.numbers` and the CSV of an export.
    """
    lines = wrap(subtitle, 100)
    top = TITLE + LINE * len(lines)
    layout = {  # given at once: an update takes twice as long
        "template": template(),
        "title": {
            "text": f"<b>{escape(title)}</b>",
            "font": {"size": 15},
            "pad": {"l": 12, "t": 14},
            "subtitle": {"text": "<br>".join(map(escape, lines)), "font": {"size": 12, "color": MUTED}},
        },
        "height": height + top + LEGEND + headroom,
        "margin": {"t": top + LEGEND + headroom},
        "legend": {"y": 1 - top / (height + top + LEGEND + headroom)},
        "meta": {"title": title, "subtitle": subtitle, "top": top, "least_width": least_width},
    }
    figure = make_subplots(figure=go.Figure(layout=layout), **subplots)
    figure.update_annotations(font={"size": 13, "color": INK})
    return figure if numbers is None else with_numbers(figure, numbers)


def with_numbers(figure: go.Figure, table: pd.DataFrame) -> go.Figure:
    """The figure with the table behind it in `layout.meta`, as plain values that survive JSON."""
    plain = table.astype(object).where(table.notna(), None)
    return figure.update_layout(meta={**(figure.layout.meta or {}), "numbers": plain.to_dict("list")})


def signal_table(
    curves: Mapping[str, Mapping[str, Float[np.ndarray, " point"]]], transitions: Iterable[Transition]
) -> pd.DataFrame:
    """The numbers behind the figure of a signal: the points of its curves, then a row for each transition."""
    import pandas as pd

    tables = [pd.DataFrame({"row": name, **columns}) for name, columns in curves.items() if columns]
    keys = ("signal", "of", "questions", "scale", "verdict", "step", "level", "p_value")
    for t in transitions:
        mark = {"row": "transition", **{key: getattr(t, key) for key in keys}, **interval_columns("step", t.interval)}
        tables.append(pd.DataFrame([mark]).dropna(axis=1, how="all"))
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def onset_curves(seen: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The curves behind an onset: its values, the fit, the control's values."""
    columns = {
        "this run": {"step": "steps", "rate": "rate", "answers": "answers"},
        "fit": {"step": "fit_steps", "rate": "fit_rate"},
        "control": {"step": "control_steps", "rate": "control_rate"},
    }
    return {
        name: {column: seen[key] for column, key in keys.items()}
        for name, keys in columns.items()
        if all(key in seen for key in keys.values())
    }


def without_title(figure: go.Figure) -> dict[str, Any]:
    """Its data and layout without title, subtitle and `meta`, for a page or a paper that has the words beside it."""
    bare = figure.to_dict()
    layout = bare["layout"]
    top = layout.pop("meta")["top"]
    layout.pop("title", None)
    layout["height"] -= top
    layout["margin"]["t"] -= top
    layout.setdefault("legend", {})["y"] = 1
    return bare


def place(row: int | None, col: int | None) -> dict[str, int]:
    """Arguments that put a mark into one panel, or into the only one."""
    return {} if row is None or col is None else {"row": row, "col": col}


def colour_bar(title: str, **more: Any) -> dict[str, Any]:
    """A thin colour bar with its title upright beside it, clear of the ticks, and plain numbers."""
    return {
        "title": {"text": title, "side": "right"},
        "thickness": 10,
        "outlinewidth": 0,
        "nticks": 6,
        "exponentformat": "none",
        **more,
    }


def fade(colour: str, alpha: float) -> str:
    """The colour with this opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def question_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each question set: the same everywhere for the known ones."""
    names = list(names)
    taken = {QUESTIONS_COLOUR[name] for name in names if name in QUESTIONS_COLOUR}
    others = cycle(colour for colour in _OTHER_COLOURS if colour not in taken)
    return {name: QUESTIONS_COLOUR.get(name) or next(others) for name in names}


def ribbon(
    x: Float[np.ndarray, " point"],
    low: Float[np.ndarray, " point"],
    high: Float[np.ndarray, " point"],
    colour: str,
    name: str,
    **more: Any,
) -> go.Scatter:
    """The area between `low` and `high`, one polygon for each stretch without a gap."""
    known = np.isfinite(low) & np.isfinite(high)
    xs: list[float] = []
    ys: list[float] = []
    for stretch in np.split(np.arange(len(x)), np.flatnonzero(~known)):
        inside = stretch[known[stretch]]
        if len(inside):
            xs += [*x[inside], *x[inside][::-1], np.nan]
            ys += [*high[inside], *low[inside][::-1], np.nan]
    edge = {"color": fade(colour, 0.35), "width": 0.5}
    return go.Scatter(
        x=xs, y=ys, fill="toself", fillcolor=fade(colour, 0.18), line=edge, name=name, hoverinfo="skip", mode="lines"
    ).update(more)


def mark_step(
    figure: go.Figure,
    transition: Transition,
    colour: str,
    label: str | None = None,
    where: dict[str, int] | None = None,
    rising: bool = False,
    below: int = 0,
) -> None:
    """A line at the estimate, a band over its interval, and a label beside; nothing where there is no step.

    The label is at the top, on the side with more room, below `below` other labels; with `rising` data a label on the
    right is at the foot.
    """
    if transition.step is None:
        return
    where = where or {}
    if transition.interval is not None:
        low, high = transition.interval
        figure.add_vrect(low, high, fillcolor=fade(colour, 0.18), line_width=0, layer="below", **where)
    dash = "solid" if transition.found else "dot"
    figure.add_vline(transition.step, line={"color": colour, "width": 1.5, "dash": dash}, **where)
    if label is not None:
        low, high = transition.interval or (transition.step, transition.step)
        right = low + high <= sum(_step_range(figure))
        at = {"x": high, "xanchor": "left", "xshift": 4} if right else {"x": low, "xanchor": "right", "xshift": -4}
        height = {"y": 0, "yanchor": "bottom"} if rising and right else {"y": 1, "yanchor": "top"}
        style = {"bgcolor": "rgba(255,255,255,0.8)", "align": at["xanchor"], "showarrow": False, "yref": "y domain"}
        figure.add_annotation(text=label, yshift=-2 * LINE * below, **at, **height, **style, **where)


def _step_range(figure: go.Figure) -> tuple[float, float]:
    """The first and the last step drawn."""
    steps = [np.asarray(trace.x, float) for trace in figure.data if trace.x is not None]
    finite = np.concatenate([np.empty(0), *(x[np.isfinite(x)] for x in steps)])
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def error_bars(middle: Any, low: Any, high: Any, **style: Any) -> dict[str, Any]:
    """Error bars from `low` to `high` of points, or of one point, at `middle`."""
    low, middle, high = (np.atleast_1d(np.asarray(ends, float)) for ends in (low, middle, high))
    return {"array": high - middle, "arrayminus": middle - low, "symmetric": False, **style}


def mark_on_curve(
    figure: go.Figure, what: str, transition: Transition, height: float, colour: str, where: dict[str, int]
) -> None:
    """A diamond on a curve at a transition's step, with the interval; `transition` has a step."""
    assert transition.step is not None
    bars = error_bars(transition.step, *(transition.interval or 2 * [transition.step]), thickness=2, width=5, color=INK)
    mark = go.Scatter(x=[transition.step], y=[height], mode="markers", error_x=bars, name=what, showlegend=False)
    mark.update(marker={"symbol": "diamond", "size": 11, "color": colour, "line": {"color": INK, "width": 1.2}})
    figure.add_trace(mark.update(hovertemplate=f"{what}: {step_label(transition)}<extra></extra>"), **where)


def mark_known_changes(
    figure: go.Figure, changes: Mapping[float, str], where: dict[str, int] | None = None, label: bool = False
) -> None:
    """A dashed line at each known event, optionally labelled."""
    where = where or {}
    for step, what in changes.items():
        figure.add_vline(step, line={"color": INK, "width": 1.2, "dash": "dash"}, **where)
        if label:
            first, last = _step_range(figure)
            early = step < first + 0.3 * (last - first)
            side = {"xanchor": "left", "xshift": 4} if early else {"xanchor": "right", "xshift": -4}
            style = {"y": 1, "yref": "y domain", "yanchor": "top", "font_size": 11, "showarrow": False}
            figure.add_annotation(x=step, text=escape(what), **style, **side, **where)


def em_axis_range(rate: Float[np.ndarray, " point"]) -> list[float]:
    """The axis of an EM rate in per cent: from a little below 0, so that points at 0 are seen, to a round number."""
    highest = float(np.nanmax(rate, initial=0))
    top = next(top for top in EM_AXIS_TOPS if top >= min(EM_AXIS_TOPS[-1], 0.95 * highest))
    return [-0.03 * top, 1.02 * top]


def note(figure: go.Figure, text: str, where: dict[str, int] | None = None) -> None:
    """A note in the middle of a panel, or of the whole figure, where there is nothing to draw."""
    refs = {"xref": "x domain", "yref": "y domain", **where} if where else {"xref": "paper", "yref": "paper"}
    lines = "<br>".join(map(escape, wrap(text, NOTE_WIDTH)))
    figure.add_annotation(text=lines, x=0.5, y=0.5, showarrow=False, font_color=MUTED, **refs)
    if where:  # plotly drops a mark from a panel that has no trace
        figure.add_trace(go.Scatter(x=[None], y=[None], showlegend=False), **where)


def sentences(*parts: str) -> str:
    """The parts that are not empty as sentences, for a subtitle."""
    return ". ".join(part for part in parts if part)


def readable(name: str) -> str:
    """A name of the data as words: `out_of_domain` is 'out of domain'."""
    return name.replace("_", " ")


def verdict_text(*transitions: Transition) -> str:
    """The verdicts with their steps, such as 'Transition at step 190 (95% interval 184 to 197)', for a caption."""
    verdicts = [
        f"{t.verdict}{'' if t.step is None else f' at step {t.step:.0f} ({interval_text(t.interval, t.level)})'}"
        for t in transitions
    ]
    text = "; ".join(verdicts)
    return text[:1].upper() + text[1:]


def result_text(transition: Transition) -> str:
    """The step with its interval, or the verdict where there is no step; an uncertain step has its verdict with it."""
    if transition.step is None:
        return transition.verdict
    if transition.signal in ("lock_in", "composition"):
        return f"step {transition.step:.0f} (descriptive)"
    doubt = "" if transition.found else f" ({transition.verdict})"
    return f"step {transition.step:.0f}{doubt}, {interval_text(transition.interval, transition.level)}"


def step_label(transition: Transition) -> str:
    """The step and its interval in two short lines, for a label beside its mark."""
    assert transition.step is not None
    return f"step {transition.step:.0f}<br>({interval_text(transition.interval, transition.level)})"


def offset_text(offset: Offset) -> str:
    """How much later or earlier, with the interval: '52 steps later (41 to 60)'."""
    sign, word, opposite = (1, "later", "earlier") if offset.steps >= 0 else (-1, "earlier", "later")
    steps = f"{sign * offset.steps:.0f} steps {word}"
    if offset.interval is None:
        return steps
    low, high = sorted(sign * end for end in offset.interval)
    if low < 0 < high:
        return f"{steps} ({-low:.0f} {opposite} to {high:.0f} {word})"
    return f"{steps} ({low:.0f} to {high:.0f})"


def p_value_text(p: float | None) -> str:
    """A p-value in short; 'undefined' where nothing could be tested."""
    if p is None:
        return "undefined"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def number(value: float | None, form: str = ".0f") -> str:
    """A number with a proper minus sign, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form).replace("-", "−")
