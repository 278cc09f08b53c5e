"""CKA and Procrustes: formulas against slow ones, their invariances, and unrelated points."""

import numpy as np
import pytest

from em_interp.comparison.cross_base.alignment_map import held_out_cosine, max_components, principal_scores
from em_interp.comparison.cross_base.cka import u_centred


def debiased_cka(first, second):
    return float((u_centred(first[None]) @ u_centred(second[None]).T)[0, 0])


def procrustes_similarity(first, second):
    return held_out_cosine(*(principal_scores(points, max_components(len(points))) for points in (first, second)))


MEASURES = [debiased_cka, procrustes_similarity]


def points(seed, texts=60, d=12, rank=None):
    rng = np.random.default_rng([seed, 5])
    if rank is None:
        return rng.normal(size=(texts, d))
    return rng.normal(size=(texts, rank)) @ rng.normal(size=(rank, d))


def turned(matrix, seed=0):
    """The same points in other coordinates, moved and scaled."""
    rng = np.random.default_rng([seed, 6])
    turn = np.linalg.qr(rng.normal(size=(matrix.shape[1],) * 2))[0]
    return -0.3 * matrix @ turn + rng.normal(size=matrix.shape[1])


def hsic(K, L):
    """Song et al. 2012, equation 5, as it is written."""
    n, one = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    inside = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ K @ L @ one
    return inside / (n * (n - 3))


def test_cka_is_the_ratio_of_unbiased_hsics():
    X, Y = points(1), np.hstack([points(1)[:, :5], points(2)])
    K, L = X @ X.T, Y @ Y.T
    assert debiased_cka(X, Y) == pytest.approx(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)), abs=1e-12)
    assert 0.05 < debiased_cka(X, Y) < 0.95


def test_the_table_holds_the_cka_of_every_pair():
    ones, others = np.stack([points(1), points(2)]), np.stack([points(k, d=30) for k in (3, 4, 5)])
    table = u_centred(ones) @ u_centred(others).T
    assert table.shape == (2, 3)
    assert table[1, 2] == pytest.approx(debiased_cka(points(2), points(5, d=30)), abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("d", [12, 300])
def test_the_same_points_in_any_coordinates_are_identical(measure, d):
    X = points(1, d=d)
    assert measure(X, X) == pytest.approx(1, abs=1e-9)
    padded = np.hstack([turned(X), np.zeros((len(X), 3))])
    assert debiased_cka(X, padded) == pytest.approx(1, abs=1e-9)
    assert measure(points(2, d=d, rank=3), turned(points(2, d=d, rank=3))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_similarity_changes_with_neither_sign_nor_coordinates_nor_order_of_the_two(measure):
    X, Y = points(1), np.hstack([points(1)[:, :6] * 2, points(2, d=9)])
    found = measure(X, Y)
    assert 0.1 < found < 0.9
    assert measure(turned(X), turned(Y, 1)) == pytest.approx(found, abs=1e-9)
    assert measure(Y, X) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("d", [5, 300])
def test_unrelated_points_are_about_zero_whatever_the_dimension(measure, d):
    found = [measure(points(k, d=d), points(k + 1000, d=d + 7)) for k in range(40)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(40) + 0.002
    assert np.std(found) < 0.15


def test_a_biased_estimate_would_have_called_them_similar():
    X, Y = (m - m.mean(axis=0) for m in (points(1, d=300), points(2, d=300)))
    K, L = X @ X.T, Y @ Y.T
    assert (K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()) > 0.8
    assert abs(debiased_cka(X, Y)) < 0.1


@pytest.mark.parametrize("measure", MEASURES)
def test_points_that_do_not_vary_have_no_similarity(measure):
    assert np.isnan(measure(points(1), np.ones((60, 4))))
