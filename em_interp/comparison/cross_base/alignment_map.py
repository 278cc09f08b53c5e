"""Maps between the residual streams of two bases: held-out Procrustes similarity, and directions mapped across.

Procrustes: does one rotation, fitted on some texts, map the others too? Both sets of vectors are centred and taken in
their leading principal components; the orthogonal map R that brings one nearest to the other is fitted on four fifths
of the texts (Schönemann 1966: R = U Vᵀ from the singular vectors of XᵀY), and the similarity is the cosine of the
mapped and the true vectors of the rest,

    <X R, Y> / (‖X‖ ‖Y‖)   over all held-out texts.

On the texts it was fitted on this is the Procrustes similarity, the cosine of the angular shape distance (Williams et
al. 2021), which is large for anything with many dimensions; held out it is about zero for unrelated sets, and can be
negative. The components of each side come from all texts; they do not depend on the other side, so nothing leaks. It
shows that two sets have the same shape up to a rotation, with little weight on small directions. It does not show which
feature they share, and does not allow for a linear map that stretches.

Direction maps: fitted on the base models alone, from pooled residual streams of the same texts at one layer of each.

- `orthogonal`: y - ȳ ≈ c (x - x̄) R with R the Procrustes rotation: angles are kept, so a direction comes out as itself
  where two models differ by a rotation of their coordinates.
- `ridge`: y - ȳ ≈ (x - x̄) W with ‖W‖ penalised, the penalty chosen by held-out error: any linear relation.

A direction v is mapped to v R (or v W) and given length 1; what the texts do not vary along is lost. Beside it stands
the held-out share of variance that the map explains (`held_out_r2`; about 0 or below for models that have nothing in
common on these texts). A cosine with a mapped direction alone says little, for all vectors that share a few directions
of large variance come out alike; `steering_transfer` uses the direction. A failure may be the map's (too few texts,
other kinds of text, no linear relation) and not the direction's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.utils.checks import check_known

Kind = Literal["orthogonal", "ridge"]
KINDS: tuple[str, ...] = get_args(Kind)
N_FOLDS = 5
FOLD_SEED = 20250611
MIN_TEXTS = 10
VARIANCE_SHARE = 0.99  # that the principal components hold
LEAST_VARIANCE = 1e-10  # a component with less than this share of the largest is rounding
LEAST_SPREAD = 1e-6  # a direction of a map with less than this share of the largest spread is rounding
PENALTIES = np.logspace(-6, 2, 9)  # of ridge, times the mean variance of a direction times the texts


def max_components(texts: int) -> int:
    """Half as many as there are texts to fit the map on, so that it is never fitted through them exactly."""
    return (texts - -(-texts // N_FOLDS)) // 2


def principal_scores(points: Float[np.ndarray, "text d"], limit: int) -> Float[np.ndarray, "text k"]:
    """Centred texts in the fewest principal components that hold 99 % of their variance, at most `limit` of them."""
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    square = values**2
    if square.sum() == 0:
        return np.zeros((len(points), 1))
    wanted = int(np.searchsorted(np.cumsum(square) / square.sum(), VARIANCE_SHARE)) + 1
    kept = slice(min(wanted, limit, int((square > LEAST_VARIANCE * square[0]).sum())))
    return np.asarray(left[:, kept] * values[kept])


def held_out_cosine(X: Float[np.ndarray, "text k"], Y: Float[np.ndarray, "text l"]) -> float:
    """The cosine of mapped and true vectors over all held-out texts, from principal scores."""
    inner, squares = 0.0, np.zeros(2)
    for rows, others in _folds(len(X)):
        rest, means = _centred(X, Y, others)
        left, right = X[rows] - means[0], Y[rows] - means[1]
        inner += float(((left @ _rotation(*rest)) * right).sum())
        squares += (left**2).sum(), (right**2).sum()
    bottom = float(np.sqrt(squares.prod()))
    return inner / bottom if bottom > 0 else float("nan")


def _rotation(first: Float[np.ndarray, "text d"], second: Float[np.ndarray, "text e"]) -> Float[np.ndarray, "d e"]:
    """The map with orthonormal rows or columns that brings centred `first` nearest to `second`.

    Directions in which the two have nothing in common (singular values of rounding size) are mapped to zero.
    """
    left, values, right = np.linalg.svd(first.T @ second, full_matrices=False)
    kept = values > LEAST_VARIANCE * max(float(values[0]), np.finfo(float).tiny) if len(values) else values > 0
    return np.asarray((left * kept) @ right)


@cache
def _folds(texts: int) -> list[tuple[Int[np.ndarray, " row"], Int[np.ndarray, " other"]]]:
    """The held-out rows of each fold and the others; a fixed permutation spreads neighbouring texts over folds."""
    folds = np.array_split(np.random.default_rng(FOLD_SEED).permutation(texts), N_FOLDS)
    return [(rows, np.setdiff1d(np.arange(texts), rows)) for rows in folds]


def _centred(
    X: np.ndarray, Y: np.ndarray, rows: Int[np.ndarray, " row"]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Some rows of both sides, centred, and the means that were taken off."""
    left, right = X[rows], Y[rows]
    means = left.mean(axis=0), right.mean(axis=0)
    return (left - means[0], right - means[1]), means


