"""What unrelated adapters would show: the same measures of random directions with the norms of the real ones.

At rank 1 cos² of two random directions in d dimensions is Beta(1/2, (d - 1)/2), so |cos B| and |cos A| at one site have
exact quantiles (about 2/√d at 95 %), and |cos ΔW| is the product of two independent such cosines, whose tail is an
integral over one of them. At higher rank, and over several sites, random orthonormal bases are drawn (a fixed seed);
ΔW keeps its singular values, so that the null is matched in norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.stats import beta

DRAWS, FEWER = 20000, 4000  # the fewer where random bases have many columns
MANY = 16  # inner products in one corner
SEED = 20250611
_POINTS = 2000  # of the integral over one of the two cosines


@dataclass(frozen=True, eq=False)
class SiteSpectra:
    """What of one site the null depends on: its dimensions, and the singular values of each run's final ΔW."""

    d_out: int
    d_in: int
    singular: tuple[Float[np.ndarray, " rank"], ...]  # by run; those that are zero are left out


@dataclass(frozen=True, eq=False)
class Null:
    """The distribution of a measure between two unrelated adapters: exact (from `dims`) or drawn."""

    draws: Float[np.ndarray, " draw"] | None = None
    dims: tuple[int, ...] = ()  # of the independent random directions whose |cosines| are multiplied

    def quantile(self, level: float) -> float:
        """The value that |measure| stays below with this probability."""
        if self.draws is not None:
            return float(np.quantile(self.draws, level))
        return _product_quantile(self.dims, level)

    def p_value(self, seen: float) -> float:
        """The probability of |measure| as large as this or larger; NaN for NaN. From draws, never 0."""
        if np.isnan(seen) or (self.draws is not None and np.isnan(self.draws).any()):
            return float("nan")
        if self.draws is None:
            return _product_tail(self.dims, abs(seen))
        reached = int(np.sum(self.draws >= abs(seen) - 1e-12))
        return (1 + reached) / (1 + len(self.draws))


def cosine_quantile(d: int, level: float = 0.95) -> float:
    """The value that |cos| of two random directions in d dimensions stays below with this probability; exact."""
    return 1.0 if d == 1 else float(np.sqrt(beta.ppf(level, 0.5, (d - 1) / 2)))


def random_null(sites: Sequence[SiteSpectra], i: int, j: int, of: str) -> Null:
    """The null of |cos B|, |cos A| or |cos ΔW| (`delta`) between runs i and j, pooled over these sites."""
    if of == "delta":  # a site where one of the two is zero adds nothing
        sites = [site for site in sites if len(site.singular[i]) and len(site.singular[j])]
    ranks = [(len(site.singular[i]), len(site.singular[j])) for site in sites]
    if not ranks or any(0 in pair for pair in ranks):
        return Null(np.full(1, np.nan))
    if len(sites) == 1 and ranks == [(1, 1)]:
        site = sites[0]
        return Null(dims={"B": (site.d_out,), "A": (site.d_in,), "delta": (site.d_out, site.d_in)}[of])
    draws = DRAWS if max(mine * theirs for mine, theirs in ranks) <= MANY else FEWER
    if of == "delta":
        return Null(_drawn_delta(sites, i, j, draws))
    overlap = np.zeros(draws)
    for number, (site, (mine, theirs)) in enumerate(zip(sites, ranks, strict=True)):
        d = site.d_out if of == "B" else site.d_in
        overlap += (random_blocks(d, mine, theirs, (number, of == "A"), draws) ** 2).sum(axis=(1, 2))
    return Null(np.sqrt(overlap / sum(map(min, ranks))))


def _drawn_delta(sites: Sequence[SiteSpectra], i: int, j: int, draws: int) -> Float[np.ndarray, " draw"]:
    inner, square = np.zeros(draws), [0.0, 0.0]
    for number, site in enumerate(sites):
        one, other = site.singular[i], site.singular[j]
        out = random_blocks(site.d_out, len(one), len(other), (number, False), draws)
        into = random_blocks(site.d_in, len(one), len(other), (number, True), draws)
        inner += np.einsum("k,nkl,nkl,l->n", one, out, into, other)
        square = [square[0] + float(one @ one), square[1] + float(other @ other)]
    return np.asarray(np.abs(inner) / np.sqrt(square[0] * square[1]))


def smallest_angle_quantile(d: int, rank: int, other: int, level: float = 0.95) -> float:
    """The angle in degrees that random subspaces of these ranks stay above with this probability."""
    if min(rank, other) == 0:
        return float("nan")
    if rank == other == 1:
        return float(np.degrees(np.arccos(cosine_quantile(d, level))))
    largest = np.linalg.svd(random_blocks(d, rank, other, (0, False)), compute_uv=False)[:, 0]
    return float(np.degrees(np.arccos(min(np.quantile(largest, level), 1.0))))


@lru_cache(maxsize=6)
def random_blocks(
    d: int, rank: int, other: int, key: tuple[int, bool], draws: int = FEWER
) -> Float[np.ndarray, "draw rank other_rank"]:
    """Inner products of a fixed and a random orthonormal basis in d dimensions: the corner of a random rotation.

    A Gaussian d × other matrix is made orthonormal; only its first `rank` rows are drawn, and the Gram matrix of the
    rest as a Wishart matrix (Bartlett's decomposition), so that the cost does not grow with d.
    """
    rng = np.random.default_rng([SEED, *map(int, key)])
    top = rng.standard_normal((draws, rank, other))
    root = np.linalg.cholesky(top.transpose(0, 2, 1) @ top + _wishart(d - rank, other, draws, rng))
    blocks: np.ndarray = np.linalg.solve(root, top.transpose(0, 2, 1)).transpose(0, 2, 1)
    blocks.flags.writeable = False
    return blocks


def _wishart(degrees: int, size: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draw size size"]:
    if degrees < size:
        rows = rng.standard_normal((draws, degrees, size))
        return np.asarray(rows.transpose(0, 2, 1) @ rows)
    lower = np.tril(rng.standard_normal((draws, size, size)), -1)
    place = np.arange(size)
    lower[:, place, place] = np.sqrt(rng.chisquare(degrees - place, (draws, size)))
    return np.asarray(lower @ lower.transpose(0, 2, 1))


def _product_tail(dims: tuple[int, ...], value: float) -> float:
    """P(|cos| · |cos| >= value) for independent random directions in these dimensions, one or two of them."""
    wide = [d for d in dims if d > 1]
    if not wide or value <= 0:
        return 1.0
    square = value**2
    if len(wide) == 1:
        return float(beta.sf(square, 0.5, (wide[0] - 1) / 2))
    left = np.minimum(square / _squared_cosines(wide[0]), 1.0)  # what the other square must reach
    return float(np.mean(beta.sf(left, 0.5, (wide[1] - 1) / 2)))


@lru_cache(maxsize=64)
def _squared_cosines(d: int) -> Float[np.ndarray, " point"]:
    """cos² of two random directions at the middles of intervals of equal probability."""
    return np.asarray(beta.ppf((np.arange(_POINTS) + 0.5) / _POINTS, 0.5, (d - 1) / 2))


@lru_cache(maxsize=256)
def _product_quantile(dims: tuple[int, ...], level: float) -> float:
    wide = [d for d in dims if d > 1]
    if len(wide) < 2:
        return cosine_quantile(wide[0], level) if wide else 1.0
    return float(brentq(lambda value: _product_tail(dims, value) - (1 - level), 0.0, 1.0, xtol=1e-10))
