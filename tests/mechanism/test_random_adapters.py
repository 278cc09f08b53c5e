import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.mechanism.random_adapters import cosine_band, cosine_quantile, random_adapters, random_directions
from em_interp.trajectory import geometry
from tests.behaviour.conftest import SITES, make_trajectory
from tests.comparison.planting import SITE, adapter, in_another_gauge


@pytest.mark.parametrize("rank", [1, 3])
def test_random_adapters_have_the_singular_values_of_the_real_one_and_nothing_else_of_it(rank):
    real = adapter(1, rank=rank)
    drawn = random_adapters(real, range(200))
    wanted, found = (
        np.linalg.svd(path.B[SITE].astype(float) @ path.A[SITE], compute_uv=False)[:, :rank] for path in (real, drawn)
    )
    np.testing.assert_allclose(found, np.tile(wanted[-1], (200, 1)), rtol=1e-5)
    b, others = real.B[SITE][-1, :, 0], drawn.B[SITE][:, :, 0]
    cosines = others @ b / np.linalg.norm(b) / np.linalg.norm(others, axis=1)
    assert abs(cosines.mean()) < 3 / np.sqrt(40 * 200)
    assert cosines.std() == pytest.approx(1 / np.sqrt(40), rel=0.2)


@pytest.mark.parametrize("keep_A", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
def test_sign_and_gauge_do_not_change_what_is_drawn(rank, keep_A):
    real = adapter(1, rank=rank)
    one, other = (random_adapters(path, range(3), keep_A=keep_A) for path in (real, in_another_gauge(real)))
    for k in range(3):
        mine, theirs = (drawn.B[SITE][k] @ drawn.A[SITE][k] for drawn in (one, other))
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_draws_are_the_same_each_time_and_others_for_another_key():
    real = adapter(1)
    few, more = random_adapters(real, [2, 3], (0,)), random_adapters(real, range(4), (0,))
    assert np.array_equal(few.B[SITE], more.B[SITE][2:])
    assert not np.allclose(few.B[SITE], random_adapters(real, [2, 3], (1,)).B[SITE])


def test_an_adapter_that_is_zero_has_no_random_counterpart():
    silent = adapter(1)
    silent.B[SITE][:] = 0
    with pytest.raises(InputError, match="is zero at step 100"):
        random_adapters(silent, [0])


@pytest.mark.parametrize("keep_A", [False, True])
def test_random_adapters_have_the_final_norm_at_every_site_and_no_direction_in_common(keep_A):
    path = make_trajectory(SITES, (0, 5, 10, 20, 40), rank=2)
    drawn = random_adapters(path, range(6), (3,), keep_A=keep_A)
    for site in path.sites:
        expected = geometry.norms(path.gram("delta", site))[-1]
        np.testing.assert_allclose(geometry.norms(drawn.gram("delta", site)), expected, rtol=1e-5)
        assert np.array_equal(drawn.A[site][0], drawn.A[site][1]) == keep_A
    unit = drawn.vectors("B") / np.linalg.norm(drawn.vectors("B"), axis=1, keepdims=True)
    assert np.abs((unit @ unit.T)[np.triu_indices(6, 1)]).max() < 0.5


def test_with_its_a_kept_a_random_adapter_reads_what_the_real_one_reads():
    real = adapter(1, rank=3)
    drawn = random_adapters(real, range(2), keep_A=True)
    read, kept = real.A[SITE][-1].astype(float), drawn.A[SITE][0].astype(float)
    onto_read = read.T @ np.linalg.solve(read @ read.T, read)
    np.testing.assert_allclose(kept @ onto_read, kept, atol=1e-6)


def test_a_site_that_is_zero_stays_zero():
    path = make_trajectory(SITES, (0, 5))
    first, *others = path.sites
    path.B[first][:] = 0
    drawn = random_adapters(path, range(2))
    assert not drawn.B[first].any() and all(drawn.B[site].any() for site in others)


def test_random_directions_are_exactly_as_long_as_the_one_they_stand_for():
    vectors = np.random.default_rng(1).normal(size=(4, 400)) * [[1], [5], [0], [0.01]]
    drawn = [random_directions(vectors, np.random.default_rng(seed)) for seed in range(100, 130)]
    for one in drawn:  # a draw from a standard normal would be 20 times too long
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-12)
    cosines = [one[1] @ vectors[1] / (vectors[1] @ vectors[1]) for one in drawn]
    assert abs(np.mean(cosines)) < 4 / np.sqrt(30 * 400)


def test_the_band_of_random_directions_is_exact():
    drawn = np.random.default_rng(0).normal(size=(20000, 12))
    cosines = np.abs(drawn[:, 0]) / np.linalg.norm(drawn, axis=1)
    assert abs(np.mean(cosines > cosine_quantile(12)) - 0.05) < 0.005


@pytest.mark.parametrize("mean", [0.0, 0.1, 0.4])
def test_the_band_of_drawn_adapters_holds_the_next_one_as_often_as_it_says(mean):
    rng = np.random.default_rng(0)
    drawn = np.clip(rng.normal(mean, 0.1, size=(600, 21)), -1, 1)
    held = [abs(row[20]) <= cosine_band(row[:20], 0.95) for row in drawn]
    assert 0.93 < np.mean(held) < 0.985
