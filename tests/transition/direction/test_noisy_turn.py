"""Turns of paths that are mostly noise: planted truths, and what may not change the answer."""

import numpy as np
import pytest

from em_interp.transition.direction.noisy_turn import find_noisy_turn
from em_interp.transition.direction.path_noise import even_increments
from em_interp.transition.direction.rotation import locate_rotations, strongest
from em_interp.transition.synthetic.paths import NOT_TURNING, planted_path

SEEDS = range(700, 710)
RATIO = 2.0  # noise over drift, over 10 steps


def turn_of(vectors, steps):
    increments = even_increments(vectors @ vectors.T, steps)
    return find_noisy_turn(increments, np.ones(increments.count + 1, bool), 0.05)


def noisy(kind, seed):
    path = planted_path(kind, seed, last=800, noise_ratio=RATIO)
    return path, path.vectors.astype(float)


def two_drifts(angle, count=240, d=1500, drift=0.5, seed=0):
    """Two mean drifts at an angle; the noise of an increment is 1 / drift times as long as its drift."""
    rng = np.random.default_rng(seed)
    first, side = np.linalg.qr(rng.standard_normal((d, 2)))[0].T
    second = np.cos(np.radians(angle)) * first + np.sin(np.radians(angle)) * side
    increments = drift * np.repeat([first, second], count // 2, axis=0)
    increments = increments + rng.standard_normal((count, d)) / np.sqrt(d)
    return np.concatenate([np.zeros((1, d)), np.cumsum(increments, axis=0)]), 5 * np.arange(count + 1)


def test_a_turn_that_no_window_resolves_is_found_and_the_interval_holds_it():
    answers = []
    for seed in SEEDS:
        path, vectors = noisy("abrupt", seed)
        answers.append((path.turn, strongest(locate_rotations(vectors @ vectors.T, path.steps))))
    found = [(turn, answer) for turn, answer in answers if answer.found]
    assert len(found) >= 5
    assert np.mean([answer.interval[0] <= turn.step <= answer.interval[1] for turn, answer in found]) >= 0.8
    assert np.median([abs(answer.step - turn.step) for turn, answer in found]) <= 10
    assert any("Noise exceeds the drift" in answer.reason for _, answer in found)


@pytest.mark.parametrize("kind", NOT_TURNING)
def test_a_noisy_path_without_a_turn_is_not_given_one(kind):
    answers = []
    for seed in SEEDS:
        path, vectors = noisy(kind, seed)
        answers.append(turn_of(vectors, path.steps))
    assert sum(answer is not None for answer in answers) <= 2
    assert sum(answer is not None and answer.p_value <= 0.01 for answer in answers) <= 1


@pytest.mark.parametrize("angle", [70, 110, 180])
def test_the_angle_and_the_step_are_those_that_were_planted(angle):
    vectors, steps = two_drifts(angle)
    turn = turn_of(vectors, steps)
    assert abs(turn.angle_deg - min(angle, 180)) < 15
    assert turn.interval[0] <= 600 <= turn.interval[1]
    assert turn.interval[1] - turn.interval[0] < 0.1 * 1200
    assert turn.p_value < 1e-3


def test_speed_noise_level_and_sign_change_nothing_but_the_rounding():
    vectors, steps = two_drifts(90)
    increments = np.diff(vectors, axis=0)
    slower = increments * np.linspace(1.0, 0.2, len(increments))[:, None]
    before = turn_of(vectors, steps)
    for moves in (-increments, 1e-3 * increments, slower):
        after = turn_of(np.concatenate([np.zeros((1, moves.shape[1])), np.cumsum(moves, axis=0)]), steps)
        assert abs(after.step - before.step) <= 15
        assert abs(after.angle_deg - before.angle_deg) < 8


def test_a_side_without_drift_has_no_direction_to_turn_to():
    rng = np.random.default_rng(3)
    vectors, steps = two_drifts(90)
    increments = np.diff(vectors, axis=0)
    increments[120:] = rng.standard_normal(increments[120:].shape) / np.sqrt(increments.shape[1])
    assert turn_of(np.concatenate([np.zeros((1, increments.shape[1])), np.cumsum(increments, axis=0)]), steps) is None


def test_candidates_are_looked_at_only_where_they_are_allowed():
    vectors, steps = two_drifts(90)
    increments = even_increments(vectors @ vectors.T, steps)
    nowhere = np.zeros(increments.count + 1, bool)
    assert find_noisy_turn(increments, nowhere, 0.05) is None


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["saturating", "growth"])
def test_rounding_to_16_bits_makes_no_turn(kind, storage):
    for seed in (1, 2, 6, 7, 16, 22, 29):
        path = planted_path(kind, seed, storage=storage).trajectory()
        rounding = path.rounding("B")
        assert (rounding[1:] > 0).all()
        answers = locate_rotations(path.gram("B"), path.steps, None, rounding=rounding)
        assert not any(answer.found for answer in answers)


def test_a_path_lost_to_rounding_says_so():
    path = planted_path("saturating", 25, storage="bfloat16").trajectory()
    [answer] = locate_rotations(path.gram("B"), path.steps, rounding=path.rounding("B"))
    assert answer.verdict == "inconclusive"
    assert "stored in 16 bits" in answer.reason


def test_float32_has_no_rounding_that_counts():
    assert not planted_path("abrupt", 1).trajectory().rounding("delta").any()
