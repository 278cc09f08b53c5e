"""The shape of a path, from inner products alone.

Every function takes the Gram matrix of the positions, G[i, j] = <v_i, v_j> in float64, and the training steps of its
rows. Neighbours are looked up by step, never by index, because saved steps are often irregular. What is undefined
(a zero vector has no direction, a neighbour was not saved) is NaN. Nothing here depends on the sign of the path, nor
on a rotation of the space it lies in.

Norms and cosines belong to the positions. Turning angles, arc length and principal components belong to differences
of positions, and so do not change when the origin does: for a LoRA A, which starts at random and moves little, they
describe the path A_t - A_0; `displaced` gives that path's norms and cosines too.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError

# A difference shorter than 1e-7 of the positions it separates is float32 rounding: it has no direction.
_ROUNDING = 1e-14


def index_of(steps: Int[np.ndarray, " step"], step: int) -> int:
    """The row of a saved step. Raises InputError with the nearest saved steps where it was not saved."""
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


def displaced(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], origin: int
) -> Float[np.ndarray, "step step"]:
    """The Gram matrix of v_t - v_origin, the path as seen from its position at step `origin`."""
    row = index_of(steps, origin)
    return gram - gram[row] - gram[:, [row]] + gram[row, row]


def cosines(gram: Float[np.ndarray, "step step"]) -> Float[np.ndarray, "step step"]:
    """Cosine between every two positions; NaN in the row and column of a zero vector."""
    length = norms(gram)
    return _ratio(gram, length[:, None] * length[None, :])


def cosine_to_step(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], step: int
) -> Float[np.ndarray, " step"]:
    """Cosine of each position to the one at `step`."""
    row, length = index_of(steps, step), norms(gram)
    return _ratio(gram[row], length * length[row])


def turning_angle(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int
) -> Float[np.ndarray, " step"]:
    """Angle in degrees between the moves from t - k to t and from t to t + k: 0 is straight on, 180 straight back.

    `k` is in training steps; NaN where one of the three was not saved or nothing moved. Noise bends every path: the
    angle of independent steps is 90 whatever k, so an angle is no evidence of a turn by itself.
    """
    return np.degrees(np.arccos(np.clip(_cosine_of_moves(gram, steps, k), -1.0, 1.0)))


def local_cosine(
    gram: Float[np.ndarray, "step step"],
    steps: Int[np.ndarray, " step"],
    k: int,
    sign: Literal["paper", "teaching"],
) -> Float[np.ndarray, " step"]:
    """Cosine of the moves around t at spacing `k` training steps, in one of the two signs in use.

    `paper` (2506.11613, section 4): cos(v[t-k] - v[t], v[t+k] - v[t]), straight -1, a right-angled corner 0, so a
    turn is a maximum. `teaching`: its negative, straight +1, a turn is a minimum.
    """
    if sign not in ("paper", "teaching"):
        raise InputError(f"sign must be 'paper' (straight is -1) or 'teaching' (straight is +1); it is {sign!r}")
    forward = _cosine_of_moves(gram, steps, k)
    return -forward if sign == "paper" else forward


def arc_length(gram: Float[np.ndarray, "step step"]) -> Float[np.ndarray, " step"]:
    """Length of the path travelled up to each step, raw: the sum of the moves between saved steps.

    Noise adds to it at every move, so paths saved at different spacings cannot be compared by it.
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

    The sign of a component is arbitrary; here the path ends on the positive side. A large share in two components
    and a hump in the second are no evidence of a turn: a smooth saturating path has them too.
    """
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    values, vectors = np.linalg.eigh(centred)
    kept = slice(None, -components - 1, -1)
    scores = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
    scores *= np.where(scores[-1] < 0, -1.0, 1.0)
    return PrincipalComponents(scores, _ratio(np.maximum(values[kept], 0.0), np.trace(centred)))


def _cosine_of_moves(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int
) -> Float[np.ndarray, " step"]:
    """Cosine between v[t] - v[t-k] and v[t+k] - v[t]."""
    if k < 1:
        raise InputError(f"the spacing k is in training steps and must be 1 or more; it is {k}")
    result = np.full(len(steps), np.nan)
    here = np.flatnonzero(np.isin(steps - k, steps) & np.isin(steps + k, steps))
    before, after = np.searchsorted(steps, steps[here] - k), np.searchsorted(steps, steps[here] + k)
    inner = gram[here, after] - gram[here, here] - gram[before, after] + gram[before, here]
    lengths = _distance(gram, before, here) * _distance(gram, here, after)
    result[here] = _ratio(inner, lengths)
    return result


def _distance(
    gram: Float[np.ndarray, "step step"], i: Int[np.ndarray, " pair"], j: Int[np.ndarray, " pair"]
) -> Float[np.ndarray, " pair"]:
    """Distance between positions i and j; 0 where it is no more than rounding."""
    total = gram[i, i] + gram[j, j]
    square = total - 2 * gram[i, j]
    return np.sqrt(np.where(square > _ROUNDING * total, square, 0.0))


def _ratio(
    top: Float[np.ndarray, "*shape"], bottom: Float[np.ndarray, "*shape"] | float
) -> Float[np.ndarray, "*shape"]:
    """`top` / `bottom`, NaN where `bottom` is zero."""
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=np.asarray(bottom) > 0)
