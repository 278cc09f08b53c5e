"""Which words two adapters favour: the ranks of the tokens that both families say, one against the other."""

from __future__ import annotations

from html import escape
from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, FAINT, INK, VERMILLION, new_figure, place

AT = {"write": "the write of the adapter", "final": "the whole change at the last layer"}
NAMED = 6  # tokens named at either end
MOST = 6  # pairs in one figure
PANEL = 300  # pixels


def plot_readouts(tokens: pd.DataFrame, likeness: pd.DataFrame, at: str = "final", about: str = "") -> go.Figure:
    """A panel for each pair (the first six): rank of every token in both read-outs, the extremes of both named.

    `tokens` has columns run, other, token, rank and other_rank (1: the most promoted); `likeness` the rows of
    `readout_<at>` with value, random_band, kept_band.
    """
    pairs = [(key, rows) for key, rows in tokens.groupby(["run", "other"], sort=False)][:MOST]
    across = min(len(pairs), 3)
    down = -(-len(pairs) // across)
    titles = [_title(likeness, str(run), str(other), at) for (run, other), _ in pairs]
    words = f"Read-out of {AT[at]}, over tokens that both families say; rank 1 is the most promoted."
    figure = new_figure(
        "Tokens that the adapters promote and suppress",
        f"{about}. {words}" if about else words,
        down * (PANEL + 170) - 40,
        headroom=20,
        least_width=520,
        rows=down,
        cols=across,
        subplot_titles=titles,
        horizontal_spacing=0.1,
        vertical_spacing=0.5 / down,
    )
    figure.update_annotations(font_size=12)
    for number, ((run, other), rows) in enumerate(pairs):
        where = place(number // across + 1, number % across + 1)
        _draw(figure, rows, where)
        figure.update_xaxes(title_text=f"Rank in {escape(str(run))}", autorange="reversed", **where)
        figure.update_yaxes(title_text=f"Rank in {escape(str(other))}", autorange="reversed", **where)
    return figure.update_layout(showlegend=False, margin_b=170)


def _title(likeness: pd.DataFrame, run: str, other: str, at: str) -> str:
    chosen = (likeness["run"] == run) & (likeness["other"] == other) & (likeness["measure"] == f"readout_{at}")
    row = likeness[chosen].iloc[0]
    band = max(row["random_band"], row["kept_band"])
    return f"Spearman {row['value']:.2f} (random: within ±{band:.2f})"


def _draw(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    both = rows["rank"] + rows["other_rank"]
    order = np.argsort(both.to_numpy(), kind="stable")
    colour = np.full(len(rows), FAINT, dtype=object)
    colour[order[:NAMED]], colour[order[-NAMED:]] = VERMILLION, BLUE
    tokens = [escape(repr(str(token))) for token in rows["token"]]
    hover = "%{hovertext}<br>ranks %{x} and %{y}<extra></extra>"
    dots = go.Scatter(x=rows["rank"], y=rows["other_rank"], mode="markers", hovertemplate=hover, hovertext=tokens)
    figure.add_trace(dots.update(marker={"color": list(colour), "size": 5}), **where)
    ends = (("both promote", order[:NAMED], VERMILLION), ("both suppress", order[-NAMED:][::-1], BLUE))
    below = {"x": 0, "xref": "x domain", "xanchor": "left", "yref": "y domain", "yanchor": "top", "align": "left"}
    for line, (said, chosen, colour_of) in enumerate(ends):
        words = wrap(", ".join(str(rows["token"].iloc[k]).strip() for k in chosen), 34, max_lines=2, placeholder=" …")
        text = f"<b>{said}</b><br>" + "<br>".join(map(escape, words))
        style = {"font": {"size": 11, "color": colour_of}, "showarrow": False}
        figure.add_annotation(text=text, y=-0.22 - 0.19 * line, **below, **style, **where)
    figure.update_xaxes(linecolor=INK, **where)
