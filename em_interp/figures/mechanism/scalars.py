"""The scalars s·A·x that the adapter computes, and probes on them that separate misaligned from aligned answers."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.style import BLUE, MUTED, STEP, VERMILLION, fade, new_figure, place, ribbon, sentences
from em_interp.results import percent

SCALAR_COLOUR = {"misaligned": VERMILLION, "aligned": BLUE}
SCALARS_PANEL = 220  # pixels
MAX_SCALARS = 4


def plot_scalars(scalars: pd.DataFrame, about: str = "") -> go.Figure:
    """A row for each scalar (the first four): means over answers by question set and step, and tokens at the last step.

    `scalars` has columns step, column, questions, label, mean, mean_low, mean_high and quantiles q05 to q95.
    """
    columns = list(dict.fromkeys(scalars["column"]))
    drawn, sets = columns[:MAX_SCALARS], sorted(scalars["questions"].unique())
    last = int(scalars["step"].max())
    n_drawn = f" {len(drawn)} of {len(columns)} scalars." if len(drawn) < len(columns) else ""
    words = f"Left: mean over answers, ribbons for other answers. Right: tokens, 5 to 95 % of them.{n_drawn}"
    titles = [text for name in drawn for text in (escape(name), f"Tokens at step {last}")]
    figure = new_figure(
        "What the adapter computes, s·A·x",
        sentences(about, words),
        len(drawn) * SCALARS_PANEL + 40,
        headroom=16,
        least_width=480,
        numbers=scalars,
        rows=len(drawn),
        cols=2,
        column_widths=[0.6, 0.4],
        vertical_spacing=0.3 / len(drawn),
        subplot_titles=titles,
    )
    for number, name in enumerate(drawn, 1):
        rows = scalars[scalars["column"] == name]
        _draw_means(figure, rows, sets, place(number, 1))
        _draw_tokens(figure, rows[rows["step"] == last], place(number, 2))
        figure.update_yaxes(title_text="Scalar s·A·x (no unit)", row=number)
    figure.update_xaxes(title_text=STEP, row=len(drawn), col=1)
    return figure.update_xaxes(title_text="Questions", col=2, row=len(drawn))


def _draw_means(figure: go.Figure, rows: pd.DataFrame, sets: list[str], where: dict[str, int]) -> None:
    dashes = dict(zip(sets, ("solid", "dash", "dot", "dashdot") * len(sets), strict=False))
    for (questions, label), curve in rows.groupby(["questions", "label"], sort=True):
        x, colour = curve["step"].to_numpy(float), SCALAR_COLOUR[str(label)]
        edges = curve["mean_low"].to_numpy(float), curve["mean_high"].to_numpy(float)
        name = f"{label}, {escape(str(questions).replace('_', ' '))}"
        figure.add_trace(ribbon(x, *edges, colour, name, showlegend=False, legendgroup=name), **where)
        line = {"color": colour, "dash": dashes[str(questions)], "width": 1.8}
        first = not any(trace.name == name and trace.mode == "lines" and trace.showlegend for trace in figure.data)
        hover = f"{name}<br>step %{{x}}<br>%{{y:.3g}}<extra></extra>"
        trace = go.Scatter(x=x, y=curve["mean"], mode="lines", line=line, name=name, hovertemplate=hover)
        figure.add_trace(trace.update(legendgroup=name, showlegend=first), **where)


def _draw_tokens(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    for label, colour in SCALAR_COLOUR.items():
        part = rows[rows["label"] == label]
        ticks = [escape(str(questions).replace("_", " ")) for questions in part["questions"]]
        edges = {"lowerfence": part["q05"], "q1": part["q25"], "median": part["q50"], "q3": part["q75"]}
        box = go.Box(x=ticks, **edges, upperfence=part["q95"], name=label, offsetgroup=label, showlegend=False)
        figure.add_trace(box.update(line_color=colour, fillcolor=fade(colour, 0.2), line_width=1.3), **where)
    figure.update_layout(boxmode="group")


def plot_probes(probes: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """AUC on held-out questions with its interval, next to chance and to a probe on the answer's length.

    `probes` has columns step, auc, auc_low, auc_high and length_auc.
    """
    figure = new_figure("Can the scalars tell misaligned answers?", about, 300, numbers=probes)
    x = probes["step"].to_numpy(float)
    band = probes["auc_low"].to_numpy(float), probes["auc_high"].to_numpy(float)
    figure.add_trace(ribbon(x, *band, VERMILLION, f"{percent(level)} interval for other questions"))
    line = go.Scatter(x=x, y=probes["auc"], mode="lines+markers", line_color=VERMILLION, name="probe on the scalars")
    figure.add_trace(line.update(hovertemplate="step %{x}<br>AUC %{y:.2f}<extra></extra>", marker_size=5))
    length = go.Scatter(x=x, y=probes["length_auc"], mode="lines", name="probe on the answer's length")
    figure.add_trace(length.update(line={"color": BLUE, "dash": "dash"}))
    figure.add_hline(0.5, line={"color": MUTED, "width": 1}, annotation={"text": "chance", "font_color": MUTED})
    low = min(0.4, float(probes["auc_low"].min()) - 0.05)
    figure.update_yaxes(title_text="AUC on questions not seen", range=[low, 1.02])
    return figure.update_xaxes(title_text=STEP)
