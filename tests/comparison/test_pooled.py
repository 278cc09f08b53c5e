"""Transition steps over seeds: the interval, the test of homogeneity, and what cannot be pooled."""

import numpy as np
import pytest
from scipy.stats import f

from em_interp.comparison.pooled import pool_steps, random_effects, standard_error
from em_interp.errors import InputError
from em_interp.transition.result import Transition


def turn(step, half=8.0, verdict="transition"):
    if verdict != "transition":
        return Transition("rotation", verdict, "planted", of="B")
    return Transition(
        "rotation", verdict, "planted", of="B", step=step, interval=(step - half, step + half), level=0.95
    )


def names(count):
    return [f"seed{number}" for number in range(count)]


@pytest.mark.parametrize("runs, between", [(3, 0.0), (5, 0.0), (5, 10.0), (10, 10.0), (4, 30.0)])
def test_the_interval_holds_the_planted_mean_at_the_stated_rate(runs, between):
    rng = np.random.default_rng([runs, int(between)])
    held = []
    for _ in range(400):
        errors = rng.uniform(2, 8, runs)
        values = 190 + rng.normal(0, between, runs) + rng.normal(0, errors)
        low, high = random_effects(values, errors).interval
        held.append(low <= 190 <= high)
    assert np.mean(held) >= 0.93  # 0.95 less two standard errors of 400; more where no run differs
    assert np.mean(held) <= 0.985


def test_the_spread_between_runs_is_found():
    rng = np.random.default_rng(0)
    errors = rng.uniform(2, 8, 400)
    values = 190 + rng.normal(0, 12, 400) + rng.normal(0, errors)
    found = random_effects(values, errors)
    assert found.tau == pytest.approx(12, rel=0.12)
    assert found.mean == pytest.approx(190, abs=2)


def test_with_equal_errors_and_wide_spread_it_is_the_t_interval_of_the_values():
    values = np.array([150.0, 190.0, 240.0, 205.0])
    found = random_effects(values, np.full(4, 1e-3))
    half = 3.182446 * values.std(ddof=1) / 2
    assert found.mean == pytest.approx(values.mean())
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-5)


def test_runs_that_agree_exactly_do_not_make_an_interval_of_no_width():
    found = random_effects(np.full(5, 190.0), np.full(5, 4.0))
    assert found.tau == 0
    half = 1.959964 * 4 / np.sqrt(5)
    assert found.interval == pytest.approx((190 - half, 190 + half), rel=1e-5)


def test_five_seeds_are_described_in_one_sentence():
    found = pool_steps(names(5), [turn(step) for step in (180, 186, 190, 194, 200)])
    assert found.sentence().startswith("rotation of B: the transition is at 190 ± 9 (95% interval) over 5 runs")
    assert found.to_dict()["mean"] == pytest.approx(190)
    assert found.to_dict()["pooled_runs"] == 5


def test_runs_with_none_or_inconclusive_are_counted_and_not_pooled():
    found = pool_steps(names(4), [turn(188), turn(0, verdict="none"), turn(192), turn(0, verdict="inconclusive")])
    assert found.counts == {"transition": 2, "none": 1, "inconclusive": 1, "without_interval": 0}
    assert found.pooled.mean == pytest.approx(190)
    assert "over 2 of 4 runs" in found.sentence()
    assert found.sentence().endswith("; 1 with none, 1 inconclusive")


def test_with_one_transition_or_none_nothing_is_pooled_and_the_sentence_says_why():
    one = pool_steps(names(3), [turn(188), turn(0, verdict="none"), turn(0, verdict="none")])
    assert one.pooled is None and one.to_dict()["interval"] is None
    assert "1 of 3 runs has a transition with an interval (seed0, at step 188), so nothing can be pooled" in (
        one.sentence()
    )
    none = pool_steps(names(2), [turn(0, verdict="none"), turn(0, verdict="none")])
    assert none.sentence() == (
        "rotation of B: none of 2 runs has a transition, so there is no step to agree on; 2 with none"
    )


def test_a_transition_without_an_interval_is_counted():
    bare = Transition("rotation", "transition", "planted", of="B", step=100.0)
    found = pool_steps(names(3), [turn(188), turn(192), bare])
    assert found.counts["without_interval"] == 1
    assert found.sentence().endswith("1 without an interval")


