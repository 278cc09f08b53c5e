"""The permutation null: the same entries, in coordinates that have nothing to do with each other.

Random directions have Gaussian entries; real ones may have a few coordinates that dominate, and two such directions
are alike more often by chance. Here one run's coordinates are handed round at random (those of the residual stream for
B, those of the input for A, both for ΔW), which keeps its norm, its rank and the sizes of its entries. What both runs
owe to a common offset of all coordinates is kept too, and so does not count as alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from em_interp.comparison.subspace import PARTS, Snapshots

SEED = 20250611


@dataclass(frozen=True, eq=False)
class Permuted:
    """By measure: |cos| of every run with the shuffled copy of every other, for each permutation."""

    drawn: dict[str, Float[np.ndarray, "permutation run run"]]

    def quantile(self, of: str, i: int, j: int, level: float) -> float:
        """The value that |measure| of runs i and j stays below with this probability."""
        return float(np.quantile(self.drawn[of][:, i, j], level))

    def p_value(self, of: str, i: int, j: int, seen: float) -> float:
        """(1 + permutations that reach |seen|) / (1 + permutations); NaN where the measure is undefined."""
        drawn = self.drawn[of][:, i, j]
        if np.isnan(seen) or np.isnan(drawn).any():
            return float("nan")
        return float((1 + np.sum(drawn >= abs(seen) - 1e-12)) / (1 + len(drawn)))


@dataclass(frozen=True, eq=False)
class _Stack:
    """The final step of every run at one site, ranks filled up with zeros; B = out · left, Aᵀ = into · right."""

    out: Float32[np.ndarray, "d_out run rank"]
    into: Float32[np.ndarray, "d_in run rank"]
    left: Float[np.ndarray, "run rank rank"]  # times the scale
    right: Float[np.ndarray, "run rank rank"]


def permuted(finals: Sequence[Sequence[Snapshots]], count: int, seed: int = SEED) -> Permuted:
    """The null of each measure, pooled over the sites; `finals` holds the last step of each run, by site.

    Sites of one dimension are shuffled alike: a coordinate that dominates at all of them stays one coordinate. The time
    is that of `count` × sites products of d × (runs · rank) matrices.
    """
    rng = np.random.default_rng(seed)
    runs = len(finals[0])
    squares = np.array([[run.squared_norm[0] for run in site] for site in finals]).sum(axis=0)
    fewest = {of: sum(_fewest(site, of) for site in finals) for of in ("B", "A")}
    stacks = [_stack(site) for site in finals]
    sums = {of: np.zeros((count, runs, runs)) for of in PARTS}
    for draw in range(count):
        orders: dict[tuple[str, int], Int[np.ndarray, " d"]] = {}
        for stack in stacks:
            out, into = _shuffled("B", stack.out, orders, rng), _shuffled("A", stack.into, orders, rng)
            sums["B"][draw] += _summed(out**2)
            sums["A"][draw] += _summed(into**2)
            sums["delta"][draw] += _summed(_turned(out, stack.left) * _turned(into, stack.right))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = {of: np.sqrt(sums[of] / fewest[of]) for of in ("B", "A")}
        drawn["delta"] = np.abs(sums["delta"]) / np.sqrt(np.outer(squares, squares))
    return Permuted(drawn)


def _stack(site: Sequence[Snapshots]) -> _Stack:
    rank = max(run.A.shape[1] for run in site)
    out, into = (
        _filled([part[0] for part in parts], rank) for parts in zip(*((r.out, r.into) for r in site), strict=True)
    )
    B = _filled([run.scale * run.B[0] for run in site], rank)
    A = _filled([run.A[0].T for run in site], rank)
    inside = [np.einsum("dnk,dnr->nkr", basis, part) for basis, part in ((out, B), (into, A))]
    return _Stack(out.astype(np.float32), into.astype(np.float32), *inside)


def _filled(matrices: Sequence[Float[np.ndarray, "d _"]], rank: int) -> Float[np.ndarray, "d run rank"]:
    return np.stack([np.pad(m, ((0, 0), (0, rank - m.shape[1]))) for m in matrices], axis=1)


def _shuffled(
    part: str,
    bases: Float32[np.ndarray, "d run rank"],
    orders: dict[tuple[str, int], np.ndarray],
    rng: np.random.Generator,
) -> Float[np.ndarray, "run rank run rank"]:
    """Inner products of every basis vector with every shuffled one; `orders` keeps the shuffle of each dimension."""
    key = (part, len(bases))
    if key not in orders:
        orders[key] = rng.permutation(len(bases))
    flat = bases.reshape(len(bases), -1)
    return (flat.T @ flat[orders[key]]).astype(float).reshape(bases.shape[1:] * 2)


def _turned(
    inner: Float[np.ndarray, "run rank run rank"], inside: Float[np.ndarray, "run rank rank"]
) -> Float[np.ndarray, "run rank run rank"]:
    """Inner products of the columns themselves from those of their bases."""
    half = np.einsum("nkr,nkml->nrml", inside, inner)
    return np.asarray(np.einsum("nrml,mls->nrms", half, inside))


def _summed(products: Float[np.ndarray, "run rank run rank"]) -> Float[np.ndarray, "run run"]:
    return np.asarray(products.sum(axis=(1, 3)))


def _fewest(site: Sequence[Snapshots], of: str) -> Int[np.ndarray, "run run"]:
    """The smaller rank of every two runs: what their overlap is at most."""
    ranks = [np.any(run.out[0] if of == "B" else run.into[0], axis=0).sum() for run in site]
    return np.asarray(np.minimum.outer(ranks, ranks))
