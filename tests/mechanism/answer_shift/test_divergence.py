import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from em_interp.errors import InputError
from em_interp.mechanism.answer_shift.divergence import FORMS, divergence, pointwise_divergence, posterior_left

CLOSED = {
    "linear": lambda p, q: 0.5 * np.sum((p - q) ** 2 / (p + q)),
    "js": lambda p, q: jensenshannon(p, q, base=2) ** 2,
    "total_variation": lambda p, q: 0.5 * np.abs(p - q).sum(),
}
G = {"linear": lambda x: 2 * x - 1, "js": lambda x: 1 + np.log2(x), "total_variation": lambda x: np.abs(2 * x - 1)}


def pairs(count=50, outcomes=7):
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.full(outcomes, 0.5), size=(count, 2))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_its_closed_form(form):
    for p, q in pairs():
        assert divergence(p, q, form) == pytest.approx(CLOSED[form](p, q), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_definition_by_g_on_both_sides_is_the_same(form):
    for p, q in pairs():
        sides = [np.sum(side * G[form](side / (p + q))) for side in (p, q)]
        assert divergence(p, q, form) == pytest.approx(np.mean(sides), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_equal_distributions_are_0_apart_and_disjoint_ones_1(form):
    p, q = np.array([0.2, 0.8, 0, 0]), np.array([0, 0, 0.5, 0.5])
    assert divergence(p, p, form) == 0
    assert divergence(p, q, form) == pytest.approx(1)
    assert divergence(p, q[::-1], form) == pytest.approx(divergence(q[::-1], p, form))


def test_the_linear_form_is_not_the_total_variation_but_lies_between_its_square_and_itself():
    for p, q in pairs():
        tv, linear = divergence(p, q, "total_variation"), divergence(p, q, "linear")
        assert tv**2 <= linear + 1e-12 <= tv + 2e-12
        assert linear < tv - 1e-3


def test_a_posterior_mixes_the_checkpoints_of_a_side_evenly_and_survives_tiny_likelihoods():
    rng = np.random.default_rng(1)
    left, right = rng.normal(-2, 1, (9, 3)), rng.normal(-2, 1, (9, 4))
    expected = np.exp(left).mean(1) / (np.exp(left).mean(1) + np.exp(right).mean(1))
    np.testing.assert_allclose(posterior_left(left, right), expected)
    np.testing.assert_allclose(posterior_left(left - 5000, right - 5000), expected)


def test_an_unknown_form_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="form 'lineal' is not known; did you mean 'linear'"):
        pointwise_divergence(np.array([0.5]), "lineal")
