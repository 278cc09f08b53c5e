import re

import numpy as np
import pandas as pd
import pytest

from em_interp.behaviour.preference_curve import PreferenceCurve, as_preference_curve, mean_over_questions
from em_interp.errors import InputError
from em_interp.transition.align import align
from em_interp.transition.find import find_transition, find_transitions

STEPS = np.arange(0, 200, 10)


def readings(values, questions="broad", scale=1.0, pairs=1, tokens=10, seed=0):
    """A table in which the preference of question q at step t is values[t, q], with `pairs` pairs around it."""
    rng, rows = np.random.default_rng(seed), []
    spread = rng.normal(0, 0.05, (values.shape[1], pairs))
    spread -= spread.mean(axis=1, keepdims=True)
    for step, of_step in zip(STEPS, values, strict=True):
        for question, value in enumerate(of_step):
            for pair in range(pairs):
                rows.append(
                    {
                        "step": step,
                        "scale": scale,
                        "questions": questions,
                        "question_id": f"{questions}{question:02}",
                        "pair": pair,
                        "log_likelihood_aligned": -2.0 * tokens,
                        "tokens_aligned": tokens,
                        "log_likelihood_misaligned": (value + spread[question, pair] - 2.0) * 2 * tokens,
                        "tokens_misaligned": 2 * tokens,
                    }
                )
    return pd.DataFrame(rows)


def shift(height, count=24, midpoint=90.0, seed=0, noise=0.005):
    """Curves of questions that shift by about `height`."""
    rng = np.random.default_rng(seed)
    heights = height * (1 + 0.3 * rng.standard_normal(count))
    share = 1 / (1 + np.exp(-(STEPS - midpoint) / 12))
    level = -0.4 + 0.2 * rng.standard_normal(count)
    return level + np.outer(share, heights) + noise * rng.standard_normal((len(STEPS), count))


