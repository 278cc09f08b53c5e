"""Null distributions of the measures between runs: their values for unrelated adapters.

Random directions: the same measures of random directions with the norms of the real ones. At rank 1 cos² of two random
directions in d dimensions is Beta(1/2, (d - 1)/2), so |cos B| and |cos A| at one site have exact quantiles (about 2/√d
at 95 %), and |cos ΔW| is the product of two independent such cosines, whose tail is an integral over one of them. At
higher rank, and over several sites, random orthonormal bases are drawn (a fixed seed); ΔW keeps its singular values, so
that the null is matched in norm.

Permuted coordinates: random directions have Gaussian entries; real ones may have a few coordinates that dominate, and
two such directions are similar more often by chance. Here one run's coordinates are permuted at random (those of the
residual stream for B, those of the input for A, both for ΔW), which keeps its norm, its rank and the sizes of its
entries. A common offset of all coordinates is kept too, and so does not count as similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.optimize import brentq
from scipy.stats import beta

from em_interp.comparison.similarity import LEAST_SINGULAR, Snapshots
from em_interp.mechanism.random_adapters import cosine_quantile
from em_interp.trajectory.composition import site_columns
from em_interp.trajectory.trajectory import MATRICES
from em_interp.transition.family import empirical_p

N_DRAWS, FEWER_DRAWS = 20000, 4000  # the fewer where random bases have many columns
MANY_PRODUCTS = 16  # inner products in one corner, from which on fewer are drawn
MAX_COLUMNS = 64  # of a composition score, for which random ones are drawn
NULL_SEED = PERMUTATION_SEED = 20250611
INTEGRAL_POINTS = 2000  # of the integral over one of the two cosines


@dataclass(frozen=True, eq=False)
class SiteSpectra:
    """The dimensions of a site, and the singular values of each run's final ΔW there."""

    d_out: int
    d_in: int
    singular: tuple[Float[np.ndarray, " rank"], ...]  # by run, without those that are zero

    @classmethod
    def of(cls, site: Sequence[Snapshots]) -> SiteSpectra:
        """The spectra of the runs' last steps at one site."""
        return cls(site[0].B.shape[1], site[0].A.shape[2], tuple(run.spectrum() for run in site))


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

    def p_value(self, value: float) -> float:
        """The probability of |measure| as large as this or larger; NaN for NaN. From draws, never 0."""
        if self.draws is not None:
            return empirical_p(self.draws, abs(value))
        return float("nan") if np.isnan(value) else _product_tail(self.dims, abs(value))


Nulls = dict[tuple[str, int, int], Null]  # by measure and runs i < j


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
    draws = N_DRAWS if max(first * second for first, second in ranks) <= MANY_PRODUCTS else FEWER_DRAWS
    if of == "delta":
        return Null(_drawn_delta(sites, i, j, draws))
    overlap = np.zeros(draws)
    for number, (site, pair) in enumerate(zip(sites, ranks, strict=True)):
        d = site.d_out if of == "B" else site.d_in
        overlap += (random_blocks(d, *pair, (number, of == "A"), draws) ** 2).sum(axis=(1, 2))
    return Null(np.sqrt(overlap / sum(map(min, ranks))))


def _drawn_delta(sites: Sequence[SiteSpectra], i: int, j: int, draws: int) -> Float[np.ndarray, " draw"]:
    inner, square = np.zeros(draws), [0.0, 0.0]
    for number, site in enumerate(sites):
        first, second = site.singular[i], site.singular[j]
        columns = random_blocks(site.d_out, len(first), len(second), (number, False), draws)
        rows = random_blocks(site.d_in, len(first), len(second), (number, True), draws)
        inner += np.einsum("k,nkl,nkl,l->n", first, columns, rows, second)
        square = [square[0] + float(first @ first), square[1] + float(second @ second)]
    return np.asarray(np.abs(inner) / np.sqrt(square[0] * square[1]))


