"""A wrong argument of any public function is refused in one line; no error from inside comes out.

Every argument of every function in `em_interp`, `em_interp.figures` and `em_interp.mechanism` is given a value of each
wrong kind, the others being right.
"""

import inspect
import math
import re
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import em_interp as em
from em_interp.mechanism import AnswerSet, Direction, TrajectoryModel
from em_interp.organisms.judge import AdviceJudge
from tests.figures.planting import plant_run

PACKAGES = ("em_interp", "em_interp.figures", "em_interp.mechanism")
FUNCTIONS = {
    f"{package}.{name}": found
    for package in PACKAGES
    for name in import_module(package).__all__
    if inspect.isfunction(found := getattr(import_module(package), name))
}
SLOW = "ask compare compare_across_bases demo export_run find_transition find_transitions judge locate preference_curve"
SLOW += " publish report run_mechanism sweep train figures.export_all"  # given only values of wrong types
WRONG = {
    "None": None,
    "a number": 3,
    "a negative number": -1.5,
    "NaN": math.nan,
    "text": "nonsense",
    "a path that is not there": Path("not/there"),
    "a list of text": ["nonsense"],
    "a list of objects": [object()],
    "an empty list": [],
    "a dictionary": {"nonsense": 1},
    "an object": object(),
}
FIT = {  # words in an annotation, and the wrong values that are right there
    "None": ["None"],
    "bool": WRONG,  # anything is true or false
    "Any": WRONG,
    "int": ["a number"],
    "float": ["a number", "a negative number", "NaN"],
    "str": ["text"],
    "Path": ["text", "a path that is not there"],
    "Sequence": ["an empty list"],
    "Iterable": ["an empty list"],
    "Mapping": ["a dictionary"],
    "dict": ["a dictionary"],
    "Sequence[str]": ["a list of text", "text"],
    "Questions": ["an empty list"],
    "TrajectorySource": ["text", "a path that is not there"],
    "Source": ["text", "a path that is not there"],
    "RunLike": ["text", "a path that is not there"],
    "Positions": ["text"],
}


def kinds_that_fit(annotation):
    """Names of the wrong values that the annotation of an argument allows."""
    words = re.findall(r"\w+", annotation) + re.findall(r"Sequence\[str\]", annotation)
    return {kind for word in words for kind in FIT.get(word, ())}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A right value for each argument by its name, and by function and name where it differs.

    What it would take a model to make is an empty object of the right type: with one wrong argument it is not used.
    """
    run = plant_run(tmp_path_factory.mktemp("right") / "run", every=5)
    path, curve = em.load_trajectory(run), em.behaviour_curve(run)
    one = curve.select(1.0, "out_of_domain")
    turn, onset = em.find_transition(path), em.find_transition(one)
    return {
        "run": run, "runs": [run, run], "source": run, "trajectory": path, "curve": curve, "config": {},
        "mechanistic": turn, "behavioural": onset, "transition": turn, "transitions": [turn],
        "alignment": em.align(turn, onset, path), "gram": path.gram("B"), "steps": path.steps, "kind": "abrupt",
        "seed": 1, "figure": path.plot(), "figures": {"path": path.plot()},
        "scored": em.score_responses(one.answers),
        "repo": "someone/something", "answers": one.answers, "judge": AdviceJudge("medical"),
        "model": object.__new__(TrajectoryModel), "direction": object.__new__(Direction), "writes": {},
        "em_interp.load_config.source": {},
        "em_interp.find_transition.source": path,
        "em_interp.planted_curve.kind": "sharp",
        "em_interp.planted_shift.kind": "sharp",
        **{f"em_interp.mechanism.{name}.answers": object.__new__(AnswerSet)
           for name in ("attribute_direction", "mean_difference", "read_logit_lens", "read_scalars")},
    }  # fmt: skip


def outcome(function, arguments):
    """What is wrong with the error that comes out of a call, or ''."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except em.InputError as error:
        return "" if str(error) and "\n" not in str(error) else f"InputError of several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_argument_is_refused_in_one_line(name, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, is_slow = FUNCTIONS[name], ".mechanism." in name or name.removeprefix("em_interp.") in SLOW.split()
    parameters = inspect.signature(function).parameters
    needed = {
        key: right.get(f"{name}.{key}", right.get(key, tmp_path / key))
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
    }
    failures = []
    for key, parameter in parameters.items():
        annotation = str(parameter.annotation)
        fits = kinds_that_fit(annotation) if is_slow or "bool" in annotation else {"None"} & kinds_that_fit(annotation)
        for kind, value in WRONG.items():
            if kind not in fits and (wrong := outcome(function, {**needed, key: value})):
                failures.append(f"{key} = {kind}: {wrong}")
    assert not failures, "\n".join(failures)
