"""Carrying a direction from one model's residual stream into another's, by a map fitted on texts that both have read.

The map is fitted on the base models alone, from the pooled residual streams of the same texts at one layer of each.

- `orthogonal`: y - ȳ ≈ c (x - x̄) R with R the Procrustes rotation (`em_interp.comparison.procrustes`): angles are kept,
  so a direction comes out as itself where two models differ by a turn of their coordinates.
- `ridge`: y - ȳ ≈ (x - x̄) W with ‖W‖ penalised, the penalty chosen by held-out error: any linear relation.

A direction v is carried as v R (or v W) and given length 1. What a map cannot know is said with it: the held-out share
of variance it explains (`held_out_r2`; about 0 or below for models that have nothing in common on these texts), and of
each direction the share of its length that the texts let it see (`kept`): what no text moved along is lost.

It can show that a direction found in one model does in another what it did in the first, once it is *used* there: a
cosine alone says little, for all vectors that a few directions of large variance share come out alike. It cannot show
that the models use the same mechanism, and a failure may be the map's (too few texts, other kinds of text, no linear
relation) and not the direction's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from em_interp.comparison.procrustes import FOLDS, fold_rows
from em_interp.errors import InputError, nearest

Kind = Literal["orthogonal", "ridge"]
KINDS: tuple[str, ...] = get_args(Kind)
LEAST = 10  # texts
_RANK = 1e-6  # a direction with less than this share of the largest spread is rounding
PENALTIES = np.logspace(-6, 2, 9)  # of ridge, times the mean variance of a direction times the texts


class Carried(NamedTuple):
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

    def carry(self, direction: Float[np.ndarray, " d"]) -> Carried:
        """The direction in the other stream. Raises InputError for other dimensions, and where the map sees none."""
        given = np.asarray(direction, np.float64)
        if given.shape != (len(self.into),):
            raise InputError(f"the map carries vectors of {len(self.into)} numbers; found shape {given.shape}")
        length, moved = np.linalg.norm(given), (given @ self.into) @ self.out
        seen = np.linalg.norm(given @ self.span)
        if not length > 0 or not seen > 1e-9 * length or not np.linalg.norm(moved) > 0:
            raise InputError("the direction is zero, or no text varies along it, so it cannot be carried")
        return Carried(moved / np.linalg.norm(moved), min(float(seen / length), 1.0))


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
    if len(one) != len(other) or len(one) < max(LEAST, folds):
        found = f"{len(one)} and {len(other)}"
        raise InputError(f"a map is fitted on the same {max(LEAST, folds)} texts or more; found {found}")
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
            kept = values > _RANK * values[0]
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
