import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.synthetic.shifts import NULLS, RISES, planted_shift


@pytest.mark.parametrize("kind", RISES)
def test_the_mean_has_risen_by_half_at_the_planted_step(kind):
    off = []
    for number in range(60):
        planted = planted_shift(kind, np.random.default_rng([number, 1]))
        mean = planted.curves.change.mean(axis=1)
        steps = planted.curves.steps
        done = np.interp(planted.half, steps, mean) / mean[-3:].mean()
        off.append(done - 0.5)
    assert abs(np.median(off)) < 0.08


@pytest.mark.parametrize("kind", NULLS)
def test_the_nulls_have_no_half_rise(kind):
    assert planted_shift(kind, np.random.default_rng(0)).half is None


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'staggered'"):
        planted_shift("stagered", np.random.default_rng(0))
