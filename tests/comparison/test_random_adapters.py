import numpy as np
import pytest

from em_interp.comparison.nulls import random_adapters
from em_interp.comparison.similarity import Snapshots
from em_interp.errors import InputError
from tests.comparison.planting import SITE, adapter, in_another_gauge


@pytest.mark.parametrize("rank", [1, 3])
def test_random_adapters_have_the_singular_values_of_the_real_one_and_nothing_else_of_it(rank):
    real = adapter(1, rank=rank)
    drawn = random_adapters(real, range(200))
    wanted = Snapshots.of(real, SITE, np.array([-1])).singular_values()[0]
    found = Snapshots.of(drawn, SITE, np.arange(200)).singular_values()
    np.testing.assert_allclose(found, np.tile(wanted, (200, 1)), rtol=1e-5)
    b, others = real.B[SITE][-1, :, 0], drawn.B[SITE][:, :, 0]
    cosines = others @ b / np.linalg.norm(b) / np.linalg.norm(others, axis=1)
    assert abs(cosines.mean()) < 3 / np.sqrt(40 * 200)
    assert cosines.std() == pytest.approx(1 / np.sqrt(40), rel=0.2)


@pytest.mark.parametrize("rank", [1, 3])
def test_sign_and_gauge_do_not_change_what_is_drawn(rank):
    real = adapter(1, rank=rank)
    one, other = random_adapters(real, range(3)), random_adapters(in_another_gauge(real), range(3))
    for k in range(3):
        mine, theirs = (drawn.B[SITE][k] @ drawn.A[SITE][k] for drawn in (one, other))
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_draws_are_the_same_each_time_and_others_for_another_key():
    real = adapter(1)
    few, more = random_adapters(real, [2, 3], (0,)), random_adapters(real, range(4), (0,))
    assert np.array_equal(few.B[SITE], more.B[SITE][2:])
    assert not np.allclose(few.B[SITE], random_adapters(real, [2, 3], (1,)).B[SITE])


def test_an_adapter_that_is_zero_has_no_random_counterpart():
    with pytest.raises(InputError, match="is zero at"):
        random_adapters(adapter(1), [0], step=0)
