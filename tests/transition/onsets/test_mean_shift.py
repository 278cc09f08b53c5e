import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.onsets.mean_shift import QuestionCurves, _common_noise, locate_shift, verdict_of
from em_interp.transition.synthetic.shifts import NULLS, RISES, planted_shift

COUNT = 25  # of each kind; benchmarks/calibration.py has the full size


def drawn(kind, count=COUNT):
    """Planted shifts of one kind with what is found in them."""
    for number in range(count):
        planted = planted_shift(kind, np.random.default_rng([number, sum(kind.encode())]))
        found = locate_shift(planted.curves, *planted.given, seed=number)
        yield planted, found, verdict_of(found)[0]


@pytest.mark.parametrize("kind", RISES)
def test_planted_shifts_are_found_and_their_intervals_hold_the_truth(kind):
    rows = list(drawn(kind))
    found = [(planted, test.shift) for planted, test, verdict in rows if verdict == "transition"]
    assert len(found) >= 0.9 * COUNT
    held = [shift.half_interval[0] <= planted.half <= shift.half_interval[1] for planted, shift in found]
    assert np.mean(held) >= 0.85
    off = [abs(shift.half - planted.half) / planted.curves.steps[-1] for planted, shift in found]
    assert np.median(off) < 0.02


@pytest.mark.parametrize("kind", NULLS)
def test_nothing_is_found_where_nothing_shifts_or_others_shift_as_much(kind):
    verdicts = [verdict for *_, verdict in drawn(kind)]
    assert verdicts.count("transition") <= 1


def test_style_that_the_control_shares_hides_no_shift_and_style_that_it_lacks_does():
    for number in range(5):
        shared = planted_shift("shared_style", np.random.default_rng([11, number]))
        both = locate_shift(shared.curves, *shared.given)
        assert verdict_of(both)[0] == "transition" and both.net_style
        alone = locate_shift(shared.curves, shared.control, shared.style)  # the control was not read on the style null
        assert verdict_of(alone)[0] == "none" and not alone.net_style
        own = planted_shift("own_style", np.random.default_rng([11, number]))
        verdict, reason = verdict_of(locate_shift(own.curves, *own.given))
        assert verdict == "none" and reason.startswith("beyond the control, the mean does not rise beyond that of the")


def test_a_curve_beyond_its_control_is_the_difference_of_changes_at_shared_steps_and_questions():
    steps = np.array([0.0, 10.0, 20.0])
    own = QuestionCurves(steps, ("a", "b"), np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 9.0]]))
    control = QuestionCurves(steps[[0, 2]], ("b", "c"), np.array([[0.0, 0.0], [1.0, 0.0]]))
    beyond = own.beyond(control)
    assert beyond.question_ids == ("b",) and beyond.steps.tolist() == [0, 20]
    assert beyond.change.tolist() == [[0.0], [3.0]]
    with pytest.raises(InputError, match="share no question"):
        own.beyond(control.select(control.steps, ["c"]))


def test_signs_of_questions_give_a_uniform_p_value_where_they_drift_either_way():
    p_values = []
    for number in range(200):
        planted = planted_shift("drifts", np.random.default_rng([7, number]))
        p_values.append(locate_shift(planted.curves, seed=number).p_rise)
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(np.array(p_values) <= 0.01) <= 0.03


def test_a_shift_on_one_checkpoint_alone_is_no_transition():
    planted = planted_shift("flat", np.random.default_rng(1))
    values = planted.curves.values.copy()
    values[-1] += 0.2
    found = locate_shift(QuestionCurves(planted.curves.steps, planted.curves.question_ids, values))
    assert verdict_of(found)[0] != "transition"


def test_a_shift_that_goes_on_at_the_end_of_the_run_is_inconclusive():
    rng = np.random.default_rng(0)
    steps = np.arange(0, 300, 15.0)
    values = np.outer(np.exp(steps / 60) / 150, 1 + 0.2 * rng.standard_normal(24)) * 0.1
    values += 0.002 * rng.standard_normal(values.shape)
    verdict, reason = verdict_of(locate_shift(QuestionCurves(steps, tuple(map(str, range(24))), values)))
    assert verdict == "inconclusive" and "after the last step that was read" in reason


def test_a_shift_from_step_0_on_is_dated_and_without_step_0_it_is_not():
    rng = np.random.default_rng(0)
    steps = np.arange(0, 300, 10.0)
    values = np.outer(1 - np.exp2(-steps / 30), 0.1 + 0.02 * rng.standard_normal(24))
    values += 0.003 * rng.standard_normal(values.shape)
    questions = tuple(map(str, range(24)))
    found = locate_shift(QuestionCurves(steps, questions, values))
    assert verdict_of(found)[0] == "transition" and found.shift.half == pytest.approx(30, abs=3)
    assert 25 < found.shift.half_interval[0] < found.shift.half < found.shift.half_interval[1] < 35
    assert found.shift.height == pytest.approx(0.1, abs=0.02)
    verdict, reason = verdict_of(locate_shift(QuestionCurves(steps[2:], questions, values[2:])))
    assert verdict == "inconclusive" and "before the first step that was read, 20" in reason


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_common_noise_is_known_from_the_residuals_that_a_fit_leaves_of_it(correlation):
    rng, steps = np.random.default_rng(1), 60
    u = np.linspace(-1, 1, steps)
    tangent = np.linalg.qr(np.stack([u**power for power in range(4)], axis=1))[0]
    covariance = 0.3**2 * correlation ** np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    noise = rng.standard_normal((400, steps)) @ np.linalg.cholesky(covariance).T
    estimates = [_common_noise(each - tangent @ (tangent.T @ each), tangent) for each in noise]
    spread, found = np.median(estimates, axis=0)
    assert found == pytest.approx(correlation, abs=0.05) and spread == pytest.approx(0.3, rel=0.1)


def test_a_question_without_a_value_at_some_step_is_left_out():
    import pandas as pd

    table = pd.DataFrame({"step": [0, 0, 5], "question_id": ["a", "b", "a"], "value": [1.0, 2.0, 3.0]})
    curves = QuestionCurves.of(table)
    assert curves.question_ids == ("a",) and curves.change.tolist() == [[0.0], [2.0]]


def test_the_order_and_the_names_of_questions_do_not_matter():
    planted = planted_shift("plain", np.random.default_rng(3))
    order = np.random.default_rng(0).permutation(len(planted.curves.question_ids))
    other = QuestionCurves(planted.curves.steps, planted.curves.question_ids, planted.curves.values[:, order])
    first, second = (locate_shift(curves, seed=1).shift for curves in (planted.curves, other))
    assert first.half == pytest.approx(second.half, abs=0.02 * planted.curves.steps[-1])
