"""The figures of a comparison: what is drawn, and that the null or the interval is always with it."""

import numpy as np
import pytest

import em_interp as em
from em_interp.figures import comparison as draw
from em_interp.transition.result import Transition
from tests.comparison.planting import adapter, unit
from tests.figures.on_paper import faults
from tests.figures.reading import bands, drawn, has_axis_title, lines, texts, trace

CALLS = [("pairs",), ("steps", "B"), ("steps", "delta"), ("direction_onset", "B"), ("direction_onset", "delta")]
CALLS += [("plane", "B"), ("plane", "delta"), ("agreement",)]


@pytest.fixture(scope="module")
def compared():
    one = adapter(1, towards=unit(3), share=0.9)
    late = adapter(2, towards=unit(3), share=0.9, from_step=50)
    return em.compare([one, late, adapter(4)], permutations=9)


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_every_figure_can_be_drawn_and_says_what_its_axes_are(compared, call):
    figure = compared.plot(*call)
    assert drawn(figure)
    assert has_axis_title(figure, "x") and has_axis_title(figure, "y")


def test_a_cell_within_the_band_is_grey_and_one_beyond_it_bold(compared):
    figure = compared.plot("pairs")
    pooled = compared.pairs.query("measure == 'B'").set_index(["run", "other"])
    shared, unrelated = (pooled.loc[pair] for pair in (("seed1", "seed2"), ("seed1", "seed4")))
    assert f"<b>{shared['value']:.2g}</b>" in texts(figure)
    assert abs(unrelated["value"]) <= unrelated["random_band"]
    assert f"| {unrelated['value']:.2g} |" in texts(figure)
    assert f"random 95%: {shared['random_band']:.2g}" in texts(figure)


def test_a_direction_onset_shades_the_band_and_rings_the_first_step_above_it(compared):
    figure = compared.plot("direction_onset", "B")
    shaded = [(shape.y0, shape.y1) for shape in figure.layout.shapes if shape.type == "rect"]
    band = compared.onsets[0].band
    assert shaded == [(0, pytest.approx(band))] * 3
    rings = {mark.x[0] for mark in figure.data if mark.name == "first step"}
    expected = {one.first_step for one in compared.onsets if one.of == "B" and one.first_step is not None}
    assert expected and rings == expected
    signed = compared.plot("direction_onset", "delta")
    assert all(shape.y0 == -shape.y1 for shape in signed.layout.shapes)


def test_steps_against_steps_have_the_edge_of_the_band(compared):
    figure = compared.plot("steps", "B")
    edges = [one for one in figure.data if one.type == "contour"]
    assert len(edges) == 3
    assert edges[0].contours.start == pytest.approx(compared.steps["random_band"].iloc[0])


def test_the_plane_has_a_path_for_each_run_and_warns_that_unrelated_runs_lie_in_one_too(compared):
    figure = compared.plot("plane", "B")
    for name in compared.names:
        assert len(trace(figure, name).x) == 21
    assert "Unrelated runs lie in a plane too" in figure.layout.meta["subtitle"]


def test_agreement_shows_each_run_the_pooled_interval_and_verdicts_without_a_step():
    names = ["a", "<b>", "c"]
    turns = [
        Transition("rotation", "transition", "", of="B", step=step, interval=(step - 8, step + 8), level=0.95)
        for step in (180.0, 200.0)
    ]
    none = Transition("rotation", "none", "", of="B")
    figure = draw.agreement(names, [*turns, none], 190.0, (170.0, 210.0))
    assert lines(figure) == [190] and bands(figure) == [(170, 210)]
    assert trace(figure, "a").error_x.array == (8,)
    assert "none" in texts(figure)
    assert figure.layout.yaxis.ticktext[1] == "&lt;b&gt;"
    bare = draw.agreement(names[:1], [none])
    assert "no run has a step to show" in texts(bare)


def test_run_names_cannot_pass_for_markup():
    hostile = "<b onclick=alert(1)>bold</b>"
    compared = em.compare([adapter(1, name=f"{hostile}1"), adapter(2, name=f"{hostile}2")], permutations=9)
    for call in CALLS:
        figure = compared.plot(*call).update_layout(meta=None).update_traces(legendgroup=None)
        assert "<b onclick" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">"), call


def test_runs_beyond_a_dozen_are_drawn_without_numbers():
    names = [f"run{k}" for k in range(14)]
    rows = [
        {"run": a, "other": b, "measure": "B", "site": "all", "value": 0.123, "random_band": 0.2}
        for k, a in enumerate(names)
        for b in names[k + 1 :]
    ]
    import pandas as pd

    figure = draw.direction_matrix(pd.DataFrame(rows))
    assert "0.12" not in texts(figure)
    assert np.shape(figure.data[0].z) == (14, 14)


def test_no_words_of_a_printed_figure_are_cut_or_lie_on_others(compared, tmp_path):
    figures = {"-".join(call): compared.plot(*call) for call in CALLS}
    _, wrong = faults(figures, tmp_path)
    assert wrong == []
