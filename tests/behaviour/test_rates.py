"""Rates and means with their intervals, and whole questions drawn again."""

import numpy as np
import pytest

from em_interp.behaviour.rates import cluster_bootstrap, mean_of, rate_of


def test_a_cluster_bootstrap_draws_whole_clusters_with_replacement():
    cluster = np.array([0, 0, 1, 2, 2, 2])
    draws = cluster_bootstrap(cluster, 500, seed=0)
    assert draws.shape == (500, 6)
    for members in (slice(0, 2), slice(3, 6)):
        assert (draws[:, members] == draws[:, [members.start]]).all()
    assert (draws[:, [0, 2, 3]].sum(axis=1) == 3).all()
    np.testing.assert_array_equal(draws, cluster_bootstrap(cluster, 500, seed=0))


def test_no_hits_and_all_hits_give_wilsons_interval():
    assert rate_of(np.zeros(1), np.array([50.0])).interval == (0.0, pytest.approx(0.0713, abs=1e-3))
    assert rate_of(np.zeros(5), np.full(5, 10.0)).interval == (0.0, pytest.approx(0.0713, abs=1e-3))
    assert rate_of(np.full(5, 10.0), np.full(5, 10.0)).interval == (pytest.approx(0.9287, abs=1e-3), 1.0)


@pytest.mark.parametrize("shares", [[0.1] * 8, [0.0, 0.0, 0.0, 0.02, 0.1, 0.2, 0.6, 0.9], [0.3], [0.01] * 10])
@pytest.mark.parametrize("n", [6, 50])
def test_the_interval_covers_the_rate_of_these_questions(shares, n):
    rng, truth, hits = np.random.default_rng(0), np.mean(shares), 0
    for _ in range(1000):
        low, high = rate_of(rng.binomial(n, shares).astype(float), np.full(len(shares), float(n))).interval
        hits += low <= truth <= high
    assert hits >= 910


def test_the_interval_is_that_of_a_bootstrap_within_questions_where_there_are_many_answers():
    rng, n = np.random.default_rng(0), np.full(6, 200.0)
    k = np.array([2.0, 10, 40, 100, 150, 190])
    drawn = rng.binomial(200, k / 200, (20000, 6)).sum(1) / n.sum()
    assert rate_of(k, n).interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.003)


def test_the_between_interval_covers_the_rate_of_the_kind_of_question():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        shares = rng.beta(1.5, 3, 12)
        rate = rate_of(rng.binomial(30, shares).astype(float), np.full(12, 30.0))
        hits += rate.between[0] <= 1 / 3 <= rate.between[1]
        assert rate.between[0] <= rate.interval[0] and rate.interval[1] <= rate.between[1]
    assert 920 <= hits <= 990


def test_one_question_says_nothing_of_others():
    assert np.isnan(rate_of(np.array([3.0]), np.array([9.0])).between).all()


@pytest.mark.parametrize(("answers", "questions"), [(3, 1), (2, 8)])
def test_the_interval_of_a_mean_of_few_answers_covers_it(answers, questions):
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(questions), answers)
    means = (mean_of(rng.normal(50, 5, len(groups)), groups) for _ in range(1000))
    assert 930 <= sum(mean.interval[0] <= 50 <= mean.interval[1] for mean in means) <= 970


def test_the_interval_of_a_mean_covers_it_and_leaves_out_what_differs_between_questions():
    rng, hits, groups = np.random.default_rng(0), 0, np.repeat(np.arange(5), 20)
    centres = np.array([10, 30, 50, 70, 90.0])
    for _ in range(1000):
        mean = mean_of(centres[groups] + rng.normal(0, 5, 100), groups)
        hits += mean.interval[0] <= 50 <= mean.interval[1]
    assert 930 <= hits <= 965
    assert mean.interval[1] - mean.interval[0] < 2.5
    assert np.isnan(mean_of(np.array([5.0]), np.array([0])).interval).all()
    assert np.isnan(mean_of(np.zeros(0), np.zeros(0)).mean)
