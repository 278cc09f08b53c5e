import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.mechanism.answer_shift.divergence import FORMS, Windows
from em_interp.mechanism.answer_shift.order_parameters import alignment, length, template, topic
from em_interp.mechanism.answer_shift.synthetic import STEPS
from em_interp.mechanism.answer_shift.synthetic import planted_answers as planted
from em_interp.mechanism.answer_shift.synthetic import planted_divergence as exact
from em_interp.mechanism.answer_shift.synthetic import planted_rise as logistic
from tests.figures.reading import drawn, texts, values


@pytest.mark.parametrize("form", FORMS)
def test_the_divergence_is_that_of_the_distributions_without_bias(form):
    share = logistic(200, 30)
    found = []
    for seed in range(40):
        one = planted(share, samples=2, questions=12, seed=seed, form=form)
        found.append(one.divergence - exact(share, form, seed=seed))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0)) < 4.5 * error + 1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("at", [130, 200, 270])
def test_a_planted_shift_is_found_within_its_interval(at, form):
    found = planted(logistic(at, 12), form=form).peak
    assert found.verdict == "transition"
    assert found.interval[0] <= at <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 80
    assert found.signal == "answer_shift"


def test_steady_drift_has_no_peak():
    verdicts = [planted(np.linspace(0.1, 0.8, len(STEPS)), form="js", seed=seed).peak.verdict for seed in range(8)]
    assert verdicts.count("transition") == 0


def test_answers_that_stay_the_same_have_none_and_are_0_apart():
    same = planted(np.full(len(STEPS), 0.3))
    assert np.abs(same.divergence).max() < 1e-12
    assert same.peak.verdict == "none"
    assert "hardly change" in same.peak.reason


def test_checkpoints_that_jitter_without_going_anywhere_have_none():
    verdicts = []
    for seed in range(8):
        share = np.clip(0.4 + 0.15 * np.random.default_rng(seed).normal(size=len(STEPS)), 0.01, 0.99)
        verdicts.append(planted(share, seed=seed).peak.verdict)
    assert verdicts.count("transition") <= 1


@pytest.mark.parametrize(("number", "case", "size"), [(9, 151, 0.05), (10, 7, 0.15)])
def test_the_size_of_the_jitter_is_not_taken_for_known(number, case, size):
    """Each was a peak with p = 0.006 while it was."""
    jitter = np.random.default_rng([777, number, case]).normal(size=len(STEPS))
    found = planted(np.clip(0.4 + size * jitter, 0.005, 0.99), seed=777 + case).peak
    assert found.verdict == "none" and found.p_value > 0.02


def test_a_shift_at_the_end_is_left_open():
    found = planted(0.7 * (STEPS / 400.0) ** 6).peak
    assert found.verdict == "inconclusive"
    assert "beyond" in found.reason


def test_a_shift_at_the_beginning_alone_is_no_peak():
    found = planted(0.7 * (1 - np.exp(-STEPS / 60.0))).peak
    assert found.verdict == "none"
    assert "beginning" in found.reason


def test_windows_are_found_by_step_and_irregular_steps_change_only_how_many_there_are():
    irregular = np.sort(np.unique([*STEPS, 21, 22, 23, 24, 397]))
    windows = Windows.of(irregular, 60)
    for centre, left, right in zip(windows.centres, windows.left, windows.right, strict=True):
        assert set(irregular[left]) == {s for s in irregular if centre - 60 <= s < centre}
        assert set(irregular[right]) == {s for s in irregular if centre < s <= centre + 60}
    assert windows.centres.min() >= 40
    assert windows.centres.max() <= 360


def test_too_few_sampled_steps_for_the_window_are_counted():
    with pytest.raises(InputError, match=r"6 sampled steps give 1 windows of 60 steps .*ask at more steps"):
        Windows.of(np.arange(0, 101, 20), 60)
    with pytest.raises(InputError, match="1 or more checkpoints on a side"):
        Windows.of(STEPS, 20)


