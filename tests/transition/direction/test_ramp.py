"""The ramp of a heading, recovered from paths that have one."""

import numpy as np
import pytest

from em_interp.transition.direction.path_noise import estimate_noise, even_increments
from em_interp.transition.direction.ramp import _in_plane, _weighted_products, fit_ramp
from em_interp.transition.synthetic.paths import planted_path
from tests.transition.moves import increments_of


@pytest.mark.parametrize("width", [0, 30, 60])
def test_a_ramp_is_recovered_exactly_without_noise(width):
    ramp = np.clip((np.arange(400) + 0.5 - 180) / max(width, 1e-9) + 0.5, 0, 1)
    heading = np.radians(80) * ramp
    moved = np.stack([np.cos(heading), np.sin(heading), np.zeros(400)], 1)
    moved += 1e-4 * np.random.default_rng(1).standard_normal(moved.shape)
    increments = increments_of(moved)
    fitted = fit_ramp(
        increments, estimate_noise(increments), slice(70, 130), slice(230, 290), slice(70, 290), (110, 250)
    )
    assert fitted.step == pytest.approx(180, abs=0.5)
    assert fitted.interval[0] <= 180.3 and fitted.interval[1] >= 179.7
    assert fitted.width == pytest.approx(0.8 * width, abs=8)


def test_a_ramp_is_not_bracketed_where_its_interval_runs_into_the_end_of_the_search():
    heading = np.radians(80) * np.clip((np.arange(400) + 0.5 - 180) / 30 + 0.5, 0, 1)
    moved = np.stack([np.cos(heading), np.sin(heading)], 1) + 1e-3 * np.random.default_rng(2).standard_normal((400, 2))
    increments = increments_of(moved)
    noise, blocks = estimate_noise(increments), (slice(70, 130), slice(230, 290), slice(70, 290))
    assert fit_ramp(increments, noise, *blocks, (110, 250)).bracketed
    for middle in ((110, 175), (185, 250)):
        assert not fit_ramp(increments, noise, *blocks, middle).bracketed


@pytest.mark.parametrize("every", [1, 7, 150])  # steps between checkpoints; over 150 momentum has decayed
@pytest.mark.parametrize("seed", range(4))  # of white noise and of momentum's
def test_the_elimination_point_by_point_is_the_solution_with_the_whole_covariance(seed, every):
    path = planted_path("abrupt", seed, last=300)
    increments = even_increments(path.gram, path.steps * every)
    n = increments.count
    third = n // 3
    plane = _in_plane(increments, estimate_noise(increments), slice(0, third), slice(n - third, n), slice(0, n))
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-2, 2, (len(plane.along), 5))
    unit = np.stack([np.cos(angle), np.sin(angle)], 1)
    seen = rng.standard_normal((len(plane.along), 4, 5))
    fast = _weighted_products(plane, unit, seen)
    for ramp in range(5):
        covariance = plane.noise * (unit[..., ramp] @ unit[..., ramp].T) + np.diag(plane.model_variance)
        slow = seen[..., ramp].T @ np.linalg.solve(covariance, seen[..., ramp])
        np.testing.assert_allclose(fast[..., ramp], slow, rtol=1e-9, atol=1e-9 * np.abs(slow).max())
