"""Checks of arguments: one line each, with what was expected and what was found."""

import numpy as np
import pandas as pd
import pytest

from em_interp.checks import as_list, check_level, check_type, check_whole
from em_interp.errors import InputError


@pytest.mark.parametrize("level", [95, 0, 1, -0.5, True, None, "0.95", float("nan"), [0.95]])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(InputError, match=r"level must lie between 0 and 1, such as 0\.95; it is") as refused:
        check_level(level)
    assert "\n" not in str(refused.value)


def test_a_level_may_be_a_number_of_numpy():
    check_level(np.float64(0.9))


def test_a_value_of_another_type_is_named_without_being_printed_whole():
    with pytest.raises(InputError, match="run must be a path; found a value of type DataFrame"):
        check_type("run", pd.DataFrame({"x": range(99)}), str, "a path")
    with pytest.raises(InputError, match="run must be a path; found None"):
        check_type("run", None, str, "a path")


@pytest.mark.parametrize("count", [-1, 1.5, True, "3", None])
def test_a_count_that_is_no_whole_number_is_refused(count):
    with pytest.raises(InputError, match="k must be a whole number, 0 or more; it is"):
        check_whole("k", count)
    check_whole("k", np.int64(3), least=3)


def test_a_single_value_stands_for_the_list_of_it():
    assert as_list("broad") == ["broad"] and as_list(3) == [3] and as_list(None) == [None]
    assert as_list(["a", "b"]) == ["a", "b"] and as_list(np.array([1, 2])) == [1, 2]
    assert as_list(range(3)) == [0, 1, 2] and as_list({"id": 1}) == [{"id": 1}]
