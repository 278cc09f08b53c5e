"""Turning profiles on normalised time, and the spread of seeds."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from em_interp.comparison.cross_base.turning_profile import profile_distance, profile_test, turning_profile
from em_interp.errors import InputError
from em_interp.trajectory.trajectory import AdapterTrajectory
from tests.comparison.planting import in_another_gauge

STEPS = np.arange(101)


def corner(at=0.5, angle=60.0, d=40, seed=0, noise=0.0, steps=STEPS, rate=1e-3, speed=1.0):
    """B goes straight, then turns by `angle` at this share of the steps; in `d` dimensions."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    turn = np.radians(angle)
    headings = np.where((steps[1:] > at * steps[-1])[:, None], axes[0] * np.cos(turn) + axes[1] * np.sin(turn), axes[0])
    moves = speed * (headings + noise * rng.normal(size=headings.shape) / np.sqrt(d))
    B = np.concatenate([np.zeros((1, d)), np.cumsum(moves, axis=0)])[:, :, None]
    A = np.tile(rng.normal(size=(1, 1, d + 3)), (len(steps), 1, 1))
    log = pd.DataFrame({"cumulative_lr": rate * steps[1:]}, index=pd.Index(steps[1:], name="step"))
    return AdapterTrajectory(steps, {"s": A.astype(np.float32)}, {"s": B.astype(np.float32)}, {"s": 2.0}, log)


def test_the_profile_of_a_planted_corner_is_its_angle_to_the_end():
    profile = turning_profile(corner(0.5, 90))
    before = profile.time <= 0.5
    np.testing.assert_allclose(profile.degrees[before], 45, atol=0.1)  # the end is half-way between the two headings
    assert profile.degrees[-1] == pytest.approx(0, abs=0.05)
    by_norm = turning_profile(corner(0.5, 90), "norm")
    np.testing.assert_allclose(by_norm.degrees[by_norm.time < 0.5**0.5], 45, atol=0.1)


@pytest.mark.parametrize("clock", ["cumulative_lr", "norm"])
def test_runs_that_turn_alike_are_identical_in_any_dimension_unit_and_gauge(clock):
    one, other = corner(), corner(d=25, seed=3, rate=5.0, speed=0.01)
    found = turning_profile(one, clock)
    assert profile_distance(found, found) == 0
    assert profile_distance(found, turning_profile(other, clock)) < 0.05
    assert profile_distance(found, turning_profile(in_another_gauge(one), clock)) < 0.01


def test_a_later_turn_is_as_far_as_the_profiles_differ():
    early, late = turning_profile(corner(0.3)), turning_profile(corner(0.7))
    assert profile_distance(early, late) == pytest.approx(np.sqrt(np.mean((early.degrees - late.degrees) ** 2)))
    assert profile_distance(early, late) > 10


def test_steps_that_were_saved_more_rarely_change_little():
    dense = corner()
    rows = STEPS % 5 == 0
    parts = {name: {"s": part["s"][rows]} for name, part in (("A", dense.A), ("B", dense.B))}
    rare = dataclasses.replace(dense, steps=STEPS[rows], **parts)
    assert profile_distance(turning_profile(dense), turning_profile(rare)) < 1


def test_bases_that_turn_at_other_times_are_told_apart_and_seeds_of_one_are_not():
    def profiles(at, first):
        return [turning_profile(corner(at, seed=first + k, noise=1.0)) for k in range(4)]

    apart = profile_test(profiles(0.3, 0), profiles(0.7, 10))
    assert apart.p_value == apart.least_p == pytest.approx(2 / 70)
    assert apart.between > 3 * apart.within
    assert profile_test(profiles(0.3, 0), profiles(0.3, 0)).p_value > 0.5


def test_the_chance_of_a_false_difference_is_nominal():
    p = []
    for case in range(60):
        profiles = [
            turning_profile(corner(seed=100 * case + k, noise=3.0, d=12, steps=np.arange(31))) for k in range(6)
        ]
        p.append(profile_test(profiles[:3], profiles[3:]).p_value)
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 2 * np.sqrt(0.09 / 60)
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=3 * np.sqrt(0.25 / 60))


def test_one_run_of_a_base_has_a_distance_and_no_p_value():
    lone = profile_test([turning_profile(corner())], [turning_profile(corner(0.7))])
    assert lone.between > 0 and np.isnan(lone.p_value) and np.isnan(lone.within)
    assert "1 and 1 runs" in lone.reason


def test_a_path_without_a_profile_is_refused():
    bare = dataclasses.replace(corner(), metrics=pd.DataFrame())
    with pytest.raises(InputError, match=r"no log of learning rates.*clock='norm'"):
        turning_profile(bare)
    assert turning_profile(bare, "norm").degrees.max() > 20
    with pytest.raises(InputError, match="did you mean 'norm'"):
        turning_profile(bare, "norms")
    with pytest.raises(InputError, match="cannot be compared"):
        profile_distance(turning_profile(corner()), turning_profile(corner(), "norm"))
    still = dataclasses.replace(corner(), B={"s": np.zeros((101, 40, 1), np.float32)})
    with pytest.raises(InputError, match="no direction"):
        turning_profile(still)
