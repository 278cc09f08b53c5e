"""Increments and their noise, against slow versions and against noise that was drawn."""

import numpy as np
import pytest
from scipy.signal import lfilter

from em_interp.transition.direction.path_noise import (
    between_blocks,
    estimate_noise,
    even_increments,
    prefix_sums,
    unusable,
)
from tests.transition.moves import increments_of


def test_increments_look_neighbours_up_by_step_in_the_public_layout():
    steps = np.unique([*range(11), *range(10, 793, 5), 792])
    vectors = np.random.default_rng(0).standard_normal((len(steps), 8)).cumsum(0)
    increments = even_increments(vectors @ vectors.T, steps)
    assert increments.spacing == 5 and set(np.diff(increments.edges)) <= {4, 5, 6}
    assert increments.edges[0] == 0 and increments.edges[-1] >= 790
    rows = np.searchsorted(steps, increments.edges)
    moved = np.diff(vectors[rows], axis=0)
    assert increments.gram == pytest.approx(moved @ moved.T)


def test_two_runs_joined_off_the_grid_stay_one_stretch():
    steps = np.array([*range(0, 676, 5), 676, *range(681, 1352, 5), 1352])
    increments = even_increments(np.eye(len(steps)), steps)
    assert increments.edges[0] == 0 and increments.edges[-1] >= 1350


def test_very_dense_runs_are_pooled():
    vectors = np.random.default_rng(0).standard_normal((2001, 4)).cumsum(0)
    increments = even_increments(vectors @ vectors.T, np.arange(2001))
    assert increments.spacing == 3 and increments.count <= 800


def test_block_sums_equal_the_slow_ones():
    matrix = np.random.default_rng(0).standard_normal((20, 20))
    edges = np.array([[2, 5, 6, 11]])
    fast = between_blocks(prefix_sums(matrix), edges[:, :-1], edges[:, 1:])[0]
    slow = [[matrix[a:b, c:d].sum() for c, d in ((2, 5), (5, 6), (6, 11))] for a, b in ((2, 5), (5, 6), (6, 11))]
    assert fast == pytest.approx(np.array(slow))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("spacing", [1, 5])
def test_the_noise_of_a_long_sum_is_estimated_from_short_contrasts(momentum, spacing):
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(10):
        noise = rng.standard_normal((700, 40))
        noise = lfilter([1 - momentum], [1, -momentum], noise, axis=0)[100:]
        drift = np.array([0.3] + [0.0] * 39) * np.linspace(1, 0, 600)[:, None]
        model = estimate_noise(increments_of(noise + drift, spacing))
        count = 60 // spacing  # sums over 60 steps
        expected = sum(momentum ** abs(i - j) for i in range(60) for j in range(60)) * 40
        expected *= (1 - momentum) / (1 + momentum)
        middle = slice(200 // spacing, 200 // spacing + count)
        ratios.append(model.covariance[middle, middle].sum() / expected)
        assert 1 / model.inverse_dimension == pytest.approx(40, rel=0.3)
    assert np.mean(ratios) == pytest.approx(1, abs=0.25)


DECAY = np.linspace(1, 0, 300, endpoint=False)


@pytest.mark.parametrize("size", [np.r_[DECAY, DECAY], np.r_[np.ones(300), 0.1 * np.ones(300)]], ids=["again", "step"])
@pytest.mark.parametrize("spacing", [1, 5])
def test_noise_whose_size_jumps_is_estimated_on_either_side(size, spacing):
    noise = np.random.default_rng(6).standard_normal((600, 400)) * size[:, None]
    model = estimate_noise(increments_of(noise, spacing))
    true = (size**2).reshape(-1, spacing).sum(1) * 400
    beside = [*range(280 // spacing, 290 // spacing), *range(305 // spacing, 330 // spacing)]
    assert (np.diag(model.covariance)[beside] > 0.6 * true[beside]).all()
    after = beside[len(beside) - 25 // spacing :]
    assert np.diag(model.covariance)[after].mean() / true[after].mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("size", [DECAY, 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, 300)), np.ones(300)])
def test_the_noise_of_a_smooth_schedule_has_no_jump(size, monkeypatch):
    noise = np.random.default_rng(7).standard_normal((300, 60)) * size[:, None]
    found = estimate_noise(increments_of(noise, 1)).covariance
    monkeypatch.setattr("em_interp.transition.direction.path_noise.JUMP", np.inf)
    assert np.array_equal(found, estimate_noise(increments_of(noise, 1)).covariance)


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_a_path_that_stops_has_the_noise_of_the_part_that_moves(share):
    rng = np.random.default_rng(8)
    noise = lfilter([0.1], [1, -0.9], rng.standard_normal((500, 60)), axis=0)[100:]
    moving = round(400 * (1 - share))
    path = noise + 0.1
    path[moving:] = 0
    stopped, alone = estimate_noise(increments_of(path, 1)), estimate_noise(increments_of(path[:moving], 1))
    middle = slice(20, moving - 20)
    ratio = stopped.covariance[middle, middle].sum() / alone.covariance[middle, middle].sum()
    assert ratio == pytest.approx(1, abs=0.1)
    assert stopped.inverse_dimension == pytest.approx(alone.inverse_dimension, rel=0.2)


@pytest.mark.parametrize("drop", [0.01, 0.001])
def test_the_dimension_of_noise_survives_a_drop_of_the_learning_rate(drop):
    for seed in range(5):
        noise = np.random.default_rng(seed).standard_normal((300, 60))
        whole = estimate_noise(increments_of(noise, 1)).inverse_dimension
        noise[150 + 7 * seed :] *= drop
        assert estimate_noise(increments_of(noise, 1)).inverse_dimension == pytest.approx(whole, rel=0.25)


def test_noise_that_grows_along_a_run_puts_no_checkpoint_off_the_path():
    size = np.exp(np.linspace(-4, 1, 200))
    for seed in range(40):
        moves = np.stack([np.ones(200), size * np.random.default_rng(seed).standard_normal(200)], axis=1)
        vectors = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
        assert unusable(even_increments(vectors @ vectors.T, np.arange(201))) == ""
