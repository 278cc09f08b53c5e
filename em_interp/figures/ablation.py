"""What goes with a direction that is taken out of the residual stream: EM and coherence, place by place."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, FAINT, INK, MUTED, ORANGE, VERMILLION, em_range, new_figure, place

KINDS = {
    "direction": ("the direction taken out", VERMILLION, "circle"),
    "random": ("random directions taken out", FAINT, "diamond"),
    "moved": ("as much moved at random", ORANGE, "square"),
}
APART = 0.2  # of the space between two places


def plot_ablation(rows: pd.DataFrame, about: str = "", level: float = 0.95) -> go.Figure:
    """EM and coherent rates at every place, of the direction and of both controls, the model left alone as a band.

    `rows` are those of `Ablation.frame()`: a row a place and kind, with em and coherent and their `_low` and `_high`.
    """
    left = f"The direction: {about}. " if about else ""
    figure = new_figure(
        "Taking the direction out of the residual stream",
        f"{left}Grey band: the adapted model left alone. Bars: {level:.0%} intervals for other answers to the same "
        "questions; controls pool their random directions.",
        460,
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[0.6, 0.4],
    )
    places = [str(name) for name in dict.fromkeys(rows.loc[rows["kind"] != "none", "place"])]
    alone = rows[rows["kind"] == "none"].iloc[0]
    for row, of in enumerate(("em", "coherent"), 1):
        where = place(row, 1)
        for number, kind in enumerate(KINDS):
            figure.add_trace(_points(rows, places, of, kind, APART * (number - 1), row == 1), **where)
        low, high = 100 * alone[f"{of}_low"], 100 * alone[f"{of}_high"]
        figure.add_hrect(low, high, fillcolor=FAINT, opacity=0.35, line_width=0, layer="below", **where)
        figure.add_hline(100 * alone[of], line={"color": MUTED, "width": 1, "dash": "dash"}, **where)
    ticks = [name.replace("layer ", "") for name in places]
    em = em_range(100 * rows["em_high"].to_numpy(float))
    figure.update_yaxes(title_text="EM rate<br>(% of scored)", range=em, **place(1, 1))
    figure.update_yaxes(title_text="Coherent rate<br>(% of scored)", range=[-3, 103], **place(2, 1))
    figure.update_xaxes(tickvals=np.arange(len(places)), ticktext=ticks, range=[-0.5, len(places) - 0.5])
    figure.update_xaxes(title_text="Taken out after layer", **place(2, 1))
    return figure


def _points(rows: pd.DataFrame, places: list[str], of: str, kind: str, aside: float, named: bool) -> go.Scatter:
    name, colour, symbol = KINDS[kind]
    colour = BLUE if of == "coherent" and kind == "direction" else colour
    there = rows[rows["kind"] == kind].set_index("place").reindex(places)
    rate, low, high = (100 * there[column].to_numpy(float) for column in (of, f"{of}_low", f"{of}_high"))
    bars = {"array": high - rate, "arrayminus": rate - low, "symmetric": False, "thickness": 1.4, "width": 4}
    points = go.Scatter(x=np.arange(len(places)) + aside, y=rate, mode="markers", name=name, showlegend=named)
    points.update(error_y={**bars, "color": colour}, marker={"color": colour, "size": 8, "symbol": symbol})
    points.update(marker_line={"color": INK, "width": 0.5}, customdata=places)
    return points.update(hovertemplate=f"%{{customdata}}<br>{name}: %{{y:.1f}} %<extra></extra>")
