"""Steering dose by dose: EM and coherence of the base and of the adapted model, beside random directions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, FAINT, GREEN, MUTED, VERMILLION, new_figure, place, ribbon

HELD = {"base": "Base", "adapted": "Adapted model"}
OF = {"em": ("EM", VERMILLION), "coherent": ("coherent", BLUE)}
COHERENT = 90  # per cent: below it EM does not count


def plot_dose_response(
    rows: pd.DataFrame, layer: int = 0, about: str = "", length: float = float("nan"), level: float = 0.95
) -> go.Figure:
    """EM and coherent rates over doses, on the base and on the adapted model; usable doses of the base are marked.

    `rows` are those of `DoseResponse.frame()`: a row a model (`held`), kind and dose. Random directions of the same
    length are dashed, the range of EM over them grey; `length` is what a dose of 1 adds.
    """
    left = f"The direction: {about}. " if about else ""
    figure = new_figure(
        f"Steering after layer {layer}",
        f"{left}Dashed: random directions of the same length. Bands: {level:.0%} intervals for other answers to the "
        f"same questions. Green: doses at which EM exceeds the controls' interval at {COHERENT}% coherent.",
        340,
        headroom=24,
        least_width=620,
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[f"{name}" for name in HELD.values()],
    )
    for column, held in enumerate(HELD, 1):
        here = rows[rows["held"] == held]
        for of in OF:
            _draw(figure, here, of, column)
        _mark_usable(figure, here, place(1, column))  # a mark in a panel without a trace is dropped
        figure.add_hline(COHERENT, line={"color": MUTED, "width": 1, "dash": "dot"}, **place(1, column))
    figure.update_xaxes(title_text=f"Dose (1 is the difference itself, {length:.3g} long)")
    figure.update_yaxes(title_text="Rate (% of scored answers)", range=[-3, 103], **place(1, 1))
    figure.update_yaxes(range=[-3, 103], **place(1, 2))
    return figure


def _draw(figure: go.Figure, here: pd.DataFrame, of: str, column: int) -> None:
    name, colour = OF[of]
    where, hover = place(1, column), f"dose %{{x:.3g}}<br>{name} %{{y:.1f}} %<extra></extra>"
    own = here[here["kind"] != "random"].sort_values("dose")
    other = here[here["kind"] != "direction"].sort_values("dose")
    low, high = (100 * own[f"{of}_{end}"].to_numpy(float) for end in ("low", "high"))
    figure.add_trace(ribbon(own["dose"].to_numpy(), low, high, colour, name, showlegend=False), **where)
    if of == "em":
        low, high = (100 * other[f"em_{end}"].to_numpy(float) for end in ("least", "most"))
        figure.add_trace(ribbon(other["dose"].to_numpy(), low, high, FAINT, "random", showlegend=False), **where)
    line = go.Scatter(x=own["dose"], y=100 * own[of], mode="lines+markers", name=name, hovertemplate=hover)
    figure.add_trace(line.update(line={"color": colour, "width": 1.8}, marker_size=6, showlegend=column == 1), **where)
    dashed = go.Scatter(x=other["dose"], y=100 * other[of], mode="lines", name=f"{name}, random directions")
    dashed.update(line={"color": colour, "width": 1.3, "dash": "dash"}, showlegend=column == 1, hovertemplate=hover)
    figure.add_trace(dashed, **where)


def _mark_usable(figure: go.Figure, here: pd.DataFrame, where: dict[str, int]) -> None:
    """A band around each usable dose, to half-way to its neighbours."""
    doses = np.sort(here.loc[here["kind"] != "random", "dose"].to_numpy(float))
    usable = here.loc[here["usable"].astype(bool), "dose"].to_numpy(float)
    for index in np.flatnonzero(np.isin(doses, usable)).tolist():
        low = (doses[index] + doses[max(index - 1, 0)]) / 2
        high = (doses[index] + doses[min(index + 1, len(doses) - 1)]) / 2
        figure.add_vrect(low, high, fillcolor=GREEN, opacity=0.22, line_width=0, layer="below", **where)
