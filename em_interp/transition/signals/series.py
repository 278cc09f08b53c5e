"""A noisy series along a run (log gradient norm, growth rate of a norm): binning, noise model, scan test, shape fit.

Noise. Stationary and Gaussian; white, first-order autoregressive, or a sum of both, with a memory of up to 1/25 of the
run. Its spectrum in the cosine basis is fitted to the residual of a piecewise monotone trend by the Whittle likelihood
over a grid of memories, at the frequencies above those of the hump or bend that is looked for; the posterior weights of
the grid carry the uncertainty. Noise with a longer memory cannot be distinguished from a trend.

Scan test. Null hypothesis: the series is a non-increasing trend plus that noise (for `prominence`: a trend without a
hump). The series is smoothed with Gaussian kernels of three bandwidths, which add no hump of their own; the statistic
is the largest rise, or prominence, over places and bandwidths, each in units of its null median. Its null distribution
is the largest rise of 999 series drawn from the fitted noise. A falling trend only lowers the largest rise, so the
p-value holds for every non-increasing trend.

Shape fit. The posterior over a grid of shapes (humps, ramps) with the linear terms fitted by generalised least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.fft import dct, idct
from scipy.linalg import cholesky, solve_triangular, toeplitz
from scipy.ndimage import median_filter, uniform_filter1d
from scipy.optimize import isotonic_regression

SERIES_ALPHA = 0.01  # a verdict of transition needs a p-value this small
SKIPPED = 0.05  # share of the run at its start that is left out: warm-up, B near zero and without direction
MAX_BINS = 200
TREND_BANDWIDTH = 0.04  # of the run
TREND_FREQUENCIES = 10  # half-cycles a run below which power belongs to the trend
MAX_MEMORY = 1 / 25  # of the noise, as a share of the run, up to which it is distinguished from a trend
LAG_ONE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)  # correlations of autoregressive noise tried
N_TREND_DRAWS = 60  # from which it is learned how much of the noise a trend absorbs
BANDWIDTHS = (0.02, 0.04, 0.08)  # of the run; the widest averages over about a fifth of it
N_NULL_DRAWS = 999
LEAST_NOISE = 1e-6  # of a series, as a share of its range


@dataclass(frozen=True)
class BinnedSeries:
    """A series as means over even bins."""

    at: Float[np.ndarray, " bin"]  # centres
    values: Float[np.ndarray, " bin"]

    def position(self, index: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The coordinate of a fractional bin index."""
        return self.at[0] + index * (self.at[1] - self.at[0])


def bin_series(at: Float[np.ndarray, " point"], values: Float[np.ndarray, " point"]) -> BinnedSeries:
    """The series in at most 200 even bins, winsorised; empty bins are interpolated."""
    count = min(MAX_BINS, len(at))
    edges = np.linspace(at[0], at[-1], count + 1)
    index = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, count - 1)
    n, total = np.bincount(index, minlength=count), np.bincount(index, values, minlength=count)
    centres = (edges[1:] + edges[:-1]) / 2
    means = np.interp(centres, centres[n > 0], total[n > 0] / n[n > 0])
    return BinnedSeries(centres, winsorize(means))


def winsorize(values: Float[np.ndarray, " bin"]) -> Float[np.ndarray, " bin"]:
    """`values` winsorised at 3.5 robust standard deviations (MAD) from their running median over 15 bins."""
    middle = median_filter(values, 15, mode="nearest")
    bound = 3.5 * 1.4826 * np.median(np.abs(values - middle))
    return np.clip(values, middle - bound, middle + bound)


@lru_cache(maxsize=64)
def gaussian_kernel(count: int, bandwidth: float) -> Float[np.ndarray, "bin bin"]:
    """Smoothing weights with a standard deviation of `bandwidth` times the length of the series; rows sum to 1.

    Totally positive: they keep a monotone series monotone and add no hump to one that has none. Cached, so read-only.
    """
    distance = np.subtract.outer(np.arange(count), np.arange(count)) / (bandwidth * count)
    weights = np.exp(-0.5 * distance**2)
    weights /= weights.sum(axis=1, keepdims=True)
    weights.flags.writeable = False
    return weights


