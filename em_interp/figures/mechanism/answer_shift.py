"""The shift of the answers by step, and the share of it that each property of the answers accounts for."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.style import (
    BLUE,
    GREEN,
    MUTED,
    STEP,
    error_bars,
    mark_step,
    new_figure,
    note,
    place,
    ribbon,
    step_label,
    verdict_text,
)
from em_interp.results import percent
from em_interp.transition.result import Transition

LANE = 26  # pixels


def plot_answer_shift(
    profile: pd.DataFrame,
    peak: Transition,
    shares: pd.DataFrame | None = None,
    unit: str = "Divergence",
    level: float = 0.95,
) -> go.Figure:
    """The divergence by step with its peak; below, the share of it that each property of the answers accounts for.

    `profile` has columns step, divergence with `_low` and `_high`, and permuted_max: the largest divergence under other
    labels (left, right) of the same checkpoints. `shares` has columns step, property, share with its interval, and
    null. Bands and bars are intervals for other answers to the same questions.
    """
    rows = 0 if shares is None else len(shares)
    heights = [260, LANE * rows + 20] if rows else [260]
    figure = new_figure(
        "Shift of the answers, without a judge",
        f"{verdict_text(peak)}: {peak.reason}. Bands and bars: {percent(level)} intervals.",
        sum(heights) + 60 + 90 * bool(rows),
        least_width=480,
        numbers=profile,
        rows=len(heights),
        row_heights=heights,
        vertical_spacing=0.2 if rows else 0,
    )
    _draw_profile(figure, profile, peak, unit)
    if shares is not None and rows:
        _draw_shares(figure, shares)
    return figure


def _draw_profile(figure: go.Figure, profile: pd.DataFrame, peak: Transition, unit: str) -> None:
    step, where = profile["step"].to_numpy(), place(1, 1)
    low, high = (profile[f"divergence_{end}"].to_numpy() for end in ("low", "high"))
    figure.add_trace(ribbon(step, low, high, BLUE, "interval", showlegend=False), **where)
    permuted = go.Scatter(
        x=step, y=profile["permuted_max"], mode="lines", line={"color": MUTED, "width": 1, "dash": "dash"}
    )
    figure.add_trace(permuted.update(name="permuted checkpoints, largest"), **where)
    hover = "step %{x}<br>divergence %{y:.3f} from %{customdata} answers<extra></extra>"
    line = go.Scatter(x=step, y=profile["divergence"], mode="lines+markers", customdata=profile["answers"])
    line.update(line={"color": BLUE, "width": 1.8}, marker_size=5, name="left against right", hovertemplate=hover)
    figure.add_trace(line, **where)
    if peak.step is not None:
        mark_step(figure, peak, BLUE, step_label(peak), where)
    figure.update_yaxes(
        title_text=f"{unit}<br>(0–1, no unit)" if "(" not in unit else unit, rangemode="tozero", **where
    )
    figure.update_xaxes(title_text=STEP, **where)


def _draw_shares(figure: go.Figure, shares: pd.DataFrame) -> None:
    where, table = place(2, 1), shares.sort_values("share", ascending=True)
    if not np.isfinite(table["share"]).any():
        note(figure, "the divergence is zero, so there are no shares of it", where)
        return
    names = [escape(str(name)) for name in table["property"]]
    share = 100 * table["share"].to_numpy()
    bars = error_bars(share, 100 * table["share_low"], 100 * table["share_high"], thickness=1.5)
    points = go.Scatter(x=share, y=names, mode="markers", error_x=bars)
    points.update(
        marker={"color": GREEN, "size": 9}, name="share accounted for", hovertemplate="%{y}: %{x:.0f} %<extra></extra>"
    )
    chance = go.Scatter(x=100 * table["null"], y=names, mode="markers", name="share, permuted")
    style = {"symbol": "line-ns-open", "size": 12, "color": MUTED, "line": {"width": 1.5}}
    figure.add_trace(chance.update(marker=style, hovertemplate="%{y}, permuted: %{x:.1f} %<extra></extra>"), **where)
    figure.add_trace(points, **where)
    at = float(table["step"].iloc[0])
    title = f"Share of the divergence at step {at:.0f} (%)"
    figure.update_xaxes(title_text=title, range=[-2, 102], **where)
    figure.update_yaxes(title_text="Property", range=[-0.6, len(names) - 0.4], **where)
