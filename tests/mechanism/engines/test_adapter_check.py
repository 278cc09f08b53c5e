"""An adapter that is not in effect is an error, never a comparison of the base with itself."""

import pytest

from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.model import TrajectoryModel


class IgnoringEngine:
    """An engine that applies no adapter, or only half of one."""

    def __init__(self, engine, share):
        self.engine, self.hook_points, self.share = engine, engine.hook_points, share

    def with_adapter(self, adapters):
        B = {site: part * self.share for site, part in adapters.B.items()}
        return self.engine.with_adapter(RowAdapters(adapters.A, B))

    def run(self, *args):
        return self.engine.run(*args)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_adapter_that_is_not_applied_is_an_error_and_not_a_comparison_of_the_base_with_itself(model, share):
    ignoring = IgnoringEngine(model.engine, share)
    with pytest.raises(InputError, match=r"a planted adapter is not applied at layers.1.mlp.down_proj.*usual cause"):
        TrajectoryModel(model.base, model.trajectory, ignoring)


def test_a_small_step_that_changes_nothing_is_an_error_unless_its_change_is_zero(model):
    check = model._check
    adapters = RowAdapters.of(model.trajectory, [5], [1e-5], "cpu")
    ignoring, engine = IgnoringEngine(model.engine, 0.0), model.engine
    with engine.with_adapter(adapters):
        check.check(adapters, "the adapter of step 5")
    check._engine = ignoring
    try:
        with (
            ignoring.with_adapter(adapters),
            pytest.raises(InputError, match=r"step 5 (changes nothing|is not applied)"),
        ):
            check.check(adapters, "the adapter of step 5")
        zero = RowAdapters.of(model.trajectory, [0], [1.0], "cpu")  # step 0: B is zero
        with ignoring.with_adapter(zero):
            check.check(zero, "the adapter of step 0")
    finally:
        check._engine = engine