def rise(smooth: Float[np.ndarray, "bin ..."]) -> Float[np.ndarray, "bin ..."]:
    """Height of each value above the lowest value before it."""
    return smooth - np.minimum.accumulate(smooth, axis=0)


def prominence(smooth: Float[np.ndarray, "bin ..."]) -> Float[np.ndarray, "bin ..."]:
    """Height of each value above the higher of the lowest value before it and the lowest after it."""
    return np.minimum(rise(smooth), rise(smooth[::-1])[::-1])


def monotone_trend(values: Float[np.ndarray, "bin ..."]) -> Float[np.ndarray, "bin ..."]:
    """The closest series (isotonic regression) that falls, rises, falls and rises; turns from the smoothed one.

    All series along the first axis are one regression: falling pieces are turned over, and each piece is lifted above
    those before it.
    """
    smooth, place = gaussian_kernel(len(values), TREND_BANDWIDTH) @ values, np.indices(values.shape)[0]
    top = prominence(smooth).argmax(axis=0)
    turns = [np.where(side, smooth, np.inf).argmin(axis=0) for side in (place <= top, place >= top)]
    piece = sum((place >= turn).astype(int) for turn in (turns[0], top, turns[1]))
    sign, series = 2 * (piece % 2) - 1, np.arange(top.size).reshape(top.shape)
    lift = 3 * np.ptp(values) * (piece + 4 * series)
    lifted = sign * (values - values.min()) + lift
    fitted = isotonic_regression(lifted.T.ravel()).x.reshape(values.T.shape).T
    return sign * (fitted - lift) + values.min()


@dataclass(frozen=True)
class SeriesNoise:
    """Spectra that a series' noise may have, in the cosine basis, with their posterior weights."""

    spectra: Float[np.ndarray, "model bin"]
    weights: Float[np.ndarray, " model"]

    @property
    def mean(self) -> Float[np.ndarray, " bin"]:
        """The posterior mean spectrum."""
        return self.weights @ self.spectra

    def draws(self, count: int, rng: np.random.Generator) -> Float[np.ndarray, "bin draw"]:
        """Series of pure noise; each has a spectrum drawn from the posterior."""
        chosen = self.spectra[rng.choice(len(self.weights), size=count, p=self.weights)]
        freedom = chosen.shape[1] - TREND_FREQUENCIES
        size = np.sqrt(chosen * freedom / rng.chisquare(freedom, size=(count, 1)))
        return idct(size * rng.normal(size=size.shape), norm="ortho", axis=1).T

    def covariance(self, count: int) -> Float[np.ndarray, "bin bin"]:
        """Covariance of `count` neighbouring values under the mean spectrum."""
        frequency = np.pi * np.arange(len(self.mean)) / len(self.mean)
        by_lag = np.cos(np.outer(np.arange(count), frequency)) @ self.mean / len(self.mean)
        return toeplitz(by_lag) + 1e-9 * by_lag[0] * np.eye(count)


def log_spectra(count: int) -> Float[np.ndarray, "model bin"]:
    """Spectra of a logged quantity's noise: white, or in part autoregressive with a memory up to MAX_MEMORY."""
    longest = np.exp(-1 / (MAX_MEMORY * count))
    slow = [_autoregressive_spectrum(count, lag_one) for lag_one in LAG_ONE if lag_one <= longest]
    return np.array([np.ones(count)] + [w + (1 - w) * s for s in slow for w in (0, 0.25, 0.5, 0.75, 0.9)])


