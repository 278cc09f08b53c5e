"""The figure of a sweep: every step where it is, runs without one aside, pooled steps below their groups."""

import pytest

from em_interp.figures import sweeps as draw
from tests.figures.on_paper import faults
from tests.figures.reading import drawn, texts
from tests.sweeps.test_result import SOME, planted


def test_the_figure_has_every_step_where_it_is_and_the_others_aside():
    found = planted(SOME)
    figure = found.plot()
    assert drawn(figure) and all(
        word in texts(figure) for word in ("none", "inconclusive", "failed", "pooled over seeds")
    )
    marks = [t for t in figure.data if t.xaxis in (None, "x") and t.customdata is not None]
    steps = next(list(t.x) for t in marks if t.name == "transition")
    assert steps == [100, 120, 110]
    assert next(t for t in marks if t.name == "transition").error_x.array.tolist() == [8, 8, 8]
    aside = [x for t in marks if t.name != "transition" for x in t.x]
    assert len(aside) == 2 and all(x < 0 for x in aside)
    diamonds = [t for t in figure.data if t.name == "pooled"]
    assert len(diamonds) == 3 and diamonds[0].x[1] == pytest.approx(110)
    heights = [y for t in marks for y in t.y]
    assert len(set(heights)) == 5 == len(heights)


def test_a_sweep_without_a_run_has_a_figure_that_says_so():
    nothing = planted({"rotation": [ValueError("lost")], "gradient_norm": [""], "onset": [""]})
    assert drawn(nothing.plot()) and nothing.pooled()[0][1] == {}
    empty = planted(SOME).frame("signals").iloc[:0]
    assert "no run to show" in texts(draw.sweep(empty, empty.assign(mean=[])))


def test_no_words_of_a_printed_figure_are_cut_or_lie_on_others(tmp_path):
    _, wrong = faults({"sweep": planted(SOME).plot()}, tmp_path)
    assert wrong == []
