"""The runs of a sweep: when each of them changes, group by group, with intervals, and which have no change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from em_interp.figures.style import BLUE, FAINT, GRID, INK, MUTED, PURPLE, STEP, VERMILLION, new_figure, note, place

if TYPE_CHECKING:
    import pandas as pd

LANE = 13  # pixels of a run, and of what is pooled of its group
GAP = 0.9  # lanes between groups
PANELS = {
    "rotation": ("Rotation of B", BLUE),
    "gradient_norm": ("Gradient-norm peak", INK),
    "onset": ("EM onset", VERMILLION),
    "offset": ("Onset − rotation", PURPLE),
}
SYMBOLS = {"transition": "circle", "none": "x-thin-open", "inconclusive": "circle-open", "failed": "square-open"}


def sweep(signals: pd.DataFrame, pooled: pd.DataFrame) -> go.Figure:
    """A panel for each signal; in it a line for each run, by group, and the pooled step of the group below its runs.

    `signals` has a row a run and signal (`group`, `run`, `signal`, `verdict`, `step`, `low`, `high`, `reason`),
    `pooled` a row a group and signal (`mean`, `low`, `high`), NaN where there is none. What
    has no step stands at the left.
    """
    there = [name for name in PANELS if name in set(signals["signal"])]
    groups = list(dict.fromkeys(signals["group"]))
    heights = _heights(signals, groups)
    figure = new_figure(
        "When each run of the sweep changes",
        _counted(signals, there),
        height=round(LANE * (max(heights.values(), default=1) + 2)) + 60,
        headroom=18,
        least_width=720,
        cols=max(1, len(there)),
        rows=1,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=[PANELS[name][0] for name in there],
    )
    if not there:
        note(figure, "no run to show")
        return figure
    for number, name in enumerate(there, 1):
        mine = signals[signals["signal"] == name]
        ends = _ends([mine] if name == "offset" else [signals[signals["signal"] != "offset"]], name != "offset")
        _draw_panel(figure, mine, pooled[pooled["signal"] == name], heights, ends, number)
    _draw_legend(figure, signals, pooled)
    middle = {group: np.mean([heights[group, run] for run in _runs(signals, group)]) for group in groups}
    style = {"tickvals": list(middle.values()), "ticktext": [escape(group) for group in groups], "showgrid": False}
    figure.update_yaxes(range=[max(heights.values()) + 1.2, -1.2], ticks="", **style)
    return figure.update_yaxes(title_text="Group", col=1)


def _runs(signals: pd.DataFrame, group: str) -> list[str]:
    return list(dict.fromkeys(signals.loc[signals["group"] == group, "run"]))


def _heights(signals: pd.DataFrame, groups: Sequence[str]) -> dict[tuple[str, str], float]:
    """Lanes from the top, for each group and run, and for what is pooled of a group (no run's name is empty)."""
    heights, lane = {}, 0.0
    for group in groups:
        for run in (*_runs(signals, group), ""):
            heights[group, run] = lane
            lane += 1
        lane += GAP
    return heights


def _counted(signals: pd.DataFrame, there: Iterable[str]) -> str:
    """For each signal, how many runs have which verdict."""
    parts = []
    for name in there:
        counts = signals.loc[signals["signal"] == name, "verdict"].value_counts()
        parts.append(f"{PANELS[name][0]}: {', '.join(f'{counts[v]} {v}' for v in SYMBOLS if v in counts)}")
    return f"{'; '.join(parts)}. Intervals are 95% of each run's own noise; diamonds pool the seeds of a group."


def _ends(frames: Sequence[pd.DataFrame], from_zero: bool) -> tuple[float, float]:
    """The range of a panel's steps and intervals."""
    values = np.concatenate([frame[["step", "low", "high"]].to_numpy(float).ravel() for frame in frames])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return (0.0 if from_zero else low), high if high > low else low + 1


def _draw_panel(
    figure: go.Figure,
    runs: pd.DataFrame,
    pooled: pd.DataFrame,
    heights: dict[tuple[str, str], float],
    ends: tuple[float, float],
    number: int,
) -> None:
    name, where = runs["signal"].iloc[0], place(1, number)
    span = ends[1] - ends[0]
    aside = ends[0] - 0.14 * span  # where runs without a step stand
    edges = (ends[0] - 0.07 * span, ends[1] + 0.06 * span)
    for verdict in SYMBOLS:
        rows = runs[runs["verdict"] == verdict]
        if len(rows):
            _draw_runs(figure, rows, heights, aside, PANELS[name][1], where)
    for row in pooled[np.isfinite(pooled["mean"].astype(float))].itertuples(index=False):
        _draw_pooled(figure, row, heights[str(row.group), ""], edges, where)
    figure.add_vline(edges[0], line={"color": GRID, "width": 1}, **where)
    if name == "offset":
        figure.add_vline(0, line={"color": FAINT, "width": 1, "dash": "dot"}, **where)
    ticks = _ticks(*ends)
    title = "Steps later" if name == "offset" else STEP
    style = {
        "tickvals": [aside, *ticks],
        "tickangle": 0,
        "ticktext": ["no<br>step", *(f"{tick:g}".replace("-", "−") for tick in ticks)],
    }
    figure.update_xaxes(range=[aside - 0.08 * span, edges[1]], title_text=title, **style, **where)


def _draw_runs(
    figure: go.Figure,
    rows: pd.DataFrame,
    heights: dict[tuple[str, str], float],
    aside: float,
    colour: str,
    where: dict[str, int],
) -> None:
    step, low, high = rows[["step", "low", "high"]].to_numpy(float).T
    known = np.isfinite(step)
    above, below = (np.where(np.isfinite(end), abs(end - step), 0) for end in (high, low))
    verdict = rows["verdict"].iloc[0]
    marker = {"symbol": SYMBOLS[verdict], "size": 7, "color": colour if verdict == "transition" else MUTED}
    marker["line"] = {"width": 1.5, "color": marker["color"]}
    said = [
        f"{escape(str(run))}<br>{verdict}{_said(*numbers)}<br>{escape(str(why or ''))}"
        for run, why, *numbers in rows[["run", "reason", "step", "low", "high"]].itertuples(index=False)
    ]
    marks = go.Scatter(
        x=np.where(known, step, aside),
        y=[heights[group, run] for group, run in rows[["group", "run"]].itertuples(index=False)],
        error_x={
            "array": above,
            "arrayminus": below,
            "symmetric": False,
            "thickness": 1.5,
            "width": 0,
            "color": marker["color"],
        },
        mode="markers",
        marker=marker,
        customdata=said,
        hovertemplate="%{customdata}<extra></extra>",
        name=verdict,
        showlegend=False,
        cliponaxis=False,
    )
    figure.add_trace(marks, **where)


def _said(step: float, low: float, high: float) -> str:
    if not np.isfinite(step):
        return ""
    return f" at {step:.0f}" + (f" ({low:.0f} to {high:.0f})" if np.isfinite(low) else "")


def _draw_pooled(figure: go.Figure, row: Any, height: float, edges: tuple[float, float], where: dict[str, int]) -> None:
    """A diamond over the pooled interval, as far as the panel shows it: that of two seeds may be wider than the run."""
    mean, low, high = row.mean, row.low, row.high
    hover = f"{escape(row.group)}<br>pooled over {row.pooled_runs} runs{_said(mean, low, high)}<extra></extra>"
    left, right = max(low, edges[0]), min(high, edges[1])
    cut = [0.35 * (1 - (mean - left) / (mean - low)), 0.35 * (1 - (right - mean) / (high - mean))]
    shape = go.Scatter(
        x=[left, mean, right, right, mean, left, left],
        y=[height + rise for rise in (-cut[0], -0.35, -cut[1], cut[1], 0.35, cut[0], -cut[0])],
        fill="toself",
        mode="lines",
        line={"color": MUTED, "width": 1},
        fillcolor=FAINT,
        name="pooled",
        text=hover,
        hoverinfo="text",
        showlegend=False,
    )
    figure.add_trace(shape, **where)


def _draw_legend(figure: go.Figure, signals: pd.DataFrame, pooled: pd.DataFrame) -> None:
    """What the marks mean, of those that are there."""
    there = set(signals["verdict"])
    marks = [(verdict, symbol, MUTED) for verdict, symbol in SYMBOLS.items() if verdict in there]
    if pooled["mean"].notna().any():
        marks.append(("pooled over seeds", "diamond-wide", FAINT))
    for name, symbol, colour in marks:
        marker = {"symbol": symbol, "size": 8, "color": colour, "line": {"width": 1.5, "color": MUTED}}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name), row=1, col=1)


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers within the range."""
    rough = (high - low) / 4
    unit = 10.0 ** np.floor(np.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [float(tick) for tick in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]
