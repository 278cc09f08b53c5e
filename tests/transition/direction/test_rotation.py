"""The rotation locator on paths whose truth was planted, and what may not change its answer."""

import numpy as np
import pytest
from scipy.signal import lfilter

from em_interp.transition.direction.local_cosine import largest_local_cosine
from em_interp.transition.direction.rotation import locate_rotations, significant_rotation, strongest
from em_interp.transition.result import Transition
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path

SEEDS = range(500, 520)


def locate(path):
    return strongest(locate_rotations(path.gram, path.steps, path.cumulative_lr))


def corner(angles, lengths, d=64, noise=0.1, seed=0):
    """A path of straight stretches, each turning by the next angle in a fresh plane, with white noise."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((d, len(lengths))))[0].T
    direction, increments = axes[0], []
    for length, angle, side in zip(lengths, [0.0, *angles], axes, strict=True):
        if angle:
            direction = np.cos(np.radians(angle)) * direction + np.sin(np.radians(angle)) * side
        increments += [direction] * length
    increments = np.array(increments) + noise * rng.standard_normal((sum(lengths), d)) / np.sqrt(d)
    vectors = np.concatenate([np.zeros((1, d)), np.cumsum(increments, axis=0)])
    return np.arange(len(vectors)), vectors


@pytest.mark.parametrize("kind", TURNING)
def test_a_planted_turn_is_found_where_it_is(kind):
    paths = [planted_path(kind, seed) for seed in SEEDS]
    found = [(path.turn, t) for path in paths if (t := locate(path)).found]
    assert len(found) >= 18
    errors = np.array([abs(t.step - turn.step) for turn, t in found])
    assert np.median(errors) <= 2
    assert all(error <= max(8, turn.width / 2) for error, (turn, _) in zip(errors, found, strict=True))
    assert np.mean([t.interval[0] <= turn.step <= t.interval[1] for turn, t in found]) >= 0.9
    assert all(t.p_value <= 0.01 and t.level == 0.95 and sum(t.length_share) == pytest.approx(1) for _, t in found)


@pytest.mark.parametrize("kind", NOT_TURNING)
def test_a_path_without_a_turn_is_not_given_one(kind):
    answers = [locate(planted_path(kind, seed)) for seed in SEEDS]
    assert sum(t.found for t in answers) <= 1
    p = np.array([1.0 if t.p_value is None else t.p_value for t in answers])
    assert np.mean(p <= 0.1) <= 0.25
    assert all(t.step is None and t.interval is None for t in answers if not t.found)


@pytest.mark.parametrize(("seed", "last", "noise_ratio"), [(1_000_083, 1590, 1.22), (1_000_219, 1575, 2.83)])
def test_noise_that_jumps_where_a_schedule_starts_again_is_no_turn(seed, last, noise_ratio):
    """Each was a turn with p below 1e-5 when the noise beside the restart was smoothed across it."""
    assert locate(planted_path("restart", seed, last=last, noise_ratio=noise_ratio)).verdict == "none"


def test_the_published_heuristic_names_a_step_where_there_is_none():
    path = planted_path("straight", 500)
    assert largest_local_cosine(path.gram, path.steps)[0] is not None
    assert locate(path).verdict == "none"


def test_without_a_direction_the_p_value_is_undefined_and_not_one():
    answers = [locate(planted_path("random_walk", seed)) for seed in SEEDS]
    assert {t.verdict for t in answers} == {"inconclusive"}
    assert sum(t.p_value is None for t in answers) >= 17


def test_sign_size_and_a_rotation_of_the_space_change_nothing():
    path = planted_path("gradual", 501)
    vectors = path.vectors.astype(float)
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((vectors.shape[1],) * 2))[0]
    before = locate(path)
    assert before.found
    for changed in (-vectors, 3e-4 * vectors, vectors @ turned, vectors + vectors[7]):
        after = strongest(locate_rotations(changed @ changed.T, path.steps, path.cumulative_lr))
        assert after.step == pytest.approx(before.step, abs=1e-3)
        assert after.p_value == pytest.approx(before.p_value, rel=1e-3)
        assert after.interval == before.interval


def test_the_same_path_saved_more_rarely_gives_the_same_step():
    steps, vectors = corner([80], [200, 200])
    dense = strongest(locate_rotations(vectors @ vectors.T, steps))
    for rows in (steps[::5], steps[::8], np.unique([*range(11), *steps[::5]])):
        rare = strongest(locate_rotations(vectors[rows] @ vectors[rows].T, steps[rows]))
        assert dense.found and rare.found
        assert abs(rare.step - dense.step) <= 1.5


def test_speed_alone_is_no_turn_and_hides_none():
    steps, vectors = corner([90], [200, 200], noise=0.0)
    rng = np.random.default_rng(2)
    speed = np.exp(np.cumsum(0.05 * rng.standard_normal(400)))
    increments = np.diff(vectors, axis=0) * speed[:, None] + 0.02 * rng.standard_normal((400, 64))
    warped = np.concatenate([np.zeros((1, 64)), np.cumsum(increments, axis=0)])
    found = strongest(locate_rotations(warped @ warped.T, steps))
    assert found.found and abs(found.step - 200) <= 1
    straight = np.concatenate([np.zeros((1, 64)), np.cumsum(increments[:200], axis=0)])
    assert strongest(locate_rotations(straight @ straight.T, steps[:201])).verdict == "none"


def test_several_turns_are_all_found_in_order():
    steps, vectors = corner([70, 100], [150, 200, 150])
    found = locate_rotations(vectors @ vectors.T, steps)
    assert [round(t.step) for t in found] == [150, 350]
    assert [t.angle_deg for t in found] == pytest.approx([70, 100], abs=5)
    assert strongest(found) in found


def test_a_turn_that_two_windows_locate_at_one_place_is_one_turn():
    """As on trained paths: A of a run with a restart turns at 149.9 (147 to 152), and at 150.0 (146 to 213) again."""
    clear, again, wide, none = (
        Transition("rotation", "transition", "", step=step, interval=interval)
        for step, interval in ((149.9, (147, 152)), (150.0, (146, 213)), (190.0, (146, 213)), (None, None))
    )
    assert again.coincides_with(clear) and clear.coincides_with(again)
    assert not any(a.coincides_with(b) for a, b in ((wide, clear), (clear, wide), (none, clear)))


def test_a_bend_over_more_than_a_third_of_the_run_is_none_but_is_described():
    last = 600
    heading = np.radians(90) * np.clip((np.arange(last) + 0.5 - 150) / 300, 0, 1)
    increments = np.zeros((last, 32))
    increments[:, 0], increments[:, 1] = np.cos(heading), np.sin(heading)
    increments += 0.02 * np.random.default_rng(3).standard_normal(increments.shape)
    vectors = np.concatenate([np.zeros((1, 32)), np.cumsum(increments, axis=0)])
    answer = strongest(locate_rotations(vectors @ vectors.T, np.arange(last + 1)))
    assert answer.verdict == "none"
    assert answer.angle_deg == pytest.approx(90, abs=10)
    assert answer.width == pytest.approx(0.8 * 300, rel=0.25)


def test_a_turn_over_a_negligible_length_is_inconclusive():
    steps, vectors = corner([90], [400, 200], noise=0.0)
    slow = np.diff(vectors, axis=0) * np.where(np.arange(600) < 400, 1.0, 0.05)[:, None]
    slow += 0.002 * np.random.default_rng(4).standard_normal(slow.shape)
    vectors = np.concatenate([np.zeros((1, 64)), np.cumsum(slow, axis=0)])
    answer = strongest(locate_rotations(vectors @ vectors.T, steps, steps.astype(float)))
    assert answer.verdict == "inconclusive"
    assert abs(answer.step - 400) <= 2
    assert answer.length_share[1] == pytest.approx(10 / 410, abs=0.01)
    assert "10 %" in answer.reason


def test_the_schedule_counts_from_where_the_path_begins():
    """Checkpoints at 500 to 1000 of a run with a constant rate; 9 % of the length lies before the turn at 580."""
    steps, vectors = corner([90], [80, 420], noise=0.0)
    increments = np.diff(vectors, axis=0) * np.where(np.arange(500) < 80, 0.52, 1.0)[:, None]
    increments += 0.01 * np.random.default_rng(4).standard_normal(increments.shape)
    vectors = np.concatenate([np.zeros((1, 64)), np.cumsum(increments, axis=0)])
    gram, lr = vectors @ vectors.T, 1e-4 * steps
    for first in (0, 500):
        answer = strongest(locate_rotations(gram, steps + first, lr + 1e-4 * first))
        assert answer.length_share[0] == pytest.approx(0.09, abs=0.005)
        assert answer.found and answer.step == pytest.approx(first + 80, abs=2)


def test_a_turn_that_was_not_tested_has_no_p_value_and_no_verdict():
    steps, vectors = corner([], [200])
    untested = significant_rotation(vectors @ vectors.T, steps, 0.001)
    assert (untested.verdict, untested.p_value) == ("inconclusive", None)


def test_too_few_checkpoints_and_a_path_that_stands_still_are_inconclusive():
    steps, vectors = corner([90], [8, 8])
    short = strongest(locate_rotations(vectors @ vectors.T, steps))
    assert short.verdict == "inconclusive" and short.p_value is None and "16" in short.reason
    still = strongest(locate_rotations(np.ones((100, 100)), np.arange(100)))
    assert still.verdict == "inconclusive" and still.p_value is None
    alone = strongest(locate_rotations(np.ones((1, 1)), np.array([0])))
    assert alone.verdict == "inconclusive"


def test_a_noiseless_path_is_handled():
    steps, vectors = corner([75], [150, 150], noise=0.0)
    found = strongest(locate_rotations(vectors @ vectors.T, steps))
    assert found.found and found.step == pytest.approx(150, abs=0.5) and found.angle_deg == pytest.approx(75, abs=1)
    straight = vectors[:150]
    assert strongest(locate_rotations(straight @ straight.T, steps[:150])).verdict == "none"


def test_a_path_without_any_noise_at_all_is_no_error():
    """Whole numbers, so that nothing is rounded and second differences vanish exactly."""
    straight = np.outer(np.arange(60.0), [1, 2, 3, 4])
    found = strongest(locate_rotations(straight @ straight.T, np.arange(60)))
    assert found.verdict == "none" and found.p_value == 1
    bent = np.concatenate([straight, straight[-1] + np.outer(np.arange(1.0, 61), [4, -2, 0, 0])])
    found = strongest(locate_rotations(bent @ bent.T, np.arange(120)))
    assert (
        found.found and found.interval[0] <= 59 <= found.interval[1] and found.angle_deg == pytest.approx(90, abs=0.1)
    )


def bending_twice(seed, middles=(170, 215), angle=40.0, width=10, last=400, d=64):
    """A path that turns out of its direction into a second one, and a little later into a third."""
    rng, time = np.random.default_rng(seed), np.arange(last) + 0.5
    one, two = (np.radians(angle) * np.clip((time - middle) / width + 0.5, 0, 1) for middle in middles)
    increments = rng.standard_normal((last, d)) * np.sqrt(0.9 / d)
    increments[:, :3] += np.stack([np.cos(one) * np.cos(two), np.sin(one) * np.cos(two), np.sin(two)], 1)
    return np.concatenate([np.zeros((1, d)), np.cumsum(increments, 0)])


@pytest.mark.parametrize("seed", range(3))
def test_where_a_path_bends_twice_the_interval_holds_what_is_found_when_fewer_steps_were_saved(seed):
    vectors = bending_twice(seed)
    found = []
    for k in (1, 2, 3, 4, 5):
        rows = vectors[::k]
        found.append(strongest(locate_rotations(rows @ rows.T, np.arange(401)[::k])))
    low, high = found[0].interval
    assert high - low > 20 and "bends more than once" in found[0].reason
    middles = found[0].evidence["bends"][:, 0]
    assert found[0].step == middles[0] and abs(np.sum(middles < middles[0]) - np.sum(middles > middles[0])) <= 1
    assert all(low <= other.step <= high for other in found)
    single = bending_twice(seed, middles=(190, 1000))
    once = strongest(locate_rotations(single @ single.T, np.arange(401)))
    assert once.interval[0] <= 190 <= once.interval[1] and once.interval[1] - once.interval[0] <= 6
    assert "bends" not in once.reason


def test_a_window_that_does_not_bracket_the_turn_says_nothing_about_its_step():
    """The heading turns slowly, then quickly: some windows would place the middle beyond where they can see it."""
    rng, time = np.random.default_rng(5), np.arange(400) + 0.5
    heading = np.radians(np.interp(time, [0, 20, 90, 115, 145, 165, 400], [0, 0, 60, 105, 105, 118, 118]))
    increments = 0.5 / np.sqrt(64) * rng.standard_normal((400, 64))
    increments[:, :2] += np.stack([np.cos(heading), np.sin(heading)], 1)
    vectors = np.concatenate([np.zeros((1, 64)), np.cumsum(increments, 0)])
    found = strongest(locate_rotations(vectors @ vectors.T, np.arange(401)))
    low, high = found.interval
    assert found.found and low + (high - low) / 5 < found.step < high - (high - low) / 5


@pytest.mark.parametrize("noise", [1e-3, 0.3])
def test_a_path_that_stops_moving_after_its_turn_has_its_turn(noise):
    drift = np.zeros((400, 64))
    drift[:150, 0] = drift[150:200, 1] = 1
    drift[:200] += noise * np.random.default_rng(1).normal(size=(200, 64))
    vectors = np.concatenate([np.zeros((1, 64)), np.cumsum(drift, axis=0)])
    found = strongest(locate_rotations(vectors @ vectors.T, np.arange(401)))
    assert found.found and found.interval[0] <= 150 <= found.interval[1]


def stopping(seed, last=400, moving=160, d=64):
    """A straight path with momentum-smoothed noise, which stops."""
    noise = lfilter([0.1], [1, -0.9], np.random.default_rng(seed).standard_normal((last + 100, d)), axis=0)[100:]
    increments = np.where(np.arange(last)[:, None] < moving, noise + 1.5 * np.eye(d)[0], 0.0)
    return np.concatenate([np.zeros((1, d)), np.cumsum(increments, axis=0)])


def test_a_straight_path_that_stops_has_no_turn():
    for seed in range(12):
        vectors = stopping(seed)
        assert not locate_rotations(vectors @ vectors.T, np.arange(401))[0].found
    hardly = stopping(0, moving=30)
    reason = locate_rotations(hardly @ hardly.T, np.arange(401))[0].reason
    assert reason == "The path moves in only 8% of its increments; 20% are needed."


def test_a_checkpoint_of_another_run_is_named_and_makes_no_turn():
    for seed in range(10):
        path = planted_path("straight", seed)
        vectors, row = path.vectors.astype(float), len(path.steps) // 3
        vectors[row] = np.random.default_rng(seed).permutation(vectors[row])
        found = locate_rotations(vectors @ vectors.T, path.steps)[0]
        assert (found.verdict, found.p_value) == ("inconclusive", None)
        assert f"step {path.steps[row]} lies far off the path" in found.reason
