"""How well the adapter's scalars tell misaligned from aligned answers, by step."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, MUTED, STEP, VERMILLION, new_figure, ribbon


def plot_probes(probes: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """AUC on questions not seen, with its interval; chance and a probe on the answer's length beside it.

    `probes` has columns step, auc, auc_low, auc_high and length_auc.
    """
    figure = new_figure("Can the scalars tell misaligned answers?", about, 300)
    x = probes["step"].to_numpy(float)
    band = probes["auc_low"].to_numpy(float), probes["auc_high"].to_numpy(float)
    figure.add_trace(ribbon(x, *band, VERMILLION, f"{level:.0%} interval for other questions"))
    line = go.Scatter(x=x, y=probes["auc"], mode="lines+markers", line_color=VERMILLION, name="probe on the scalars")
    figure.add_trace(line.update(hovertemplate="step %{x}<br>AUC %{y:.2f}<extra></extra>", marker_size=5))
    length = go.Scatter(x=x, y=probes["length_auc"], mode="lines", name="probe on the answer's length")
    figure.add_trace(length.update(line={"color": BLUE, "dash": "dash"}))
    figure.add_hline(0.5, line={"color": MUTED, "width": 1}, annotation={"text": "chance", "font_color": MUTED})
    low = min(0.4, float(probes["auc_low"].min()) - 0.05)
    figure.update_yaxes(title_text="AUC on questions not seen", range=[low, 1.02])
    return figure.update_xaxes(title_text=STEP)
