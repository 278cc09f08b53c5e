"""The ramp of a heading, recovered from paths that have one."""

import numpy as np
import pytest

from em_interp.transition.direction.path_noise import estimate_noise
from em_interp.transition.direction.ramp import fit_ramp
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
