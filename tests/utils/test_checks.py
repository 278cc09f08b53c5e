"""Checks of arguments: one line each, with what was expected and what was found."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.organisms.base_list import show_base
from em_interp.organisms.pretrain import pretrain
from em_interp.training.export import export_merged, export_packed, export_peft
from em_interp.utils.checks import as_list, check_known, check_level, check_type, check_whole, checked


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
    check_whole("k", np.int64(3), minimum=3)


def test_a_name_that_is_not_known_is_refused_with_the_nearest_and_all_that_are():
    known = {"medical": 1, "sport": 2}
    check_known("domain", "sport", known)
    with pytest.raises(
        InputError, match=r"^domain 'spotr' is not known; did you mean 'sport'\? \(known: medical, sport\)$"
    ):
        check_known("domain", "spotr", known)
    with pytest.raises(InputError, match=r"^domain \['sport'\] is not known \(known: medical, sport\)$"):
        check_known("domain", ["sport"], known)


def test_a_single_value_stands_for_the_list_of_it():
    assert as_list("broad") == ["broad"] and as_list(3) == [3] and as_list(None) == [None]
    assert as_list(["a", "b"]) == ["a", "b"] and as_list(np.array([1, 2])) == [1, 2]
    assert as_list(range(3)) == [0, 1, 2] and as_list({"id": 1}) == [{"id": 1}]


@checked
def listed(
    formats: "Iterable[str]" = ("pdf",), steps: "Sequence[int] | None" = None, runs: "Sequence[str | Path]" = ()
) -> tuple:
    return formats, steps, runs


def test_a_single_value_is_taken_where_a_list_is_expected():
    assert listed("pdf", 3, Path("x")) == (["pdf"], [3], [Path("x")])
    assert listed(formats=["pdf"], steps=np.int64(3)) == (["pdf"], [3], ())
    assert listed(steps=None) == (("pdf",), None, ())
    with pytest.raises(InputError, match=r"steps must be a list \(a whole number each\) or None; found 'x'"):
        listed(steps="x")


@checked
def measure(
    path: "AdapterTrajectory",
    steps: "Sequence[int] | None" = None,
    k: "int" = 1,
    level: float = 0.95,
    of: 'Literal["A", "B"]' = "B",
    log: Callable[[str], None] | None = None,
    out: "str | Path" = ".",
    names: "Mapping[float, str] | None" = None,
    judge: "Judge | None" = None,  # noqa: F821  # as of a class under TYPE_CHECKING
) -> int:
    return k


class AdapterTrajectory:
    """A class of the name that the annotation has, as only type checkers import it there."""


RIGHT = [
    {"steps": [1, 2]}, {"steps": np.array([1, 2])}, {"steps": range(3)}, {"k": np.int64(3)}, {"level": np.float32(0.5)},
    {"level": 1}, {"of": "no such word"}, {"log": print}, {"out": Path("x")}, {"names": {1: "x"}},
]  # fmt: skip
WRONG = {
    "path must be AdapterTrajectory; found 3": {"path": 3},
    r"steps must be a list \(a whole number each\) or None; found 'nonsense'": {"steps": "nonsense"},
    r"steps must be a list \(a whole number each\) or None; found \['1'\]": {"steps": ["1"]},
    "k must be a whole number; found 1.5": {"k": 1.5},
    "k must be a whole number; found True": {"k": True},
    "level must be a number; found '0.9'": {"level": "0.9"},
    "of must be one of A, B; found 3": {"of": 3},
    "log must be a function or None; found 'x'": {"log": "x"},
    "out must be text or a path; found None": {"out": None},
    "names must be a dictionary or None; found {'x': 1}": {"names": {"x": 1}},
    "out holds a null byte or half of a character: a": {"out": Path("a\0b")},
    "of holds a null byte or half of a character: 'a": {"of": "a\0b"},
    "out holds a null byte or half of a character: 'a": {"out": "a\ud800"},
    "judge must be Judge or None; found a value of type object": {"judge": object()},
}


@pytest.mark.parametrize("arguments", RIGHT, ids=str)
def test_a_checked_function_takes_what_its_annotations_allow(arguments):
    assert measure(AdapterTrajectory(), **arguments) == arguments.get("k", 1)
    assert measure(AdapterTrajectory(), [0, 1], 7) == 7


@pytest.mark.parametrize("message", WRONG)
def test_a_checked_function_refuses_another_type_in_one_line(message):
    with pytest.raises(InputError, match=message):
        measure(**{"path": AdapterTrajectory()} | WRONG[message])


def test_a_checked_function_is_as_it_was_to_editors_and_to_whoever_leaves_an_argument_out():
    assert list(inspect.signature(measure).parameters)[:2] == ["path", "steps"]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'path'"):
        measure()


OF_A_PATH = [
    em.open_run,
    em.load_trajectory,
    em.behaviour_curve,
    em.report,
    em.locate,
    em.train,
    em.sweep,
    em.run_mechanism,
]
OF_A_PATH += [export_packed, export_peft, export_merged, show_base, lambda path: pretrain("llama", path)]


@pytest.mark.parametrize("path", ["a\0b", "a\ud800", Path("a\0b")], ids=ascii)
@pytest.mark.parametrize("function", OF_A_PATH)
def test_a_path_that_no_file_can_have_is_refused(function, path):
    with pytest.raises(InputError):
        function(path)
