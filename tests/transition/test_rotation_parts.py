"""The parts of the rotation locator against slow, obvious versions of themselves."""

import numpy as np
import pytest
from scipy.signal import lfilter

from em_interp.errors import InputError
from em_interp.transition.path_noise import block_sums, estimate_noise, even_increments, prefix_sums
from em_interp.transition.ramp import fit_ramp
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path
from em_interp.transition.turn_test import scan_turns


def increments_of(increments, spacing=1):
    path = np.concatenate([np.zeros((1, increments.shape[1])), np.cumsum(increments, axis=0)])[::spacing]
    return even_increments(path @ path.T, spacing * np.arange(len(path)))


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
    fast = block_sums(prefix_sums(matrix), edges)[0]
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


def test_the_scan_equals_explicit_angles_where_there_is_no_noise():
    heading = np.cumsum(np.concatenate([np.full(150, 0.002), np.full(10, 0.1), np.full(140, 0.002)]))
    speed = 1 + 0.5 * np.sin(np.arange(300) / 40)
    moved = np.zeros((300, 3))
    moved[:, 0], moved[:, 1] = speed * np.cos(heading), speed * np.sin(heading)
    moved += 1e-5 * np.random.default_rng(0).standard_normal(moved.shape)
    increments = increments_of(moved)

    def bearing(a, b):
        whole = moved[a:b].sum(0)
        return np.degrees(np.arctan2(whole[1], whole[0]))

    def centre(a, b, coordinate):
        return np.average(coordinate[a:b], weights=speed[a:b])

    travelled = np.cumsum(speed) - speed / 2
    for scan in scan_turns(increments, estimate_noise(increments)):
        m, gap = scan.half_block, scan.half_gap
        for row in range(0, len(scan.place), 40):
            c = scan.place[row]
            halves = [(c - gap - 2 * m, c - gap - m), (c - gap - m, c - gap), (c + gap, c + gap + m)]
            halves.append((c + gap + m, c + gap + 2 * m))
            left, right = (halves[0][0], halves[1][1]), (halves[2][0], halves[3][1])
            steady = []
            for coordinate in (travelled, np.arange(300) + 0.5):
                whole = centre(*right, coordinate) - centre(*left, coordinate)
                rate = [
                    (bearing(*b) - bearing(*a)) / (centre(*b, coordinate) - centre(*a, coordinate))
                    for a, b in ((halves[0], halves[1]), (halves[2], halves[3]))
                ]
                steady.append(whole * np.mean(rate))
            expected = bearing(*right) - bearing(*left) - max(*steady, 0)
            assert scan.turn[row] == pytest.approx(expected, rel=0.05, abs=0.5)  # the speed is smoothed at the turn


@pytest.mark.parametrize("width", [0, 30, 60])
def test_a_ramp_is_recovered_exactly_without_noise(width):
    ramp = np.clip((np.arange(400) + 0.5 - 180) / max(width, 1e-9) + 0.5, 0, 1)
    heading = np.radians(80) * ramp
    moved = np.stack([np.cos(heading), np.sin(heading), np.zeros(400)], 1)
    moved += 1e-4 * np.random.default_rng(1).standard_normal(moved.shape)
    increments = increments_of(moved)
    fitted = fit_ramp(
        increments, estimate_noise(increments), slice(70, 130), slice(230, 290), slice(70, 290), (110, 250)
    )
    assert fitted.step == pytest.approx(180, abs=0.5)
    assert fitted.interval[0] <= 180.3 and fitted.interval[1] >= 179.7
    assert fitted.width == pytest.approx(0.8 * width, abs=8)


@pytest.mark.parametrize("kind", [*TURNING, *NOT_TURNING])
def test_planted_paths_are_what_they_say(kind):
    for seed in range(3):
        path = planted_path(kind, seed)
        again = planted_path(kind, seed)
        assert np.array_equal(path.vectors, again.vectors)
        assert path.steps[0] == 0 and path.steps[-1] == path.settings["last"]
        assert (path.turn is not None) == (kind in TURNING)
        if path.turn is not None:
            assert 0.2 <= path.turn.step / path.settings["last"] <= 0.81 and 60 <= path.turn.angle_deg <= 120
        trajectory = path.trajectory()
        assert trajectory.gram("B") == pytest.approx(path.gram)
        assert (path.cumulative_lr is None) == bool(np.isnan(trajectory.cumulative_lr).all())


def test_an_unknown_kind_of_planted_path_lists_the_kinds():
    with pytest.raises(InputError, match="did you mean 'abrupt'"):
        planted_path("abrubt", 0)
