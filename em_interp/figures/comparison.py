"""Do runs change at the same step? Each run's step with its interval, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from em_interp.figures.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PART_NAME,
    PURPLE,
    SKY,
    STEP,
    VERMILLION,
    fade,
    name_of,
    new_figure,
    note,
    number,
    place,
    result_of,
)
from em_interp.transition.result import Transition

LANE = 34  # pixels


def agreement(
    names: Sequence[str],
    transitions: Sequence[Transition],
    mean: float | None = None,
    interval: tuple[float, float] | None = None,
    level: float = 0.95,
    sentence: str = "",
) -> go.Figure:
    """A line for each run with its step and interval, or its verdict where it has none; the pooled step below.

    `mean` and `interval` are the pooled step and its interval, None where nothing could be pooled.
    """
    figure = new_figure(f"Agreement of runs: {name_of(transitions[0])}", sentence, LANE * (len(names) + 1) + 70)
    lanes = [escape(name) for name in names]
    _draw_runs(figure, lanes, transitions)
    ticks, heights = [*lanes], [*range(len(names), 0, -1)]
    if mean is not None and interval is not None:
        _draw_pooled(figure, mean, interval, level)
        ticks, heights = [*ticks, "<b>pooled</b>"], [*heights, 0]
    figure.update_yaxes(title_text="Run", tickvals=heights, ticktext=ticks, showgrid=False, ticks="")
    figure.update_yaxes(range=[min(heights) - 0.6, len(names) + 0.6])
    ends = [end for t in transitions for end in (t.step, *(t.interval or ())) if end is not None]
    ends += [mean, *interval] if mean is not None and interval is not None else []
    if ends:
        room = 0.1 * float(np.ptp(ends)) or 10.0
        figure.update_xaxes(range=[min(ends) - room, max(ends) + room])
    else:
        figure.update_xaxes(range=[0, 1], showticklabels=False)
        note(figure, "no run has a step to show")
    return figure.update_xaxes(title_text=STEP)


def _draw_runs(figure: go.Figure, lanes: Sequence[str], transitions: Sequence[Transition]) -> None:
    for height, (lane, transition) in zip(range(len(lanes), 0, -1), zip(lanes, transitions, strict=True), strict=True):
        if transition.step is None:
            style = {"xref": "x domain", "x": 0.01, "xanchor": "left", "showarrow": False, "font_color": MUTED}
            figure.add_annotation(text=transition.verdict, y=height, **style)
            continue
        low, high = transition.interval or (transition.step, transition.step)
        bars = {"array": [high - transition.step], "arrayminus": [transition.step - low], "symmetric": False}
        marker = {"color": INK if transition.found else MUTED, "size": 9}
        marker["symbol"] = "circle" if transition.found else "circle-open"
        mark = go.Scatter(x=[transition.step], y=[height], mode="markers", marker=marker, showlegend=False, name=lane)
        hover = f"{lane}: {escape(result_of(transition))}<extra></extra>"
        figure.add_trace(mark.update(error_x={**bars, "thickness": 2, "width": 4}, hovertemplate=hover))


def _draw_pooled(figure: go.Figure, mean: float, interval: tuple[float, float], level: float) -> None:
    low, high = interval
    figure.add_vrect(low, high, fillcolor=fade(VERMILLION, 0.14), line_width=0, layer="below")
    figure.add_vline(mean, line={"color": VERMILLION, "width": 1.2, "dash": "dot"})
    shape = go.Scatter(x=[low, mean, high, mean, low], y=[0, 0.22, 0, -0.22, 0], fill="toself", mode="lines")
    hover = f"pooled: step {mean:.0f}, {level:.0%} interval {low:.0f} to {high:.0f}"
    figure.add_trace(shape.update(line_color=VERMILLION, fillcolor=VERMILLION, name=hover, hoverinfo="name"))
    figure.update_traces(showlegend=False)


# --------
# The paths of several runs in one plane.


NO_EVIDENCE = "Unrelated runs lie in a plane too, as a star around the start: likeness is in the cosines, not here."


def common_plane(plane: pd.DataFrame, about: str = "") -> go.Figure:
    """A path for each run, a dot at its end and the start ringed; both axes have one scale.

    `plane` has columns measure (one of them), run, step, x, y, share_x and share_y.
    """
    measure = str(plane["measure"].iloc[0])
    words = f"{about}. {NO_EVIDENCE}" if about else NO_EVIDENCE
    figure = new_figure(f"Paths of {PART_NAME[measure]} in one plane", words, 440)
    style = run_style(list(dict.fromkeys(plane["run"])))
    for run, rows in plane.groupby("run", sort=False):
        _draw_plane(figure, str(run), rows, *style[str(run)])
    start = plane[plane["step"] == plane["step"].min()]
    ring = {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": INK, "width": 2}}
    first = go.Scatter(x=start["x"].iloc[:1], y=start["y"].iloc[:1], mode="markers", marker=ring, hoverinfo="skip")
    figure.add_trace(first.update(name=f"step {int(start['step'].iloc[0])}"))
    size = 0.08 * max(float(np.ptp(plane["x"])), float(np.ptp(plane["y"]))) or 1.0
    for axis, update in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
        share = float(plane[f"share_{axis}"].iloc[0])
        said = "" if np.isnan(share) else f", {share:.0%} of variance"
        ends = [float(plane[axis].min()) - size, float(plane[axis].max()) + size]
        update(title_text=f"Component {'xy'.index(axis) + 1} (weight units{said})", nticks=6, range=ends)
    return figure.update_yaxes(scaleanchor="x", scaleratio=1)


def _draw_plane(figure: go.Figure, run: str, rows: pd.DataFrame, colour: str, dash: str) -> None:
    name = escape(run)
    sizes = np.zeros(len(rows))
    sizes[-1] = 9
    path = go.Scatter(
        x=rows["x"], y=rows["y"], mode="lines+markers", line={"color": colour, "dash": dash, "width": 1.8}
    )
    hover = f"{name}, step %{{customdata}}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>"
    marker = {"color": colour, "size": sizes, "line_width": 0}
    figure.add_trace(path.update(name=name, marker=marker, customdata=rows["step"], hovertemplate=hover))


# --------
# How alike the final directions of several runs are, each measure beside what random directions would give.


TITLES = {"B": "|cos B|", "A": "|cos A|", "delta": "cos ΔW", "composition": "composition score"}
SCALE = ("#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806")  # blue below zero, orange above
CELL, GAP = 64, 110  # pixels
MOST = 12  # runs up to which the numbers are written


def direction_matrix(pairs: pd.DataFrame, level: float = 0.95, about: str = "", site: str | None = None) -> go.Figure:
    """A panel for each measure, runs against runs; what random directions reach too is in grey type.

    `pairs` has columns run, other, measure, site, value and random_band; of its first site where `site` is None.
    """
    rows = pairs[pairs["site"] == (site or pairs["site"].iloc[0])]
    measures = [name for name in TITLES if (rows["measure"] == name).any()]
    names = list(dict.fromkeys([*rows["run"], *rows["other"]]))
    across = min(len(measures), 2)
    down = -(-len(measures) // across)
    panel = max(CELL * min(len(names), 8), 200)
    grey = (
        f"Grey numbers: within the {level:.0%} band of random directions of the same norms (its edge is in the titles)."
    )
    figure = new_figure(
        "Final directions of the runs",
        f"{about}. {grey}" if about else grey,
        down * panel + (down - 1) * GAP + 90,
        least_width=480,
        rows=down,
        cols=across,
        subplot_titles=[_title(rows[rows["measure"] == name], name, level) for name in measures],
        horizontal_spacing=0.16,
        vertical_spacing=GAP / (down * panel + (down - 1) * GAP),
    )
    for panel_number, name in enumerate(measures):
        where = place(panel_number // across + 1, panel_number % across + 1)
        _draw_matrix(figure, rows[rows["measure"] == name], names, where)
    figure.update_xaxes(title_text="Run", tickangle=-30, showgrid=False, ticks="")
    figure.update_yaxes(title_text="Run", autorange="reversed", showgrid=False, ticks="")
    return figure.update_layout(coloraxis=_colours())


def _colours() -> dict[str, object]:
    shades = [[position / (len(SCALE) - 1), colour] for position, colour in enumerate(SCALE)]
    title = {"text": "cosine, score (no unit)", "side": "right"}
    bar = {"title": title, "thickness": 10, "outlinewidth": 0, "nticks": 5}
    return {"cmin": -1, "cmax": 1, "colorscale": shades, "colorbar": bar}


def _title(rows: pd.DataFrame, name: str, level: float) -> str:
    bands = rows["random_band"].dropna()
    if bands.empty:
        return f"{TITLES[name]} (no band)"
    low, high = bands.min(), bands.max()
    edges = [number(low, ".2g"), number(high, ".2g")]
    edge = edges[1] if edges[0] == edges[1] else " to ".join(edges)
    return f"{TITLES[name]} (random {level:.0%}: {'±' if name == 'delta' else ''}{edge})"


def _draw_matrix(figure: go.Figure, rows: pd.DataFrame, names: list[str], where: dict[str, int]) -> None:
    values, inside = _square(rows, names)
    ticks = [escape(name) for name in names]
    hover = "%{y}, %{x}<br>%{z:.3f}<extra></extra>"
    cells = go.Heatmap(z=values, x=ticks, y=ticks, coloraxis="coloraxis", xgap=2, ygap=2, hovertemplate=hover)
    figure.add_trace(cells.update(hoverongaps=False), **where)
    if len(names) > MOST:
        return
    for y, x in np.ndindex(*values.shape):
        if np.isfinite(values[y, x]):
            said = number(float(values[y, x]), ".2g")
            colour = "white" if values[y, x] > 0.8 else MUTED if inside[y, x] else INK
            text = said if inside[y, x] or x == y else f"<b>{said}</b>"
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


# --------
# How early the final direction of one run is present in the others.


COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("solid", "dash", "dot")
PANEL = 190  # pixels


def run_style(names: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each run, the same in every figure of one comparison."""
    return {name: (COLOURS[k % 6], DASHES[k // 6 % 3]) for k, name in enumerate(names)}


def direction_onset(presence: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each run whose end is looked for, a curve for each run it is looked for in, the random band shaded.

    A ring marks the first step from which on the curve stays above the band. `presence` has columns measure (one of
    them), final_of, inside, step, value, random_band and first_step.
    """
    measure = str(presence["measure"].iloc[0])
    finals = list(dict.fromkeys(presence["final_of"]))
    style = run_style(finals)
    words = f"Shaded: the {level:.0%} band of random directions, at each step by itself. Ring: above it from here on."
    figure = new_figure(
        f"{TITLES[measure]} with the end of another run",
        f"{about}. {words}" if about else words,
        len(finals) * PANEL + 60,
        rows=len(finals),
        shared_xaxes=True,
        vertical_spacing=0.15 / len(finals),
    )
    for panel, name in enumerate(finals, 1):
        rows = presence[presence["final_of"] == name]
        _draw_onset(figure, rows, style, place(panel, 1))
        figure.update_yaxes(title_text=f"{TITLES[measure]} to<br>the end of {escape(name)}", row=panel, col=1)
    lowest = min(0.0, float(presence["value"].min()), -float(presence["random_band"].max()) * (measure == "delta"))
    figure.update_yaxes(range=[1.08 * lowest, 1.02], nticks=5)
    figure.update_xaxes(title_text=STEP, row=len(finals), col=1)
    return figure


def _draw_onset(
    figure: go.Figure, rows: pd.DataFrame, style: dict[str, tuple[str, str]], where: dict[str, int]
) -> None:
    band = float(rows["random_band"].max())
    low = -band if rows["measure"].iloc[0] == "delta" else 0.0
    for inside, curve in rows.groupby("inside", sort=False):
        colour, dash = style[str(inside)]
        name = escape(str(inside))
        hover = f"{name}, step %{{x}}<br>%{{y:.3f}}<extra></extra>"
        line = go.Scatter(x=curve["step"], y=curve["value"], mode="lines", line={"color": colour, "dash": dash})
        shown = not any(trace.name == name for trace in figure.data)
        figure.add_trace(
            line.update(
                name=name,
                legendgroup=name,
                showlegend=shown,
                legendrank=1 + [*style].index(str(inside)),
                hovertemplate=hover,
            ),
            **where,
        )
        first = float(curve["first_step"].iloc[0])
        if np.isfinite(first):
            ring = {"size": 12, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 2}}
            there = curve.loc[curve["step"] == first, "value"]
            mark = go.Scatter(x=[first], y=there, mode="markers", marker=ring, showlegend=False, cliponaxis=False)
            said = f"{name}: above the band from step {first:.0f} on<extra></extra>"
            figure.add_trace(mark.update(legendgroup=name, name="first step", hovertemplate=said), **where)
    # after the curves: plotly drops a mark from a panel that has no trace yet
    figure.add_hrect(low, band, fillcolor=fade(MUTED, 0.2), line_width=0, layer="below", **where)


# --------
# One run's steps against another's: where along training two runs point the same way.


STEPS_PANEL = 260  # pixels
MAX_PAIRS = 6  # pairs in one figure


def step_cosines(steps: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each pair of runs (the first six), a cell for each two of their steps, the band's edge as a line.

    `steps` has columns measure (one of them), run, other, step, other_step, value and random_band.
    """
    name = TITLES[str(steps["measure"].iloc[0])]
    pairs = [(key, rows) for key, rows in steps.groupby(["run", "other"], sort=False)]
    left = f" The first {MAX_PAIRS} of {len(pairs)} pairs." if len(pairs) > MAX_PAIRS else ""
    pairs = pairs[:MAX_PAIRS]
    across = min(len(pairs), 2)
    down = -(-len(pairs) // across)
    line = (
        f"Black line: the edge of the {level:.0%} band of random directions; what lies below it is no likeness.{left}"
    )
    figure = new_figure(
        f"{name} of one run's steps with another's",
        f"{about}. {line}" if about else line,
        down * (STEPS_PANEL + 60),
        least_width=480,
        rows=down,
        cols=across,
        horizontal_spacing=0.16,
        vertical_spacing=0.24 / down,
    )
    for index, ((run, other), rows) in enumerate(pairs):
        where = place(index // across + 1, index % across + 1)
        _draw_steps(figure, rows, where)
        figure.update_xaxes(title_text=f"Training step of {escape(str(other))}", nticks=6, showgrid=False, **where)
        figure.update_yaxes(title_text=f"Training step of {escape(str(run))}", nticks=6, showgrid=False, **where)
    signed = bool((steps["value"] < 0).any())
    shades = SCALE if signed else SCALE[2:]
    bar = {"title": {"text": f"{name} (no unit)", "side": "right"}, "thickness": 10, "outlinewidth": 0, "nticks": 6}
    colours = [[position / (len(shades) - 1), colour] for position, colour in enumerate(shades)]
    return figure.update_layout(
        coloraxis={"cmin": -1 if signed else 0, "cmax": 1, "colorscale": colours, "colorbar": bar}
    )


def _draw_steps(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    square = rows.pivot(index="step", columns="other_step", values="value")
    grid = {"x": square.columns.to_numpy(), "y": square.index.to_numpy(), "z": square.to_numpy()}
    hover = "steps %{y} and %{x}<br>%{z:.3f}<extra></extra>"
    figure.add_trace(go.Heatmap(**grid, coloraxis="coloraxis", hovertemplate=hover, hoverongaps=False), **where)
    band = float(rows["random_band"].iloc[0])
    edge = {"start": band, "end": band, "size": 1, "coloring": "none"}
    line = go.Contour(**grid, contours=edge, line={"color": INK, "width": 1.5}, showscale=False, hoverinfo="skip")
    figure.add_trace(line.update(name="random band", showlegend=False), **where)
