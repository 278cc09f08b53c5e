"""How the runs of several families turn, on a time they share."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.presence import run_style
from em_interp.figures.template import new_figure, note, place

AXES = {
    "cumulative_lr": "Share of the cumulative learning rate",
    "norm": "Norm of ΔW, as a share of its largest",
}
PANEL = 320  # pixels


def plot_turning_profiles(profiles: pd.DataFrame, turning: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel for each clock, a line for each run, a colour for each family; seeds of one show what chance does.

    `profiles` has columns run, family, clock, time and degrees; `turning` a row for each two families and clock with
    between, within and p_value.
    """
    clocks = [clock for clock in AXES if (profiles["clock"] == clock).any()]
    words = "The spread of one colour is what seeds do; runs of two families differ where they lie further apart."
    figure = new_figure(
        "Turning profiles",
        f"{about}. {words}" if about else words,
        PANEL + 40,
        headroom=20,
        least_width=480,
        rows=1,
        cols=len(clocks),
        horizontal_spacing=0.12,
    )
    style = run_style(list(dict.fromkeys(profiles["family"])))
    for number, clock in enumerate(clocks, 1):
        where = place(1, number)
        for (family, run), line in profiles[profiles["clock"] == clock].groupby(["family", "run"], sort=False):
            colour, dash = style[str(family)]
            name = escape(str(family))
            hover = f"{escape(str(run))}, time %{{x:.2f}}<br>%{{y:.1f}}°<extra></extra>"
            trace = go.Scatter(x=line["time"], y=line["degrees"], mode="lines", name=name, legendgroup=name)
            shown = not any(drawn.name == name for drawn in figure.data)
            trace.update(line={"color": colour, "dash": dash, "width": 1.5}, showlegend=shown, hovertemplate=hover)
            figure.add_trace(trace, **where)
        _say(figure, turning[turning["clock"] == clock] if len(turning) else turning, where)
        figure.update_xaxes(title_text=AXES[clock], range=[0, 1.02], **where)
    figure.update_yaxes(rangemode="tozero", nticks=6)
    return figure.update_yaxes(title_text="Angle of ΔW to its end (°)", row=1, col=1)


def _say(figure: go.Figure, tests: pd.DataFrame, where: dict[str, int]) -> None:
    """The tests in words, in the corner that a falling curve leaves free."""
    lines = []
    for row in tests.to_dict("records"):
        p = f"p = {row['p_value']:.2g}" if row["p_value"] == row["p_value"] else "no null: too few runs"
        lines.append(f"{escape(row['family'])}, {escape(row['other'])}: {row['between']:.0f}° apart, {p}")
    at = {"x": 1, "y": 1, "xref": "x domain", "yref": "y domain", "xanchor": "right", "yanchor": "top"}
    if lines:
        style = {"showarrow": False, "align": "right", "font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.85)"}
        figure.add_annotation(text="<br>".join(lines), **at, **style, **where)
    elif not any(trace.name for trace in figure.data):
        note(figure, "no run has this time", where)
