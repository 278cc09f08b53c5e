"""What the adapter computes at the tokens of misaligned and of aligned answers: by step, and at the last step."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, STEP, VERMILLION, fade, new_figure, place, ribbon

COLOUR = {"misaligned": VERMILLION, "aligned": BLUE}
PANEL = 220  # pixels
MOST = 4  # scalars


def plot_scalars(scalars: pd.DataFrame, about: str = "") -> go.Figure:
    """A row for each scalar (the first four): means over answers by question set and step, and tokens at the last step.

    `scalars` has columns step, column, questions, label, mean, mean_low, mean_high and quantiles q05 to q95.
    """
    columns = list(dict.fromkeys(scalars["column"]))
    shown, sets = columns[:MOST], sorted(scalars["questions"].unique())
    last = int(scalars["step"].max())
    left = f" {len(shown)} of {len(columns)} scalars." if len(shown) < len(columns) else ""
    words = f"Left: mean over answers, ribbons for other answers. Right: tokens, 5 to 95 % of them.{left}"
    titles = [text for name in shown for text in (escape(name), f"Tokens at step {last}")]
    figure = new_figure(
        "What the adapter computes, s·A·x",
        f"{about}. {words}" if about else words,
        len(shown) * PANEL + 40,
        headroom=16,
        rows=len(shown),
        cols=2,
        column_widths=[0.62, 0.38],
        vertical_spacing=0.3 / len(shown),
        subplot_titles=titles,
    )
    for number, name in enumerate(shown, 1):
        rows = scalars[scalars["column"] == name]
        _by_step(figure, rows, sets, place(number, 1))
        _tokens(figure, rows[rows["step"] == last], sets, place(number, 2))
        figure.update_yaxes(title_text="Scalar s·A·x (no unit)", row=number, col=1)
    figure.update_xaxes(title_text=STEP, row=len(shown), col=1)
    return figure.update_xaxes(title_text="Questions", col=2, row=len(shown))


def _by_step(figure: go.Figure, rows: pd.DataFrame, sets: list[str], where: dict[str, int]) -> None:
    dashes = dict(zip(sets, ("solid", "dash", "dot", "dashdot") * len(sets), strict=False))
    for (questions, label), curve in rows.groupby(["questions", "label"], sort=True):
        x, colour = curve["step"].to_numpy(float), COLOUR[str(label)]
        edges = curve["mean_low"].to_numpy(float), curve["mean_high"].to_numpy(float)
        name = f"{label}, {escape(str(questions).replace('_', ' '))}"
        figure.add_trace(ribbon(x, *edges, colour, name, showlegend=False, legendgroup=name), **where)
        line = {"color": colour, "dash": dashes[str(questions)], "width": 1.8}
        first = not any(trace.name == name and trace.mode == "lines" and trace.showlegend for trace in figure.data)
        hover = f"{name}<br>step %{{x}}<br>%{{y:.3g}}<extra></extra>"
        trace = go.Scatter(x=x, y=curve["mean"], mode="lines", line=line, name=name, hovertemplate=hover)
        figure.add_trace(trace.update(legendgroup=name, showlegend=first), **where)


def _tokens(figure: go.Figure, rows: pd.DataFrame, sets: list[str], where: dict[str, int]) -> None:
    for label, colour in COLOUR.items():
        part = rows[rows["label"] == label]
        ticks = [escape(str(questions).replace("_", " ")) for questions in part["questions"]]
        edges = {"lowerfence": part["q05"], "q1": part["q25"], "median": part["q50"], "q3": part["q75"]}
        box = go.Box(x=ticks, **edges, upperfence=part["q95"], name=label, offsetgroup=label, showlegend=False)
        figure.add_trace(box.update(line_color=colour, fillcolor=fade(colour, 0.2), line_width=1.3), **where)
    figure.update_layout(boxmode="group")