def momentum_spectra(count: int, memory: float) -> Float[np.ndarray, "model bin"]:
    """Spectra of the noise of a path's increments: autoregressive, with a memory from `memory` bins to MAX_MEMORY.

    Momentum makes it so. White noise is not among them: mistaken for momentum it makes a test conservative, while
    momentum mistaken for white noise would make false positives.
    """
    least, longest = np.exp(-1 / memory), np.exp(-1 / (MAX_MEMORY * count))
    slow = [_autoregressive_spectrum(count, m) for m in (least, *(m for m in LAG_ONE if least < m <= longest))]
    return np.array([w + (1 - w) * s for s in slow for w in (0, 0.1)])


def residual_noise(values: Float[np.ndarray, " bin"], spectra: Float[np.ndarray, "model bin"]) -> SeriesNoise:
    """The posterior of `fit_noise` without its correction: of what a monotone trend leaves of a series."""
    return _whittle(values - monotone_trend(values), spectra, _least_power(values))


def fit_noise(values: Float[np.ndarray, " bin"], spectra: Float[np.ndarray, "model bin"]) -> SeriesNoise:
    """The posterior over `spectra` for the noise of a series, each with its maximum-likelihood scale.

    A monotone trend absorbs some of the noise. How much, by frequency, is learned from simulated noise on the same
    trend and corrected in a second fit.
    """
    trend, least = monotone_trend(values), _least_power(values)
    first = _whittle(values - trend, spectra, least)
    white = np.random.default_rng(0).normal(size=(N_TREND_DRAWS, len(values)))
    drawn = idct(np.sqrt(first.mean) * white, norm="ortho", axis=1)
    noisy = drawn.T + trend[:, None]
    residual = dct(noisy - monotone_trend(noisy), norm="ortho", axis=0)
    passed = np.mean(residual**2, axis=1) / np.mean(white**2, axis=0) / first.mean
    passed = np.exp(uniform_filter1d(np.log(np.clip(passed, 1e-3, None)), 9, mode="nearest"))
    return _whittle(values - trend, spectra, least, np.minimum(passed, 1.0))


class ScanResult(NamedTuple):
    """Where a series has its largest statistic, at the bandwidth that shows it best."""

    p_value: float
    bin: int  # of the largest statistic
    height: float  # the statistic there
    limit: float  # the largest height with p_value > SERIES_ALPHA
    detectable: float  # the statistic that noise alone exceeds with probability SERIES_ALPHA at the widest bandwidth
    smooth: Float[np.ndarray, " bin"]


def scan_test(
    values: Float[np.ndarray, " bin"],
    noise: SeriesNoise,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    n_draws: int = N_NULL_DRAWS,
) -> ScanResult:
    """The largest `statistic` (`rise` or `prominence`) over bandwidths, against the largest rise of noise alone.

    A trend without a hump cannot both rise to a place and fall from it, so one of the two is noise: the largest rise
    of noise bounds its prominence too.
    """
    drawn = noise.draws(n_draws, rng)
    largest, by_bandwidth = np.zeros(n_draws), []
    for bandwidth in BANDWIDTHS:
        weights = gaussian_kernel(len(values), bandwidth)
        null = rise(weights @ drawn).max(axis=0)
        unit, smooth = float(np.median(null)), weights @ values
        largest = np.maximum(largest, null / unit)
        by_bandwidth.append((statistic(smooth), unit, smooth))
    height, unit, smooth = max(by_bandwidth, key=lambda scanned: scanned[0].max() / scanned[1])
    exceeding = int(np.sum(largest >= height.max() / unit))
    allowed = int(SERIES_ALPHA * (1 + n_draws) + 1e-9) - 1  # draws that may exceed a significant height
    return ScanResult(
        p_value=(1 + exceeding) / (1 + n_draws),
        bin=int(np.argmax(height)),
        height=float(height.max()),
        limit=float(np.sort(largest)[-allowed - 1]) * unit,
        detectable=float(np.quantile(largest, 1 - SERIES_ALPHA)) * by_bandwidth[-1][1],
        smooth=smooth,
    )


