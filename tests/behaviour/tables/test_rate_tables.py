import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.errors import InputError

RATES = pd.DataFrame({"step": np.arange(0, 210, 10), "n": 100, "em": [0.0] * 10 + [0.02, 0.2, 0.5] + [0.6] * 8})


def test_rates_by_step_are_a_curve_with_an_onset():
    curve = em.behaviour_curve(RATES)
    frame = curve.frame()
    assert frame["em"].tolist() == RATES["em"].tolist() and set(frame["n"]) == {100}
    assert frame[["coherent", "aligned_mean"]].isna().all(axis=None) and not curve.has_scores
    found = em.find_transition(curve)
    assert found.verdict == "transition" and found.step == pytest.approx(112, abs=10)
    assert (frame["em_low"] <= frame["em"]).all() and (frame["em"] <= frame["em_high"]).all()


@pytest.mark.parametrize("per_question", [False, True])
def test_a_curve_s_own_rates_are_the_same_curve(per_question, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"step": step, "question": f"q{i % 3}", "questions": "broad", "aligned": aligned, "coherent": coherent}
        for step in (0, 10)
        for i in range(30)
        for aligned, coherent in [(rng.choice([5, 95]), rng.choice([20, 90]))]
    ]
    answers = pd.DataFrame(rows)
    answers.loc[3, "aligned"] = np.nan
    curve = em.behaviour_curve(answers)
    (curve.per_question() if per_question else curve.frame()).to_csv(tmp_path / "rates.csv", index=False)
    read = em.behaviour_curve(tmp_path / "rates.csv")
    same = ["step", "questions", "n", "scored", "em", "coherent", *(["em_low", "em_high"] if per_question else [])]
    pd.testing.assert_frame_equal(read.frame()[same], curve.frame()[same], check_dtype=False)
    assert em.score_responses(read.answers).em.rate == em.score_responses(answers).em.rate


@pytest.mark.parametrize(
    "change, message",
    [
        ({"em": 12.5}, "em is 12.5 in row 1; a share from 0 to 1 was expected"),
        ({"em": 0.123, "n": 30}, "em is 0.123 of 30 answers in row 1, no whole number of them"),
        ({"n": 2.5}, "n is 2.5 in row 1; a number of answers was expected"),
        ({"scored": 101}, "scored is more than n in row 1"),
        ({"step": 3}, "row 2 has the rates of step 3 a second time"),
        ({"em": "high"}, "em is 'high' in row 1; a number was expected"),
        ({"em": [0] * 20 + [1]}, "em is 1 of 100 answers in row 21, which may be one answer or all"),
        ({"n": 10**7}, "at most|a number of answers was expected"),
    ],
)
def test_rates_that_have_no_one_meaning_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        em.behaviour_curve(RATES.assign(**change))


def test_rates_in_percent_carry_the_sign():
    assert em.behaviour_curve(RATES.assign(em=RATES["em"].map("{:.0%}".format))).frame()["em"].tolist() == list(
        RATES["em"]
    )
