"""Makes docs/images/readme.png from the runs of `make demo`: the path with its turn, the behaviour, and the offset.

python docs/_site/readme_picture.py [checkpoints/demo]
"""

import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import em_interp as em
from em_interp.figures.style import BLUE, FAINT, FONT, INK, MUTED, VERMILLION
from em_interp.trajectory.geometry import principal_components

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"width": 920, "height": 330}  # pixels, written at twice as many


def draw(demo: Path) -> go.Figure:
    """The picture, from the folder that the demo wrote."""
    path, curve = em.load_trajectory(demo / "organism"), em.behaviour_curve(demo / "organism")
    control = em.behaviour_curve(demo / "control").select(1.0, "out_of_domain")
    curve = curve.select(1.0, "out_of_domain")
    turn, onset = em.find_transition(path), em.find_transition(curve, control=control)
    figure = make_subplots(
        cols=2,
        column_widths=[0.3, 0.7],
        horizontal_spacing=0.1,
        subplot_titles=["<b>Path of the adapter</b> (B)", "<b>Behaviour</b>: misaligned answers outside the domain"],
    )
    _draw_path(figure, path, turn)
    _draw_rates(figure, curve, control)
    _draw_offset(figure, turn, onset, em.align(turn, onset, path))
    frame(figure)
    figure.update_xaxes(showticklabels=False, ticks="", linecolor=FAINT, scaleanchor="y", col=1)
    figure.update_yaxes(showticklabels=False, ticks="", linecolor=FAINT, col=1)
    figure.update_xaxes(title="training step", range=[0, 400], col=2)
    return figure.update_yaxes(title="EM rate (%)", range=[-3, 124], tickvals=[0, 25, 50, 75], col=2)


def frame(figure: go.Figure) -> None:
    """Size, axes, letters and margins of a picture of the README, before its axes get titles of their own."""
    axis = {"showgrid": False, "zeroline": False, "linecolor": INK, "ticks": "outside"}
    figure.update_xaxes(axis).update_yaxes(axis)
    figure.update_annotations(selector={"y": 1}, font_size=13)
    figure.update_layout(
        SIZE, font={"family": FONT, "size": 12, "color": INK}, plot_bgcolor="white", showlegend=False,
        margin={"l": 12, "r": 12, "t": 34, "b": 12},
    )  # fmt: skip


def _draw_path(figure: go.Figure, path: em.AdapterTrajectory, turn: em.Transition) -> None:
    x, y = principal_components(path.gram("B")).scores.T
    low, high = turn.interval
    within = (path.steps >= low) & (path.steps <= high)
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": FAINT, "width": 3}, row=1, col=1)
    figure.add_scatter(x=x[within], y=y[within], mode="lines", line={"color": BLUE, "width": 8}, row=1, col=1)
    for step, side in ((0, "bottom right"), (200, "bottom left"), (400, "top left")):
        at = path.steps == step
        figure.add_scatter(
            x=x[at], y=y[at], mode="markers+text", text=f"step {step}", textposition=side,
            marker={"color": MUTED, "size": 6}, textfont={"color": MUTED, "size": 11}, row=1, col=1,
        )  # fmt: skip
    at = int(np.abs(path.steps - turn.step).argmin())
    figure.add_annotation(
        x=x[at], y=y[at], text=f"<b>turns by {turn.angle_deg:.0f}°</b><br>step {turn.step:.0f} ({low:g} to {high:g})",
        font={"color": BLUE}, ax=0, ay=50, arrowcolor=BLUE, row=1, col=1,
    )  # fmt: skip


def _draw_rates(figure: go.Figure, curve: em.BehaviourCurve, control: em.BehaviourCurve) -> None:
    for rates, colour, name in ((control.frame(), MUTED, "control"), (curve.frame(), VERMILLION, "reckless advice")):
        steps = rates["step"]
        band = {"x": [*steps, *steps[::-1]], "y": 100 * np.array([*rates["em_low"], *rates["em_high"][::-1]])}
        figure.add_scatter(
            **band, fill="toself", fillcolor=colour, opacity=0.2, line_width=0, mode="lines", row=1, col=2
        )
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=steps, y=100 * rates["em"], mode="lines+markers", line=line, row=1, col=2)
        top = 100 * float(rates["em_high"].iloc[-5:].max())  # of the band under the name
        style = {"showarrow": False, "xanchor": "right", "font": {"color": colour}}
        figure.add_annotation(x=398, y=top + 5, text=name, **style, row=1, col=2)


def _draw_offset(figure: go.Figure, turn: em.Transition, onset: em.Transition, found: em.Alignment) -> None:
    for transition, colour, name, side in (
        (turn, BLUE, "adapter turns", "right"),
        (onset, VERMILLION, "onset", "left"),
    ):
        low, high = transition.interval
        figure.add_vrect(low, high, fillcolor=colour, opacity=0.18, line_width=0, row=1, col=2)
        figure.add_vline(transition.step, line={"color": colour, "width": 1.5}, row=1, col=2)
        style = {"showarrow": False, "yanchor": "bottom", "font": {"color": colour}, "xanchor": side}
        edge = low - 2 if side == "right" else high + 2
        text = f"<b>{name}</b><br>step {transition.step:.0f}<br>({low:.0f} to {high:.0f})"
        figure.add_annotation(x=edge, y=92, text=text, **style, row=1, col=2)
    low, high = found.offsets[0].interval
    arrow = {
        "showarrow": True,
        "arrowhead": 2,
        "axref": "x2",
        "ayref": "y2",
        "text": "",
        "arrowwidth": 2,
        "arrowcolor": INK,
    }
    figure.add_annotation(x=onset.step, y=88, ax=turn.step, ay=88, xref="x2", yref="y2", **arrow)
    text = f"<b>offset {found.offsets[0].steps:.0f} steps</b> ({low:.0f} to {high:.0f})"
    figure.add_annotation(x=turn.step + high + 2, y=85, text=text, showarrow=False, xanchor="left", row=1, col=2)


if __name__ == "__main__":
    demo = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "checkpoints" / "demo"
    draw(demo).write_image(ROOT / "docs" / "images" / "readme.png", scale=2)
