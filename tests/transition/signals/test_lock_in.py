"""The lock-in: a description that never passes for a test."""

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.signals.lock_in import composition, first_sustained, lock_in

STEPS = np.array([0, 1, 2, 5, 10, 15, 20])


def test_it_is_the_first_step_from_which_on_the_cosine_stays_above():
    cosine = np.array([np.nan, 0.2, 0.97, 0.9, 0.96, 0.99, 1.0])
    assert lock_in(STEPS, cosine).step == 10
    assert lock_in(STEPS, cosine, threshold=0.8).step == 2
    assert lock_in(STEPS, cosine, threshold=0.1).step == 1


def test_it_never_claims_a_transition_nor_a_p_value():
    answer = lock_in(STEPS, np.array([np.nan, 0.99, 1, 1, 1, 1, 1]))
    assert (answer.verdict, answer.p_value, answer.interval, answer.of) == ("inconclusive", None, None, "delta")
    assert "not a test" in answer.reason


def test_a_path_that_points_to_its_end_only_there_locks_in_at_the_last_step():
    assert lock_in(STEPS, np.array([np.nan, 0, 0, 0, 0, 0, 1.0])).step == 20


def test_a_path_that_ends_at_zero_has_no_lock_in():
    answer = lock_in(STEPS, np.full(7, np.nan))
    assert answer.step is None
    assert "no direction" in answer.reason


def test_it_does_not_depend_on_steps_left_out_elsewhere():
    cosine = np.array([np.nan, 0.2, 0.97, 0.9, 0.96, 0.99, 1.0])
    kept = [0, 3, 4, 6]
    assert lock_in(STEPS[kept], cosine[kept]).step == 10


@pytest.mark.parametrize(
    ("steps", "cosine", "threshold", "said"),
    [
        (STEPS, np.ones(6), 0.95, "one cosine a step"),
        (STEPS[:1], np.ones(1), 0.95, "two steps or more"),
        (STEPS[::-1], np.ones(7), 0.95, "must be increasing"),
        (STEPS, np.ones(7), 1.0, "a cosine below 1"),
    ],
)
def test_what_is_no_path_is_refused(steps, cosine, threshold, said):
    with pytest.raises(InputError, match=said):
        lock_in(steps, cosine, threshold)


def test_what_is_no_composition_score_is_called_by_its_name():
    for steps, threshold in ((STEPS[1:], 0.95), (STEPS[::-1], 0.95), (STEPS, 1.0)):
        with pytest.raises(InputError, match="composition score"):
            composition(steps, np.ones(7), threshold)


def test_a_condition_that_fails_at_the_end_is_never_sustained():
    steps = np.array([0, 5, 9])
    assert first_sustained(steps, np.array([True, False, True])) == 9
    assert first_sustained(steps, np.array([True, True, True])) == 0
    assert first_sustained(steps, np.array([True, True, False])) is None


def test_its_sentence_calls_it_a_description_and_not_inconclusive():
    sentence = lock_in(STEPS, np.linspace(0.5, 1.0, len(STEPS))).sentence()
    assert sentence == "lock-in of ΔW: step 20 (not a test)"
