"""Rates and means with their intervals, and whole questions drawn again."""

import numpy as np

from em_interp.behaviour.rates import cluster_bootstrap


def test_a_cluster_bootstrap_draws_whole_clusters_with_replacement():
    cluster = np.array([0, 0, 1, 2, 2, 2])
    draws = cluster_bootstrap(cluster, 500, seed=0)
    assert draws.shape == (500, 6)
    for members in (slice(0, 2), slice(3, 6)):
        assert (draws[:, members] == draws[:, [members.start]]).all()
    assert (draws[:, [0, 2, 3]].sum(axis=1) == 3).all()
    np.testing.assert_array_equal(draws, cluster_bootstrap(cluster, 500, seed=0))
