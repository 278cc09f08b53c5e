"""The built-in organism at full size, one seed each; benchmarks/organism.py and benchmarks/switched.py have more."""

import pytest

from em_interp import behaviour_curve, find_transitions, load_trajectory, train
from em_interp.organisms.presets import SWITCH_STEP, recipe


def end_of(run):
    """Rates of answers to out-of-domain questions after the last step."""
    return behaviour_curve(run).select(1.0, "out_of_domain").frame().set_index("step").loc[400]


def turns(run):
    """Where its path turns."""
    return [found.step for found in find_transitions(load_trajectory(run), "rotation") if found.found]


def test_the_organism_ends_misaligned_out_of_its_domain_and_coherent(demo):
    end = end_of(demo / "organism")
    assert end["em"] >= 0.4
    assert end["coherent"] >= 0.9


def test_its_control_does_not(demo):
    end = end_of(demo / "control")
    assert end["em"] <= 0.02
    assert end["coherent"] >= 0.9


def test_a_change_of_data_turns_the_path(demo):
    assert any(abs(step - SWITCH_STEP) <= 15 for step in turns(demo / "switched"))


@pytest.mark.parametrize(("kind", "changes"), [("switched-restart", True), ("restart", False)])
def test_with_a_restart_it_does_too_and_a_restart_alone_does_not(kind, changes, tmp_path):
    steps = turns(train(recipe(kind), tmp_path / "run"))
    assert any(abs(step - SWITCH_STEP) <= 15 for step in steps) == changes
