"""Cross-validated orthogonal Procrustes: does one rotation, fitted on some texts, carry the others over too?

Both sets of vectors are centred and taken in their leading principal components; the orthogonal map R that brings one
nearest to the other is fitted on four fifths of the texts (Schönemann 1966: R = U Vᵀ from the singular vectors of XᵀY),
and what is reported is the cosine of the carried and the true vectors of the rest,

    <X R, Y> / (‖X‖ ‖Y‖)   over all held-out texts.

In the same texts it was fitted on this is the Procrustes similarity, the cosine of the angular shape distance (Williams
et al. 2021), which is large for anything with many dimensions; held out it is about zero for unrelated sets, and can be
negative. The components of each side come from all texts: they know nothing of the other side, so nothing leaks.

It can show that the two sets have the same shape up to a rotation, small directions counting little. It cannot show
which feature they share, and a linear map that stretches is not allowed for.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError

FOLDS = 5
SEED = 20250611
HELD = 0.99  # share of the variance that the components hold
LEAST = 10  # texts
_RANK = 1e-10  # a component with less than this share of the variance is rounding


def procrustes_similarity(
    one: Float[np.ndarray, "text d"], other: Float[np.ndarray, "text e"], folds: int = FOLDS
) -> float:
    """The held-out cosine after the best rotation; 1 where one is the other turned, shifted and scaled.

    NaN where all texts are one point in one of them. Raises InputError for other texts or fewer than ten.
    """
    if len(one) != len(other) or len(one) < max(LEAST, folds):
        found = f"{len(one)} and {len(other)}"
        raise InputError(f"Procrustes needs the same {max(LEAST, folds)} texts or more in both spaces; found {found}")
    most = most_components(len(one), folds)
    return held_out_cosine(principal_scores(one, most), principal_scores(other, most), folds)


def most_components(texts: int, folds: int = FOLDS) -> int:
    """Half as many as there are texts to fit the map on, so that it is never fitted through them exactly."""
    return (texts - -(-texts // folds)) // 2


def held_out_cosine(X: Float[np.ndarray, "text k"], Y: Float[np.ndarray, "text l"], folds: int = FOLDS) -> float:
    """The cosine of carried and true vectors over all held-out texts, from principal scores."""
    inner, squares = 0.0, np.zeros(2)
    for held in fold_rows(len(X), folds):
        rest = np.ones(len(X), bool)
        rest[held] = False
        means = X[rest].mean(axis=0), Y[rest].mean(axis=0)
        turn = rotation(X[rest] - means[0], Y[rest] - means[1])
        left, right = X[held] - means[0], Y[held] - means[1]
        inner += float(((left @ turn) * right).sum())
        squares += (left**2).sum(), (right**2).sum()
    bottom = float(np.sqrt(squares.prod()))
    return inner / bottom if bottom > 0 else float("nan")


def rotation(one: Float[np.ndarray, "text d"], other: Float[np.ndarray, "text e"]) -> Float[np.ndarray, "d e"]:
    """The map with orthonormal rows or columns that brings centred `one` nearest to `other`.

    Directions in which the two have nothing in common (singular values of rounding size) are mapped to zero.
    """
    left, values, right = np.linalg.svd(one.T @ other, full_matrices=False)
    kept = values > _RANK * max(float(values[0]), np.finfo(float).tiny) if len(values) else values > 0
    return np.asarray((left * kept) @ right)


def principal_scores(points: Float[np.ndarray, "text d"], most: int) -> Float[np.ndarray, "text k"]:
    """Centred texts in the fewest principal components that hold 99 % of their variance, at most `most` of them."""
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    square = values**2
    if square.sum() == 0:
        return np.zeros((len(points), 1))
    wanted = int(np.searchsorted(np.cumsum(square) / square.sum(), HELD)) + 1
    kept = slice(min(wanted, most, int((square > _RANK * square[0]).sum())))
    return np.asarray(left[:, kept] * values[kept])


def fold_rows(texts: int, folds: int) -> list[Int[np.ndarray, " held"]]:
    """The rows held out in turn: a fixed shuffle cut into parts, so that texts in an order do not fall together."""
    return np.array_split(np.random.default_rng(SEED).permutation(texts), folds)
