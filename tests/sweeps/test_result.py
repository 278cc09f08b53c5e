"""The tables of a sweep: seeds pooled, and runs without a transition or with an error kept apart."""

from pathlib import Path

import numpy as np
import pytest

from em_interp.comparison.pooled import random_effects
from em_interp.sweeps.grid import load_sweep
from em_interp.sweeps.result import RunResult, Sweep
from em_interp.transition.result import Transition
from tests.sweeps.conftest import SHORT


def planted(steps: dict[str, list], out: Path = Path("sweep")) -> Sweep:
    """A sweep of one group; for each signal the step, verdict or error of each seed. Intervals are 8 to each side."""
    plans = load_sweep({"base": SHORT, "grid": {"seed": list(range(len(steps["onset"])))}}).runs
    results = []
    for index, plan in enumerate(plans):
        turn, rise = (steps[name][index] for name in ("rotation", "onset"))
        if isinstance(turn, ValueError):
            results.append(RunResult(plan, out / plan.name, str(turn), {}))
            continue
        found = {name: signal(name, steps[name][index]) for name in ("rotation", "gradient_norm", "onset")}
        both = not isinstance(turn, str) and not isinstance(rise, str)
        between = {
            "behavioural": 0,
            "steps": None,
            "interval": None,
            "level": 0.95,
            "cumulative_lr": None,
            "chance": 0.2,
        }
        if both:
            between |= {"steps": rise - turn, "interval": [rise - turn - 11.0, rise - turn + 11.0]}
        summary = {
            **found,
            "offset": between if both else None,
            "verdict": "inconclusive",
            "control": None,
            "final": None,
        }
        results.append(RunResult(plan, out / plan.name, None, summary))
    return Sweep(out, tuple(results), (), (), None, ("seed",))


def signal(name: str, step: float | str) -> dict:
    if isinstance(step, str):
        return Transition(name, step, f"so it is <i>{step}</i>").to_dict()
    return Transition(name, "transition", "", step=step, interval=(step - 8, step + 8), level=0.95).to_dict()


SOME = {
    "rotation": [100.0, 120.0, 110.0, "none", ValueError("<script>alert(1)</script>")],
    "gradient_norm": [90.0, "inconclusive", "none", "none", ""],
    "onset": [160.0, 180.0, "inconclusive", 175.0, ""],
}


def test_seeds_are_pooled_over_the_runs_that_have_a_step_and_the_others_are_counted():
    found = planted(SOME)
    ((group, pooled),) = found.pooled()
    errors = np.full(3, 16 / (2 * 1.959964))
    expected = random_effects(np.array([100.0, 120.0, 110.0]), errors)
    assert pooled["rotation"].pooled.mean == pytest.approx(expected.mean)
    assert pooled["rotation"].pooled.interval == pytest.approx(expected.interval, rel=1e-5)
    assert pooled["rotation"].counts == {"transition": 3, "none": 1, "inconclusive": 0, "without_interval": 0}
    assert pooled["gradient_norm"].pooled is None
    assert pooled["offset"].pooled.mean == pytest.approx(60) and pooled["offset"].counts["transition"] == 2
    table = found.frame("pooled").set_index("signal")
    assert table["pooled_runs"].tolist() == [3, 1, 3, 2] and (table["group"] == group).all()
    assert np.isnan(table.loc["gradient_norm", "mean"])


def test_a_missing_offset_says_which_of_the_two_is_missing():
    offsets = [one.signals["offset"] for one in planted(SOME).runs if one.summary]
    assert [(one.verdict, one.step) for one in offsets] == [
        *(("transition", 60.0), ("transition", 60.0), ("inconclusive", None), ("none", None))
    ]
    assert [one.reason for one in offsets[2:]] == ["onset: inconclusive", "rotation: none"]
    assert offsets[0].interval == (49.0, 71.0) and "chance of being as near 0.2" in offsets[0].reason


def test_tables_have_every_run_and_nothing_where_nothing_was_found():
    found = planted(SOME)
    runs, signals = found.frame("runs"), found.frame("signals")
    assert runs["rotation_verdict"].tolist() == ["transition"] * 3 + ["none", "failed"]
    assert runs["rotation_step"].isna().tolist() == [False] * 3 + [True, True]
    assert len(signals) == 5 * 4 and signals["seed"].tolist() == [seed for seed in range(5) for _ in range(4)]
    assert found.counts()["gradient_norm"] == {"transition": 1, "inconclusive": 1, "none": 2}


def test_the_pooled_table_says_for_each_group_and_signal_whether_seeds_have_one_step():
    table = planted(SOME).frame("pooled").set_index("signal")
    assert table.loc["rotation", "label"] == "Rotation of B"
    row = table.loc["rotation"]
    assert 0 < row["q_p_value"] < 1 and row["prediction_low"] < row["mean_low"] < row["mean"]
    assert table.loc["gradient_norm", ["q", "i_squared", "tau"]].isna().all()
    sentence = planted(SOME).sentence()
    assert "in all (Q = " in sentence and "rotation: the transition is at 110 ± " in sentence
