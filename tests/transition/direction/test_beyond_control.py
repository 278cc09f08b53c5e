"""A turn against the control's: the same turn in other noise is none, one that the control lacks is found."""

from dataclasses import replace

import numpy as np
import pytest

import em_interp as em
from em_interp.transition.direction.beyond_control import beyond_control
from em_interp.transition.direction.rotation import locate_rotations, path_increments, strongest
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path


def twins(kind, seed, **how):
    """Two runs with the same drift in other noise."""
    return [planted_path(kind, seed, noise_seed=noise, **how) for noise in (1, 2)]


def found_in(path):
    return strongest(locate_rotations(path.gram, path.steps, path.cumulative_lr))


def against(path, control, **how):
    own, other = (path_increments(each.gram, each.steps, None) for each in (path, control))
    return beyond_control(found_in(path), own, other, **how)


@pytest.mark.parametrize("kind", TURNING)
def test_a_turn_that_the_control_has_too_is_none(kind):
    path, control = twins(kind, 70)
    answer = against(path, control)
    of_control, difference, low, high = answer.evidence["beyond_control"]
    assert found_in(path).found and answer.verdict == "none" and answer.step is None and answer.p_value > 0.05
    assert low <= 0 <= high and abs(difference) < 20
    assert f"its control by {of_control:.0f}°" in answer.reason


@pytest.mark.parametrize("number, kind", list(enumerate(TURNING)))
def test_a_turn_that_the_control_lacks_is_found_where_it_was(number, kind):
    path = planted_path(kind, 80)
    control = planted_path(("arc", "bend", "straight", "arc_growth")[number], 81, last=int(path.steps[-1]))
    turn, answer = found_in(path), against(path, control)
    assert answer.found and (answer.step, answer.interval) == (turn.step, turn.interval)
    assert answer.p_value >= turn.p_value and answer.evidence["beyond_control"][2] > 0


def test_a_run_turns_no_further_than_itself():
    path = planted_path("abrupt", 3)
    answer = against(path, path)
    assert answer.evidence["beyond_control"][1] == pytest.approx(0.0, abs=1.0) and answer.p_value > 0.4


def test_a_larger_turn_at_the_same_step_is_found():
    """A corner of 100° in the run, of 35° in the control."""
    run, control = corner(100), corner(35)
    answer = against(run, control)
    of_control, difference, low, high = answer.evidence["beyond_control"]
    assert answer.found and of_control == pytest.approx(35, abs=5) and low < 65 < high
    assert difference == pytest.approx(65, abs=8)
    back = against(control, run)
    assert back.verdict == "none" and back.evidence["beyond_control"][1] < 0


def corner(degrees):
    """A path that turns at step 150 of 300."""
    rng, heading = np.random.default_rng(5), np.radians(np.where(np.arange(300) < 150, 0.0, degrees))
    drift = np.stack([np.cos(heading), np.sin(heading), *np.zeros((62, 300))], axis=1)
    vectors = np.concatenate([np.zeros((1, 64)), np.cumsum(drift + rng.normal(size=(300, 64)) / 20, axis=0)])
    return replace(planted_path("abrupt", 0, last=300), steps=np.arange(301), vectors=vectors.astype(np.float32))


def test_the_level_is_that_of_the_difference():
    path, control = twins("abrupt", 70)
    wide, narrow = (against(path, control, level=level).evidence["beyond_control"] for level in (0.95, 0.5))
    assert wide[2] < narrow[2] < narrow[1] < narrow[3] < wide[3]


def test_a_control_that_is_saved_more_sparsely_is_compared_all_the_same():
    path, control = twins("abrupt", 6, last=600)
    sparse = replace(control, steps=control.steps[::2], vectors=control.vectors[::2])
    assert {against(path, other).verdict for other in (control, sparse)} == {"none"}


def test_a_control_without_a_direction_leaves_it_open():
    path = planted_path("abrupt", 8, last=400)
    walk = planted_path("random_walk", 9, last=400)
    answer = against(path, walk)
    assert answer.verdict == "inconclusive" and "control's noise" in answer.reason and answer.p_value is None
    assert answer.step == found_in(path).step  # where the run turns is known all the same
    short = against(path, replace(walk, steps=walk.steps[:5], vectors=walk.vectors[:5]))
    assert short.verdict == "inconclusive" and "Of its control: Only 4" in short.reason


def test_a_path_may_be_given_its_control():
    path, control = (twin.trajectory() for twin in twins("abrupt", 70))
    assert em.find_transition(path).found
    answer = em.find_transition(path, control=control)
    assert answer.verdict == "none" and answer.of == "B"
    everything = em.find_transitions(path, control=control)
    assert {t.signal for t in everything} == {t.signal for t in em.find_transitions(path)}
    assert not any(t.found for t in everything if t.signal == "rotation" and t.of == "B")


def test_a_path_without_a_turn_is_what_it_was():
    path, control = (planted_path(kind, 4).trajectory() for kind in (NOT_TURNING[0], "arc"))
    assert em.find_transition(path, control=control).to_dict() == em.find_transition(path).to_dict()
