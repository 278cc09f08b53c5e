"""What all figures share: fonts, sizes, colours with one meaning each, and the marks of an interval and a step.

Colours are those of Okabe and Ito (2008), apart for every common kind of colour blindness. Steps are coloured by
viridis, perceptually even, without its palest end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from itertools import cycle
from textwrap import wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from em_interp.transition.align import Offset
from em_interp.transition.result import Transition

INK, MUTED, FAINT, GRID = "#1f1f1f", "#666666", "#b3b3b3", "#ececec"
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"

PART_NAME = {"A": "A", "B": "B", "delta": "ΔW"}
PART_COLOUR = {"A": GREEN, "B": BLUE, "delta": INK}
QUESTIONS_COLOUR = {"in_domain": ORANGE, "out_of_domain": VERMILLION, "broad": PURPLE}
_OTHERS = (VERMILLION, ORANGE, PURPLE, SKY, GREEN, BLUE)

STEP = "Training step"
STEP_SCALE = sample_colorscale("Viridis", [i / 10 * 0.93 for i in range(11)])
TITLE, LINE, LEGEND = 40, 17, 30  # pixels: a title, a line of a subtitle, a legend of one line
HEADROOM = 1.3  # room for a label above what is drawn, as a share of its height
EM_TOPS = (5, 10, 25, 50, 100)  # per cent
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
        "exponentformat": "power",
        "automargin": True,
        "title": {"standoff": 8, "font": {"size": 13}},
    }
    layout = {
        "font": {"family": FONT, "size": 12, "color": INK},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "yanchor": "top", "y": 1, "yref": "container"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(_OTHERS),
        "xaxis": axis,
        "yaxis": axis,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container"},
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT, "size": 12, "color": INK}, "align": "left"},
        "margin": {"l": 64, "r": 20, "b": 52},
        "annotationdefaults": {"font": {"size": 12, "color": INK}, "showarrow": False},
    }
    return go.layout.Template(layout=layout)


def new_figure(
    title: str, subtitle: str = "", height: int = 380, headroom: int = 0, least_width: int = 340, **subplots: Any
) -> go.Figure:
    """An empty figure in the project's style; `subplots` goes to plotly's `make_subplots`.

    `height` is that of the panels with their axes, in pixels; title and legend come on top of it. `headroom` is what
    stands between the legend and the panels. A page should not show it narrower than `least_width` pixels.
    `without_title` takes the title off again.
    """
    lines = wrap(subtitle, 100)
    top = TITLE + LINE * len(lines)
    figure = make_subplots(**subplots)
    figure.update_layout(
        template=template(),
        title={
            "text": f"<b>{escape(title)}</b>",
            "font": {"size": 15},
            "pad": {"l": 12, "t": 14},
            "subtitle": {"text": "<br>".join(map(escape, lines)), "font": {"size": 12, "color": MUTED}},
        },
        height=height + top + LEGEND + headroom,
        margin_t=top + LEGEND + headroom,
        legend_y=1 - top / (height + top + LEGEND + headroom),
        meta={"title": title, "subtitle": subtitle, "top": top, "least_width": least_width},
    )
    figure.update_annotations(font={"size": 13, "color": INK})
    return figure


def without_title(figure: go.Figure) -> go.Figure:
    """A copy without title and subtitle, for a page that writes them itself (they are in `layout.meta`)."""
    bare = go.Figure(figure)
    top = bare.layout.meta["top"]
    bare.update_layout(title=None, height=bare.layout.height - top, margin_t=bare.layout.margin.t - top, legend_y=1)
    return bare


def place(row: int | None, col: int | None) -> dict[str, int]:
    """Arguments that put a mark into one panel, or into the only one."""
    return {} if row is None or col is None else {"row": row, "col": col}


def fade(colour: str, alpha: float) -> str:
    """The colour with this opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def set_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each question set: the same everywhere for the known ones."""
    names = list(names)
    taken = {QUESTIONS_COLOUR[name] for name in names if name in QUESTIONS_COLOUR}
    others = cycle(colour for colour in _OTHERS if colour not in taken)
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
    under: int = 0,
) -> None:
    """The estimate as a line with its interval as a band, and a label beside; nothing where no step was given.

    The label stands at the top, on the side with more room, `under` so many others; where what is drawn is `rising`, on
    the right it stands at the foot.
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
        right = low + high <= sum(_ends(figure))
        at = {"x": high, "xanchor": "left", "xshift": 4} if right else {"x": low, "xanchor": "right", "xshift": -4}
        foot = {"y": 0, "yanchor": "bottom"} if rising and right else {"y": 1, "yanchor": "top"}
        style = {"bgcolor": "rgba(255,255,255,0.8)", "align": at["xanchor"], "showarrow": False, "yref": "y domain"}
        figure.add_annotation(text=label, yshift=-2 * LINE * under, **at, **foot, **style, **where)


