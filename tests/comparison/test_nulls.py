"""Nulls of unrelated adapters: the bands hold at their nominal rate, and the exact forms are the simulated ones."""

import numpy as np
import pytest
from scipy.stats import binomtest

from em_interp.comparison.nulls import SiteSpectra, permutation_null, random_blocks, random_null
from em_interp.comparison.similarity import Snapshots, StepSimilarity
from em_interp.mechanism.random_adapters import cosine_quantile

COUNT = 300


def random_site(rng, d_out, d_in, rank, scale=1.0):
    """A final step whose directions are random and whose singular values are not equal."""
    sizes = 2.0 ** -np.arange(rank)
    return Snapshots(rng.normal(size=(1, rank, d_in)), rng.normal(size=(1, d_out, rank)) * sizes, scale)


def spectra(*runs):
    return SiteSpectra(runs[0].B.shape[1], runs[0].A.shape[2], tuple(run.spectrum() for run in runs))


def rate_is_nominal(inside, level=0.95):
    return binomtest(sum(inside), len(inside), level).pvalue > 0.001


@pytest.mark.parametrize("rank, other, sites", [(1, 1, 1), (1, 1, 3), (3, 3, 1), (2, 4, 2)])
@pytest.mark.parametrize("of", ["B", "A", "delta"])
def test_independent_random_adapters_fall_inside_the_band_at_the_nominal_rate(rank, other, sites, of):
    rng = np.random.default_rng([rank, other, sites])
    p_values, inside = [], []
    for _ in range(COUNT):
        pairs = [(random_site(rng, 60, 40, rank), random_site(rng, 60, 40, other, 3.0)) for _ in range(sites)]
        total = StepSimilarity.between(*pairs[0])
        for pair in pairs[1:]:
            total += StepSimilarity.between(*pair)
        seen = total.cosines(of).item()
        null = random_null([spectra(*pair) for pair in pairs], 0, 1, of)
        inside.append(abs(seen) <= null.quantile(0.95))
        p_values.append(null.p_value(seen))
    assert rate_is_nominal(inside), np.mean(inside)
    assert rate_is_nominal([p > 0.5 for p in p_values], 0.5)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_permutation_null_holds_at_the_nominal_rate_for_heavy_tailed_entries(rank):
    rng = np.random.default_rng(rank)
    p_values = {"B": [], "A": [], "delta": []}
    for _ in range(COUNT):
        runs = []
        for _ in range(2):
            A, B = rng.standard_t(2, size=(1, rank, 30)), rng.standard_t(2, size=(1, 40, rank))
            runs.append(Snapshots(A, B, 1.0))
        null = permutation_null([runs], 39, seed=int(rng.integers(1 << 30)))
        seen = StepSimilarity.between(*runs)
        for of in p_values:
            p_values[of].append(null[of, 0, 1].p_value(seen.cosines(of).item()))
    for of, found in p_values.items():
        assert rate_is_nominal([p > 0.05 for p in found]), (of, np.mean(np.array(found) > 0.05))


def test_equal_directions_are_beyond_every_permutation():
    rng = np.random.default_rng(0)
    run = random_site(rng, 40, 30, 2)
    null = permutation_null([[run, run]], 99)
    for of in ("B", "A", "delta"):
        assert null[of, 0, 1].p_value(1.0) == 0.01
        assert null[of, 0, 1].quantile(0.95) < 0.8


@pytest.mark.parametrize("d", [2, 10, 500])
def test_the_exact_quantile_is_that_of_random_vectors(d):
    rng = np.random.default_rng(d)
    u, v = rng.normal(size=(2, 20000, d))
    cosine = np.abs(np.einsum("nd,nd->n", u, v)) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    assert np.mean(cosine <= cosine_quantile(d)) == pytest.approx(0.95, abs=0.006)


def test_the_band_of_a_large_model_is_two_over_the_root_of_its_width():
    assert cosine_quantile(5120) == pytest.approx(1.96 / np.sqrt(5120), rel=0.01)
    assert cosine_quantile(1) == 1  # in one dimension everything is alike


def test_the_product_form_of_delta_is_that_of_two_independent_cosines():
    rng = np.random.default_rng(0)
    site = SiteSpectra(60, 30, (np.ones(1), np.ones(1)))
    null = random_null([site], 0, 1, "delta")
    draws = np.sqrt(rng.beta(0.5, 59 / 2, 200000) * rng.beta(0.5, 29 / 2, 200000))
    assert np.mean(draws <= null.quantile(0.95)) == pytest.approx(0.95, abs=0.002)
    assert null.p_value(float(np.quantile(draws, 0.7))) == pytest.approx(0.3, abs=0.005)
    assert null.p_value(1e-9) == pytest.approx(1, abs=1e-3)
    steering = random_null([SiteSpectra(60, 1, (np.ones(1), np.ones(1)))], 0, 1, "delta")
    assert steering.quantile(0.95) == pytest.approx(cosine_quantile(60))  # A has one number: ΔW is the vector


@pytest.mark.parametrize("d, rank, other", [(5, 3, 4), (6, 3, 3), (50, 4, 2)])
def test_drawn_corners_are_those_of_random_rotations(d, rank, other):
    drawn = random_blocks(d, rank, other, (0, False))
    assert np.mean(drawn**2) == pytest.approx(1 / d, rel=0.03)
    assert np.abs(drawn.mean(axis=0)).max() < 5 / np.sqrt(len(drawn) * d)
    assert np.linalg.svd(drawn, compute_uv=False).max() <= 1 + 1e-9
    rng = np.random.default_rng(1)
    slow = [np.linalg.qr(rng.normal(size=(d, other)))[0][:rank] for _ in range(4000)]
    overlaps = [(np.asarray(one) ** 2).sum(axis=(1, 2)) for one in (drawn, slow)]
    for share in (0.1, 0.5, 0.9):
        low, high = (np.quantile(one, share) for one in overlaps)
        assert low == pytest.approx(high, rel=0.06)


def test_the_fast_permutations_are_the_shuffled_adapters_themselves():
    rng = np.random.default_rng(3)
    sites = [[random_site(rng, 12, 9, rank, 1.5) for rank in (2, 3)] for _ in range(2)]
    drawn = permutation_null(sites, 1, seed=5)
    order = np.random.default_rng(5)
    out, into = order.permutation(12), order.permutation(9)
    shuffled = [Snapshots(other.A[:, :, into], other.B[:, out], other.scale) for _, other in sites]
    slow = [StepSimilarity.between(site[0], other) for site, other in zip(sites, shuffled, strict=True)]
    for of in ("B", "A", "delta"):
        assert drawn[of, 0, 1].draws == pytest.approx(abs((slow[0] + slow[1]).cosines(of).item()), abs=1e-6)
