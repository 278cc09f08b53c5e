"""Figures of a preference for misaligned answers, drawn from a planted shift."""

import pytest

import em_interp as em
from em_interp.transition.find import find_transition
from tests.behaviour.test_preference_curve import curve_with
from tests.figures.on_paper import faults


@pytest.fixture(scope="module")
def curve():
    return curve_with()


def test_the_numbers_behind_the_figure_are_the_curves(curve):
    drawn = em.figures.numbers(em.figures.preference(curve))
    assert drawn["change"].tolist() == curve.frame()["change"].tolist()


def test_no_words_of_a_printed_figure_are_cut_or_lie_on_others(curve, tmp_path):
    found = find_transition(curve.select(questions="broad"))
    _, wrong = faults({"preference": em.figures.preference(curve, [found]), "onset": found.plot()}, tmp_path)
    assert wrong == []
