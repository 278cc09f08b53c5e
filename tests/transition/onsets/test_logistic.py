"""Counts, their permutations and the fitted logistic, against explicit versions."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from em_interp.transition.onsets.logistic import (
    STEEPNESS,
    LogisticGrid,
    OutcomeCounts,
    fit_rise,
    logistic,
    matched,
    step_of_share,
)
from em_interp.transition.synthetic.curves import planted_curve
from tests.transition.judged import answers, rising


def test_a_control_asked_at_other_questions_too_is_compared_on_the_shared_ones():
    mine, other = (OutcomeCounts.of(answers(rising(200), questions=q).outcomes()) for q in (3, 5))
    first, second = matched(mine, other)
    assert first.question_ids == second.question_ids == ("0", "1", "2")


def test_permuting_keeps_every_question_total_and_its_null_mean():
    counts = planted_curve("uneven_questions", np.random.default_rng(3)).counts
    drawn = counts.permuted_over_steps(2000, np.random.default_rng(0))
    expected = (counts.n * (counts.total.sum(0) / counts.n.sum(0))).sum(1) / counts.answers
    assert np.abs(drawn.mean(0) - expected).max() < 0.01
    assert np.allclose(drawn @ counts.answers, counts.total.sum())


def test_the_normal_limit_of_permuting_has_the_spread_of_the_exact_one():
    counts = planted_curve("uneven_questions", np.random.default_rng(3)).counts
    nudged = replace(counts, squares=counts.squares - 1e-9)  # no longer exactly binary
    for draw in (
        lambda t: t.permuted_over_steps(4000, np.random.default_rng(0)),
        lambda t: t.permuted_between(t, 4000, np.random.default_rng(0)),
    ):
        exact, limit = draw(counts).std(0), draw(nudged).std(0)
        assert np.abs(exact - limit).max() < 0.1 * exact.max()


def test_the_normal_limit_of_permuting_single_answers_has_the_spread_of_the_exact_one():
    scores, rng = np.random.default_rng(1).random((6, 3)), np.random.default_rng(0)
    rows = [(step, str(question), value) for (step, question), value in np.ndenumerate(scores)]
    counts = OutcomeCounts.of(pd.DataFrame(rows, columns=["step", "question_id", "value"]))
    exact = np.array([rng.permuted(scores, axis=0).mean(1) for _ in range(4000)]).std(0)
    assert counts.permuted_over_steps(4000, rng).std(0) == pytest.approx(exact, rel=0.05)


def test_the_grid_fit_equals_a_search_by_general_optimisation():
    from scipy.optimize import least_squares

    counts = OutcomeCounts.of(answers(rising(190, width=80, low=0.05, high=0.6), n=50).outcomes())
    rise = fit_rise(counts, 0.95, np.random.default_rng(0))
    weight = np.sqrt(counts.answers / (rise.at(counts.steps) * (1 - rise.at(counts.steps))))

    def residuals(values):
        return weight * (
            values[2] + (values[3] - values[2]) * logistic(counts.steps, values[0], values[1]) - counts.rate
        )

    slow = least_squares(residuals, [200, 60, 0.1, 0.5]).x
    assert rise.midpoint == pytest.approx(slow[0], abs=1)
    assert rise.width == pytest.approx(slow[1], rel=0.1)
    assert (rise.low, rise.high) == (pytest.approx(slow[2], abs=0.01), pytest.approx(slow[3], abs=0.01))


@pytest.mark.parametrize("midpoint, width", [(200.0, 60.0), (20.0, 80.0), (-300.0, 100.0)])
def test_a_share_of_a_rise_is_done_where_the_curve_has_it(midpoint, width):
    fine = np.linspace(0, 800, 400001)
    done = logistic(fine, midpoint, width)
    counted_from_0 = (done - done[0]) / (1 - done[0])
    for share in (0.1, 0.5, 0.9):
        step = step_of_share(share, midpoint, width, from_zero=True)
        assert step == pytest.approx(fine[counted_from_0.searchsorted(share)], abs=0.01)
        of_all = np.array([step_of_share(share, midpoint, width, from_zero=False)])
        assert logistic(of_all, midpoint, width) == pytest.approx(share)


def test_the_half_of_an_exponential_approach_is_its_half_life_and_of_a_late_rise_its_midpoint():
    assert step_of_share(0.5, -9000.0, 50.0, from_zero=True) == pytest.approx(50 / STEEPNESS * np.log(2))
    assert step_of_share(0.5, 4000.0, 50.0, from_zero=True) == pytest.approx(4000.0)


def test_gains_equal_the_fall_of_squared_error_of_an_explicit_regression():
    rng = np.random.default_rng(1)
    steps, weights, rate = np.arange(10.0), rng.uniform(1, 5, 10), np.linspace(0.1, 0.6, 10) + rng.normal(0, 0.02, 10)
    grid = LogisticGrid.over(steps, np.array([3.0, 6.0]), np.array([2.0, 8.0]))
    for share, gain in zip(grid.shares, grid.gains(weights, rate[None])[0], strict=True):
        design = np.stack([np.ones(10), share], 1) * np.sqrt(weights)[:, None]
        squared = np.linalg.lstsq(design, rate * np.sqrt(weights), rcond=None)[1][0]
        flat_error = (weights * (rate - np.average(rate, weights=weights)) ** 2).sum()
        assert gain == pytest.approx(flat_error - squared, rel=1e-6)