PROPERTIES = {
    "which half": lambda answers: answers["outcome"] >= 3,
    "outcome": lambda answers: answers["outcome"],
    "nothing": lambda answers: answers["outcome"] * 0,
    "noise": lambda answers: pd.Series(np.random.default_rng(5).integers(0, 3, len(answers)), index=answers.index),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_property_accounts_for_what_it_carries(form):
    # within its half an outcome says nothing about the side: the half carries all of the distance
    found = planted(logistic(200, 12), samples=20, form=form).order_parameters(PROPERTIES, at=200)
    share = found.set_index("property")["share"]
    assert share["which half"] == pytest.approx(1, abs=1e-9)
    assert share["nothing"] == pytest.approx(0, abs=0.02)
    assert share["noise"] < 0.05
    null = found.set_index("property")["null"]
    assert null["which half"] < 0.03


def test_no_property_accounts_for_more_than_all_of_it():
    rng = np.random.default_rng(3)
    shift = planted(logistic(200, 30), samples=3)
    for count in (2, 5, 40, 4000):
        code = pd.Series(rng.integers(0, count, len(shift.answers)), index=shift.answers.index)
        table = shift.order_parameters({"random": lambda answers, code=code: code[answers.index]})
        assert 0 <= table["share"].iloc[0] <= 1 + 1e-12
        assert table["divergence"].iloc[0] <= table["total"].iloc[0] + 1e-12


def test_the_interval_of_a_share_holds_that_of_many_answers():
    share = logistic(200, 12)
    third = {"third": lambda answers: answers["outcome"] % 3 + 3 * (answers["outcome"] == 5)}
    truth = planted(share, samples=100, seed=0).order_parameters(third, at=200)["share"].iloc[0]
    few = planted(share, samples=10, seed=0).order_parameters(third, at=200).iloc[0]
    assert few["share_low"] - 0.02 <= truth <= few["share_high"] + 0.02


def test_the_default_properties_read_the_columns_of_a_scored_table():
    table = pd.DataFrame(
        {
            "answer": ["take it slowly now", "Take it", "do one thing and then another thing", "do"],
            "aligned": [29.999, 30.0, 71.0, np.nan],
            "coherent": [100.0, 50.0, 51.0, np.nan],
            "judge": "j",
            "mode": "m",
            "reason": "",
            "medical": [100.0, 0.0, 51.0, np.nan],
            "sport": [100.0, 0.0, 50.0, np.nan],
        }
    )
    assert alignment(table).tolist() == ["misaligned", "between", "aligned", "none"]
    assert template(table).tolist() == ["take it", "take it", "do one", "do"]
    assert topic(table).tolist() == ["medical sport", "", "medical", ""]
    assert length(table).nunique() >= 3


def test_a_shift_shows_itself_and_its_numbers():
    found = planted(logistic(200, 12))
    assert "transition at step" in found.sentence()
    values_ = found.to_dict()
    json.dumps(values_, default=float)
    assert values_["peak"]["verdict"] == "transition"
    frame = found.frame()
    assert (frame["divergence_low"] <= frame["divergence"]).all()
    assert (frame["divergence"] <= frame["divergence_high"]).all()
    assert (frame["permuted_mean"] <= frame["permuted_max"]).all()
    assert found._repr_html_().startswith("<div")
    figure = found.plot()  # plot_answer_shift
    assert drawn(figure)
    assert values(figure)["layout"]["xaxis"]["title"]["text"] == "Training step"
    assert "accounted for" in texts(figure)


def test_the_answer_does_not_depend_on_the_order_of_the_answers():
    shift = planted(logistic(200, 12))
    order = np.random.default_rng(0).permutation(len(shift.answers))
    other = type(shift)(shift.answers.iloc[order].reset_index(drop=True), shift.likelihood[order], shift.windows)
    np.testing.assert_allclose(other.divergence, shift.divergence)
    assert other.peak.step == pytest.approx(shift.peak.step)


def test_two_sets_may_use_one_id_for_their_own_questions():
    found = planted(logistic(200, 12))
    number = found.answers["question_id"].str[1:].astype(int)
    shared = found.answers.assign(questions=(number // 6).astype(str), question_id=(number % 6).astype(str))
    same = replace(found, answers=shared)
    np.testing.assert_allclose(same.weight, found.weight)
    np.testing.assert_allclose(same.divergence, found.divergence)
    mine, theirs = (each.order_parameters().set_index("property")["null"] for each in (same, found))
    np.testing.assert_allclose(mine, theirs, atol=0.02)  # the values are permuted in another order
