"""Figures of ablation, steering and patching: EM and coherent rates under interventions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    STEP,
    VERMILLION,
    em_axis_range,
    error_bars,
    mark_on_curve,
    new_figure,
    place,
    ribbon,
)
from em_interp.results import percent
from em_interp.transition.result import Transition

KINDS = {
    "direction": ("the direction ablated", VERMILLION, "circle"),
    "random": ("random directions ablated", FAINT, "diamond"),
    "norm_matched": ("norm-matched control", ORANGE, "square"),
}
OFFSET = 0.2  # between the points of one choice of layers


def plot_ablation(rows: pd.DataFrame, about: str = "", level: float = 0.95) -> go.Figure:
    """EM and coherent rates by layers, of the direction and of both controls; no intervention as a band.

    `rows` are those of `Ablation.frame()`.
    """
    which = f"The direction: {about}. " if about else ""
    figure = new_figure(
        "Ablation of the direction",
        f"{which}Grey band: the adapted model without an intervention. Bars: {percent(level)} intervals for other "
        "answers to the same questions; controls pool their random directions.",
        460,
        numbers=rows,
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[0.6, 0.4],
    )
    names = [str(name) for name in dict.fromkeys(rows.loc[rows["kind"] != "none", "layers"])]
    baseline = rows[rows["kind"] == "none"].iloc[0]
    for row, of in enumerate(("em", "coherent"), 1):
        where = place(row, 1)
        for number, kind in enumerate(KINDS):
            figure.add_trace(_points(rows, names, of, kind, OFFSET * (number - 1), row == 1), **where)
        low, high = 100 * baseline[f"{of}_low"], 100 * baseline[f"{of}_high"]
        figure.add_hrect(low, high, fillcolor=FAINT, opacity=0.35, line_width=0, layer="below", **where)
        figure.add_hline(100 * baseline[of], line={"color": MUTED, "width": 1, "dash": "dash"}, **where)
    ticks = [name.replace("layer ", "") for name in names]
    em = em_axis_range(100 * rows["em_high"].to_numpy(float))
    figure.update_yaxes(title_text="EM rate<br>(% of scored)", range=em, **place(1, 1))
    figure.update_yaxes(title_text="Coherent rate<br>(% of scored)", range=[-3, 103], **place(2, 1))
    figure.update_xaxes(tickvals=np.arange(len(names)), ticktext=ticks, range=[-0.5, len(names) - 0.5])
    figure.update_xaxes(title_text="Ablated after layer", **place(2, 1))
    return figure


def _points(rows: pd.DataFrame, names: list[str], of: str, kind: str, offset: float, in_legend: bool) -> go.Scatter:
    name, colour, symbol = KINDS[kind]
    of_kind = rows[rows["kind"] == kind].set_index("layers").reindex(names)
    rate, low, high = (100 * of_kind[column].to_numpy(float) for column in (of, f"{of}_low", f"{of}_high"))
    bars = error_bars(rate, low, high, thickness=1.4, width=4, color=colour)
    points = go.Scatter(x=np.arange(len(names)) + offset, y=rate, mode="markers", name=name, showlegend=in_legend)
    points.update(error_y=bars, marker={"color": colour, "size": 8, "symbol": symbol})
    points.update(marker_line={"color": INK, "width": 0.5}, customdata=names)
    return points.update(hovertemplate=f"%{{customdata}}<br>{name}: %{{y:.1f}} %<extra></extra>")


MODELS = {"base": "Base", "adapted": "Adapted model"}
OF = {"em": ("EM", VERMILLION), "coherent": ("coherent", BLUE)}
COHERENT = 90  # per cent: below it EM does not count


def plot_steering(
    rows: pd.DataFrame, layer: int = 0, about: str = "", length: float = float("nan"), level: float = 0.95
) -> go.Figure:
    """EM and coherent rates by coefficient, on the base and on the adapted model; usable coefficients are marked.

    `rows` are those of `SteeringCurve.frame()`. Random directions of the same length are dashed, the range of EM over
    them grey; `length` is what a coefficient of 1 adds.
    """
    which = f"The direction: {about}. " if about else ""
    figure = new_figure(
        f"Steering after layer {layer}",
        f"{which}Dashed: random directions of the same length. Bands: {percent(level)} intervals for other "
        "answers to the same questions. "
        f"Green: coefficients at which EM exceeds the controls' interval at {COHERENT}% coherent.",
        340,
        headroom=24,
        least_width=620,
        numbers=rows,
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[f"{name}" for name in MODELS.values()],
    )
    for column, model in enumerate(MODELS, 1):
        of_model = rows[rows["model"] == model]
        for of in OF:
            _draw(figure, of_model, of, column)
        _mark_usable(figure, of_model, place(1, column))  # a mark in a panel without a trace is dropped
        figure.add_hline(COHERENT, line={"color": MUTED, "width": 1, "dash": "dot"}, **place(1, column))
    figure.update_xaxes(title_text=f"Coefficient (1 adds the difference itself, {length:.3g} long)")
    figure.update_yaxes(title_text="Rate (% of scored answers)", range=[-3, 103], **place(1, 1))
    figure.update_yaxes(range=[-3, 103], **place(1, 2))
    return figure


def _draw(figure: go.Figure, rows: pd.DataFrame, of: str, column: int) -> None:
    name, colour = OF[of]
    where, hover = place(1, column), f"coefficient %{{x:.3g}}<br>{name} %{{y:.1f}} %<extra></extra>"
    own = rows[rows["kind"] != "random"].sort_values("coefficient")
    random = rows[rows["kind"] != "direction"].sort_values("coefficient")
    low, high = (100 * own[f"{of}_{end}"].to_numpy(float) for end in ("low", "high"))
    figure.add_trace(ribbon(own["coefficient"].to_numpy(), low, high, colour, name, showlegend=False), **where)
    if of == "em":
        low, high = (100 * random[f"em_{end}"].to_numpy(float) for end in ("min", "max"))
        band = ribbon(random["coefficient"].to_numpy(), low, high, FAINT, "random", showlegend=False)
        figure.add_trace(band, **where)
    line = go.Scatter(x=own["coefficient"], y=100 * own[of], mode="lines+markers", name=name, hovertemplate=hover)
    figure.add_trace(line.update(line={"color": colour, "width": 1.8}, marker_size=6, showlegend=column == 1), **where)
    dashed = go.Scatter(x=random["coefficient"], y=100 * random[of], mode="lines", name=f"{name}, random directions")
    dashed.update(line={"color": colour, "width": 1.3, "dash": "dash"}, showlegend=column == 1, hovertemplate=hover)
    figure.add_trace(dashed, **where)


def _mark_usable(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    """A band around each usable coefficient, to half-way to its neighbours."""
    coefficients = np.sort(rows.loc[rows["kind"] != "random", "coefficient"].to_numpy(float))
    usable = rows.loc[rows["usable"].astype(bool), "coefficient"].to_numpy(float)
    for index in np.flatnonzero(np.isin(coefficients, usable)).tolist():
        low = (coefficients[index] + coefficients[max(index - 1, 0)]) / 2
        high = (coefficients[index] + coefficients[min(index + 1, len(coefficients) - 1)]) / 2
        figure.add_vrect(low, high, fillcolor=GREEN, opacity=0.22, line_width=0, layer="below", **where)


SHADES = {"em": ("#ffffff", "#f6c49f", VERMILLION), "coherent": ("#ffffff", "#9fcbe8", BLUE)}
NAMES = {"em": "EM rate", "coherent": "Coherent rate"}
PANEL, LINES = 340, 220  # pixels
MAX_NUMBERED = 14  # steps up to which the numbers are written


def plot_patching(
    cells: pd.DataFrame,
    components: tuple[str, str] = ("direction", "norm"),
    first_steps: Sequence[Transition] = (),
    limit: float = float("nan"),
    verdict: str = "",
    level: float = 0.95,
) -> go.Figure:
    """Heat maps of EM, with a dot where it is sufficient, and of coherence; below, last column, last row and diagonal.

    `cells` has a row a cell: row and column (steps), norm (of the column's step), sufficient, and em and coherent with
    their intervals. `first_steps` are the first sufficient steps: on the last column, on the last row, as trained.
    Bands are intervals for other answers to the same questions; `limit`, dashed, is the upper end of the control's.
    """
    first, second = components
    subtitle = f"Sufficient component: {verdict}. Dots: EM above the control's interval, 90% coherent. "
    subtitle += f"Diamonds: the first of these on each line. Bands and bars: {percent(level)} intervals."
    figure = new_figure(
        f"{first.capitalize()} or {second}?",
        subtitle,
        PANEL + LINES + 110,
        headroom=24,
        least_width=720,
        numbers=cells,
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        row_heights=[PANEL, LINES],
        subplot_titles=[f"{name} (%)" for name in NAMES.values()],
        vertical_spacing=0.16,
        horizontal_spacing=0.13,
    )
    for column, of in enumerate(NAMES, 1):
        _draw_map(figure, cells, of, components, column)
    figure.update_yaxes(title_text=f"{first.capitalize()} of step", row=1, col=1)
    _draw_lines(figure, cells, components, first_steps)
    figure.add_hline(100 * limit, line={"color": MUTED, "width": 1, "dash": "dash"}, **place(2, 1))
    return figure


def _draw_map(figure: go.Figure, cells: pd.DataFrame, of: str, components: tuple[str, str], column: int) -> None:
    where, rate = place(1, column), cells.pivot(index="row", columns="column", values=of)
    places, names = np.arange(len(rate)), [str(step) for step in rate.index]
    norm = cells.groupby("column")["norm"].first()
    across = [f"{step}<br>{norm[step]:.3g}" for step in rate.columns] if components[1] == "norm" else names
    steps = np.stack(np.meshgrid(rate.index, rate.columns, indexing="ij"), axis=-1)
    hover = f"{components[0]} of step %{{customdata[0]}}, {components[1]} of step %{{customdata[1]}}<br>"
    axis = "coloraxis" if column == 1 else f"coloraxis{column}"
    tiles = go.Heatmap(z=100 * rate.to_numpy(), x=places, y=places, customdata=steps, coloraxis=axis, xgap=1, ygap=1)
    tiles.update(hovertemplate=f"{hover}{NAMES[of]} %{{z:.1f}} %<extra></extra>", hoverongaps=False, name=NAMES[of])
    if len(names) <= MAX_NUMBERED:
        tiles.update(texttemplate="%{z:.0f}", textfont_size=10)
    figure.add_trace(tiles, **where)
    if of == "em":
        row, col = np.nonzero(cells.pivot(index="row", columns="column", values="sufficient").to_numpy())
        dots = go.Scatter(x=col + 0.36, y=row + 0.34, mode="markers", hoverinfo="skip", name="sufficient")
        figure.add_trace(dots.update(marker={"color": INK, "size": 3.5}, showlegend=False), **where)
    style = {"tickvals": places, "showgrid": False, "ticks": "", "tickfont_size": 10, "tickangle": 0}
    title = "Norm of step (below: ‖ΔW‖, weight units)" if components[1] == "norm" else f"{components[1]} of step"
    figure.update_xaxes(title_text=title, ticktext=across, range=[-0.5, len(names) - 0.5], **style, **where)
    figure.update_yaxes(ticktext=names, range=[-0.5, len(names) - 0.5], **style, **where)
    _colours(figure, of, axis, column)


def _colours(figure: go.Figure, of: str, axis: str, column: int) -> None:
    panel = figure.get_subplot(1, column)
    low, high = panel.yaxis.domain
    bar = {"thickness": 8, "len": high - low, "y": (low + high) / 2, "outlinewidth": 0, "nticks": 6}
    bar |= {"x": panel.xaxis.domain[1] + 0.01}
    shades = [[i / 2, colour] for i, colour in enumerate(SHADES[of])]
    figure.update_layout({axis: {"cmin": 0, "cmax": 100, "colorscale": shades, "colorbar": bar}})


def _draw_lines(
    figure: go.Figure, cells: pd.DataFrame, components: tuple[str, str], first_steps: Sequence[Transition]
) -> None:
    (first, second), last, where = components, cells["row"].max(), place(2, 1)
    lines = [
        (f"every {first}, final {second}", BLUE, cells[cells["column"] == last].set_index("row")),
        (f"final {first}, every {second}", ORANGE, cells[cells["row"] == last].set_index("column")),
        ("as trained", INK, cells[cells["row"] == cells["column"]].set_index("row")),
    ]
    for name, colour, rates in lines:
        low, high = (100 * rates[end].to_numpy() for end in ("em_low", "em_high"))
        figure.add_trace(ribbon(rates.index.to_numpy(), low, high, colour, name, showlegend=False), **where)
    for name, colour, rates in lines:
        hover = f"step %{{x}}<br>{name}: %{{y:.1f}} %<extra></extra>"
        line = go.Scatter(x=rates.index, y=100 * rates["em"], mode="lines+markers", name=name, hovertemplate=hover)
        figure.add_trace(line.update(line={"color": colour, "width": 1.8}, marker_size=5), **where)
    for (_, colour, rates), first_step in zip(lines, first_steps, strict=False):
        if first_step.step is not None and first_step.interval is not None:
            mark_on_curve(
                figure, "the first sufficient step", first_step, 100 * rates["em"][first_step.step], colour, where
            )
    figure.update_yaxes(
        title_text="EM rate<br>(% of scored answers)", range=em_axis_range(100 * cells["em_high"].to_numpy()), **where
    )
    figure.update_xaxes(title_text=STEP, range=[0, 1.02 * last], **where)
