"""At the width of one column and of two, no words lie on other words or reach beyond the picture."""

import plotly.graph_objects as go
import pytest

from em_interp.reports.run_figures import run_figures
from tests.figures.on_paper import overlaps


@pytest.mark.parametrize("columns", [1, 2])
def test_no_words_lie_on_others_in_any_figure_of_a_run(columns, organism, tmp_path):
    figures = run_figures(organism)
    count, found = overlaps(figures, columns, tmp_path)
    assert count > 10 * len(figures)
    assert found == []


def test_words_that_lie_on_others_are_found(tmp_path):
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1]), {"height": 300, "meta": {"top": 0}, "margin": {"t": 40}})
    figure.add_annotation(x=0.5, y=0.5, text="some words", showarrow=False)
    figure.add_annotation(x=0.52, y=0.5, text="other words", showarrow=False)
    far = {"x": 0.97, "xref": "paper", "xanchor": "left"}
    figure.add_annotation(y=0.2, text="words that reach far beyond the edge", showarrow=False, **far)
    _, found = overlaps({"bad": figure}, 1, tmp_path)
    assert ("bad", "other words", "some words") in found
    assert ("bad", "words that reach far beyond the edge", "the edge") in found
