"""Planted paths are what they say."""

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path


@pytest.mark.parametrize("kind", [*TURNING, *NOT_TURNING])
def test_planted_paths_are_what_they_say(kind):
    for seed in range(3):
        path = planted_path(kind, seed)
        again = planted_path(kind, seed)
        assert np.array_equal(path.vectors, again.vectors)
        assert path.steps[0] == 0 and path.steps[-1] == path.settings["last"]
        assert (path.turn is not None) == (kind in TURNING)
        if path.turn is not None:
            assert 0.2 <= path.turn.step / path.settings["last"] <= 0.81 and 60 <= path.turn.angle_deg <= 120
        trajectory = path.trajectory()
        assert trajectory.gram("B") == pytest.approx(path.gram)
        assert (path.cumulative_lr is None) == bool(np.isnan(trajectory.cumulative_lr).all())


def test_an_unknown_kind_of_planted_path_lists_the_kinds():
    with pytest.raises(InputError, match="did you mean 'abrupt'"):
        planted_path("abrubt", 0)


@pytest.mark.parametrize(
    "given",
    [
        ("abrupt", None),
        ("abrupt", -1),
        ("abrupt", 1.5),
        (3, 0),
        (None, 0),
        ("abrupt", 0, 5),
        ("abrupt", 0, None, "0.5"),
        ("abrupt", 0, None, None, "float64"),
    ],
)
def test_wrong_types_are_refused_in_one_line(given):
    with pytest.raises(InputError) as refused:
        planted_path(*given)
    assert "\n" not in str(refused.value)
