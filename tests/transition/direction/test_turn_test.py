"""The statistic of the rotation test against explicit angles."""

import numpy as np
import pytest

from em_interp.transition.direction.path_noise import estimate_noise
from em_interp.transition.direction.turn_test import scan_turns
from tests.transition.moves import increments_of


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
        for row in range(0, len(scan.centre), 40):
            c = scan.centre[row]
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
