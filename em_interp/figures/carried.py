"""What a carried direction does in another family, beside that family's own direction and random carried ones."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, INK, MUTED, VERMILLION, fade, new_figure, place

TITLES = {"steering": "Added to the base at half depth", "ablation": "Projected out of the adapted model"}
ROW = 42  # pixels


def plot_carried(use: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel for each use, a line for each source and target: carried, own, and the largest of the random ones.

    `use` has columns run, other, use, carried, own, random_largest and adapter; effects are on the margin of misaligned
    over aligned answers, in nats a token.
    """
    uses = [name for name in TITLES if (use["use"] == name).any()]
    words = "Effect on the log-probability of misaligned answers less that of aligned ones."
    figure = new_figure(
        "Directions carried from one family into another",
        f"{about}. {words}" if about else words,
        ROW * len(use[["run", "other"]].drop_duplicates()) + 90,
        headroom=30,
        least_width=520,
        rows=1,
        cols=len(uses),
        shared_yaxes=True,
        subplot_titles=[TITLES[name] for name in uses],
        horizontal_spacing=0.06,
    )
    for number, name in enumerate(uses, 1):
        _draw(figure, use[use["use"] == name], place(1, number), number == 1)
    figure.update_xaxes(title_text="Effect on the margin (nats a token)", nticks=6, zeroline=True, zerolinecolor=INK)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_yaxes(title_text="From → into", row=1, col=1)


def _draw(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int], legend: bool) -> None:
    names = [f"{escape(str(run))} → {escape(str(other))}" for run, other in rows[["run", "other"]].to_numpy()]
    for name, largest in zip(names, rows["random_largest"], strict=True):
        band = go.Scatter(x=[-largest, largest], y=[name, name], mode="lines", name="random carried directions")
        shown = legend and name == names[0]
        band.update(line={"color": fade(MUTED, 0.35), "width": 14}, showlegend=shown, hoverinfo="skip")
        figure.add_trace(band.update(legendgroup="random"), **where)
    marks = (
        ("carried", "the carried direction", {"color": VERMILLION, "size": 10}),
        ("own", "the target's own direction", {"color": BLUE, "size": 10, "symbol": "diamond-open", "line_width": 2}),
    )
    for column, said, marker in marks:
        hover = "%{y}<br>%{x:.3f} nats a token<extra></extra>"
        trace = go.Scatter(x=rows[column], y=names, mode="markers", marker=marker, name=said, hovertemplate=hover)
        figure.add_trace(trace.update(legendgroup=column, showlegend=legend), **where)
