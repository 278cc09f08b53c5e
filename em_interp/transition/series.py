"""A noisy series along a run, log grad_norm or a growth rate: on an even grid, smoothed, and its monotone trend."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from scipy.ndimage import median_filter
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
    return Cells(centres, pull_in(means))


def pull_in(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
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
