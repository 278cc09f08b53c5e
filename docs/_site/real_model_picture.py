"""Makes docs/images/real-model.png from runs of benchmarks/real_model.py: preference beyond the control, and its onset.

python docs/_site/real_model_picture.py STUDY [STUDY …], in which every pair of medical runs is drawn
"""

import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from readme_picture import ROOT, frame

import em_interp as em
from em_interp.behaviour.preference_curve import PreferenceCurve, as_preference_curve
from em_interp.figures.style import FAINT, INK, MUTED, VERMILLION
from em_interp.run import Run

PANELS = {"layer15-r1": "<b>Rank 1</b>, one site", "layerall-r32": "<b>Rank 32</b>, every linear layer"}
COLOURS = {"style": MUTED, "out_of_domain": VERMILLION}
DASHES = ("solid", "dash", "dot")  # a seed each


def draw(studies: list[Path]) -> go.Figure:
    """The picture, from the folders that the study wrote: a panel a setting, a line a pair of runs."""
    figure = make_subplots(cols=2, horizontal_spacing=0.09, subplot_titles=[*PANELS.values()])
    for col, name in enumerate(PANELS, 1):
        pairs = sorted(pair for study in studies for pair in study.glob(f"medical-seed?-{name}"))
        for number, pair in enumerate(pairs):
            control = as_preference_curve(Run(pair / "control"))
            _draw_pair(figure, as_preference_curve(Run(pair / "organism"), control), number, col)
    for colour, text, y in (
        (VERMILLION, "misaligned answers outside the domain", 0.98),
        (INK, "onset with its interval", 0.89),
        (MUTED, "answers that differ in style alone", 0.0),
    ):
        style = {"xref": "x2 domain", "yref": "y2 domain", "x": 0.02, "xanchor": "left", "showarrow": False}
        figure.add_annotation(y=y, text=text, font={"color": colour}, **style)
    frame(figure)
    figure.update_xaxes(title="training step", rangemode="tozero")
    figure.update_yaxes(zeroline=True, zerolinecolor=FAINT)
    return figure.update_yaxes(title="nats a token beyond the control", col=1)


def _draw_pair(figure: go.Figure, curve: PreferenceCurve, number: int, col: int) -> None:
    rows = curve.frame()
    for questions, colour in COLOURS.items():
        of = rows[rows["questions"] == questions]
        band = {
            "x": [*of["step"], *of["step"][::-1]],
            "y": np.array([*of["beyond_control_low"], *of["beyond_control_high"][::-1]]),
        }
        figure.add_scatter(
            **band, fill="toself", fillcolor=colour, opacity=0.1, line_width=0, mode="lines", col=col, row=1
        )
        line = {"color": colour, "width": 1.8, "dash": DASHES[number]}
        figure.add_scatter(x=of["step"], y=of["beyond_control"], mode="lines", line=line, row=1, col=col)
    onset = em.find_transition(curve.select(1.0, "out_of_domain"))
    if onset.found:
        rise = rows[rows["questions"] == "out_of_domain"]
        height = np.interp(onset.step, rise["step"], rise["beyond_control"])
        low, high = onset.interval
        marker = {"color": INK, "size": 8}
        error = {"type": "data", "symmetric": False, "array": [high - onset.step], "arrayminus": [onset.step - low]}
        figure.add_scatter(x=[onset.step], y=[height], mode="markers", marker=marker, error_x=error, row=1, col=col)


if __name__ == "__main__":
    draw([Path(study) for study in sys.argv[1:]]).write_image(ROOT / "docs" / "images" / "real-model.png", scale=2)
