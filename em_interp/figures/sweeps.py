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

LANE_HEIGHT = 13  # pixels of a run, and of what is pooled of its group
GROUP_GAP = 0.9  # lanes between groups
PANELS = {
    "rotation": ("Rotation of B", BLUE),
    "gradient_norm": ("Gradient-norm peak", INK),
    "onset": ("EM onset", VERMILLION),
    "offset": ("Onset − rotation", PURPLE),
}
SYMBOLS = {"transition": "circle", "none": "x-thin-open", "inconclusive": "circle-open", "failed": "square-open"}
Lanes = dict[tuple[str, str], float]  # the lane of each group and run, and of what is pooled of a group


def sweep(signals: pd.DataFrame, pooled: pd.DataFrame) -> go.Figure:
    """A panel for each signal; in it a line for each run, by group, and the pooled step of the group below its runs.

    `signals` has a row a run and signal (`group`, `run`, `signal`, `verdict`, `step`, `step_low`, `step_high`,
    `reason`), `pooled` a row a group and signal (`mean`, `mean_low`, `mean_high`, `pooled_runs`), NaN where there is
    none. Runs without a step are marked at the left.
    """
    drawn = [name for name in PANELS if name in set(signals["signal"])]
    groups = list(dict.fromkeys(signals["group"]))
    lanes = _lanes(signals, groups)
    figure = new_figure(
        "When each run of the sweep changes",
        _counted(signals, drawn),
        height=round(LANE_HEIGHT * (max(lanes.values(), default=1) + 2)) + 60,
        headroom=18,
        least_width=720,
        numbers=signals,
        cols=max(1, len(drawn)),
        rows=1,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=[PANELS[name][0] for name in drawn],
    )
    if not drawn:
        note(figure, "no run to show")
        return figure
    for column, name in enumerate(drawn, 1):
        rows = signals[signals["signal"] == name]
        ends = _range([rows] if name == "offset" else [signals[signals["signal"] != "offset"]], name != "offset")
        _draw_panel(figure, rows, pooled[pooled["signal"] == name], lanes, ends, column)
    _draw_legend(figure, signals, pooled)
    middle = {group: np.mean([lanes[group, run] for run in _runs(signals, group)]) for group in groups}
    style = {"tickvals": list(middle.values()), "ticktext": [escape(group) for group in groups], "showgrid": False}
    figure.update_yaxes(range=[max(lanes.values()) + 1.2, -1.2], ticks="", **style)
    return figure.update_yaxes(title_text="Group", col=1)


def _runs(signals: pd.DataFrame, group: str) -> list[str]:
    return list(dict.fromkeys(signals.loc[signals["group"] == group, "run"]))


def _lanes(signals: pd.DataFrame, groups: Sequence[str]) -> Lanes:
    """Lanes from the top, for each group and run, and for what is pooled of a group (no run's name is empty)."""
    lanes, lane = {}, 0.0
    for group in groups:
        for run in (*_runs(signals, group), ""):
            lanes[group, run] = lane
            lane += 1
        lane += GROUP_GAP
    return lanes


def _counted(signals: pd.DataFrame, drawn: Iterable[str]) -> str:
    """For each signal, how many runs have which verdict."""
    parts = []
    for name in drawn:
        counts = signals.loc[signals["signal"] == name, "verdict"].value_counts()
        parts.append(f"{PANELS[name][0]}: {', '.join(f'{counts[v]} {v}' for v in SYMBOLS if v in counts)}")
    return f"{'; '.join(parts)}. Intervals are 95% of each run's own noise; diamonds pool the seeds of a group."


def _range(frames: Sequence[pd.DataFrame], from_zero: bool) -> tuple[float, float]:
    """The range of a panel's steps and intervals."""
    values = np.concatenate([frame[["step", "step_low", "step_high"]].to_numpy(float).ravel() for frame in frames])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return (0.0 if from_zero else low), high if high > low else low + 1


