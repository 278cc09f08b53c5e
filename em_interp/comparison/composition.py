"""The composition score of two runs (`em_interp.trajectory.composition`) against chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from em_interp.comparison.random_band import Null, random_blocks
from em_interp.comparison.subspace import Snapshots
from em_interp.trajectory.composition import site_columns

MOST = 64  # columns for which random ones are drawn


def columns(sites: Sequence[Snapshots]) -> Float[np.ndarray, "d n"]:
    """s B (A Aᵀ)^½ of each site's last step, side by side."""
    return np.concatenate([site_columns(site.A[-1], site.B[-1], site.scale) for site in sites], axis=1)


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
