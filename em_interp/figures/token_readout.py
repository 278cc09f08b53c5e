"""What an adapter's write promotes and suppresses in tokens, by step, and when these tokens settle."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import sample_colorscale

from em_interp.figures.template import BLUE, MUTED, STEP, VERMILLION, new_figure, place

SIDES = {"promoted": VERMILLION, "suppressed": BLUE}


def plot_token_readout(
    chosen: Mapping[str, Float[np.ndarray, " step"]],
    settling: pd.DataFrame,
    steps: Int[np.ndarray, " step"],
    site: str = "",
    settled: float = 0.8,
    k: int = 10,
) -> go.Figure:
    """Direct effects on some tokens by step; below, how far the tokens moved most are those of the last step.

    `chosen` has an effect in logits at every step for each token; `settling` a row a step and side, with the Jaccard
    with the last step's tokens and `chance`, drawn thin.
    """
    figure = new_figure(
        "Tokens that the adapter writes",
        f"{site}: direct effect of the mean write on logits, centred over the vocabulary; later layers are not in it. "
        f"Below: the {k} tokens moved most on either side; dashed, where they count as settled; thin, what random "
        "directions stay below.",
        470,
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[0.62, 0.38],
    )
    where, order = place(1, 1), sorted(chosen, key=lambda text: -float(np.nan_to_num(chosen[text][-1])))
    shades = sample_colorscale("RdBu", _away_from_white(len(order)))
    for text, colour in zip(order, shades, strict=True):
        name = escape(text.strip() or repr(text))
        hover = f"step %{{x}}<br>{name}: %{{y:+.2f}} logits<extra></extra>"
        line = go.Scatter(x=steps, y=chosen[text], mode="lines", name=name, hovertemplate=hover)
        figure.add_trace(line.update(line={"color": colour, "width": 1.8}), **where)
    figure.add_hline(0, line={"color": MUTED, "width": 1}, **where)
    for side, colour in SIDES.items():
        rows = settling[settling["side"] == side]
        hover = f"step %{{x}}<br>{side}: %{{y:.2f}}<extra></extra>"
        line = go.Scatter(x=rows["step"], y=rows["jaccard"], mode="lines", name=side, hovertemplate=hover)
        line.update(line={"color": colour, "width": 1.8, "shape": "hv"}, legend="legend2")
        figure.add_trace(line, **place(2, 1))
        figure.add_hline(rows["chance"].iloc[0], line={"color": colour, "width": 0.8}, **place(2, 1))
    figure.add_hline(settled, line={"color": MUTED, "width": 1, "dash": "dash"}, **place(2, 1))
    for name, panel in (("legend", 1), ("legend2", 2)):  # beside the panel they belong to
        top = figure.get_subplot(panel, 1).yaxis.domain[1]
        beside = {"orientation": "v", "x": 1.01, "y": top, "yref": "paper", "yanchor": "top", "font_size": 11}
        figure.update_layout({name: beside})
    figure.update_yaxes(title_text="Direct effect (logits)", **place(1, 1))
    figure.update_yaxes(title_text="Jaccard with<br>the last step's", range=[-0.03, 1.05], **place(2, 1))
    figure.update_xaxes(title_text=STEP, **place(2, 1))
    return figure


def _away_from_white(count: int) -> list[float]:
    """Places on a scale from one colour to another, half of them in either, none in the pale middle."""
    half = (count + 1) // 2
    return [*np.linspace(0, 0.32, half), *np.linspace(0.68, 1, count - half)]
