"""The composition score: do two sets of adapters write into the same directions, whichever site writes which?

comp(X, Y) = ‖Xᵀ Y‖_F / (‖X‖_F ‖Y‖_F), where X and Y are d × n: a column for each adapter's direction in the residual
stream (2506.11613 tracks it against the final step of a run with nine adapters; after Elhage et al. 2021). Xᵀ Y is
n × n, the inner products of columns, so for one adapter it is the |cosine|. With the stacks the other way round (n × d)
it is the norm of an outer product and identically 1 for one adapter, whatever the directions.

The columns are those of s B (A Aᵀ)^½, which no gauge changes beyond a rotation among themselves: at rank 1 s ‖a‖ b. As
published the columns are de-meaned, here each over its coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from em_interp.comparison.random_band import Null, random_blocks
from em_interp.comparison.subspace import Snapshots
from em_interp.errors import InputError
from em_interp.trajectory.adapter import AdapterTrajectory

MOST = 64  # columns for which random ones are drawn


def composition_score(
    X: Float[np.ndarray, "d n"], Y: Float[np.ndarray, "d m"], centre: bool = True, normalised: bool = False
) -> float:
    """‖Xᵀ Y‖_F / (‖X‖_F ‖Y‖_F) of two stacks of columns; NaN where one of them is zero.

    As published it is 1/√n for two equal stacks of n orthogonal columns of one length. `normalised` divides by
    √(‖Xᵀ X‖_F ‖Yᵀ Y‖_F) instead, which makes it 1 for equal stacks (the RV coefficient's root of X Xᵀ and Y Yᵀ).
    Raises InputError for columns of different lengths.
    """
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
        raise InputError(
            f"two stacks of columns in one space were expected, d × n and d × m; found {X.shape}, {Y.shape}"
        )
    if centre:
        X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    if normalised:
        bottom = float(np.sqrt(np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)))
    else:
        bottom = float(np.linalg.norm(X) * np.linalg.norm(Y))
    return float(np.linalg.norm(X.T @ Y)) / bottom if bottom > 0 else float("nan")


def composition_path(path: AdapterTrajectory, centre: bool = True) -> Float[np.ndarray, " step"]:
    """The score of every saved step against the final one; NaN where the adapter is zero.

    Raises InputError where the sites write into spaces of different dimensions.
    """
    if len({B.shape[1] for B in path.B.values()}) > 1:
        sizes = ", ".join(f"{site}: {B.shape[1]}" for site, B in path.B.items())
        raise InputError(f"the sites write into spaces of different dimensions ({sizes}); a composition needs one")
    final = path_columns(path, len(path.steps) - 1)
    scores = [composition_score(path_columns(path, row), final, centre) for row in range(len(path.steps))]
    return np.array(scores)


def path_columns(path: AdapterTrajectory, row: int) -> Float[np.ndarray, "d n"]:
    """The columns of every site at one saved step, by its row."""
    return columns([Snapshots.of(path, site, np.array([row])) for site in path.sites])


def columns(sites: Sequence[Snapshots]) -> Float[np.ndarray, "d n"]:
    """s B (A Aᵀ)^½ of each site's last step, side by side."""
    stacked = []
    for site in sites:
        values, vectors = np.linalg.eigh(site.A[-1] @ site.A[-1].T)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        stacked.append(site.scale * site.B[-1] @ root)
    return np.concatenate(stacked, axis=1)


def composition_null(X: Float[np.ndarray, "d n"], Y: Float[np.ndarray, "d m"]) -> Null:
    """The normalised score of stacks with the same singular values at random; NaN beyond 64 columns."""
    one, other = (_singular(stack - stack.mean(axis=0)) for stack in (X, Y))
    if not len(one) or not len(other) or max(len(one), len(other)) > MOST:
        return Null(np.full(1, np.nan))
    if len(one) == len(other) == 1:
        return Null(dims=(len(X) - 1,))  # centring takes one dimension
    blocks = random_blocks(len(X) - 1, len(one), len(other), (0, False))
    score = np.sqrt(np.einsum("k,nkl,l->n", one**2, blocks**2, other**2))
    return Null(score / float(np.sqrt(np.linalg.norm(one**2) * np.linalg.norm(other**2))))


def _singular(stack: Float[np.ndarray, "d n"]) -> Float[np.ndarray, " n"]:
    values = np.linalg.svd(stack, compute_uv=False)
    return values[values > 1e-6 * max(values[0], np.finfo(float).tiny)]
