"""The mean-difference direction by layer: how large it is, and how far two halves of the questions agree on it."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, VERMILLION, new_figure, place


def plot_mean_difference(layers: pd.DataFrame, about: str = "") -> go.Figure:
    """Two panels over the layers. `layers` has columns layer, share_of_stream and reliability."""
    figure = new_figure("Misaligned minus aligned answers, by layer", about, 260, cols=2, horizontal_spacing=0.16)
    panels = (
        ("share_of_stream", "Norm of the difference<br>(share of the residual stream's)", VERMILLION),
        ("reliability", "Cosine between halves<br>of the questions", BLUE),
    )
    for number, (column, title, colour) in enumerate(panels, 1):
        style = {"mode": "lines+markers", "line": {"color": colour}, "showlegend": False}
        hover = "after layer %{x}<br>%{y:.3f}<extra></extra>"
        figure.add_trace(
            go.Scatter(x=layers["layer"], y=layers[column], hovertemplate=hover, **style), **place(1, number)
        )
        top = 1.02 if column == "reliability" else 1.08 * float(layers[column].max())
        low = min(0.0, 1.05 * float(layers[column].min(skipna=True)))
        figure.update_yaxes(title_text=title, range=[low, top], **place(1, number))
    return figure.update_xaxes(title_text="After layer", nticks=min(len(layers), 10), tickformat="d")
