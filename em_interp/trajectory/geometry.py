"""Measures of a path from the Gram matrix of its positions.

Every function takes G[i, j] = <v_i, v_j> in float64 and the training steps of its rows. Neighbours are looked up by
step, never by index, because saved steps are often irregular. What is undefined (the direction of a zero vector, an
angle whose neighbour was not saved) is NaN. All measures are invariant to the sign of the path and to a rotation of the
space it lies in.

Norms and cosines depend on the origin. Turning angles, arc length and principal components are functions of differences
of positions and do not: for a LoRA A, which starts at random and moves little, they describe the path A_t - A_0.
"""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.utils.checks import check_type, check_whole

MIN_SQUARED_MOVE = 1e-14  # relative to the positions; a shorter difference is float32 rounding and has no direction


def index_of(steps: Int[np.ndarray, " step"], step: int) -> int:
    """The row of a saved step. Raises InputError naming the nearest saved steps where it was not saved."""
    check_type("step", step, Real, "a training step")
    row = int(np.searchsorted(steps, step))
    if row < len(steps) and steps[row] == step:
        return row
    near = sorted(sorted((int(s) for s in steps), key=lambda s: abs(s - step))[:3])
    raise InputError(f"step {step} was not saved; the nearest saved steps are {', '.join(map(str, near))}")


def evenly_spaced(steps: Int[np.ndarray, " step"], count: int) -> Int[np.ndarray, " row"]:
    """Rows of about `count` saved steps, spread evenly over the run's steps, with the first and the last among them."""
    if count >= len(steps):
        return np.arange(len(steps))
    wanted = np.linspace(steps[0], steps[-1], max(count, 2))
    return np.unique(np.abs(steps[None] - wanted[:, None]).argmin(axis=1))


def norms(gram: Float[np.ndarray, "step step"]) -> Float[np.ndarray, " step"]:
    """Length of each position."""
    return np.sqrt(np.maximum(np.diag(gram), 0.0))


def cosine_to_step(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], step: int
) -> Float[np.ndarray, " step"]:
    """Cosine of each position to the one at `step`."""
    row, length = index_of(steps, step), norms(gram)
    return ratio(gram[row], length * length[row])


def turning_angle(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int
) -> Float[np.ndarray, " step"]:
    """Angle in degrees between v[t] - v[t-k] and v[t+k] - v[t]: 0 is straight, 180 a reversal.

    `k` is in training steps; NaN where one of the three was not saved or nothing moved. Noise bends every path: the
    angle between independent steps is 90 whatever k, so an angle alone is no evidence of a turn.
    """
    return np.degrees(np.arccos(np.clip(_cosine_of_moves(gram, steps, k), -1.0, 1.0)))


def local_cosine(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int
) -> Float[np.ndarray, " step"]:
    """cos(v[t-k] - v[t], v[t+k] - v[t]) at spacing `k` training steps (arXiv 2506.11613, section 4).

    -1 where straight and 0 at a right angle, so that a turn is a maximum.
    """
    return -_cosine_of_moves(gram, steps, k)


def arc_length(gram: Float[np.ndarray, "step step"]) -> Float[np.ndarray, " step"]:
    """Length of the path up to each step: the sum of distances between neighbouring saved steps.

    Noise adds to every distance, so paths saved at different spacings cannot be compared by it.
    """
    square = np.diag(gram)
    moves = square[1:] + square[:-1] - 2 * np.diag(gram, 1)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(np.maximum(moves, 0.0)))])


class PrincipalComponents(NamedTuple):
    """Coordinates of a path along its directions of largest variance over the saved steps."""

    scores: Float[np.ndarray, "step component"]  # in units of the path
    explained: Float[np.ndarray, " component"]  # share of the variance; NaN where nothing moves


def principal_components(gram: Float[np.ndarray, "step step"], components: int = 2) -> PrincipalComponents:
    """The path in its first principal components, each with its share of the variance.

    The sign of a component is arbitrary; here the path ends on the positive side. A large share in two components and
    a hump in the second are no evidence of a turn: a smooth saturating path has both.
    """
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    values, vectors = np.linalg.eigh(centred)
    largest = slice(None, -components - 1, -1)  # eigenvalues are in ascending order
    scores = vectors[:, largest] * np.sqrt(np.maximum(values[largest], 0.0))
    scores *= np.where(scores[-1] < 0, -1.0, 1.0)
    return PrincipalComponents(scores, ratio(np.maximum(values[largest], 0.0), np.trace(centred)))


def _cosine_of_moves(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int
) -> Float[np.ndarray, " step"]:
    """Cosine between v[t] - v[t-k] and v[t+k] - v[t]."""
    check_whole("the spacing k, in training steps,", k, minimum=1)
    result = np.full(len(steps), np.nan)
    at = np.flatnonzero(np.isin(steps - k, steps) & np.isin(steps + k, steps))
    before, after = np.searchsorted(steps, steps[at] - k), np.searchsorted(steps, steps[at] + k)
    inner = gram[at, after] - gram[at, at] - gram[before, after] + gram[before, at]
    result[at] = ratio(inner, _distance(gram, before, at) * _distance(gram, at, after))
    return result


def _distance(
    gram: Float[np.ndarray, "step step"], i: Int[np.ndarray, " pair"], j: Int[np.ndarray, " pair"]
) -> Float[np.ndarray, " pair"]:
    """Distance between positions i and j; 0 where it is no more than rounding."""
    total = gram[i, i] + gram[j, j]
    square = total - 2 * gram[i, j]
    return np.sqrt(np.where(square > MIN_SQUARED_MOVE * total, square, 0.0))


def ratio(numerator: Float[np.ndarray, "*shape"], denominator: np.ndarray | float) -> Float[np.ndarray, "*shape"]:
    """The ratio, NaN where the denominator, which may be one for each row, is zero."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=np.asarray(denominator) > 0)
