"""KL divergence of the adapted model from its base, by step."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.style import STEP, new_figure, question_colours, readable, ribbon
from em_interp.results import percent


def plot_kl_from_base(rates: pd.DataFrame, level: float = 0.95) -> go.Figure:
    """KL(base ‖ adapted) in nats a token by step, a line for each question set.

    `rates` has columns step, questions, kl with `_low` and `_high`, and tokens. Bands are intervals for other
    questions of the kind.
    """
    tokens = ", ".join(f"{rows['tokens'].iloc[0]} {readable(str(name))}" for name, rows in rates.groupby("questions"))
    figure = new_figure(
        "KL divergence from the base",
        f"Mean over answer tokens ({tokens}). Bands: {percent(level)} intervals for other questions of the kind.",
        numbers=rates,
    )
    colours = question_colours(sorted(map(str, rates["questions"].unique())))
    for name, colour in colours.items():
        rows = rates[rates["questions"] == name]
        low, high = (rows[f"kl_{end}"].to_numpy() for end in ("low", "high"))
        figure.add_trace(ribbon(rows["step"].to_numpy(), low, high, colour, "interval", showlegend=False))
        hover = "step %{x}<br>%{y:.3g} nats a token<extra></extra>"
        line = go.Scatter(x=rows["step"], y=rows["kl"], mode="lines+markers", name=escape(readable(name)))
        figure.add_trace(line.update(line={"color": colour, "width": 1.8}, marker_size=4, hovertemplate=hover))
    figure.update_xaxes(title_text=STEP)
    return figure.update_yaxes(title_text="KL(base ‖ adapted)<br>(nats a token)", rangemode="tozero")