def composition_null(X: Float[np.ndarray, "d n"], Y: Float[np.ndarray, "d m"]) -> Null:
    """The normalised composition score of random stacks with the same singular values; NaN beyond 64 columns."""
    first, second = (_singular(stack - stack.mean(axis=0)) for stack in (X, Y))
    if not len(first) or not len(second) or max(len(first), len(second)) > MAX_COLUMNS:
        return Null(np.full(1, np.nan))
    if len(first) == len(second) == 1:
        return Null(dims=(len(X) - 1,))  # centring takes one dimension
    blocks = random_blocks(len(X) - 1, len(first), len(second), (0, False))
    score = np.sqrt(np.einsum("k,nkl,l->n", first**2, blocks**2, second**2))
    return Null(score / float(np.sqrt(np.linalg.norm(first**2) * np.linalg.norm(second**2))))


def composition_columns(sites: Sequence[Snapshots]) -> Float[np.ndarray, "d n"]:
    """s B (A Aᵀ)^½ of each site's last step, side by side, as the composition score takes them."""
    return np.concatenate([site_columns(site.A[-1], site.B[-1], site.scale) for site in sites], axis=1)


def _singular(stack: Float[np.ndarray, "d n"]) -> Float[np.ndarray, " n"]:
    values = np.linalg.svd(stack, compute_uv=False)
    return values[values > LEAST_SINGULAR * max(values[0], np.finfo(float).tiny)]


def smallest_angle_quantile(d: int, rank: int, second_rank: int, level: float = 0.95) -> float:
    """The angle in degrees that random subspaces of these ranks stay above with this probability."""
    if min(rank, second_rank) == 0:
        return float("nan")
    if rank == second_rank == 1:
        return float(np.degrees(np.arccos(cosine_quantile(d, level))))
    largest = np.linalg.svd(random_blocks(d, rank, second_rank, (0, False)), compute_uv=False)[:, 0]
    return float(np.degrees(np.arccos(min(np.quantile(largest, level), 1.0))))


@lru_cache(maxsize=6)
def random_blocks(
    d: int, rank: int, second_rank: int, key: tuple[int, bool], draws: int = FEWER_DRAWS
) -> Float[np.ndarray, "draw rank other_rank"]:
    """Inner products of a fixed and a random orthonormal basis in d dimensions: the corner of a random rotation.

    A Gaussian d × second_rank matrix is made orthonormal; only its first `rank` rows are drawn, and the Gram matrix of
    the rest as a Wishart matrix (Bartlett's decomposition), so that the cost does not grow with d.
    """
    rng = np.random.default_rng([NULL_SEED, *map(int, key)])
    top = rng.standard_normal((draws, rank, second_rank))
    root = np.linalg.cholesky(top.transpose(0, 2, 1) @ top + _wishart(d - rank, second_rank, draws, rng))
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
    return np.asarray(beta.ppf((np.arange(INTEGRAL_POINTS) + 0.5) / INTEGRAL_POINTS, 0.5, (d - 1) / 2))


@lru_cache(maxsize=256)
def _product_quantile(dims: tuple[int, ...], level: float) -> float:
    wide = [d for d in dims if d > 1]
    if len(wide) < 2:
        return cosine_quantile(wide[0], level) if wide else 1.0
    return float(brentq(lambda value: _product_tail(dims, value) - (1 - level), 0.0, 1.0, xtol=1e-10))


@dataclass(frozen=True, eq=False)
class _Stack:
    """The final step of every run at one site, ranks filled up with zeros; B = columns · left, Aᵀ = rows · right."""

    columns: Float32[np.ndarray, "d_out run rank"]
    rows: Float32[np.ndarray, "d_in run rank"]
    left: Float[np.ndarray, "run rank rank"]  # times the scale
    right: Float[np.ndarray, "run rank rank"]


