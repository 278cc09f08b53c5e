"""Several runs of one base: their final directions, when each direction appears, their paths, and their steps.

Each function draws a table of `DirectionComparison`; `comparison.plot(...)` calls them.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from em_interp.figures.style import (
    BLUE,
    DIVERGING,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PART_NAME,
    PURPLE,
    SKY,
    STEP,
    VERMILLION,
    colour_bar,
    error_bars,
    fade,
    new_figure,
    note,
    number,
    place,
    result_text,
    sentences,
    signal_table,
)
from em_interp.results import interval_columns, interval_text, percent
from em_interp.transition.result import Transition

MEASURE_NAME = {"B": "|cos B|", "A": "|cos A|", "delta": "cos ΔW", "composition": "composition score"}
RUN_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
RUN_DASHES = ("solid", "dash", "dot")
CELL, MATRIX_GAP = 64, 60  # pixels: a cell of a matrix, and the gap between two matrices without the names in it
NAME_HEIGHT = 3.4  # pixels a character of a slanted name
ONSET_PANEL, STEPS_PANEL, LANE_HEIGHT = 190, 260, 34  # pixels
MAX_NUMBERED_RUNS = 12  # up to which the cells of a matrix show their numbers
MAX_PAIRS = 6  # in one figure of steps against steps
STAR = "Unrelated runs lie in a plane too, as a star around the start: similarity is in the cosines, not here."


def run_style(names: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each run, the same in every figure of one comparison."""
    return {name: (RUN_COLOURS[k % 6], RUN_DASHES[k // 6 % 3]) for k, name in enumerate(names)}


def direction_matrix(pairs: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each measure, runs against runs; numbers within the band of random directions are grey.

    `pairs` has columns run, other, measure, site, value and random_band; its first site is shown.
    """
    rows = pairs[pairs["site"] == pairs["site"].iloc[0]]
    measures = [name for name in MEASURE_NAME if (rows["measure"] == name).any()]
    names = list(dict.fromkeys([*rows["run"], *rows["other"]]))
    across = min(len(measures), 2)
    down = -(-len(measures) // across)
    panel = max(CELL * min(len(names), 8), 200)
    tallest = NAME_HEIGHT * max(map(len, names))
    height = down * panel + (down - 1) * (MATRIX_GAP + tallest)
    of_norms = "of random directions of the same norms (its edge is in the titles)"
    grey = f"Grey numbers: within the {percent(level)} band {of_norms}"
    figure = new_figure(
        "Final directions of the runs",
        f"{sentences(about, grey)}.",
        round(height + tallest) + 60,
        least_width=480,
        numbers=rows,
        rows=down,
        cols=across,
        subplot_titles=[_with_band(rows[rows["measure"] == name], name, level) for name in measures],
        horizontal_spacing=0.06,
        vertical_spacing=(MATRIX_GAP + tallest) / height,
    )
    for index, name in enumerate(measures):
        _draw_matrix(figure, rows[rows["measure"] == name], names, place(index // across + 1, index % across + 1))
    figure.update_xaxes(tickangle=-30, showgrid=False, ticks="").update_xaxes(title_text="Run", row=down)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", showticklabels=False)
    figure.update_yaxes(title_text="Run", showticklabels=True, col=1)
    return figure.update_layout(coloraxis=diverging_axis("cosine, score (no unit)"))


def diverging_axis(title: str, signed: bool = True) -> dict[str, object]:
    """A colour axis from -1 to 1, or from 0 where nothing is negative."""
    shades = DIVERGING if signed else DIVERGING[2:]
    scale = [[position / (len(shades) - 1), colour] for position, colour in enumerate(shades)]
    return {"cmin": -1 if signed else 0, "cmax": 1, "colorscale": scale, "colorbar": colour_bar(title, nticks=5)}


def _with_band(rows: pd.DataFrame, measure: str, level: float) -> str:
    """A panel's title with the edge of the band."""
    bands = rows["random_band"].dropna()
    if bands.empty:
        return f"{MEASURE_NAME[measure]} (no band)"
    edges = dict.fromkeys(number(edge, ".2g") for edge in (bands.min(), bands.max()))
    sign = "±" if measure == "delta" else ""
    return f"{MEASURE_NAME[measure]} (random {percent(level)}: {sign}{' to '.join(edges)})"


def _draw_matrix(figure: go.Figure, rows: pd.DataFrame, names: list[str], where: dict[str, int]) -> None:
    values, inside = _square(rows, names)
    ticks = [escape(name) for name in names]
    hover = "%{y}, %{x}<br>%{z:.3f}<extra></extra>"
    cells = go.Heatmap(z=values, x=ticks, y=ticks, coloraxis="coloraxis", xgap=2, ygap=2, hovertemplate=hover)
    figure.add_trace(cells.update(hoverongaps=False), **where)
    for y, x in np.ndindex(*values.shape) if len(names) <= MAX_NUMBERED_RUNS else ():
        if np.isfinite(values[y, x]):
            text = number(float(values[y, x]), ".2g")
            colour = "white" if values[y, x] > 0.8 else MUTED if inside[y, x] else INK
            text = text if inside[y, x] or x == y else f"<b>{text}</b>"
            style = {"showarrow": False, "font": {"size": 12, "color": colour}}
            figure.add_annotation(x=ticks[x], y=ticks[y], text=text, **style, **where)


def _square(rows: pd.DataFrame, names: list[str]) -> tuple[Float[np.ndarray, "run run"], np.ndarray]:
    """The values with a diagonal of one, and which lie within their band."""
    values, inside = np.eye(len(names)), np.zeros((len(names), len(names)), bool)
    for run, other, value, band in rows[["run", "other", "value", "random_band"]].itertuples(index=False):
        i, j = names.index(run), names.index(other)
        values[i, j] = values[j, i] = value
        inside[i, j] = inside[j, i] = abs(value) <= band
    return values, inside


def direction_onset(onsets: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each final direction, a curve of cosines for each other run, the random band shaded.

    A ring marks the first step from which the curve stays above the band. `onsets` has columns measure (one of them),
    final_of, inside, step, value, random_band and first_step.
    """
    measure = str(onsets["measure"].iloc[0])
    finals = list(dict.fromkeys(onsets["final_of"]))
    style = run_style(finals)
    shaded = (
        f"Shaded: the {percent(level)} band of random directions, at each step by itself. Ring: above it from here on"
    )
    figure = new_figure(
        f"{MEASURE_NAME[measure]} with the end of another run",
        f"{sentences(about, shaded)}.",
        len(finals) * ONSET_PANEL + 60,
        numbers=onsets,
        rows=len(finals),
        shared_xaxes=True,
        vertical_spacing=0.15 / len(finals),
    )
    for panel, name in enumerate(finals, 1):
        _draw_onset(figure, onsets[onsets["final_of"] == name], style, place(panel, 1))
        figure.update_yaxes(title_text=f"{MEASURE_NAME[measure]} to<br>the end of {escape(name)}", row=panel, col=1)
    lowest = min(0.0, float(onsets["value"].min()), -float(onsets["random_band"].max()) * (measure == "delta"))
    figure.update_yaxes(range=[1.08 * lowest, 1.02], nticks=5)
    return figure.update_xaxes(title_text=STEP, row=len(finals), col=1)


def _draw_onset(
    figure: go.Figure, rows: pd.DataFrame, style: dict[str, tuple[str, str]], where: dict[str, int]
) -> None:
    band = float(rows["random_band"].max())
    low = -band if rows["measure"].iloc[0] == "delta" else 0.0
    for inside, curve in rows.groupby("inside", sort=False):
        colour, dash = style[str(inside)]
        name = escape(str(inside))
        line = go.Scatter(x=curve["step"], y=curve["value"], mode="lines", line={"color": colour, "dash": dash})
        line.update(name=name, legendgroup=name, hovertemplate=f"{name}, step %{{x}}<br>%{{y:.3f}}<extra></extra>")
        line.update(showlegend=is_new(figure, name), legendrank=1 + [*style].index(str(inside)))
        figure.add_trace(line, **where)
        first = float(curve["first_step"].iloc[0])
        if np.isfinite(first):
            ring = {"size": 12, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 2}}
            height = curve.loc[curve["step"] == first, "value"]
            mark = go.Scatter(x=[first], y=height, mode="markers", marker=ring, showlegend=False, cliponaxis=False)
            text = f"{name}: above the band from step {first:.0f} on<extra></extra>"
            figure.add_trace(mark.update(legendgroup=name, name="first step", hovertemplate=text), **where)
    # after the curves: plotly drops a mark from a panel that has no trace yet
    figure.add_hrect(low, band, fillcolor=fade(MUTED, 0.2), line_width=0, layer="below", **where)


def is_new(figure: go.Figure, name: str) -> bool:
    """Whether no trace has this name yet, so that it belongs into the legend."""
    return not any(trace.name == name for trace in figure.data)


def step_cosines(steps: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each pair of runs (the first six), a cell for each two of their steps, the band's edge as a line.

    `steps` has columns measure (one of them), run, other, step, other_step, value and random_band.
    """
    name = MEASURE_NAME[str(steps["measure"].iloc[0])]
    pairs = list(steps.groupby(["run", "other"], sort=False))
    left_out = f" The first {MAX_PAIRS} of {len(pairs)} pairs." if len(pairs) > MAX_PAIRS else ""
    pairs = pairs[:MAX_PAIRS]
    across = min(len(pairs), 2)
    down = -(-len(pairs) // across)
    edge = f"Black line: the edge of the {percent(level)} band of random directions; below it the two are not similar"
    figure = new_figure(
        f"{name} of one run's steps with another's",
        f"{sentences(about, edge)}.{left_out}",
        down * (STEPS_PANEL + 60),
        least_width=480,
        numbers=steps,
        rows=down,
        cols=across,
        horizontal_spacing=0.16,
        vertical_spacing=0.24 / down,
    )
    for index, ((run, other), rows) in enumerate(pairs):
        where = place(index // across + 1, index % across + 1)
        _draw_steps(figure, rows, where)
        style = {"nticks": 6, "showgrid": False, "exponentformat": "none"}
        figure.update_xaxes(title_text=f"Training step of {escape(str(other))}", **style, **where)
        figure.update_yaxes(title_text=f"Training step of {escape(str(run))}", **style, **where)
    signed = bool((steps["value"] < 0).any())
    return figure.update_layout(coloraxis=diverging_axis(f"{name} (no unit)", signed))


def _draw_steps(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    square = rows.pivot(index="step", columns="other_step", values="value")
    grid = {"x": square.columns.to_numpy(), "y": square.index.to_numpy(), "z": square.to_numpy()}
    hover = "steps %{y} and %{x}<br>%{z:.3f}<extra></extra>"
    figure.add_trace(go.Heatmap(**grid, coloraxis="coloraxis", hovertemplate=hover, hoverongaps=False), **where)
    band = float(rows["random_band"].iloc[0])
    edge = {"start": band, "end": band, "size": 1, "coloring": "none"}
    line = go.Contour(**grid, contours=edge, line={"color": INK, "width": 1.5}, showscale=False, hoverinfo="skip")
    figure.add_trace(line.update(name="random band", showlegend=False), **where)


def common_plane(plane: pd.DataFrame, about: str = "") -> go.Figure:
    """The paths of the runs in one plane, a dot at each end and the start ringed; both axes have one scale.

    `plane` has columns measure (one of them), run, step, x, y, share_x and share_y.
    """
    title = f"Paths of {PART_NAME[str(plane['measure'].iloc[0])]} in one plane"
    figure = new_figure(title, sentences(about, STAR), 440, numbers=plane)
    style = run_style(list(dict.fromkeys(plane["run"])))
    for run, rows in plane.groupby("run", sort=False):
        _draw_path(figure, str(run), rows, *style[str(run)])
    start = plane[plane["step"] == plane["step"].min()]
    ring = {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": INK, "width": 2}}
    first = go.Scatter(x=start["x"].iloc[:1], y=start["y"].iloc[:1], mode="markers", marker=ring, hoverinfo="skip")
    figure.add_trace(first.update(name=f"step {int(start['step'].iloc[0])}"))
    margin = 0.08 * max(float(np.ptp(plane["x"])), float(np.ptp(plane["y"]))) or 1.0
    for index, (axis, update) in enumerate((("x", figure.update_xaxes), ("y", figure.update_yaxes)), 1):
        share = float(plane[f"share_{axis}"].iloc[0])
        words = "" if np.isnan(share) else f", {share:.0%} of variance"
        ends = [float(plane[axis].min()) - margin, float(plane[axis].max()) + margin]
        update(title_text=f"Component {index} (weight units{words})", nticks=6, range=ends, exponentformat="power")
    return figure.update_yaxes(scaleanchor="x", scaleratio=1)


def _draw_path(figure: go.Figure, run: str, rows: pd.DataFrame, colour: str, dash: str) -> None:
    name, sizes = escape(run), np.zeros(len(rows))
    sizes[-1] = 9
    line = {"color": colour, "dash": dash, "width": 1.8}
    path = go.Scatter(x=rows["x"], y=rows["y"], mode="lines+markers", line=line, customdata=rows["step"], name=name)
    hover = f"{name}, step %{{customdata}}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>"
    figure.add_trace(path.update(marker={"color": colour, "size": sizes, "line_width": 0}, hovertemplate=hover))


def agreement(
    names: Sequence[str],
    transitions: Sequence[Transition],
    mean: float | None = None,
    interval: tuple[float, float] | None = None,
    prediction: tuple[float, float] | None = None,
    level: float = 0.95,
    sentence: str = "",
) -> go.Figure:
    """A line for each run with its step and interval, or its verdict where it has none; the pooled step below.

    `mean` and `interval` are the pooled step and its interval, `prediction` the interval for one more run; None where
    nothing could be pooled.
    """
    table = _agreement_rows(names, transitions, mean, interval, prediction)
    title = "Agreement of runs" if sentence else f"Agreement of runs: {transitions[0].name}"  # the sentence names it
    figure = new_figure(title, sentence, LANE_HEIGHT * (len(names) + 1) + 70, numbers=table)
    lanes = [escape(name) for name in names]
    _draw_runs(figure, lanes, transitions)
    ticks, heights = [*lanes], [*range(len(names), 0, -1)]
    if mean is not None and interval is not None:
        _draw_pooled(figure, mean, interval, prediction, level)
        ticks, heights = [*ticks, "<b>pooled</b>"], [*heights, 0]
    figure.update_yaxes(title_text="Run", tickvals=heights, ticktext=ticks, showgrid=False, ticks="")
    figure.update_yaxes(range=[min(heights) - 0.6, len(names) + 0.6])
    ends = [end for t in transitions for end in (t.step, *(t.interval or ())) if end is not None]
    ends += [mean, *interval, *(prediction or ())] if mean is not None and interval is not None else []
    if ends:
        room = 0.1 * float(np.ptp(ends)) or 10.0
        figure.update_xaxes(range=[max(min(ends) - room, -0.05 * max(ends)), max(ends) + room])  # no step is negative
    else:
        figure.update_xaxes(range=[0, 1], showticklabels=False)
        note(figure, "no run has a step to show")
    return figure.update_xaxes(title_text=STEP)


def _agreement_rows(
    names: Sequence[str],
    transitions: Sequence[Transition],
    mean: float | None,
    interval: tuple[float, float] | None,
    prediction: tuple[float, float] | None,
) -> pd.DataFrame:
    """A row for each run, then the pooled step and the interval for one more run."""
    runs = signal_table({}, transitions).assign(row=list(names))
    pooled = [("pooled", interval), ("one more run", prediction)]
    rows = [{"row": name, "step": mean, **interval_columns("step", ends)} for name, ends in pooled if ends is not None]
    return pd.concat([runs, pd.DataFrame(rows)], ignore_index=True) if rows else runs


def _draw_runs(figure: go.Figure, lanes: Sequence[str], transitions: Sequence[Transition]) -> None:
    for height, (lane, transition) in zip(range(len(lanes), 0, -1), zip(lanes, transitions, strict=True), strict=True):
        if transition.step is None:
            style = {"xref": "x domain", "x": 0.01, "xanchor": "left", "showarrow": False, "font_color": MUTED}
            figure.add_annotation(text=transition.verdict, y=height, **style)
            continue
        low, high = transition.interval or (transition.step, transition.step)
        bars = error_bars(transition.step, low, high, thickness=2, width=4)
        marker = {"color": INK if transition.found else MUTED, "size": 9}
        marker["symbol"] = "circle" if transition.found else "circle-open"
        mark = go.Scatter(x=[transition.step], y=[height], mode="markers", marker=marker, showlegend=False, name=lane)
        hover = f"{lane}: {escape(result_text(transition))}<extra></extra>"
        figure.add_trace(mark.update(error_x=bars, hovertemplate=hover))


def _draw_pooled(
    figure: go.Figure,
    mean: float,
    interval: tuple[float, float],
    prediction: tuple[float, float] | None,
    level: float,
) -> None:
    """A diamond over the interval of the mean, on a bar over the interval for one more run."""
    low, high = interval
    figure.add_vrect(low, high, fillcolor=fade(VERMILLION, 0.14), line_width=0, layer="below")
    figure.add_vline(mean, line={"color": VERMILLION, "width": 1.2, "dash": "dot"})
    if prediction is not None:
        text = f"one more run: {percent(level)} from {prediction[0]:.0f} to {prediction[1]:.0f}"
        bar = go.Scatter(x=list(prediction), y=[0, 0], mode="lines", line={"color": VERMILLION, "width": 2})
        figure.add_trace(bar.update(name=text, hoverinfo="name"))
    shape = go.Scatter(x=[low, mean, high, mean, low], y=[0, 0.22, 0, -0.22, 0], fill="toself", mode="lines")
    text = f"pooled: step {mean:.0f}, {interval_text((low, high), level)}"
    figure.add_trace(shape.update(line_color=VERMILLION, fillcolor=VERMILLION, name=text, hoverinfo="name"))
    figure.update_traces(showlegend=False)
