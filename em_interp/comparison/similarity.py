"""How similar two adapters are at a site, in numbers that no gauge changes, and the plane of several paths.

ΔW = s B A stays the same when B becomes B M and A becomes M⁻¹ A (at rank 1: b -> c·b, a -> a/c, signs included), so
runs can only be compared by the column space of B, the row space of A and ΔW itself.

- |cos B| is ‖Qᵢᵀ Qⱼ‖_F / √r with Q an orthonormal basis of the columns of B and r the smaller rank: the root mean
  square of the cosines of the principal angles, at rank 1 the |cosine| of the two vectors. |cos A| is that of A's rows.
- cos ΔW is <ΔWᵢ, ΔWⱼ> / (‖ΔWᵢ‖ ‖ΔWⱼ‖), from s² tr((Bᵢᵀ Bⱼ)(Aⱼ Aᵢᵀ)), signed. At rank 1 it is the product of the two
  vectors' cosines.

Over several sites the squared overlaps and the ranks are summed before the root, and the inner products before the
ratio. Nothing of size d × d is formed. A zero matrix has no direction: NaN, and so is the pooled number.

The plane of several paths holds the principal components of all their steps, from inner products. ΔW is the same in
every gauge and zero at the start of every run, so the paths share an origin. B (rank 1 only) is taken as s ‖a‖ b, as
long as ΔW, with the sign in which its end agrees with the first run's: another sign is the same adapter. Runs whose A
started elsewhere have ΔW at right angles even where they write the same b, so both planes are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from em_interp.trajectory.geometry import principal_components, ratio
from em_interp.trajectory.trajectory import AdapterTrajectory

LEAST_SINGULAR = 1e-6  # a singular value below this share of the largest is float32 rounding


@dataclass(frozen=True, eq=False)
class Snapshots:
    """One site of one run at chosen steps; the bases are computed when first needed."""

    A: Float[np.ndarray, "step rank d_in"]
    B: Float[np.ndarray, "step d_out rank"]
    scale: float

    @classmethod
    def of(cls, path: AdapterTrajectory, site: str, rows: Int[np.ndarray, " step"]) -> Snapshots:
        """The site of a path at these rows, in float64."""
        return cls(path.A[site][rows].astype(np.float64), path.B[site][rows].astype(np.float64), path.scale[site])

    def last(self) -> Snapshots:
        """The last step alone."""
        return Snapshots(self.A[-1:], self.B[-1:], self.scale)

    @cached_property
    def column_basis(self) -> Float[np.ndarray, "step d_out rank"]:
        """Orthonormal bases of the columns of B."""
        return _orthonormal(self.B)

    @cached_property
    def row_basis(self) -> Float[np.ndarray, "step d_in rank"]:
        """Orthonormal bases of the rows of A."""
        return _orthonormal(self.A.transpose(0, 2, 1))

    @property
    def squared_norm(self) -> Float[np.ndarray, " step"]:
        """‖ΔW‖² at each step."""
        inner = np.einsum("tdr,tdq->trq", self.B, self.B) * np.einsum("trd,tqd->trq", self.A, self.A)
        return np.maximum(self.scale**2 * inner.sum(axis=(1, 2)), 0.0)

    def spectrum(self) -> Float[np.ndarray, " rank"]:
        """The singular values of the last ΔW that are larger than rounding, from triangular factors of B and Aᵀ."""
        left, right = (np.linalg.qr(part).R for part in (self.B[-1], self.A[-1].T))
        values = abs(self.scale) * np.linalg.svd(left @ right.T, compute_uv=False)
        return values[values > LEAST_SINGULAR * max(values[0], np.finfo(float).tiny)]


def _orthonormal(columns: Float[np.ndarray, "step d rank"]) -> Float[np.ndarray, "step d rank"]:
    """An orthonormal basis of the columns at each step; zero columns fill up a rank that is not full."""
    if columns.shape[2] == 1:
        length = np.linalg.norm(columns, axis=1, keepdims=True)
        return np.divide(columns, length, out=np.zeros_like(columns), where=length > 0)
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    kept = values > LEAST_SINGULAR * np.maximum(values[:, :1], np.finfo(float).tiny)
    basis: np.ndarray = left * kept[:, None, :]
    return basis


@dataclass(frozen=True, eq=False)
class StepSimilarity:
    """Overlaps and inner products between every step of one run and every step of another; they add up over sites."""

    overlap: dict[str, Float[np.ndarray, "left right"]]  # of B and A: sum of squared cosines of principal angles
    rank: dict[str, Float[np.ndarray, "left right"]]  # the most it can be; NaN where one of the two is zero
    inner: Float[np.ndarray, "left right"]  # <ΔW, ΔW>
    squares: tuple[Float[np.ndarray, " left"], Float[np.ndarray, " right"]]  # ‖ΔW‖²

    @classmethod
    def between(cls, first: Snapshots, second: Snapshots) -> StepSimilarity:
        """The similarity of two runs at one site."""
        bases = {"B": (first.column_basis, second.column_basis), "A": (first.row_basis, second.row_basis)}
        ranks = {of: np.minimum(_rank(left)[:, None], _rank(right)[None, :]) for of, (left, right) in bases.items()}
        inner = _inner(first.B, second.B) * _inner(first.A.transpose(0, 2, 1), second.A.transpose(0, 2, 1))
        return cls(
            {of: np.asarray((_inner(left, right) ** 2).sum(axis=(1, 3))) for of, (left, right) in bases.items()},
            {of: np.where(rank > 0, rank, np.nan) for of, rank in ranks.items()},
            np.asarray(first.scale * second.scale * inner.sum(axis=(1, 3))),
            (first.squared_norm, second.squared_norm),
        )

    def __add__(self, other: StepSimilarity) -> StepSimilarity:
        left, right = (own + added for own, added in zip(self.squares, other.squares, strict=True))
        overlap = {of: self.overlap[of] + other.overlap[of] for of in self.overlap}
        rank = {of: self.rank[of] + other.rank[of] for of in self.rank}
        return StepSimilarity(overlap, rank, self.inner + other.inner, (left, right))

    def cosines(self, of: str) -> Float[np.ndarray, "left right"]:
        """|cos B|, |cos A| or cos ΔW (`delta`) between every two steps."""
        if of == "delta":
            return np.clip(ratio(self.inner, np.sqrt(np.outer(*self.squares))), -1.0, 1.0)
        return np.minimum(np.sqrt(self.overlap[of] / self.rank[of]), 1.0)


def _inner(
    first: Float[np.ndarray, "left d rank"], second: Float[np.ndarray, "right d other_rank"]
) -> Float[np.ndarray, "left rank right other_rank"]:
    """Inner products of every column of every step of one with every column of every step of the other."""
    rows = [part.transpose(0, 2, 1).reshape(-1, part.shape[1]) for part in (first, second)]
    return (rows[0] @ rows[1].T).reshape(first.shape[0], first.shape[2], second.shape[0], second.shape[2])


def _rank(basis: Float[np.ndarray, "step d rank"]) -> Int[np.ndarray, " step"]:
    return np.any(basis, axis=1).sum(axis=1)


def principal_angles(
    first: Float[np.ndarray, "d rank"], second: Float[np.ndarray, "d other_rank"]
) -> Float[np.ndarray, " angle"]:
    """The angles in degrees between two column spaces, increasing; empty where one of them is {0}.

    Small angles are taken from their sines (Knyazev and Argentati 2002, as in scipy), so that equal spaces give 0
    rather than the root of the rounding.
    """
    from scipy.linalg import subspace_angles

    bases = [basis[:, np.any(basis, axis=0)] for basis in (_orthonormal(first[None])[0], _orthonormal(second[None])[0])]
    if not all(basis.shape[1] for basis in bases):
        return np.empty(0)
    return np.sort(np.degrees(subspace_angles(*bases)))


def common_plane(
    of: str,
    names: Sequence[str],
    steps: Sequence[Int[np.ndarray, " step"]],
    inner: Mapping[tuple[int, int], Float[np.ndarray, "left right"]],
) -> pd.DataFrame:
    """Coordinates of every run's path along the directions of largest variance of all steps together.

    Runs that have nothing in common lie in a plane too, as a star around the origin, and any smooth path bends in it.
    The share of variance says how much of the paths lies outside. `inner` holds the inner products between the steps
    of runs i <= j.

    Returns:
        A row for each run and step: `measure`, `run`, `step`, `x` and `y` in units of weights, and their shares of the
        variance.
    """
    count = range(len(names))
    blocks = [[inner[i, j] if i <= j else inner[j, i].T for j in count] for i in count]
    scores, (share_x, share_y) = principal_components(np.block(blocks))
    runs = [name for name, of_run in zip(names, steps, strict=True) for _ in of_run]
    where = {"step": np.concatenate(steps), "x": scores[:, 0], "y": scores[:, 1]}
    return pd.DataFrame({"measure": of, "run": runs, **where, "share_x": share_x, "share_y": share_y})


def signed_vectors(site: Sequence[Snapshots]) -> list[Float[np.ndarray, "step d_out"]]:
    """s ‖a‖ b of each run at a rank-1 site, with the sign in which its end agrees with the first run's."""
    vectors = [run.scale * np.linalg.norm(run.A[:, 0], axis=1)[:, None] * run.B[:, :, 0] for run in site]
    return [path * (-1.0 if path[-1] @ vectors[0][-1] < 0 else 1.0) for path in vectors]
