"""The noise of a series: stationary, described by its spectrum, with the uncertainty of that description.

White, or first-order autoregressive, or a sum of both; fitted to what a monotone trend leaves, at the frequencies
above those of the hump or bend that is looked for. It cannot tell noise that remembers more than 1/25 of the run from
a trend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.fft import dct, idct
from scipy.linalg import toeplitz
from scipy.ndimage import uniform_filter1d

from em_interp.transition.series import monotone_trend

_TREND = 10  # half-cycles a run below which power belongs to the trend
_LONGEST = 1 / 25  # memory of the noise, as a share of the run, up to which it is told from a trend
_MEMORIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)  # lag-one correlation
_PASSES = 60  # draws from which it is learned how much of the noise a trend takes along


@dataclass(frozen=True)
class SeriesNoise:
    """Spectra a series' noise may have, in the cosine basis, with their posterior weights."""

    spectra: Float[np.ndarray, "model cell"]
    weights: Float[np.ndarray, " model"]

    @property
    def mean(self) -> Float[np.ndarray, " cell"]:
        """The mean spectrum."""
        return self.weights @ self.spectra

    def draws(self, count: int, rng: np.random.Generator) -> Float[np.ndarray, "cell draw"]:
        """Series of noise alone; each has its own spectrum, drawn from the posterior."""
        chosen = self.spectra[rng.choice(len(self.weights), size=count, p=self.weights)]
        freedom = chosen.shape[1] - _TREND
        size = np.sqrt(chosen * freedom / rng.chisquare(freedom, size=(count, 1)))
        return idct(size * rng.normal(size=size.shape), norm="ortho", axis=1).T

    def covariance(self, count: int) -> Float[np.ndarray, "cell cell"]:
        """Covariance of `count` neighbouring values under the mean spectrum."""
        frequency = np.pi * np.arange(len(self.mean)) / len(self.mean)
        by_lag = np.cos(np.outer(np.arange(count), frequency)) @ self.mean / len(self.mean)
        return toeplitz(by_lag) + 1e-9 * by_lag[0] * np.eye(count)


def log_spectra(count: int) -> Float[np.ndarray, "model cell"]:
    """What noise a logged quantity may have: white, or partly slow with a memory of up to 1/25 of the series."""
    longest = np.exp(-1 / (_LONGEST * count))
    slow = [_slow(count, memory) for memory in _MEMORIES if memory <= longest]
    return np.array([np.ones(count)] + [w + (1 - w) * s for s in slow for w in (0, 0.25, 0.5, 0.75, 0.9)])


def momentum_spectra(count: int, memory: float) -> Float[np.ndarray, "model cell"]:
    """What noise the increments of a path may have: slow, with a memory of `memory` cells up to 1/25 of the series.

    Momentum makes it so. White noise is not among them: mistaken for momentum it makes a test cautious, while
    momentum taken for white noise would make one that finds something in nothing.
    """
    least, longest = np.exp(-1 / memory), np.exp(-1 / (_LONGEST * count))
    slow = [_slow(count, m) for m in (least, *(m for m in _MEMORIES if least < m <= longest))]
    return np.array([w + (1 - w) * s for s in slow for w in (0, 0.1)])


def fit_noise(values: Float[np.ndarray, " cell"], spectra: Float[np.ndarray, "model cell"]) -> SeriesNoise:
    """Which of `spectra` the noise of a series has, and how strong it is.

    A monotone trend follows some of the noise. How much is learned from drawn noise on the same trend, and allowed
    for in a second fit.
    """
    trend = monotone_trend(values)
    first = _whittle(values - trend, spectra)
    white = np.random.default_rng(0).normal(size=(_PASSES, len(values)))
    drawn = idct(np.sqrt(first.mean) * white, norm="ortho", axis=1)
    left = np.array([noise + trend - monotone_trend(noise + trend) for noise in drawn])
    passed = np.mean(dct(left, norm="ortho", axis=1) ** 2, axis=0) / np.mean(white**2, axis=0) / first.mean
    passed = np.exp(uniform_filter1d(np.log(np.clip(passed, 1e-3, None)), 9, mode="nearest"))
    return _whittle(values - trend, spectra, np.minimum(passed, 1.0))


def _whittle(
    noise: Float[np.ndarray, " cell"],
    spectra: Float[np.ndarray, "model cell"],
    passed: Float[np.ndarray, " cell"] | float = 1.0,
) -> SeriesNoise:
    """Weights by Whittle's likelihood with the scale profiled out, where a share `passed` of the power is seen."""
    power = dct(noise, norm="ortho")[_TREND:] ** 2 + 1e-300
    seen = (spectra * passed)[:, _TREND:]
    scale = np.mean(power / seen, axis=1)
    loglik = -0.5 * (len(power) * np.log(scale) + np.log(seen).sum(axis=1))
    weights = np.exp(loglik - loglik.max())
    return SeriesNoise(spectra * scale[:, None], weights / weights.sum())


def _slow(count: int, memory: float) -> Float[np.ndarray, " cell"]:
    """Spectrum of first-order autoregressive noise of unit variance with this lag-one correlation."""
    frequency = np.pi * np.arange(count) / count
    return (1 - memory**2) / (1 - 2 * memory * np.cos(frequency) + memory**2)
