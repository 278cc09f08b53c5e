"""Every direction at every size (or A with B of another step): rates of EM and coherence, and the lines that matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.template import BLUE, INK, MUTED, ORANGE, STEP, VERMILLION, em_range, new_figure, place, ribbon
from em_interp.transition.result import Transition

SHADES = {"em": ("#ffffff", "#f6c49f", VERMILLION), "coherent": ("#ffffff", "#9fcbe8", BLUE)}
NAMES = {"em": "EM rate", "coherent": "Coherent rate"}
PANEL, LINES = 340, 220  # pixels
MOST = 14  # steps up to which the numbers are written


def plot_step_map(
    cells: pd.DataFrame,
    things: tuple[str, str] = ("direction", "size"),
    earliest: Sequence[Transition] = (),
    limit: float = float("nan"),
    verdict: str = "",
    level: float = 0.95,
) -> go.Figure:
    """The map of EM, with a dot where it is shown, and that of coherence; below, last column, last row and diagonal.

    `cells` has a row a cell: row and column (steps), size (of the column's step), shown, and em and coherent with
    `_low` and `_high`. `earliest` are the first steps that show it: on the last column, on the last row, as trained.
    Bands are intervals for other answers to the same questions; `limit`, dashed, is the upper end of the control's.
    """
    first, second = things
    subtitle = f"Behaviour waits for: {verdict}. Dots: EM above the control's interval, 90% coherent. "
    subtitle += f"Diamonds: the first of these on each line. Bands and bars: {level:.0%} intervals."
    figure = new_figure(
        f"{first.capitalize()} or {second}?",
        subtitle,
        PANEL + LINES + 110,
        headroom=24,
        least_width=720,
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        row_heights=[PANEL, LINES],
        subplot_titles=[f"{name} (%)" for name in NAMES.values()],
        vertical_spacing=0.16,
        horizontal_spacing=0.13,
    )
    for column, of in enumerate(NAMES, 1):
        _draw_map(figure, cells, of, things, column)
    figure.update_yaxes(title_text=f"{first.capitalize()} of step", row=1, col=1)
    _draw_lines(figure, cells, things, earliest)
    figure.add_hline(100 * limit, line={"color": MUTED, "width": 1, "dash": "dash"}, **place(2, 1))
    return figure


def _draw_map(figure: go.Figure, cells: pd.DataFrame, of: str, things: tuple[str, str], column: int) -> None:
    where, rate = place(1, column), cells.pivot(index="row", columns="column", values=of)
    places, names = np.arange(len(rate)), [str(step) for step in rate.index]
    size = cells.groupby("column")["size"].first()
    across = [f"{step}<br>{size[step]:.3g}" for step in rate.columns] if things[1] == "size" else names
    steps = np.stack(np.meshgrid(rate.index, rate.columns, indexing="ij"), axis=-1)
    hover = f"{things[0]} of step %{{customdata[0]}}, {things[1]} of step %{{customdata[1]}}<br>"
    axis = "coloraxis" if column == 1 else f"coloraxis{column}"
    tiles = go.Heatmap(z=100 * rate.to_numpy(), x=places, y=places, customdata=steps, coloraxis=axis, xgap=1, ygap=1)
    tiles.update(hovertemplate=f"{hover}{NAMES[of]} %{{z:.1f}} %<extra></extra>", hoverongaps=False, name=NAMES[of])
    if len(names) <= MOST:
        tiles.update(texttemplate="%{z:.0f}", textfont_size=10)
    figure.add_trace(tiles, **where)
    if of == "em":
        row, col = np.nonzero(cells.pivot(index="row", columns="column", values="shown").to_numpy())
        dots = go.Scatter(x=col + 0.36, y=row + 0.34, mode="markers", hoverinfo="skip", name="shown")
        figure.add_trace(dots.update(marker={"color": INK, "size": 3.5}, showlegend=False), **where)
    style = {"tickvals": places, "showgrid": False, "ticks": "", "tickfont_size": 10, "tickangle": 0}
    title = "Size of step (below: ‖ΔW‖, no unit)" if things[1] == "size" else f"{things[1]} of step"
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
    figure: go.Figure, cells: pd.DataFrame, things: tuple[str, str], earliest: Sequence[Transition]
) -> None:
    (first, second), last, where = things, cells["row"].max(), place(2, 1)
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
    for (_, colour, rates), found in zip(lines, earliest, strict=False):
        _mark_earliest(figure, rates["em"], found, colour, where)
    figure.update_yaxes(
        title_text="EM rate<br>(% of scored answers)", range=em_range(100 * cells["em_high"].to_numpy()), **where
    )
    figure.update_xaxes(title_text=STEP, range=[0, 1.02 * last], **where)


def _mark_earliest(figure: go.Figure, rate: pd.Series, found: Transition, colour: str, where: dict[str, int]) -> None:
    """A diamond at the earliest step that shows the behaviour, with its interval."""
    if found.step is None or found.interval is None:
        return
    low, high = found.interval
    bars = {"array": [high - found.step], "arrayminus": [found.step - low], "symmetric": False, "thickness": 1.5}
    mark = go.Scatter(x=[found.step], y=[100 * rate[found.step]], mode="markers", showlegend=False)
    mark.update(error_x={**bars, "width": 4, "color": colour}, name="the first step that shows it")
    mark.update(marker={"symbol": "diamond", "size": 10, "color": colour, "line": {"color": "white", "width": 1}})
    hover = f"first shown: step {found.step:.0f} ({low:.0f} to {high:.0f})<extra></extra>"
    figure.add_trace(mark.update(hovertemplate=hover), **where)
