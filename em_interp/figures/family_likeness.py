"""How alike the changes of several runs are along the depth of their models, each measure above its null."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.presence import run_style
from em_interp.figures.template import MUTED, new_figure, place, ribbon

TITLES = {
    "cka": "Debiased CKA of the changes",
    "procrustes": "Held-out Procrustes of the changes",
    "carried_orthogonal": "Cosine to the carried direction (rotation)",
    "carried_ridge": "Cosine to the carried direction (ridge)",
}
NULL = "Shaded: what random adapters of the same norms reach in {level:.0%}, the widest of all pairs and of both nulls."
PANEL = 230  # pixels


def plot_family_likeness(likeness: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each measure, a line for each pair over the share of depth, the null shaded.

    `likeness` has columns run, other, measure, depth, value, random_band and kept_band; rows without a depth are left
    to the figure of read-outs.
    """
    rows = likeness.dropna(subset=["depth"])
    measures = [name for name in TITLES if (rows["measure"] == name).any()]
    words = NULL.format(level=level)
    figure = new_figure(
        "What the adapters change, across families",
        f"{about}. {words}" if about else words,
        PANEL * -(-len(measures) // 2) + 60,
        headroom=50,
        least_width=480,
        rows=-(-len(measures) // 2),
        cols=min(len(measures), 2),
        subplot_titles=[TITLES[name] for name in measures],
        horizontal_spacing=0.12,
        vertical_spacing=0.2,
    )
    pairs = [f"{run}, {other}" for run, other in rows[["run", "other"]].drop_duplicates().to_numpy()]
    style = run_style(list(dict.fromkeys(" and ".join(sorted(pair.split(", "))) for pair in pairs)))
    for number, name in enumerate(measures):
        _draw(figure, rows[rows["measure"] == name], name, style, place(number // 2 + 1, number % 2 + 1))
    figure.update_xaxes(title_text="Share of depth (1: the last layer)", range=[0, 1.04])
    return figure.update_yaxes(title_text="no unit", nticks=6)


def _draw(
    figure: go.Figure, rows: pd.DataFrame, measure: str, style: dict[str, tuple[str, str]], where: dict[str, int]
) -> None:
    widest = rows.assign(band=rows[["random_band", "kept_band"]].max(axis=1)).groupby("depth")["band"].max()
    low = -widest.to_numpy() if measure.startswith("carried") else np.full(len(widest), min(0.0, rows["value"].min()))
    x = widest.index.to_numpy()
    shade = ribbon(x, low, widest.to_numpy(), MUTED, "random adapters", showlegend=_new(figure, "random adapters"))
    figure.add_trace(shade, **where)
    for (run, other), line in rows.groupby(["run", "other"], sort=False):
        name = " and ".join(sorted([str(run), str(other)]))
        colour, dash = style[name]
        back = measure.startswith("carried") and str(run) > str(other)  # the other way round: hollow marks
        marker = {"size": 7, "symbol": "circle-open" if back else "circle"}
        hover = f"{escape(str(run))} to {escape(str(other))}, depth %{{x:.2f}}<br>%{{y:.3f}}<extra></extra>"
        trace = go.Scatter(x=line["depth"], y=line["value"], mode="lines+markers", marker=marker, hovertemplate=hover)
        trace.update(line={"color": colour, "dash": dash}, name=escape(name), legendgroup=escape(name))
        figure.add_trace(trace.update(showlegend=_new(figure, escape(name))), **where)


def _new(figure: go.Figure, name: str) -> bool:
    return not any(trace.name == name for trace in figure.data)
