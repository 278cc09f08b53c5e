"""Planted paths are what they say."""

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.synthetic.paths import (
    NOT_TURNING,
    SEVERAL,
    STEPPED,
    TURNING,
    planted_path,
    residual_increments,
)


@pytest.mark.parametrize("kind", [*TURNING, *NOT_TURNING, *STEPPED])
def test_planted_paths_are_what_they_say(kind):
    for seed in range(3):
        path = planted_path(kind, seed)
        again = planted_path(kind, seed)
        assert np.array_equal(path.vectors, again.vectors)
        assert path.steps[0] == 0 and path.steps[-1] == path.settings["last"]
        assert (path.turn is not None) == (kind in TURNING)
        if path.turn is not None:
            assert 0.2 <= path.turn.step / path.settings["last"] <= 0.81 and 60 <= path.turn.angle_deg <= 120
        trajectory = path.trajectory()
        np.testing.assert_allclose(trajectory.gram("B"), path.gram, rtol=1e-6, atol=1e-12)
        assert (path.cumulative_lr is None) == bool(np.isnan(trajectory.cumulative_lr).all())


def test_an_unknown_kind_of_planted_path_lists_the_kinds():
    with pytest.raises(InputError, match="did you mean 'abrupt'"):
        planted_path("abrubt", 0)


@pytest.mark.parametrize(
    "given",
    [
        ("abrupt", None),
        ("abrupt", -1),
        ("abrupt", 1.5),
        (3, 0),
        (None, 0),
        ("abrupt", 0, 5),
        ("abrupt", 0, None, "0.5"),
        ("abrupt", 0, None, None, "float64"),
    ],
)
def test_wrong_types_are_refused_in_one_line(given):
    with pytest.raises(InputError) as refused:
        planted_path(*given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_path_has_as_many_turns_as_were_asked_for(kind):
    path = planted_path(kind, 3, last=600, turns=3)
    steps = [turn.step for turn in path.turns]
    assert len(steps) == 3 and min(np.diff(steps)) > 600 * 0.1 and path.turn == path.turns[0]
    before, after = (path.vectors[np.searchsorted(path.steps, step)] for step in (steps[0], steps[1] - 5))
    moved = after - before  # one way between two turns
    halfway = path.vectors[np.searchsorted(path.steps, (steps[0] + steps[1]) / 2)] - before
    assert halfway @ moved / np.linalg.norm(halfway) / np.linalg.norm(moved) > 0.8


def test_the_noise_of_a_trained_run_is_resampled_in_its_own_dimensions():
    trained = planted_path("straight", 1, last=400, noise_ratio=0.5)
    vectors = np.cumsum(np.random.default_rng(0).standard_normal((401, 6)) * [3, 1, 1, 1, 0, 0], axis=0)
    residuals = residual_increments(vectors)
    assert np.mean(np.sum(residuals**2, axis=1)) == pytest.approx(1, abs=0.1)
    path = planted_path("straight", 1, last=400, noise_ratio=0.5, residuals=residuals)
    assert path.vectors.shape[1] == 6 and path.settings["noise_in_time"] == "resampled"
    assert np.array_equal(path.vectors, planted_path("straight", 1, 400, 0.5, residuals=residuals).vectors)
    assert path.vectors.shape[1] != trained.vectors.shape[1]


def test_residuals_need_more_steps_than_their_window():
    with pytest.raises(InputError, match="residuals need 42 positions"):
        residual_increments(np.zeros((41, 3)))


def test_several_turns_are_refused_of_a_kind_that_has_one():
    with pytest.raises(InputError, match="'at_growth' has no 2 turns"):
        planted_path("at_growth", 0, turns=2)
