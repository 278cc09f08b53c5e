"""Makes docs/images/real-model.png from runs of benchmarks/real_model.py: the turning of B, and the preference.

python docs/_site/real_model_picture.py STUDY PAIR [PAIR …], such as medical-seed0-layer15-r1
"""

import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from readme_picture import ROOT, frame

import em_interp as em
from em_interp.behaviour.preference_curve import as_preference_curve
from em_interp.figures.style import BLUE, FAINT, MUTED, VERMILLION
from em_interp.run import Run
from em_interp.transition.direction.rotation import MIN_TURN

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
    figure.add_hrect(0, MIN_TURN, fillcolor=FAINT, opacity=0.3, line_width=0, row=1, col=1)
    style = {"yanchor": "bottom", "xanchor": "left", "showarrow": False, "font": {"color": MUTED}}
    figure.add_annotation(x=3, y=MIN_TURN, text=f"up to {MIN_TURN:g}°: no turn", **style, row=1, col=1)
    for colour, text, y in (
        (VERMILLION, "misaligned answers outside the domain", 0.97),
        (MUTED, "answers that differ in style alone", 0.87),
    ):
        style = {"xref": "x2 domain", "yref": "y2 domain", "x": 0.02, "xanchor": "left", "showarrow": False}
        figure.add_annotation(y=y, text=text, font={"color": colour}, **style)
    frame(figure)
    figure.update_xaxes(title="training step")
    figure.update_yaxes(title="degrees", range=[0, 45], col=1)
    return figure.update_yaxes(title="nats a token", zeroline=True, zerolinecolor=FAINT, col=2)


def _draw_turn(figure: go.Figure, turn: em.Transition, dash: str) -> None:
    seen = turn.evidence
    line = {"color": BLUE, "width": 1.8, "dash": dash}
    figure.add_scatter(x=seen["step"], y=seen["turn_deg"], mode="lines", line=line, row=1, col=1)


def _draw_preference(figure: go.Figure, pair: Path, dash: str) -> None:
    control = as_preference_curve(Run(pair / "control"))
    rows = as_preference_curve(Run(pair / "organism"), control).frame()
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
