"""The null that is drawn is one: without a rise, without a hump, and no other such curve lies nearer."""

import numpy as np
import pytest

import em_interp as em
from em_interp.figures.signals import falling, valley
from tests.figures.reading import trace


def rises_then_falls(curve):
    moves = np.sign(np.diff(curve).round(12))
    moves = moves[moves != 0]
    return any(moves[i] > 0 and moves[i + 1] < 0 for i in range(len(moves) - 1))


@pytest.mark.parametrize("seed", range(5))
def test_no_curve_of_the_null_is_nearer_than_the_one_drawn(seed):
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.normal(size=30))
    never_up, no_hump = falling(values), valley(values)
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
    np.testing.assert_allclose(valley(x**2), x**2)
    np.testing.assert_allclose(falling(np.exp(-x)), np.exp(-x))


def test_the_null_is_drawn_beside_the_hump_and_the_bend(organism):
    for transition in organism.transitions:
        if transition.signal == "gradient_norm":
            seen = np.asarray(trace(em.figures.gradient_norm(transition), "null: no hump").y)
            assert not rises_then_falls(seen)
            assert transition.evidence["smooth"].max() > seen.max()
        if transition.signal == "norm_onset":
            figure = em.figures.norm_onset(transition)
            assert (np.diff(trace(figure, "null: growth that never speeds up").y) <= 1e-9).all()
