"""The signals of a run: the null that is drawn is the nearest curve without a hump or a rise, and is drawn."""

from html import unescape

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.figures.signals import _falling, _valley
from em_interp.transition.result import Transition
from tests.figures.planting import TURN
from tests.figures.reading import lines, texts, trace


def rises_then_falls(curve):
    moves = np.sign(np.diff(curve).round(12))
    moves = moves[moves != 0]
    return any(moves[i] > 0 and moves[i + 1] < 0 for i in range(len(moves) - 1))


@pytest.mark.parametrize("seed", range(5))
def test_no_curve_of_the_null_is_nearer_than_the_one_drawn(seed):
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.normal(size=30))
    never_up, no_hump = _falling(values), _valley(values)
    assert (np.diff(never_up) <= 1e-12).all()
    assert not rises_then_falls(no_hump)
    error, error_valley = (float(np.sum((curve - values) ** 2)) for curve in (never_up, no_hump))
    assert error_valley <= error + 1e-12
    for _ in range(300):
        tried = np.sort(never_up + rng.normal(size=30) * rng.choice([0.01, 0.3]))[::-1]
        assert np.sum((tried - values) ** 2) >= error - 1e-9
        low = rng.integers(1, 30)
        near = no_hump + rng.normal(size=30) * 0.05
        tried = np.concatenate([np.sort(near[:low])[::-1], np.sort(near[low:])])
        assert np.sum((tried - values) ** 2) >= error_valley - 1e-9


def test_what_has_no_hump_is_its_own_null():
    x = np.linspace(-1, 2, 40)
    np.testing.assert_allclose(_valley(x**2), x**2)
    np.testing.assert_allclose(_falling(np.exp(-x)), np.exp(-x))


def test_the_null_is_drawn_beside_the_hump_and_the_bend(organism):
    for transition in organism.transitions:
        if transition.signal == "gradient_norm":
            seen = np.asarray(trace(em.figures.gradient_norm(transition), "null: no hump").y)
            assert not rises_then_falls(seen)
            assert transition.evidence["smooth"].max() > seen.max()
        if transition.signal == "norm_onset":
            figure = em.figures.norm_onset(transition)
            assert (np.diff(trace(figure, "null: growth that never speeds up").y) <= 1e-9).all()


def test_the_hump_of_the_log_is_marked(organism, control):
    assert abs(lines(em.figures.training_log(organism.trajectory, organism.transitions))[0] - TURN) <= 8
    assert lines(em.figures.training_log(control.trajectory, control.transitions)) == []


def test_a_signal_without_a_figure_is_refused():
    with pytest.raises(InputError, match="no figure of the signal 'hum'"):
        em.figures.transition(Transition("hum", "none", ""))


def test_a_transition_read_from_a_file_has_no_evidence_and_its_figure_says_what_it_can(organism):
    for transition in (*organism.transitions, *organism.onsets):
        kept = Transition.from_dict(transition.to_dict())
        words = unescape(texts(kept.plot()).replace("<br>", " "))
        assert kept.reason[:20] in words, kept.signal