def _draw_panel(
    figure: go.Figure, runs: pd.DataFrame, pooled: pd.DataFrame, lanes: Lanes, ends: tuple[float, float], column: int
) -> None:
    name, where, width = runs["signal"].iloc[0], place(1, column), ends[1] - ends[0]
    aside = ends[0] - 0.14 * width  # where runs without a step are marked
    edges = (ends[0] - 0.07 * width, ends[1] + 0.06 * width)
    for verdict in SYMBOLS:
        rows = runs[runs["verdict"] == verdict]
        if len(rows):
            figure.add_trace(_run_marks(rows, lanes, aside, PANELS[name][1]), **where)
    for row in pooled[np.isfinite(pooled["mean"].astype(float))].itertuples(index=False):
        figure.add_trace(_pooled_mark(row, lanes[str(row.group), ""], edges), **where)
    figure.add_vline(edges[0], line={"color": GRID, "width": 1}, **where)
    if name == "offset":
        figure.add_vline(0, line={"color": FAINT, "width": 1, "dash": "dot"}, **where)
    ticks = _ticks(*ends)
    labels = ["no<br>step", *(f"{tick:.10g}".replace("-", "−") for tick in ticks)]
    style = {"tickvals": [aside, *ticks], "tickangle": 0, "ticktext": labels}
    title = "Steps later" if name == "offset" else STEP
    figure.update_xaxes(range=[aside - 0.08 * width, edges[1]], title_text=title, **style, **where)


def _run_marks(rows: pd.DataFrame, lanes: Lanes, aside: float, colour: str) -> go.Scatter:
    """Marks of the runs of one verdict, with their intervals."""
    step, low, high = rows[["step", "step_low", "step_high"]].to_numpy(float).T
    above, below = (np.where(np.isfinite(end), abs(end - step), 0) for end in (high, low))
    verdict = rows["verdict"].iloc[0]
    colour = colour if verdict == "transition" else MUTED
    texts = [
        f"{escape(str(run))}<br>{verdict}{_at(*ends)}<br>{escape(str(why or ''))}"
        for run, why, *ends in rows[["run", "reason", "step", "step_low", "step_high"]].itertuples(index=False)
    ]
    bars = {"array": above, "arrayminus": below, "symmetric": False, "thickness": 1.5, "width": 0, "color": colour}
    marks = go.Scatter(
        x=np.where(np.isfinite(step), step, aside),
        y=[lanes[group, run] for group, run in rows[["group", "run"]].itertuples(index=False)],
        error_x=bars,
        mode="markers",
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        name=verdict,
        showlegend=False,
        cliponaxis=False,
    )
    line = {"width": 1.5, "color": colour}
    return marks.update(marker={"symbol": SYMBOLS[verdict], "size": 7, "color": colour, "line": line})


def _at(step: float, low: float, high: float) -> str:
    if not np.isfinite(step):
        return ""
    return f" at {step:.0f}" + (f" ({low:.0f} to {high:.0f})" if np.isfinite(low) else "")


def _pooled_mark(row: Any, height: float, edges: tuple[float, float]) -> go.Scatter:
    """A diamond over the pooled interval, as far as the panel shows it: that of two seeds may be wider than the run."""
    mean, low, high = row.mean, row.mean_low, row.mean_high
    left, right = max(low, edges[0]), min(high, edges[1])
    cut = [0.35 * (1 - (mean - left) / (mean - low)), 0.35 * (1 - (right - mean) / (high - mean))]
    return go.Scatter(
        x=[left, mean, right, right, mean, left, left],
        y=[height + rise for rise in (-cut[0], -0.35, -cut[1], cut[1], 0.35, cut[0], -cut[0])],
        fill="toself",
        mode="lines",
        line={"color": MUTED, "width": 1},
        fillcolor=FAINT,
        name="pooled",
        text=f"{escape(row.group)}<br>pooled over {row.pooled_runs} runs{_at(mean, low, high)}<extra></extra>",
        hoverinfo="text",
        showlegend=False,
    )


def _draw_legend(figure: go.Figure, signals: pd.DataFrame, pooled: pd.DataFrame) -> None:
    """The meaning of the marks that are drawn."""
    verdicts = set(signals["verdict"])
    marks = [(verdict, symbol, MUTED) for verdict, symbol in SYMBOLS.items() if verdict in verdicts]
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
