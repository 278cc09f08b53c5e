"""Planted logs and norms."""

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.synthetic.logs import planted_log, planted_norm


def test_an_unknown_kind_of_log_is_refused():
    with pytest.raises(InputError, match="did you mean 'gaussian'"):
        planted_log("gausian", np.random.default_rng(0))


def test_an_unknown_kind_of_norm_is_refused():
    with pytest.raises(InputError, match="did you mean 'sharp'"):
        planted_norm("shrap", 0)


def test_a_seed_and_a_generator_with_it_draw_the_same():
    for draw, kind in ((planted_log, "gaussian"), (planted_norm, "soft")):
        one, other = draw(kind, 5), draw(kind, np.random.default_rng(5))
        np.testing.assert_array_equal(one.steps, other.steps)
    np.testing.assert_array_equal(planted_log("flat", 2).grad_norm, planted_log("flat", 2).grad_norm)
