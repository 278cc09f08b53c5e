"""Makes docs/images/real-model.png from runs of benchmarks/real_model.py: the turning of B, and the preference.

python docs/_site/real_model_picture.py STUDY PAIR [PAIR …], such as medical-seed0-layer15-r1
"""

import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import em_interp as em
from em_interp.figures.style import BLUE, FAINT, FONT, INK, MUTED, VERMILLION

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"width": 920, "height": 330}  # pixels, written at twice as many
NULL_DEG = 20  # up to here a turn is none: the margin of the rotation test
DASHES = ("solid", "dash", "dot")  # a seed each


def draw(study: Path, pairs: list[str]) -> go.Figure:
    """The picture, from the folder that the study wrote; a line a pair of runs."""
    figure = make_subplots(
        cols=2,
        column_widths=[0.38, 0.62],
        horizontal_spacing=0.09,
        subplot_titles=["<b>Adapter</b>: turn of B beyond curvature", "<b>Preference</b> beyond that of the control"],
    )
    for dash, pair in zip(DASHES, pairs, strict=False):
        _draw_turn(figure, em.find_transition(study / pair / "organism"), dash)
        _draw_preference(figure, study / pair, dash)
    figure.add_hrect(0, NULL_DEG, fillcolor=FAINT, opacity=0.3, line_width=0, row=1, col=1)
    style = {"yanchor": "bottom", "xanchor": "left", "showarrow": False, "font": {"color": MUTED}}
    figure.add_annotation(x=3, y=NULL_DEG, text=f"up to {NULL_DEG}°: no turn", **style, row=1, col=1)
    for colour, text, y in (
        (VERMILLION, "misaligned answers outside the domain", 0.97),
        (MUTED, "answers that differ in style alone", 0.87),
    ):
        style = {"xref": "x2 domain", "yref": "y2 domain", "x": 0.02, "xanchor": "left", "showarrow": False}
        figure.add_annotation(y=y, text=text, font={"color": colour}, **style)
    axis = {"showgrid": False, "zeroline": False, "linecolor": INK, "ticks": "outside"}
    figure.update_xaxes(axis, title="training step").update_yaxes(axis)
    figure.update_yaxes(title="degrees", range=[0, 45], col=1)
    figure.update_yaxes(title="nats a token", zeroline=True, zerolinecolor=FAINT, col=2)
    figure.update_annotations(selector={"y": 1}, font_size=13)
    return figure.update_layout(
        SIZE, font={"family": FONT, "size": 12, "color": INK}, plot_bgcolor="white", showlegend=False,
        margin={"l": 12, "r": 12, "t": 34, "b": 12},
    )  # fmt: skip


def _draw_turn(figure: go.Figure, turn: em.Transition, dash: str) -> None:
    seen = turn.evidence
    line = {"color": BLUE, "width": 1.8, "dash": dash}
    figure.add_scatter(x=seen["step"], y=seen["turn_deg"], mode="lines", line=line, row=1, col=1)


def _draw_preference(figure: go.Figure, pair: Path, dash: str) -> None:
    curve = em.preference_curve(pair / "organism", control=pair / "control", resume=True)
    rows = curve.frame()
    for questions, colour in (("style", MUTED), ("out_of_domain", VERMILLION)):
        of = rows[rows["questions"] == questions]
        band = {
            "x": [*of["step"], *of["step"][::-1]],
            "y": np.array([*of["beyond_control_low"], *of["beyond_control_high"][::-1]]),
        }
        figure.add_scatter(
            **band, fill="toself", fillcolor=colour, opacity=0.12, line_width=0, mode="lines", row=1, col=2
        )
        line = {"color": colour, "width": 1.8, "dash": dash}
        figure.add_scatter(x=of["step"], y=of["beyond_control"], mode="lines", line=line, row=1, col=2)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2:]).write_image(ROOT / "docs" / "images" / "real-model.png", scale=2)
