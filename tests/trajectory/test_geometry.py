"""Measures of a path from its Gram matrix, against the same measures taken from the vectors."""

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.trajectory import geometry

PUBLIC_STEPS = np.array([*range(1, 11), *range(15, 101, 5), 103])


def some_path(seed=0, steps=PUBLIC_STEPS, d=7):
    """Vectors of a random path, and their Gram matrix."""
    vectors = np.cumsum(np.random.default_rng(seed).normal(size=(len(steps), d)) + 0.5, axis=0)
    return vectors, vectors @ vectors.T


def angle(u, v):
    return np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))


def every_measure(gram, steps):
    components = geometry.principal_components(gram)
    return {
        "norms": geometry.norms(gram),
        "to step": geometry.cosine_to_step(gram, steps, int(steps[3])),
        "turning": geometry.turning_angle(gram, steps, 5),
        "local cosine": geometry.local_cosine(gram, steps, 5),
        "length": geometry.arc_length(gram),
        "scores": components.scores,
        "explained": components.explained,
    }


def test_norms_cosines_and_length_are_those_of_the_vectors():
    vectors, gram = some_path()
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(geometry.norms(gram), lengths)
    np.testing.assert_allclose(
        geometry.cosine_to_step(gram, PUBLIC_STEPS, 9), vectors @ vectors[8] / (lengths * lengths[8])
    )
    moves = np.linalg.norm(np.diff(vectors, axis=0), axis=1)
    np.testing.assert_allclose(geometry.arc_length(gram), np.concatenate([[0], np.cumsum(moves)]))


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_turning_angles_look_neighbours_up_by_step_and_are_nan_where_one_was_not_saved(k):
    vectors, gram = some_path()
    at = dict(zip(PUBLIC_STEPS.tolist(), vectors, strict=True))
    expected = [
        angle(at[t] - at[t - k], at[t + k] - at[t]) if t - k in at and t + k in at else np.nan
        for t in PUBLIC_STEPS.tolist()
    ]
    np.testing.assert_allclose(geometry.turning_angle(gram, PUBLIC_STEPS, k), expected)


def test_a_straight_path_has_local_cosine_minus_one_and_no_angle():
    vectors = np.outer(np.arange(30.0), [3.0, 4.0])
    gram, steps = vectors @ vectors.T, np.arange(30)
    inner = slice(5, -5)
    np.testing.assert_allclose(geometry.local_cosine(gram, steps, 5)[inner], -1)
    np.testing.assert_allclose(geometry.turning_angle(gram, steps, 5)[inner], 0, atol=1e-5)


def test_a_right_angled_corner_turns_by_90_degrees_at_its_step():
    vectors = np.array([[min(t, 20), max(t - 20, 0)] for t in range(41)], dtype=float)
    turned = geometry.turning_angle(vectors @ vectors.T, np.arange(41), 10)
    assert np.nanargmax(turned) == 20
    assert turned[20] == pytest.approx(90)


def test_a_zero_vector_and_a_path_that_stands_still_have_no_direction():
    vectors = np.zeros((20, 3))
    vectors[5:] = [1.0, 2.0, 3.0]
    gram, steps = vectors @ vectors.T, np.arange(20)
    assert np.isnan(geometry.cosine_to_step(gram, steps, 19)[:5]).all()
    assert np.isnan(geometry.turning_angle(gram, steps, 2)).all()
    assert geometry.norms(gram)[0] == 0
    assert np.isnan(geometry.principal_components(np.ones((4, 4))).explained).all()


def test_rounding_of_float32_positions_is_no_direction():
    vectors = np.float32(1 / 3) + np.zeros((10, 50), dtype=np.float32)
    vectors[1::2] = np.nextafter(vectors[1::2], np.float32(1))
    exact = vectors.astype(np.float64)
    assert np.isnan(geometry.turning_angle(exact @ exact.T, np.arange(10), 1)).all()


def test_nothing_depends_on_sign_or_on_a_rotation_of_the_space():
    vectors, gram = some_path()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0]
    for other in (-vectors, vectors @ rotation):
        for name, value in every_measure(other @ other.T, PUBLIC_STEPS).items():
            np.testing.assert_allclose(value, every_measure(gram, PUBLIC_STEPS)[name], atol=1e-6, err_msg=name)


def test_angles_length_and_components_do_not_depend_on_the_origin():
    vectors, gram = some_path()
    moved = vectors - vectors[0]
    here, there = every_measure(gram, PUBLIC_STEPS), every_measure(moved @ moved.T, PUBLIC_STEPS)
    for name in ("turning", "local cosine", "length", "scores", "explained"):
        np.testing.assert_allclose(here[name], there[name], atol=1e-6, err_msg=name)


def test_principal_components_are_those_of_the_centred_vectors():
    vectors, gram = some_path()
    centred = vectors - vectors.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    found = geometry.principal_components(gram, components=3)
    np.testing.assert_allclose(found.explained, (singular**2 / np.sum(singular**2))[:3])
    np.testing.assert_allclose(np.abs(found.scores), np.abs(centred @ axes[:3].T), atol=1e-9)
    assert (found.scores[-1] >= 0).all()


def test_a_step_that_was_not_saved_is_refused_with_its_nearest_neighbours():
    _, gram = some_path()
    with pytest.raises(InputError, match=r"step 17 was not saved; the nearest saved steps are 10, 15, 20"):
        geometry.cosine_to_step(gram, PUBLIC_STEPS, 17)
    with pytest.raises(InputError, match="spacing k"):
        geometry.turning_angle(gram, PUBLIC_STEPS, 0)


def test_evenly_spaced_steps_keep_the_ends_and_are_even_in_steps_not_in_rows():
    steps = np.array([*range(1, 11), *range(15, 401, 5)])
    kept = steps[geometry.evenly_spaced(steps, 9)]
    assert kept.tolist() == [1, 50, 100, 150, 200, 250, 300, 350, 400]
    assert geometry.evenly_spaced(steps, 500).tolist() == list(range(len(steps)))