def test_preference_is_the_difference_per_token_averaged_over_pairs_then_questions():
    values = shift(0.1)
    curve = PreferenceCurve(readings(values, pairs=3, seed=1))
    frame = curve.frame()
    np.testing.assert_allclose(frame["preference"], values.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(frame["change"], (values - values[0]).mean(axis=1), atol=1e-12)
    assert (frame["questions_n"] == 24).all() and (frame["pairs"] == 72).all()
    asked = curve.values().pivot(index="step", columns="question_id", values="value")
    np.testing.assert_allclose(asked.to_numpy(), values, atol=1e-12)


def test_intervals_are_students_over_questions():
    from scipy.stats import t

    values = shift(0.1)
    row = PreferenceCurve(readings(values, pairs=2)).frame().iloc[-1]
    expected = t.interval(0.95, 23, values[-1].mean(), values[-1].std(ddof=1) / np.sqrt(24))
    assert (row["preference_low"], row["preference_high"]) == pytest.approx(expected)
    assert mean_over_questions(np.array([0.3])) == (0.3, None)


def test_the_share_counts_pairs_of_which_the_misaligned_answer_is_likelier():
    values = np.full((len(STEPS), 4), -0.3)
    values[-1] = (0.2, 0.2, 0.2, -0.3)
    frame = PreferenceCurve(readings(values)).frame()
    assert frame["share"].iloc[0] == 0 and frame["share"].iloc[-1] == pytest.approx(0.75)
    assert (frame["share_low"] <= frame["share"]).all() and (frame["share"] <= frame["share_high"]).all()
    assert frame["share_high"].iloc[0] > 0.1  # of four pairs, none says little


def curve_with(control=0.0, style=0.0, height=0.1):
    """Broad questions that shift by `height`, a style null and a control that shift by these."""
    own = pd.concat([readings(shift(height)), readings(shift(style, seed=5), "style")])
    other = pd.concat([readings(shift(control, seed=9)), readings(shift(0.0, seed=8), "style")])
    return PreferenceCurve(own, control=PreferenceCurve(other))


def test_a_planted_shift_has_an_onset_beyond_control_and_style_null():
    curve = curve_with()
    found = find_transition(curve.select(questions="broad"))
    assert found.found and found.of == "preference" and found.questions == "broad"
    assert found.interval[0] <= 90 <= found.interval[1] and found.interval[1] - found.interval[0] < 30
    assert re.search(r"by \+0\.09\d beyond the control and beyond the style null", found.reason)
    (style,) = [t for t in find_transitions(curve) if t.questions == "style"]
    assert style.verdict == "none"


@pytest.mark.parametrize(("what", "height"), [("control", {"control": 0.1}), ("style null", {"style": 0.1})])
def test_a_shift_that_the_control_or_the_style_null_shares_is_none(what, height):
    found = find_transition(curve_with(**height).select(questions="broad"))
    assert found.verdict == "none" and f"does not rise beyond that of the {what}" in found.reason


def test_beyond_control_is_the_paired_difference_of_changes():
    curve = curve_with(control=0.04)
    row = curve.select(questions="broad").frame().iloc[-1]
    assert row["beyond_control"] == pytest.approx(row["change"] - row["control_change"])
    assert row["beyond_control_low"] < row["beyond_control"] < row["beyond_control_high"]
    assert "control +0.0" in curve.sentence()


def test_a_control_that_was_read_from_a_later_step_is_refused():
    own, other = readings(shift(0.1)), readings(shift(0.1, seed=9))  # much of the change is before step 60
    with pytest.raises(
        InputError, match="the control was read from step 60 on, the readings from step 0: changes since"
    ):
        as_preference_curve(own, PreferenceCurve(other[other["step"] >= 60]))
    with pytest.raises(InputError, match="the control was read at none of the steps of the readings"):
        as_preference_curve(own[own["step"] < 60], PreferenceCurve(other[other["step"] >= 60]))


def test_a_control_that_was_read_from_an_earlier_step_counts_from_the_first_step_of_the_run():
    own, other = readings(shift(0.1)), readings(shift(0.1, seed=9))
    own = own[own["step"] >= 90]
    found = as_preference_curve(own, PreferenceCurve(other)).frame()
    expected = as_preference_curve(own, PreferenceCurve(other[other["step"] >= 90])).frame()
    pd.testing.assert_frame_equal(found, expected)
    assert found["control_change"].iloc[0] == 0 and abs(found["beyond_control"].iloc[-1]) < 0.02


def test_too_few_questions_are_inconclusive():
    found = find_transition(PreferenceCurve(readings(shift(0.2, count=7))))
    assert found.verdict == "inconclusive" and "7 questions, 5 and 8 are needed" in found.reason


def test_an_alignment_takes_a_preference_curve():
    from em_interp.transition.synthetic.paths import planted_path

    path = planted_path("abrupt", 1).trajectory()
    aligned = align(path, curve_with())
    assert [t.of for t in aligned.behavioural] == ["preference", "preference"]
    assert len(aligned.offsets) == 1


def test_selecting_keeps_the_style_null_and_the_control():
    curve = curve_with()
    broad = curve.select(1.0, "broad")
    assert broad.style_null is not None and broad.style_null.questions == "style"
    assert broad.control.questions == "broad"
    assert curve.select(questions="style").style_null is None
    with pytest.raises(InputError, match=r"no readings with questions 'board' \(it has: broad, style\)"):
        curve.select(questions="board")


def test_a_control_of_the_other_kind_is_refused():
    from em_interp.behaviour.curve import BehaviourCurve

    answers = pd.DataFrame({"step": [0], "scale": [1.0], "questions": ["broad"], "question_id": ["a"]})
    with pytest.raises(InputError, match="a BehaviourCurve beside a PreferenceCurve"):
        find_transition(PreferenceCurve(readings(shift(0.1))), control=BehaviourCurve(answers))


def test_readings_that_cannot_be_likelihoods_are_refused():
    table = readings(shift(0.1))
    with pytest.raises(InputError, match="readings need a column tokens_aligned"):
        as_preference_curve(table.drop(columns="tokens_aligned"))
    table.loc[3, "log_likelihood_aligned"] = 0.1
    with pytest.raises(
        InputError, match=r"log_likelihood_aligned and tokens_aligned are 0\.1 and 10 in row 4; 0 or less"
    ):
        as_preference_curve(table)


def test_the_curve_shows_itself():
    curve = curve_with()
    assert "change +0.09" in curve.sentence() and "style" in curve.sentence().split("; ")[-1]
    assert "<svg" in curve._repr_html_()
    assert {trace.name for trace in curve.plot().data} >= {"broad", "style", "control"}
    found = find_transition(curve.select(questions="broad"))
    assert {trace.name for trace in found.plot().data} >= {"fitted rise", "control", "this run", "beyond the control"}
    assert "style beyond the control" in {trace.name for trace in found.plot().data}
    assert set(curve.to_dict()) == {"domain", "level", "rows"}
