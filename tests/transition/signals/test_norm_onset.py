"""The bend of the norm: found where growth speeds up, not found where it does not."""

from functools import cache

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.signals.norm_onset import norm_onset
from em_interp.transition.synthetic.logs import BENDS, NO_BENDS, planted_norm

CASES = 20
STEPS = np.arange(401)


@cache
def answers(kind):
    norms = [planted_norm(kind, np.random.default_rng([7, *map(ord, kind), case])) for case in range(CASES)]
    return [(planted, norm_onset(planted.steps, planted.delta_norm, planted.cumulative_lr)) for planted in norms]


def a_bend(at=150, gain=1.0, noise=0.2, seed=0):
    """A norm that grows by 1 a step and then by 1 + gain, its increments noisy."""
    increments = 1 + gain * (STEPS[1:] > at) + noise * np.random.default_rng(seed).normal(size=400)
    return np.concatenate([[0], np.cumsum(increments)])


@pytest.mark.parametrize("kind", BENDS)
def test_planted_bends_are_found_within_a_few_steps(kind):
    found = [(planted, answer) for planted, answer in answers(kind) if answer.found]
    assert len(found) >= 0.9 * CASES
    assert np.median([abs(answer.step - planted.onset) for planted, answer in found]) <= 2.5


def test_the_interval_holds_the_planted_bend_as_often_as_it_says():
    found = [(planted, answer) for kind in BENDS for planted, answer in answers(kind) if answer.found]
    covered = [answer.interval[0] <= planted.onset <= answer.interval[1] for planted, answer in found]
    assert 0.88 <= np.mean(covered) <= 1


@pytest.mark.parametrize("kind", NO_BENDS)
def test_growth_that_never_bends_is_no_transition(kind):
    found = [answer for _, answer in answers(kind)]
    assert sum(answer.found for answer in found) <= 1
    assert np.mean([answer.p_value <= 0.05 for answer in found if answer.p_value is not None]) <= 0.2


def test_growth_that_speeds_up_over_the_whole_run_is_none_and_its_width_is_reported():
    for planted, answer in answers("gradual"):
        if answer.p_value is not None and answer.p_value <= 0.01:
            assert answer.verdict == "none"
            assert answer.width > 0.3 * planted.steps[-1]
            assert answer.step is None


@pytest.mark.parametrize("noise", [0, 0.01])
def test_growth_that_speeds_up_exponentially_is_gradual_though_its_trend_leaves_no_noise(noise):
    steps = np.arange(0, 401, 4)
    rate = np.exp(steps / 100) * (1 + noise * np.random.default_rng(0).normal(size=len(steps)))
    onset = norm_onset(steps, np.cumsum(rate), steps * 1e-5)
    assert onset.verdict == "none" and onset.width > 0.3 * 400 and "too gradually" in onset.reason


def test_a_learning_rate_schedule_alone_bends_the_norm_against_the_step_and_is_no_onset():
    lr = np.where(STEPS[1:] <= 200, 1.0, 3.0)
    cumulative = np.concatenate([[0], np.cumsum(lr)])
    noise = 0.1 * np.random.default_rng(1).normal(size=400)
    norm = np.concatenate([[0], np.cumsum(lr * (1 + noise))])
    assert norm_onset(STEPS, norm, cumulative).verdict == "none"
    assert norm_onset(STEPS, norm, STEPS.astype(float)).step == pytest.approx(200, abs=5)


def test_the_answer_does_not_depend_on_units():
    one = norm_onset(STEPS, a_bend(), STEPS.astype(float))
    other = norm_onset(STEPS, 1e-4 * a_bend(), 1e-5 * STEPS)
    assert one.found
    assert other.step == pytest.approx(one.step, abs=0.5)
    assert other.p_value == pytest.approx(one.p_value)
    assert one.step == pytest.approx(150, abs=5)


def test_steps_without_any_learning_rate_change_nothing():
    """Such as the first step of a warm-up from zero."""
    cumulative = STEPS.astype(float)
    waited = norm_onset(np.arange(402), np.r_[0.0, a_bend()], np.r_[0.0, cumulative])
    assert waited.step == pytest.approx(norm_onset(STEPS, a_bend(), cumulative).step + 1, abs=1)


def test_a_sharp_bend_is_narrower_than_a_soft_one():
    soft = np.cumsum(1 + np.clip((STEPS - 150) / 80 + 0.5, 0, 1) + 0.05 * np.random.default_rng(0).normal(size=401))
    cumulative = STEPS.astype(float)
    sharp_width = norm_onset(STEPS, a_bend(noise=0.05), cumulative).width
    soft_width = norm_onset(STEPS, soft, cumulative).width
    assert sharp_width < 12
    assert soft_width == pytest.approx(64, rel=0.4)


def test_a_bend_without_noise_is_found_where_it_is():
    answer = norm_onset(STEPS, a_bend(noise=0), STEPS.astype(float))
    assert answer.step == pytest.approx(150, abs=2)
    assert answer.interval[0] <= 150 <= answer.interval[1]


@pytest.mark.parametrize("slope", [0.3, 0.0, -0.01])
def test_a_single_line_without_noise_is_none(slope):
    assert norm_onset(STEPS, 5 + slope * STEPS, STEPS.astype(float)).verdict == "none"


def test_too_few_saved_steps_are_inconclusive_and_have_no_p_value():
    answer = norm_onset(STEPS[::20], a_bend()[::20], STEPS[::20].astype(float))
    assert (answer.verdict, answer.p_value) == ("inconclusive", None)
    assert "30 are needed" in answer.reason


def test_noise_that_could_hide_a_doubling_is_inconclusive():
    answer = norm_onset(STEPS, a_bend(gain=0, noise=30), STEPS.astype(float))
    assert answer.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((STEPS, np.ones(400), STEPS), "of one length"),
        ((STEPS, np.full(401, np.nan), STEPS), "does the run's log lack the learning rate"),
        ((STEPS, a_bend(), np.full(401, np.nan)), "does the run's log lack the learning rate"),
        ((STEPS, a_bend(), -STEPS), "cumulative learning rate must grow"),
        ((STEPS, a_bend(), 0 * STEPS), "cumulative learning rate must grow"),
        ((STEPS[::-1], a_bend(), STEPS), "steps must increase"),
    ],
)
def test_what_is_no_path_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        norm_onset(*given)
