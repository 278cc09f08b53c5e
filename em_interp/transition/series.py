"""A noisy series along a run, log grad_norm or a growth rate: on an even grid, smoothed, and its monotone trend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.fft import dct, idct
from scipy.linalg import cholesky, solve_triangular, toeplitz
from scipy.ndimage import median_filter, uniform_filter1d
from scipy.optimize import isotonic_regression

SKIPPED = 0.05  # share of the run at its start that is left out: warm-up, B near zero and without direction
MOST_CELLS = 200
_TREND_BANDWIDTH = 0.04  # of the run


@dataclass(frozen=True)
class Cells:
    """A series as means over even cells."""

    at: Float[np.ndarray, " cell"]  # centres
    values: Float[np.ndarray, " cell"]

    def position(self, index: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The place of a fractional cell index."""
        return self.at[0] + index * (self.at[1] - self.at[0])


def cells(at: Float[np.ndarray, " point"], values: Float[np.ndarray, " point"]) -> Cells:
    """The series on an even grid of at most 200 cells, cells without a value interpolated, outliers pulled in."""
    count = min(MOST_CELLS, len(at))
    edges = np.linspace(at[0], at[-1], count + 1)
    cell = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, count - 1)
    held, total = np.bincount(cell, minlength=count), np.bincount(cell, values, minlength=count)
    centres = (edges[1:] + edges[:-1]) / 2
    means = np.interp(centres, centres[held > 0], total[held > 0] / held[held > 0])
    return Cells(centres, winsorize(means))


def winsorize(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """`values`, those beyond 3.5 robust standard deviations from the running median of 15 put at that distance."""
    middle = median_filter(values, 15, mode="nearest")
    bound = 3.5 * 1.4826 * np.median(np.abs(values - middle))
    return np.clip(values, middle - bound, middle + bound)


def kernel(count: int, bandwidth: float) -> Float[np.ndarray, "cell cell"]:
    """Gaussian weights of standard deviation `bandwidth` of the series; rows sum to 1.

    Such weights are totally positive: they keep a monotone series monotone and add no hump to one that has none.
    """
    distance = np.subtract.outer(np.arange(count), np.arange(count)) / (bandwidth * count)
    weights = np.exp(-0.5 * distance**2)
    return weights / weights.sum(axis=1, keepdims=True)


def rise(smooth: Float[np.ndarray, "cell ..."]) -> Float[np.ndarray, "cell ..."]:
    """How far each value lies above the lowest before it."""
    return smooth - np.minimum.accumulate(smooth, axis=0)


def prominence(smooth: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """How far each value lies above both the lowest before it and the lowest after it."""
    return np.minimum(rise(smooth), rise(smooth[::-1])[::-1])


def monotone_trend(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The closest series that falls, rises, falls and rises again, its turns at those of the smoothed series."""
    smooth = kernel(len(values), _TREND_BANDWIDTH) @ values
    top = int(np.argmax(prominence(smooth)))
    turns = [0, int(np.argmin(smooth[: top + 1])), top, top + int(np.argmin(smooth[top:])), len(values)]
    pieces = [
        isotonic_regression(values[first:last], increasing=bool(piece % 2)).x
        for piece, (first, last) in enumerate(pairwise(turns))
        if last > first
    ]
    return np.concatenate(pieces)


# --------
# The noise of a series: stationary, described by its spectrum, with the uncertainty of that description.
# White, or first-order autoregressive, or a sum of both; fitted to what a monotone trend leaves, at the frequencies
# above those of the hump or bend that is looked for. It cannot tell noise that remembers more than 1/25 of the run
# from a trend.


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


# --------
# Does a noisy series rise anywhere, or have a hump, by more than noise alone would?
# The series is smoothed with kernels that make no hump of their own, at several bandwidths, and its largest rise, or
# prominence, is compared with the largest rise of noise drawn from the fitted spectra, whose uncertainty is carried
# along. A falling trend only lowers the largest rise: the p-value holds for every non-increasing trend.


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


# --------
# Where a shape lies in a noisy series: the posterior over a grid of shapes, linear terms integrated out.


class ShapeFit(NamedTuple):
    """Posterior of `values = coefficients @ baseline + amplitude * shape + noise`, shape by shape."""

    weights: Float[np.ndarray, " shape"]
    amplitude: Float[np.ndarray, " shape"]
    coefficients: Float[np.ndarray, "term shape"]

    def draws(self, count: int, rng: np.random.Generator) -> Int[np.ndarray, " draw"]:
        """Shapes drawn from the posterior."""
        return rng.choice(len(self.weights), size=count, p=self.weights)


def fit_shapes(
    values: Float[np.ndarray, " cell"],
    covariance: Float[np.ndarray, "cell cell"],
    baseline: Float[np.ndarray, "cell term"],
    shapes: Float[np.ndarray, "shape cell"],
) -> ShapeFit:
    """Every shape fitted with a positive amplitude by generalised least squares.

    Assumes Gaussian noise of the given covariance, a flat prior over the shapes given and over the linear terms.
    """
    root = cholesky(covariance, lower=True)
    white, terms, columns = (solve_triangular(root, a, lower=True) for a in (values, baseline, shapes.T))
    basis, triangle = np.linalg.qr(terms)
    inside = basis.T @ columns
    whole = (columns**2).sum(axis=0)
    size = np.maximum(whole - (inside**2).sum(axis=0), 1e-9 * whole)
    rest = white - basis @ (basis.T @ white)
    amplitude = (columns.T @ rest) / size
    told_apart = (amplitude > 0) & (size > 1e-6 * whole)  # from the baseline
    loglik = np.where(told_apart, 0.5 * amplitude**2 * size - 0.5 * np.log(size), -np.inf)
    if not np.isfinite(loglik.max()):  # no shape fits with a positive amplitude: none is preferred
        loglik = np.zeros(len(shapes))
    weights = np.exp(loglik - loglik.max())
    coefficients = solve_triangular(triangle, (basis.T @ white)[:, None] - inside * amplitude)
    return ShapeFit(weights / weights.sum(), amplitude, coefficients)
