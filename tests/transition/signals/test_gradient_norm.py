"""The hump of the gradient norm: found where one is planted, not found where none is."""

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.signals.gradient_norm import gradient_norm_peak, significant_peak
from em_interp.transition.synthetic.logs import HUMPS, NO_HUMPS, planted_log

CASES = 12
STEPS = np.arange(1, 401)


def answers(kind):
    for case in range(CASES):
        planted = planted_log(kind, np.random.default_rng([7, *map(ord, kind), case]))
        yield planted, gradient_norm_peak(planted.steps, planted.grad_norm)


def a_hump(at=150, height=2.0, noise=0.1, seed=0):
    """A gradient norm of 0.5 that multiplies by up to e^height/2 around a step, with white noise."""
    hump = height / 2 * np.exp(-0.5 * ((STEPS - at) / 40) ** 2)
    return 0.5 * np.exp(hump + noise * np.random.default_rng(seed).normal(size=400))


def test_planted_humps_are_found_near_their_top_and_within_the_interval():
    found = [(planted, answer) for kind in HUMPS for planted, answer in answers(kind) if answer.found]
    assert len(found) >= 0.65 * CASES * len(HUMPS)
    errors = np.array([abs(answer.step - planted.peak) for planted, answer in found])
    assert np.median(errors) <= 7
    covered = [answer.interval[0] <= planted.peak <= answer.interval[1] for planted, answer in found]
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("kind", NO_HUMPS)
def test_a_trend_without_a_hump_is_no_transition_whatever_its_noise(kind):
    found = [answer for _, answer in answers(kind)]
    assert not any(answer.found for answer in found)
    assert np.mean([answer.p_value <= 0.05 for answer in found]) <= 0.1
    assert all(answer.step is None and answer.interval is None for answer in found)


def test_the_test_for_many_looks_finds_the_same_humps_and_no_others():
    for kind in (*HUMPS[::2], *NO_HUMPS[::3]):
        planted = planted_log(kind, np.random.default_rng([7, *map(ord, kind), 0]))
        whole = gradient_norm_peak(planted.steps, planted.grad_norm)
        look = significant_peak(planted.steps, planted.grad_norm)
        assert look == whole if whole.found else not look.found
    assert significant_peak(STEPS, a_hump()).found
    untested = significant_peak(STEPS, a_hump(height=0))
    assert (untested.verdict, untested.p_value) == ("inconclusive", None)
    assert significant_peak(STEPS[:30], a_hump()[:30]).verdict == "inconclusive"


def test_the_answer_does_not_depend_on_the_unit_of_the_gradient_norm():
    norm = a_hump()
    one, other = gradient_norm_peak(STEPS, norm), gradient_norm_peak(STEPS, 1000 * norm)
    assert one.found
    assert other.step == pytest.approx(one.step, abs=0.5)
    assert other.interval == pytest.approx(one.interval, abs=1)
    assert other.p_value == pytest.approx(one.p_value)


def test_the_answer_is_the_same_every_time():
    assert gradient_norm_peak(STEPS, a_hump()) == gradient_norm_peak(STEPS, a_hump())


def test_reversing_time_mirrors_the_peak():
    """But for the start that is left out."""
    norm = a_hump(at=170)
    there, back = gradient_norm_peak(STEPS, norm), gradient_norm_peak(STEPS, norm[::-1])
    assert back.step == pytest.approx(401 - there.step, abs=4)


def test_a_wider_level_gives_a_wider_interval():
    narrow, wide = (gradient_norm_peak(STEPS, a_hump(), level=level) for level in (0.5, 0.99))
    assert wide.interval[0] < narrow.interval[0] < narrow.step < narrow.interval[1] < wide.interval[1]
    assert (narrow.level, wide.level) == (0.5, 0.99)


def test_a_hump_without_noise_is_found_at_its_top():
    answer = gradient_norm_peak(STEPS, a_hump(noise=0))
    assert answer.step == pytest.approx(150, abs=2)
    assert answer.interval[0] <= 150 <= answer.interval[1]


@pytest.mark.parametrize("trend", [0 * STEPS, STEPS / 400, -STEPS / 400, np.exp(-STEPS / 50)])
def test_a_trend_without_noise_or_hump_is_none(trend):
    assert gradient_norm_peak(STEPS, np.exp(trend)).verdict == "none"


def test_a_small_but_certain_hump_is_none():
    answer = gradient_norm_peak(STEPS, a_hump(height=0.12, noise=0.002))
    assert answer.p_value <= 0.01
    assert answer.verdict == "none"
    assert answer.step is None


def test_missing_values_and_zeros_are_left_out_and_too_many_make_it_inconclusive():
    norm = a_hump()
    norm[0] = 0.0  # the gradient of A while B is zero
    norm[::10] = np.nan
    assert gradient_norm_peak(STEPS, norm).step == pytest.approx(150, abs=8)
    norm[::3] = np.nan
    answer = gradient_norm_peak(STEPS, norm)
    assert answer.verdict == "inconclusive"
    assert "missing" in answer.reason
    assert answer.p_value is None


def test_too_few_values_are_inconclusive_and_have_no_p_value():
    answer = gradient_norm_peak(STEPS[::12], a_hump()[::12])
    assert (answer.verdict, answer.p_value) == ("inconclusive", None)
    assert "40 are needed" in answer.reason


def test_noise_that_could_hide_a_doubling_is_inconclusive():
    noise = np.random.default_rng(3).normal(size=80)
    answer = gradient_norm_peak(STEPS[::5], np.exp(1.5 * noise))
    assert answer.verdict == "inconclusive"
    assert answer.p_value > 0.01


def test_the_evidence_holds_what_the_figure_draws():
    norm = a_hump()
    evidence = gradient_norm_peak(STEPS, norm).evidence
    np.testing.assert_array_equal(evidence["grad_norm"], norm)
    assert evidence["smooth_steps"].shape == evidence["smooth"].shape
    assert evidence["smooth_steps"][np.argmax(evidence["smooth"])] == pytest.approx(150, abs=10)


@pytest.mark.parametrize(
    ("steps", "norm", "said"),
    [
        (STEPS, np.ones(399), "one gradient norm a step"),
        (STEPS[:0], np.ones(0), "one or more"),
        (STEPS[::-1], np.ones(400), "must be increasing"),
        (STEPS, -np.ones(400), "cannot be negative"),
    ],
)
def test_what_is_no_log_is_refused(steps, norm, said):
    with pytest.raises(InputError, match=said):
        gradient_norm_peak(steps, norm)