def at_every_place(profiles: Float[np.ndarray, "*size offset"]) -> Float[np.ndarray, "shape bin"]:
    """Shapes of n bins: each profile, over -(n - 1) to n - 1 bins from its middle, moved to each bin but the outermost.

    The place varies slowest.
    """
    count = (profiles.shape[-1] + 1) // 2
    moved = np.lib.stride_tricks.sliding_window_view(profiles, count, axis=-1)[..., count - 2 : 0 : -1, :]
    return np.moveaxis(moved, -2, 0).reshape(-1, count)


class ShapeFit(NamedTuple):
    """Posterior of `values = coefficients @ baseline + amplitude * shape + noise`, shape by shape."""

    weights: Float[np.ndarray, " shape"]
    amplitude: Float[np.ndarray, " shape"]
    coefficients: Float[np.ndarray, "term shape"]

    def draws(self, count: int, rng: np.random.Generator) -> Int[np.ndarray, " draw"]:
        """Indices of shapes drawn from the posterior."""
        return rng.choice(len(self.weights), size=count, p=self.weights)


def fit_shapes(
    values: Float[np.ndarray, " bin"],
    covariance: Float[np.ndarray, "bin bin"],
    baseline: Float[np.ndarray, "bin term"],
    shapes: Float[np.ndarray, "shape bin"],
) -> ShapeFit:
    """Every shape fitted with a positive amplitude by generalised least squares.

    Assumes Gaussian noise of the given covariance, and flat priors over the shapes and over the linear terms.
    """
    root = cholesky(covariance, lower=True)
    white, terms, columns = (solve_triangular(root, a, lower=True) for a in (values, baseline, shapes.T))
    basis, triangle = np.linalg.qr(terms)
    inside = basis.T @ columns
    whole = np.einsum("bs,bs->s", columns, columns)
    size = np.maximum(whole - (inside**2).sum(axis=0), 1e-9 * whole)
    residual = white - basis @ (basis.T @ white)
    amplitude = (columns.T @ residual) / size
    distinct = (amplitude > 0) & (size > 1e-6 * whole)  # from the baseline
    loglik = np.where(distinct, 0.5 * amplitude**2 * size - 0.5 * np.log(size), -np.inf)
    if not np.isfinite(loglik.max()):  # no shape fits with a positive amplitude: none is preferred
        loglik = np.zeros(len(shapes))
    weights = np.exp(loglik - loglik.max())
    coefficients = solve_triangular(triangle, (basis.T @ white)[:, None] - inside * amplitude)
    return ShapeFit(weights / weights.sum(), amplitude, coefficients)


def _whittle(
    noise: Float[np.ndarray, " bin"],
    spectra: Float[np.ndarray, "model bin"],
    least: float,
    passed: Float[np.ndarray, " bin"] | float = 1.0,
) -> SeriesNoise:
    """Weights by the Whittle likelihood with the scale profiled out, where a share `passed` of the power is left.

    A power below `least` counts as that.
    """
    power = np.maximum(dct(noise, norm="ortho")[TREND_FREQUENCIES:] ** 2, least)
    expected = (spectra * passed)[:, TREND_FREQUENCIES:]
    scale = np.mean(power / expected, axis=1)
    loglik = -0.5 * (len(power) * np.log(scale) + np.log(expected).sum(axis=1))
    weights = np.exp(loglik - loglik.max())
    return SeriesNoise(spectra * scale[:, None], weights / weights.sum())


def _least_power(values: Float[np.ndarray, " bin"]) -> float:
    """The power of the least noise that a series is taken to have: a trend absorbs all of a monotone one's."""
    return max((LEAST_NOISE * float(np.ptp(values))) ** 2, 1e-300)


def _autoregressive_spectrum(count: int, lag_one: float) -> Float[np.ndarray, " bin"]:
    """Spectrum of first-order autoregressive noise of unit variance with this lag-one correlation."""
    frequency = np.pi * np.arange(count) / count
    return (1 - lag_one**2) / (1 - 2 * lag_one * np.cos(frequency) + lag_one**2)
