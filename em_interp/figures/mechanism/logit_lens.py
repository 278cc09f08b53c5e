"""Tokens that the adapter's write promotes and suppresses, and when they settle."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import sample_colorscale

from em_interp.figures.style import BLUE, MUTED, STEP, VERMILLION, new_figure, place

SIDES = {"promoted": VERMILLION, "suppressed": BLUE}


def plot_logit_lens(
    followed: Mapping[str, Float[np.ndarray, " step"]],
    settling: pd.DataFrame,
    steps: Int[np.ndarray, " step"],
    site: str = "",
    settled: float = 0.8,
    k: int = 10,
) -> go.Figure:
    """Direct effects on some tokens by step; below, the Jaccard of the most affected tokens with the last step's.

    `followed` has an effect in logits at every step for each token; `settling` a row a step and side, with the Jaccard
    with the last step's tokens and its `null`, drawn thin.
    """
    figure = new_figure(
        "Logit lens of the adapter's write",
        f"{site}: direct effect of the mean write on logits, centred over the vocabulary; later layers are not in it. "
        f"Below: the {k} most affected tokens on either side; dashed, where they count as settled; thin, what random "
        "directions stay below.",
        470,
        numbers=settling,
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[0.62, 0.38],
    )
    _draw_effects(figure, followed, steps, place(1, 1))
    _draw_settling(figure, settling, settled, place(2, 1))
    for name, panel in (("legend", 1), ("legend2", 2)):  # beside the panel they belong to
        top = figure.get_subplot(panel, 1).yaxis.domain[1]
        style = {"orientation": "v", "x": 1.01, "y": top, "yref": "paper", "yanchor": "top", "font_size": 11}
        figure.update_layout({name: style})
    return figure


def _draw_effects(
    figure: go.Figure,
    followed: Mapping[str, Float[np.ndarray, " step"]],
    steps: Int[np.ndarray, " step"],
    where: dict[str, int],
) -> None:
    """A line for each token, from the one promoted most at the last step to the one suppressed most."""
    order = sorted(followed, key=lambda text: -float(np.nan_to_num(followed[text][-1])))
    shades = sample_colorscale("RdBu", _away_from_white(len(order)))
    for text, colour in zip(order, shades, strict=True):
        name = escape(text.strip() or repr(text))
        hover = f"step %{{x}}<br>{name}: %{{y:+.2f}} logits<extra></extra>"
        line = go.Scatter(x=steps, y=followed[text], mode="lines", name=name, hovertemplate=hover)
        figure.add_trace(line.update(line={"color": colour, "width": 1.8}), **where)
    figure.add_hline(0, line={"color": MUTED, "width": 1}, **where)
    figure.update_yaxes(title_text="Direct effect (logits)", **where)


def _draw_settling(figure: go.Figure, settling: pd.DataFrame, settled: float, where: dict[str, int]) -> None:
    """How much of the last step's tokens is there at each step, on either side, above what random directions reach."""
    for side, colour in SIDES.items():
        rows = settling[settling["side"] == side]
        hover = f"step %{{x}}<br>{side}: %{{y:.2f}}<extra></extra>"
        line = go.Scatter(x=rows["step"], y=rows["jaccard"], mode="lines", name=side, hovertemplate=hover)
        line.update(line={"color": colour, "width": 1.8, "shape": "hv"}, legend="legend2")
        figure.add_trace(line, **where)
        figure.add_hline(rows["null"].iloc[0], line={"color": colour, "width": 0.8}, **where)
    figure.add_hline(settled, line={"color": MUTED, "width": 1, "dash": "dash"}, **where)
    figure.update_yaxes(title_text="Jaccard with<br>the last step's", range=[-0.03, 1.05], **where)
    figure.update_xaxes(title_text=STEP, **where)


def _away_from_white(count: int) -> list[float]:
    """Places on a scale from one colour to another, half of them in either, none in the pale middle."""
    half = (count + 1) // 2
    return [*np.linspace(0, 0.32, half), *np.linspace(0.68, 1, count - half)]
