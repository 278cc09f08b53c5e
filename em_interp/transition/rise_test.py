"""Does a noisy series rise anywhere, or have a hump, by more than noise alone would?

The series is smoothed with kernels that make no hump of their own, at several bandwidths, and its largest rise, or
prominence, is compared with the largest rise of noise drawn from the fitted spectra, whose uncertainty is carried
along. A falling trend only lowers the largest rise: the p-value holds for every non-increasing trend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from em_interp.transition.series import kernel, rise
from em_interp.transition.series_noise import SeriesNoise

ALPHA = 0.01  # a verdict of transition needs a p-value this small
_BANDWIDTHS = (0.02, 0.04, 0.08)  # of the run; the widest averages over about a fifth of it
_DRAWS = 999


class Scan(NamedTuple):
    """Where a series stands out most, at the bandwidth that shows it best."""

    p_value: float  # against every non-increasing trend (for `prominence`: against every trend without a hump)
    cell: int  # of the largest statistic
    height: float  # its size there
    hidden: float  # at the widest bandwidth, the size that noise alone exceeds with probability ALPHA
    smooth: Float[np.ndarray, " cell"]


def scan(
    values: Float[np.ndarray, " cell"],
    noise: SeriesNoise,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> Scan:
    """The largest `statistic` (`rise` or `prominence`) over bandwidths, against the largest rise of noise alone.

    A trend without a hump cannot both rise to a place and fall from it, so one of the two is noise: the largest rise
    of noise bounds its prominence too.
    """
    drawn = noise.draws(_DRAWS, rng)
    largest, found = np.zeros(_DRAWS), []
    for bandwidth in _BANDWIDTHS:
        weights = kernel(len(values), bandwidth)
        null = rise(weights @ drawn).max(axis=0)
        unit, smooth = float(np.median(null)), weights @ values
        largest = np.maximum(largest, null / unit)
        found.append((statistic(smooth), unit, smooth))
    shown, unit, smooth = max(found, key=lambda f: f[0].max() / f[1])
    exceeding = int(np.sum(largest >= shown.max() / unit))
    return Scan(
        p_value=(1 + exceeding) / (1 + _DRAWS),
        cell=int(np.argmax(shown)),
        height=float(shown.max()),
        hidden=float(np.quantile(largest, 1 - ALPHA)) * found[-1][1],
        smooth=smooth,
    )
