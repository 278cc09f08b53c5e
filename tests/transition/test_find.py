"""The one entry to all signals: what it takes, and what it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.transition.find import TEST_LEVELS
from em_interp.transition.onsets import mean_shift, onset
from em_interp.transition.synthetic.curves import planted_curve
from em_interp.transition.synthetic.paths import planted_path
from tests.trajectory.saving import save_run


@pytest.fixture(scope="module")
def path():
    return planted_path("abrupt", 3).trajectory()


@pytest.fixture(scope="module")
def curve():
    return em.behaviour_curve(planted_curve("plain", 1).frame())


def test_a_run_directory_stands_for_its_path(tmp_path):
    save_run(tmp_path, steps=range(30))
    loaded = em.load_trajectory(tmp_path)
    for source in (tmp_path, str(tmp_path), em.Run(tmp_path)):
        assert em.find_transition(source).to_dict() == em.find_transition(loaded).to_dict()
        assert em.largest_local_cosine(source) == em.largest_local_cosine(loaded.gram("B"), loaded.steps)


@pytest.mark.parametrize("of", ["dW", "ΔW", "delta_W", "DELTA"])
def test_the_weight_change_may_be_spelled_as_people_do(path, of):
    found = em.find_transition(path, of=of)
    assert found.of == "delta" and found.to_dict() == em.find_transition(path, of="delta").to_dict()


def test_one_site_has_what_is_its_own_and_its_name_is_said(path):
    site = path.sites[0]
    found = em.find_transitions(path, site=site)
    assert {t.signal for t in found} == {"rotation", "norm_onset", "lock_in"} and {t.site for t in found} == {site}
    assert "gradient_norm" in {t.signal for t in em.find_transitions(path)}
    assert em.find_transition(path, site=site).sentence().startswith(f"rotation of B ({site}): transition at step")
    assert em.find_transition(path).sentence().startswith("rotation of B: transition at step")


@pytest.mark.parametrize("level", [95, 0, 1, "0.95", None])
def test_a_level_that_is_no_probability_is_refused(path, curve, level):
    for call in (em.find_transition, em.find_transitions):
        for source in (path, curve):
            with pytest.raises(InputError, match=r"level must lie between 0 and 1, such as 0\.95; it is"):
                call(source, level=level)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda path, curve: em.find_transition(None),
            "source must be a trajectory, a run or its path, or a behaviour",
        ),
        (lambda path, curve: em.find_transition(np.eye(3)), "found a value of type ndarray"),
        (lambda path, curve: em.find_transition([path]), "source must be a trajectory"),
        (lambda path, curve: em.find_transition(path, "rotations"), "did you mean 'rotation'"),
        (lambda path, curve: em.find_transition(path, ["rotation"]), "an adapter's path has no signal"),
        (lambda path, curve: em.find_transition(curve, "rotation"), "a behaviour curve has no signal 'rotation'"),
        (lambda path, curve: em.find_transition(path, of="W"), "of must be 'A', 'B' or 'delta'"),
        (lambda path, curve: em.find_transition(path, of=1), "of must be 'A', 'B' or 'delta'"),
        (lambda path, curve: em.find_transition(path, site=3), "there is no site 3"),
        (
            lambda path, curve: em.find_transition(curve, control=3),
            r"control must be a behaviour curve, as em\.behaviour_curve\(run\); found 3",
        ),
        (
            lambda path, curve: em.find_transition(curve, control=path),
            r"control must be a behaviour curve, as em\.behaviour_curve\(run\); found a value of type",
        ),
        (lambda path, curve: em.find_transition(path, control=curve), "the control of a path is another run or its"),
        (
            lambda path, curve: em.find_transition("run", control="./run"),
            "what it is to be compared with; expected anot",
        ),
        (lambda path, curve: em.find_transition(path, control=3), "source must be|a run, the path of one"),
        (
            lambda path, curve: em.find_transition(path, "lock_in", control=path),
            "a path's rotations are tested against a control, and lock_in is not: leave control out",
        ),
        (lambda path, curve: em.find_transition(curve, of="A"), "no matrices and no sites; found of='A'"),
        (lambda path, curve: em.find_transitions(curve, site="up"), "no matrices and no sites; found site='up'"),
        (lambda path, curve: em.find_transition(path, "lock_in", of="A"), "the signal is 'lock_in': leave it out"),
        (lambda path, curve: em.find_transition(path, of=""), "of must be 'A', 'B' or 'delta'"),
        (
            lambda path, curve: em.find_transition(path, "gradient_norm", site=path.sites[0]),
            "has no signal 'gradient_norm': it is logged for the whole run; one site was asked for",
        ),
        (
            lambda path, curve: em.align(None, curve),
            "mechanistic must be a transition, a trajectory, a run or its path",
        ),
        (lambda path, curve: em.align(path, None), "behavioural must be a transition, several, or a behaviour curve"),
        (lambda path, curve: em.align(path, curve, run=curve), "run must be a trajectory, a run or its path"),
        (lambda path, curve: em.Transition.from_dict([1]), "a transition's dictionary"),
        (lambda path, curve: em.largest_local_cosine(path, path.steps), "expected a step × step Gram matrix"),
        (lambda path, curve: em.largest_local_cosine(path.gram("B")), "or a Gram matrix with its steps; found"),
        (lambda path, curve: em.largest_local_cosine(path.gram("B"), path.steps, "10"), "the spacing k"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(path, curve, call, said):
    with pytest.raises(InputError, match=said) as refused:
        call(path, curve)
    assert "\n" not in str(refused.value)


def test_the_levels_in_the_docs_are_those_of_the_code():
    rows = (Path(__file__).parents[2] / "docs" / "null.md").read_text(encoding="utf-8").splitlines()
    names = {
        "rotation": "rotation",
        "gradient-norm hump": "gradient_norm",
        "norm onset": "norm_onset",
        "onset of behaviour": "onset",
    }
    found = {}
    for row in rows:
        name = row.split("|")[1].strip() if row.startswith("|") else ""
        if name in names:
            found[names[name]] = float(re.search(r"p ≤ ([\d.]+)", row).group(1))
    assert found == TEST_LEVELS
    assert {onset.ONSET_ALPHA, mean_shift.ONSET_ALPHA} == {TEST_LEVELS["onset"]}  # of both kinds of curve
