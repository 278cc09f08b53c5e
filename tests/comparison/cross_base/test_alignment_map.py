"""Directions mapped between spaces: a planted rotation is undone, and what the map cannot know is reported."""

import numpy as np
import pytest

from em_interp.comparison.cross_base.alignment_map import fit_map
from em_interp.errors import InputError
from tests.comparison.cross_base.test_cka import points


def planted(texts=200, d=20, e=26, noise=0.0, linear=False):
    """Texts in one space, and the same in another: turned into more dimensions, or mapped by any matrix."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(texts, d)) * np.logspace(0, -2, d) + 5 * rng.normal(size=d)
    matrix = rng.normal(size=(d, e)) if linear else np.linalg.qr(rng.normal(size=(e, d)))[0].T
    Y = 3 * X @ matrix + rng.normal(size=e) + noise * rng.normal(size=(texts, e))
    return X, Y, matrix


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("kind", ["orthogonal", "ridge"])
def test_a_planted_rotation_is_undone_with_its_sign(kind):
    X, Y, turn = planted()
    fitted = fit_map(X, Y, kind)
    assert fitted.held_out_r2 > 0.999
    for seed in range(5):
        v = np.random.default_rng(seed).normal(size=20)
        mapped = fitted.map(v)
        assert cosine(mapped, v @ turn) > 0.999
        assert np.linalg.norm(mapped) == pytest.approx(1)
        np.testing.assert_allclose(fitted.map(-2 * v), -mapped, atol=1e-12)


def test_ridge_follows_a_map_that_is_no_rotation_and_orthogonal_does_not():
    X, Y, matrix = planted(linear=True)
    v = np.random.default_rng(1).normal(size=20)
    assert cosine(fit_map(X, Y, "ridge").map(v), v @ matrix) > 0.99
    assert fit_map(X, Y).held_out_r2 < fit_map(X, Y, "ridge").held_out_r2


def test_spaces_that_have_nothing_in_common_have_no_held_out_fit():
    for kind in ("orthogonal", "ridge"):
        assert fit_map(points(1), points(2), kind).held_out_r2 < 0.05


def test_a_direction_that_no_text_varies_along_is_lost():
    X, Y, _ = planted()
    X = np.hstack([X, np.ones((len(X), 1))])
    v, unseen = np.ones(21), np.eye(21)[20]
    np.testing.assert_allclose(fit_map(X, Y).map(v), fit_map(X, Y).map(v - unseen), atol=1e-9)
    with pytest.raises(InputError, match="no text varies along it"):
        fit_map(X, Y).map(unseen)


def test_bad_input_is_named():
    X, Y, _ = planted()
    with pytest.raises(InputError, match="20 numbers; found shape \\(3,\\)"):
        fit_map(X, Y).map(np.ones(3))
    with pytest.raises(InputError, match="did you mean 'orthogonal'"):
        fit_map(X, Y, "ortogonal")
    with pytest.raises(InputError, match="found 200 and 199"):
        fit_map(X, Y[1:])
    with pytest.raises(InputError, match="one point"):
        fit_map(X, np.ones_like(Y))