@dataclass(frozen=True, eq=False)
class DirectionMap:
    """A linear map between two residual streams, and its fit on held-out texts."""

    kind: Kind
    left: Float[np.ndarray, "d k"]  # the map is left · right, which may be too large to form
    right: Float[np.ndarray, "k e"]
    held_out_r2: float  # share of the other's variance explained, over held-out texts
    texts: int
    span: Float[np.ndarray, "d m"]  # an orthonormal basis of the directions that the texts vary along

    def map(self, direction: Float[np.ndarray, " d"]) -> Float[np.ndarray, " e"]:
        """The direction in the other stream, of length 1.

        Raises InputError for other dimensions and where the texts do not vary.
        """
        vector = np.asarray(direction, np.float64)
        if vector.shape != (len(self.left),):
            raise InputError(f"the map takes vectors of {len(self.left)} numbers; found shape {vector.shape}")
        mapped, visible = (vector @ self.left) @ self.right, np.linalg.norm(vector @ self.span)
        if not visible > 1e-9 * np.linalg.norm(vector) or not np.linalg.norm(mapped) > 0:
            raise InputError("the direction is zero, or no text varies along it, so it cannot be mapped")
        return np.asarray(mapped / np.linalg.norm(mapped))


def fit_map(
    first: Float[np.ndarray, "text d"],
    second: Float[np.ndarray, "text e"],
    kind: Kind = "orthogonal",
) -> DirectionMap:
    """The map that takes `first` to `second`, row by row the same texts. Deterministic.

    Raises InputError for other texts, fewer than ten, an unknown kind, and where all texts are one point.
    """
    check_known("map", kind, KINDS)
    if len(first) != len(second) or len(first) < MIN_TEXTS:
        found = f"{len(first)} and {len(second)}"
        raise InputError(f"a map is fitted on the same {MIN_TEXTS} texts or more; found {found}")
    X, Y = (points.astype(np.float64) for points in (first, second))
    spread = [float(np.sum((points - points.mean(axis=0)) ** 2)) for points in (X, Y)]
    if min(spread) == 0:
        raise InputError("all texts are one point in one of the models, so no map can be fitted")
    penalties = PENALTIES if kind == "ridge" else np.zeros(1)
    errors = np.zeros(len(penalties))
    for rows, others in _folds(len(X)):
        rest, means = _centred(X, Y, others)
        fitted = _Factors.of(*rest)
        for number, penalty in enumerate(penalties):
            left, right = fitted.of_map(kind, penalty)
            errors[number] += float(np.sum((Y[rows] - means[1] - ((X[rows] - means[0]) @ left) @ right) ** 2))
    best = int(np.argmin(errors))
    whole = _Factors.of(X - X.mean(axis=0), Y - Y.mean(axis=0))
    left, right = whole.of_map(kind, penalties[best])
    return DirectionMap(kind, left, right, float(1 - errors[best] / spread[1]), len(X), whole.span[0])


class _Factors(NamedTuple):
    """Centred texts on both sides, each as left · values · spanᵀ: nothing of size d × d is formed."""

    left: tuple[np.ndarray, np.ndarray]
    values: tuple[np.ndarray, np.ndarray]
    span: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, X: Float[np.ndarray, "text d"], Y: Float[np.ndarray, "text e"]) -> _Factors:
        parts = []
        for points in (X, Y):
            left, values, right = np.linalg.svd(points, full_matrices=False)
            kept = values > LEAST_SPREAD * values[0]
            parts.append((left[:, kept], values[kept], right[kept].T))
        return cls(*zip(*parts, strict=True))

    def of_map(self, kind: Kind, penalty: float) -> tuple[Float[np.ndarray, "d k"], Float[np.ndarray, "k e"]]:
        """The map as two factors."""
        (first, second), inner = self.values, self.left[0].T @ self.left[1]
        if kind == "orthogonal":
            turn, values, back = np.linalg.svd(first[:, None] * inner * second, full_matrices=False)
            scale = float(values.sum() / (first**2).sum())
            return self.span[0] @ turn, scale * back @ self.span[1].T
        shrunk = first / (first**2 + penalty * float(np.mean(first**2)))
        return self.span[0], shrunk[:, None] * (inner * second) @ self.span[1].T