def test_cochrans_q_is_the_textbooks():
    values, errors = np.array([10.0, 12.0, 17.0]), np.array([1.0, 2.0, 2.0])
    found = random_effects(values, errors)
    weights = 1 / errors**2  # 1, 1/4, 1/4
    mean = (10 + 12 / 4 + 17 / 4) / 1.5
    q = 1 * (10 - mean) ** 2 + (12 - mean) ** 2 / 4 + (17 - mean) ** 2 / 4
    assert mean == pytest.approx(weights @ values / weights.sum())
    assert found.q == pytest.approx(q)
    lost = sum((1 - weight / 1.5) ** 2 for weight in weights) / 5  # Welch (1951), 5 degrees of freedom an error
    assert found.q_p_value == pytest.approx(f.sf(q / 2 / (1 + lost / 4), 2, 8 / (3 * lost)))
    assert found.q_p_value > np.exp(-q / 2)  # chi-squared, were the errors known
    assert found.i_squared == pytest.approx(1 - 2 / q)


@pytest.mark.parametrize("tau, least, most", [(0.0, 0.0, 0.05), (40.0, 0.96, 1.0)])
def test_homogeneity_is_rejected_within_its_level_without_a_spread_and_found_with_one(tau, least, most):
    rng = np.random.default_rng(int(tau))
    p_values = []
    for _ in range(400):
        errors = rng.uniform(2, 8, 5)
        p_values.append(random_effects(190 + rng.normal(0, tau, 5) + rng.normal(0, errors), errors).q_p_value)
    assert least <= np.mean(np.array(p_values) <= 0.05) <= most


def test_the_error_of_a_lopsided_interval_is_that_of_its_longer_side():
    lopsided = Transition("rotation", "transition", "", step=100.0, interval=(95.0, 119.6), level=0.95)
    assert standard_error(lopsided) == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("runs, tau", [(5, 10.0), (10, 10.0), (10, 30.0)])
def test_the_prediction_interval_holds_one_more_run_at_about_the_stated_rate(runs, tau):
    rng = np.random.default_rng([runs, int(tau)])
    inside = []
    for _ in range(400):
        errors = rng.uniform(2, 8, runs)
        low, high = random_effects(190 + rng.normal(0, tau, runs) + rng.normal(0, errors), errors).prediction
        inside.append(low <= 190 + rng.normal(0, tau) <= high)
    assert 0.9 <= np.mean(inside) <= 0.99


def test_the_sentence_says_whether_it_may_be_the_same_step():
    same = pool_steps(names(3), [turn(step) for step in (188, 190, 192)])
    assert "over 3 runs; may be the same step in all (Q = 0.5 on 2 df, p = 0.8, I² 0%)" in same.sentence()
    assert "runs no further apart than their own errors; one more run: " in same.sentence()
    apart = pool_steps(names(3), [turn(step) for step in (100, 190, 300)])
    assert "; not the same step in all (Q = " in apart.sentence() and "p < 0.001, I² 100%)" in apart.sentence()
    assert "; runs 100 steps (SD τ) beyond their own errors apart" in apart.sentence()
    unsure = pool_steps(names(3), [turn(step) for step in (185, 190, 198)]).sentence()
    assert "may be the same step in all" in unsure and "beyond their own errors, not told apart from none" in unsure
    two = pool_steps(names(2), [turn(188), turn(192)])
    assert two.pooled.prediction is None and "one more run" not in two.sentence()


def test_an_agreement_is_a_result_with_labelled_rows_and_a_figure():
    found = pool_steps(names(3), [turn(188), turn(192), turn(0, verdict="none")])
    assert found.frame()["run"].tolist() == names(3)
    row = found.row()
    assert row["label"] == "rotation of B" and row["pooled_runs"] == 2 and row["none"] == 1
    assert row["mean_low"] < row["mean"] < row["mean_high"] and np.isnan(row["prediction_low"])
    assert found.plot().layout.meta["title"] == "Agreement of runs"
    assert found._repr_html_().startswith("<") and found.sentence() in repr(found)


def test_what_cannot_be_pooled_is_refused():
    with pytest.raises(InputError, match="one signal were expected"):
        pool_steps(names(2), [turn(188), Transition("gradient_norm", "none", "")])
    with pytest.raises(InputError, match="one transition for each run"):
        pool_steps(names(2), [turn(188)])
    with pytest.raises(InputError, match="two values or more, each with a positive error"):
        random_effects(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