def permutation_null(finals: Sequence[Sequence[Snapshots]], count: int, seed: int = PERMUTATION_SEED) -> Nulls:
    """The null of each measure, pooled over the sites; `finals` holds the last step of each run, by site.

    Each draw is |cos| of a run with the permuted copy of another.
    Sites of one dimension are permuted alike: a coordinate that dominates at all of them stays one coordinate. The
    time is that of `count` × sites products of d × (runs · rank) matrices.
    """
    rng = np.random.default_rng(seed)
    runs = len(finals[0])
    squares = np.array([[run.squared_norm[0] for run in site] for site in finals]).sum(axis=0)
    ranks = {of: sum(_smaller_rank(site, of) for site in finals) for of in ("B", "A")}
    stacks = [_stack(site) for site in finals]
    sums = {of: np.zeros((count, runs, runs)) for of in MATRICES}
    for draw in range(count):
        orders: dict[tuple[str, int], Int[np.ndarray, " d"]] = {}
        for stack in stacks:
            columns = _permuted("B", stack.columns, orders, rng)
            rows = _permuted("A", stack.rows, orders, rng)
            sums["B"][draw] += _summed(columns**2)
            sums["A"][draw] += _summed(rows**2)
            sums["delta"][draw] += _summed(_from_bases(columns, stack.left) * _from_bases(rows, stack.right))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = {of: np.sqrt(sums[of] / ranks[of]) for of in ("B", "A")}
        drawn["delta"] = np.abs(sums["delta"]) / np.sqrt(np.outer(squares, squares))
    return {(of, i, j): Null(drawn[of][:, i, j]) for of in MATRICES for i, j in combinations(range(runs), 2)}


def _stack(site: Sequence[Snapshots]) -> _Stack:
    rank = max(run.A.shape[1] for run in site)
    columns = _padded([run.column_basis[0] for run in site], rank)
    rows = _padded([run.row_basis[0] for run in site], rank)
    B = _padded([run.scale * run.B[0] for run in site], rank)
    A = _padded([run.A[0].T for run in site], rank)
    factors = [np.einsum("dnk,dnr->nkr", basis, part) for basis, part in ((columns, B), (rows, A))]
    return _Stack(columns.astype(np.float32), rows.astype(np.float32), *factors)


def _padded(matrices: Sequence[Float[np.ndarray, "d _"]], rank: int) -> Float[np.ndarray, "d run rank"]:
    return np.stack([np.pad(m, ((0, 0), (0, rank - m.shape[1]))) for m in matrices], axis=1)


def _permuted(
    part: str,
    bases: Float32[np.ndarray, "d run rank"],
    orders: dict[tuple[str, int], np.ndarray],
    rng: np.random.Generator,
) -> Float[np.ndarray, "run rank run rank"]:
    """Inner products of every basis vector with every permuted one; `orders` keeps the order of each dimension."""
    key = (part, len(bases))
    if key not in orders:
        orders[key] = rng.permutation(len(bases))
    flat = bases.reshape(len(bases), -1)
    return (flat.T @ flat[orders[key]]).astype(float).reshape(bases.shape[1:] * 2)


def _from_bases(
    inner: Float[np.ndarray, "run rank run rank"], factor: Float[np.ndarray, "run rank rank"]
) -> Float[np.ndarray, "run rank run rank"]:
    """Inner products of the columns themselves from those of their bases."""
    half = np.einsum("nkr,nkml->nrml", factor, inner)
    return np.asarray(np.einsum("nrml,mls->nrms", half, factor))


def _summed(products: Float[np.ndarray, "run rank run rank"]) -> Float[np.ndarray, "run run"]:
    return np.asarray(products.sum(axis=(1, 3)))


def _smaller_rank(site: Sequence[Snapshots], of: str) -> Int[np.ndarray, "run run"]:
    """The smaller rank of every two runs: the most that their overlap can be."""
    ranks = [np.any(run.column_basis[0] if of == "B" else run.row_basis[0], axis=0).sum() for run in site]
    return np.asarray(np.minimum.outer(ranks, ranks))
