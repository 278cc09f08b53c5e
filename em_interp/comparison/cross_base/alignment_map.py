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

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError, nearest

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


# --------
# Carrying a direction from one model's residual stream into another's, by a map fitted on texts that both have read.
# The map is fitted on the base models alone, from the pooled residual streams of the same texts at one layer of
# each.
# - `orthogonal`: y - ȳ ≈ c (x - x̄) R with R the Procrustes rotation (`em_interp.comparison.procrustes`): angles are
# kept, so a direction comes out as itself where two models differ by a turn of their coordinates. - `ridge`: y - ȳ ≈
# (x - x̄) W with ‖W‖ penalised, the penalty chosen by held-out error: any linear relation.
# A direction v is carried as v R (or v W) and given length 1. What a map cannot know is said with it: the held-out
# share of variance it explains (`held_out_r2`; about 0 or below for models that have nothing in common on these
# texts), and of each direction the share of its length that the texts let it see (`kept`): what no text moved along
# is lost.
# It can show that a direction found in one model does in another what it did in the first, once it is *used* there:
# a cosine alone says little, for all vectors that a few directions of large variance share come out alike. It cannot
# show that the models use the same mechanism, and a failure may be the map's (too few texts, other kinds of text, no
# linear relation) and not the direction's.


Kind = Literal["orthogonal", "ridge"]
KINDS: tuple[str, ...] = get_args(Kind)
LEAST_TEXTS = 10  # texts
_MAP_RANK = 1e-6  # a direction with less than this share of the largest spread is rounding
PENALTIES = np.logspace(-6, 2, 9)  # of ridge, times the mean variance of a direction times the texts


class MappedDirection(NamedTuple):
    """A direction in the other model, and how much of it the map could see."""

    direction: Float[np.ndarray, " e"]  # of length 1
    kept: float  # share of the length that lies in the span of the texts, 0 to 1


@dataclass(frozen=True, eq=False)
class DirectionMap:
    """A linear map between two residual streams, and how well it does on texts it was not fitted on."""

    kind: Kind
    into: Float[np.ndarray, "d k"]  # the map is their product, which may be too large to hold
    out: Float[np.ndarray, "k e"]
    held_out_r2: float  # share of the other's variance explained, over held-out texts
    texts: int
    span: Float[np.ndarray, "d m"]  # an orthonormal basis of what the texts vary along

    def carry(self, direction: Float[np.ndarray, " d"]) -> MappedDirection:
        """The direction in the other stream. Raises InputError for other dimensions, and where the map sees none."""
        given = np.asarray(direction, np.float64)
        if given.shape != (len(self.into),):
            raise InputError(f"the map carries vectors of {len(self.into)} numbers; found shape {given.shape}")
        length, moved = np.linalg.norm(given), (given @ self.into) @ self.out
        seen = np.linalg.norm(given @ self.span)
        if not length > 0 or not seen > 1e-9 * length or not np.linalg.norm(moved) > 0:
            raise InputError("the direction is zero, or no text varies along it, so it cannot be carried")
        return MappedDirection(moved / np.linalg.norm(moved), min(float(seen / length), 1.0))


def fit_map(
    one: Float[np.ndarray, "text d"],
    other: Float[np.ndarray, "text e"],
    kind: Kind = "orthogonal",
    folds: int = FOLDS,
) -> DirectionMap:
    """The map that takes `one` to `other`, row by row the same texts. Deterministic.

    Raises InputError for other texts, fewer than ten, an unknown kind, and where all texts are one point.
    """
    if kind not in KINDS:
        raise InputError(f"map {kind!r} is not known{nearest(kind, KINDS)} (known: {', '.join(KINDS)})")
    if len(one) != len(other) or len(one) < max(LEAST_TEXTS, folds):
        found = f"{len(one)} and {len(other)}"
        raise InputError(f"a map is fitted on the same {max(LEAST_TEXTS, folds)} texts or more; found {found}")
    X, Y = (points.astype(np.float64) for points in (one, other))
    spread = [float(np.sum((points - points.mean(axis=0)) ** 2)) for points in (X, Y)]
    if min(spread) == 0:
        raise InputError("all texts are one point in one of the models, so no map can be fitted")
    penalties = PENALTIES if kind == "ridge" else np.zeros(1)
    errors = np.zeros(len(penalties))
    for held in fold_rows(len(X), folds):
        rest = np.ones(len(X), bool)
        rest[held] = False
        means = X[rest].mean(axis=0), Y[rest].mean(axis=0)
        fitted = _Fitted.of(X[rest] - means[0], Y[rest] - means[1])
        for row, penalty in enumerate(penalties):
            into, out = fitted.factors(kind, penalty)
            errors[row] += float(np.sum((Y[held] - means[1] - ((X[held] - means[0]) @ into) @ out) ** 2))
    best = int(np.argmin(errors))
    whole = _Fitted.of(X - X.mean(axis=0), Y - Y.mean(axis=0))
    into, out = whole.factors(kind, penalties[best])
    return DirectionMap(kind, into, out, float(1 - errors[best] / spread[1]), len(X), whole.span[0])


class _Fitted(NamedTuple):
    """Centred texts on both sides, each as left · values · spanᵀ: nothing of size d × d is formed."""

    left: tuple[np.ndarray, np.ndarray]
    values: tuple[np.ndarray, np.ndarray]
    span: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, X: Float[np.ndarray, "text d"], Y: Float[np.ndarray, "text e"]) -> _Fitted:
        parts = []
        for points in (X, Y):
            left, values, right = np.linalg.svd(points, full_matrices=False)
            kept = values > _MAP_RANK * values[0]
            parts.append((left[:, kept], values[kept], right[kept].T))
        return cls(*zip(*parts, strict=True))

    def factors(self, kind: Kind, penalty: float) -> tuple[Float[np.ndarray, "d k"], Float[np.ndarray, "k e"]]:
        """The map as two factors."""
        (mine, theirs), inner = self.values, self.left[0].T @ self.left[1]
        if kind == "orthogonal":
            turn, values, back = np.linalg.svd(mine[:, None] * inner * theirs, full_matrices=False)
            scale = float(values.sum() / (mine**2).sum())
            return self.span[0] @ turn, scale * back @ self.span[1].T
        shrunk = mine / (mine**2 + penalty * float(np.mean(mine**2)))
        return self.span[0], shrunk[:, None] * (inner * theirs) @ self.span[1].T
