"""Planted behaviour curves."""

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.transition.synthetic.curves import planted_curve


def test_an_unknown_planted_kind_is_refused():
    with pytest.raises(InputError, match="did you mean 'plain'"):
        planted_curve("plian", np.random.default_rng(0))


def test_a_planted_curve_is_a_judged_table_with_its_onset():
    planted = planted_curve("controlled", 3)
    curve, control = em.behaviour_curve(planted.frame()), em.behaviour_curve(planted.frame(control=True))
    counts = planted.counts
    assert curve.at(int(counts.steps[-1])).em.rate == pytest.approx(counts.rate[-1])
    found = em.find_transition(curve, control=control)
    assert found.verdict == "transition" and found.interval[0] <= planted.half <= found.interval[1]
    with pytest.raises(InputError, match="has no control"):
        planted_curve("plain", 0).frame(control=True)


def test_a_seed_and_a_generator_with_it_draw_the_same_curve():
    one, other = planted_curve("plain", 5), planted_curve("plain", np.random.default_rng(5))
    np.testing.assert_array_equal(one.counts.total, other.counts.total)
    for seed in (None, -1, "5", 1.5):
        with pytest.raises(InputError, match="seed must be a whole number, 0 or more, or a numpy Generator"):
            planted_curve("plain", seed)
