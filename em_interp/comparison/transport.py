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

from em_interp.comparison.procrustes import FOLDS, fold_rows, rotation
from em_interp.errors import InputError, nearest

Kind = Literal["orthogonal", "ridge"]
KINDS: tuple[str, ...] = get_args(Kind)
LEAST = 10  # texts
PENALTIES = np.logspace(-6, 2, 9)  # of ridge, times the mean variance of a direction times the texts


class Carried(NamedTuple):
    """A direction in the other model, and how much of it the map could see."""

    direction: Float[np.ndarray, " e"]  # of length 1
    kept: float  # share of the length that lies in the span of the texts, 0 to 1


@dataclass(frozen=True, eq=False)
class DirectionMap:
    """A linear map between two residual streams, and how well it does on texts it was not fitted on."""

    kind: Kind
    weights: Float[np.ndarray, "d e"]
    held_out_r2: float  # share of the other's variance explained, over held-out texts
    texts: int
    span: Float[np.ndarray, "d k"]  # an orthonormal basis of what the texts vary along

    def carry(self, direction: Float[np.ndarray, " d"]) -> Carried:
        """The direction in the other stream. Raises InputError for other dimensions, and where the map sees none."""
        given = np.asarray(direction, np.float64)
        if given.shape != (len(self.weights),):
            raise InputError(f"the map carries vectors of {len(self.weights)} numbers; found shape {given.shape}")
        length, moved = np.linalg.norm(given), given @ self.weights
        seen = np.linalg.norm(given @ self.span)
        if not length > 0 or not np.linalg.norm(moved) > 1e-12 * length:
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
        for row, weights in enumerate(_weights(X[rest] - means[0], Y[rest] - means[1], kind, penalties)):
            errors[row] += float(np.sum((Y[held] - means[1] - (X[held] - means[0]) @ weights) ** 2))
    best = int(np.argmin(errors))
    centred = X - X.mean(axis=0)
    (weights,) = _weights(centred, Y - Y.mean(axis=0), kind, penalties[best : best + 1])
    return DirectionMap(kind, weights, float(1 - errors[best] / spread[1]), len(X), _span(centred))


def _weights(
    X: Float[np.ndarray, "text d"], Y: Float[np.ndarray, "text e"], kind: Kind, penalties: Float[np.ndarray, " penalty"]
) -> list[Float[np.ndarray, "d e"]]:
    """The map of centred texts, for each penalty."""
    if kind == "orthogonal":
        turn = rotation(X, Y)
        return [turn * (float(((X @ turn) * Y).sum()) / float((X**2).sum()))]
    left, values, right = np.linalg.svd(X, full_matrices=False)
    inside, scale = left.T @ Y, float(np.mean(values**2))
    return [right.T @ ((values / (values**2 + penalty * scale))[:, None] * inside) for penalty in penalties]


def _span(centred: Float[np.ndarray, "text d"]) -> Float[np.ndarray, "d k"]:
    _, values, right = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(right[values > 1e-6 * values[0]].T)