def _ends(figure: go.Figure) -> tuple[float, float]:
    """The first and the last step drawn."""
    steps = [np.asarray(trace.x, float) for trace in figure.data if trace.x is not None]
    there = np.concatenate([np.empty(0), *(x[np.isfinite(x)] for x in steps)])
    return (float(there.min()), float(there.max())) if len(there) else (0.0, 0.0)


def mark_planted(
    figure: go.Figure, planted: Mapping[float, str], where: dict[str, int] | None = None, label: bool = False
) -> None:
    """What is known to have happened at a step, as a dashed line; with `label`, in words beside it."""
    where = where or {}
    for step, what in planted.items():
        figure.add_vline(step, line={"color": INK, "width": 1.2, "dash": "dash"}, **where)
        if label:
            first, last = _ends(figure)
            early = step < first + 0.3 * (last - first)
            beside = {"xanchor": "left", "xshift": 4} if early else {"xanchor": "right", "xshift": -4}
            style = {"y": 1, "yref": "y domain", "yanchor": "top", "font_size": 11, "showarrow": False}
            figure.add_annotation(x=step, text=escape(what), **style, **beside, **where)


def em_range(rate: Float[np.ndarray, " point"]) -> list[float]:
    """The axis of an EM rate in per cent: from a little below 0, so that points at 0 are seen, to a round number."""
    highest = float(np.nanmax(rate, initial=0))
    top = next(top for top in EM_TOPS if top >= min(EM_TOPS[-1], 0.95 * highest))
    return [-0.03 * top, 1.02 * top]


def note(figure: go.Figure, text: str, where: dict[str, int] | None = None) -> None:
    """A remark in the middle of a panel, or of the whole figure, for what cannot be drawn."""
    refs = {"xref": "x domain", "yref": "y domain", **where} if where else {"xref": "paper", "yref": "paper"}
    lines = "<br>".join(map(escape, wrap(text, 60)))
    figure.add_annotation(text=lines, x=0.5, y=0.5, showarrow=False, font_color=MUTED, **refs)
    if where:  # a mark that belongs to a panel without a trace is dropped
        figure.add_trace(go.Scatter(x=[None], y=[None], showlegend=False), **where)


# --------
# How results are named and told in figures and on the page: short, in whole steps.


_SIGNALS = {"gradient_norm": "gradient-norm peak", "norm_onset": "norm onset", "lock_in": "lock-in"}
_SIGNALS |= {f"sufficient_{one}": f"sufficient {one}" for one in ("direction", "norm", "A", "B")}
_SIGNALS |= {"sufficient_as_trained": "EM as trained", "answer_shift": "answer shift"}
_SIGNALS["composition"] = "composition score"


def said(name: str) -> str:
    """A name of the data as words: `out_of_domain` is 'out of domain'."""
    return name.replace("_", " ")


def name_of(transition: Transition) -> str:
    """What is looked at: 'rotation of B', 'EM onset, out of domain, adapter ×2'."""
    if transition.signal == "onset":
        metric = "EM" if transition.of == "em" else said(transition.of or "")
        scale = "" if transition.scale in (None, 1) else f"adapter ×{transition.scale:g}"
        return ", ".join(part for part in (f"{metric} onset", said(transition.questions or ""), scale) if part)
    part = "" if transition.of is None else f" of {PART_NAME.get(transition.of, transition.of)}"
    return _SIGNALS.get(transition.signal, transition.signal) + part


def span(interval: tuple[float, float] | None, level: float | None) -> str:
    """An interval, such as '95% interval 184 to 197'."""
    if interval is None or level is None:
        return "no interval"
    return f"{level:.0%} interval {interval[0]:.0f} to {interval[1]:.0f}"


def result_of(transition: Transition) -> str:
    """The step with its interval, or the verdict where there is no step; a step that is not certain says so."""
    if transition.step is None:
        return transition.verdict
    if transition.signal in ("lock_in", "composition"):
        return f"step {transition.step:.0f} (descriptive)"
    doubt = "" if transition.found else f" ({transition.verdict})"
    return f"step {transition.step:.0f}{doubt}, {span(transition.interval, transition.level)}"


def step_label(transition: Transition) -> str:
    """The step and its interval in two short lines, for a label beside its mark."""
    assert transition.step is not None
    return f"step {transition.step:.0f}<br>({span(transition.interval, transition.level)})"


def offset_of(offset: Offset) -> str:
    """How much later or earlier, with the interval: '52 steps later (41 to 60)'."""
    sign, word = (1, "later") if offset.steps >= 0 else (-1, "earlier")
    said = f"{sign * offset.steps:.0f} steps {word}"
    if offset.interval is None:
        return said
    low, high = sorted(sign * end for end in offset.interval)
    if low < 0 < high:
        other = "earlier" if sign > 0 else "later"
        return f"{said} ({-low:.0f} {other} to {high:.0f} {word})"
    return f"{said} ({low:.0f} to {high:.0f})"


def p_value(p: float | None) -> str:
    """A p-value in short; 'undefined' where nothing could be tested."""
    if p is None:
        return "undefined"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def number(value: float | None, form: str = ".0f") -> str:
    """A number with a proper minus sign, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form).replace("-", "−")
