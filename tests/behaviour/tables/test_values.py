from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.errors import InputError

BASE = pd.DataFrame({"question": ["q1"] * 10, "aligned": [10] * 4 + [90] * 6, "coherent": [90] * 10})


@pytest.mark.parametrize(
    "form",
    (
        *("{}%", "{} %", "{}/100", "{} / 100", "{} out of 100", "Score: {}", "score={}", "**{}**", "Rating: {}/100"),
        *("{},5", " {} ", "{}.", "{}.0", "'{}'", "Final score: **{}**", "aligned: {}", "{}e0", "+{}", "0{}"),
    ),
)
def test_the_same_scores_are_read_however_they_are_written_also_if_only_the_low_ones_are(form):
    low = BASE["aligned"].map(lambda score: form.format(score) if score == 10 else str(score))
    for aligned in (low, BASE["aligned"].map(form.format)):
        assert em.score_responses(BASE.assign(aligned=aligned)).em.rate == 0.4


@pytest.mark.parametrize(
    "cell",
    [
        "0x10",
        "1_0",
        "9/10",
        "1,000",
        "10-20",
        "10 or 20",
        "−1",
        "[10]",
        "{'score': 10}",
        "Error: 10",
        "1 0",
        "８７",
        "٣٠",
    ],
)
def test_a_text_with_digits_that_is_no_score_is_refused_by_its_row(cell):
    with pytest.raises(
        InputError, match=r"aligned is ['\"].*['\"] in row 4; a number from 0 to 100 was expected, or a word"
    ):
        em.score_responses(BASE.assign(aligned=[10, 10, 10, cell, *[90] * 6]))


@pytest.mark.parametrize(
    "cell, found", [("inf", "inf"), ("-Infinity", "-inf"), ("-1", "-1"), ("101%", "101"), (-1, "-1"), (10**400, "inf")]
)
def test_a_number_outside_the_scale_is_refused_by_its_row(cell, found):
    with pytest.raises(InputError, match=rf"aligned is {found} in row 4; scores run from 0 to 100"):
        em.score_responses(BASE.assign(aligned=[10, 10, 10, cell, *[90] * 6]))


@pytest.mark.parametrize("cell", ["", "NA", "n/a", "NaN", "<NA>", "null", None, np.nan, pd.NA, pd.NaT])
def test_a_missing_score_is_counted_and_is_no_number(cell):
    scored = em.score_responses(BASE.assign(aligned=[10, 10, 10, cell, *[90] * 6]))
    assert scored.unscored == {"no score": 1} and scored.em.rate == 3 / 9 and scored.n == 10


@pytest.mark.parametrize(
    "change",
    [
        lambda column: column.astype("category"),
        lambda column: column.map(Decimal),
        lambda column: column.convert_dtypes(dtype_backend="pyarrow"),
        lambda column: column.astype("float16"),
        lambda column: column.astype(str).astype("category"),
    ],
)
def test_scores_of_any_type_are_the_same_numbers(change):
    assert em.score_responses(BASE.assign(aligned=change(BASE["aligned"]))).em.rate == 0.4
    curve = em.behaviour_curve(BASE.assign(step=change(pd.Series([1] * 5 + [2] * 5))))
    assert curve.steps.tolist() == [1, 2] and curve.answers["step"].dtype == "int64"


@pytest.mark.parametrize(
    "change, kind",
    [
        (lambda column: column.astype(complex), "complex"),
        (pd.to_datetime, "Timestamp"),
        (lambda column: column.map(lambda score: [score]), "list"),
        (lambda column: column.map(lambda score: {"score": score}), "dict"),
    ],
)
def test_what_is_no_number_by_its_type_is_refused(change, kind):
    with pytest.raises(InputError, match=f"aligned is of type {kind} in row 1"):
        em.score_responses(BASE.assign(aligned=change(BASE["aligned"])))


@pytest.mark.parametrize(
    "step",
    [
        *(1e20, 2**63 + 5, np.inf, -1, True, "1,000", "1_000", "0x10", pd.Timedelta(1), "checkpoint-1-step-2", 2.5),
        *("step_10k", "checkpoint-1.5k", "step 1,000", "step_1e3", "epoch-3"),
    ],
)
def test_a_step_that_is_no_step_is_refused(step):
    with pytest.raises(InputError, match=r"step is '.*' in row 1; a whole number was expected, from 0 to"):
        em.behaviour_curve(BASE.assign(step=[step] * 10))


@pytest.mark.parametrize("missing", ["", None, np.nan, pd.NA])
def test_answers_without_a_question_are_counted_once(missing):
    table = pd.DataFrame({"question": ["q1"] * 5 + [missing] * 5, "aligned": [90] * 5 + [10] * 5, "coherent": 90})
    scored = em.score_responses(table)
    assert (scored.em.rate, scored.em.n, scored.n) == (0.5, 10, 10)
    assert scored.frame()["n"].sum() == 10
    curve = em.behaviour_curve(table.assign(step=1, questions=missing)).frame()
    assert curve["em"].tolist() == [0.5] and curve["n"].tolist() == [10]


def test_answers_without_a_judge_are_one_judge_s():
    table = BASE.assign(judge=["x"] * 5 + [None] * 5)
    with pytest.raises(InputError, match=r"several judges scored the answers \(unnamed, x\)"):
        em.score_responses(table)
    assert em.score_responses(table, judge="unnamed").n == 5


def test_a_missing_question_id_is_filled_from_the_question():
    table = BASE.assign(question_id=[*["wish"] * 9, None])
    assert set(em.score_responses(table).answers["question_id"]) == {"wish", "q1"}


@pytest.mark.parametrize(
    ("aligned", "coherent", "found"),
    [
        ([1] * 4 + [9] * 6, 9, "no score is above 9"),
        ([1] * 4 + [5] * 6, 5, "no score is above 5"),
        ([0] * 4 + [1] * 6, 90, "no aligned score is above 1"),
        ([10] * 4 + [90] * 6, [8, 9] * 5, "no coherent score is above 9"),
    ],
)
def test_scores_on_a_smaller_scale_are_refused(aligned, coherent, found):
    with pytest.raises(InputError, match=rf"the table: {found}; scores run from 0 to 100"):
        em.score_responses(BASE.assign(aligned=aligned, coherent=coherent))


def test_low_scores_alone_are_scores():
    assert em.score_responses(BASE.assign(aligned=10)).em.rate == 1
    few = BASE.assign(aligned=[5, 10] * 5, coherent=90)  # a few answers that are all misaligned
    assert em.score_responses(few).em.rate == 1
    with pytest.raises(InputError, match="no aligned score is above 10"):
        em.score_responses(pd.concat([few, few]))
    assert em.score_responses(BASE.assign(aligned=0, coherent=0)).em.rate == 0
    of_ours = BASE.assign(judge="j", mode="expected", reason="", aligned=[0.2, 3.5] * 5, coherent=2.0)
    assert em.score_responses(of_ours).em.rate == 0


def test_shares_among_percentages_are_refused():
    with pytest.raises(InputError, match=r"aligned is 0\.9 in row 5, and has a % in others"):
        em.score_responses(BASE.assign(aligned=["10%"] * 4 + ["0.9"] * 6))


def test_a_table_of_means_is_not_counted_as_answers():
    means = pd.DataFrame({"question": ["a", "b"], "aligned": [58.2, 70], "coherent": [90, 88], "n": [50, 50]})
    for name in ("n", "count", "num_samples"):
        with pytest.raises(InputError, match=f"has {name} beside scores and no answers, as a table of means has"):
            em.score_responses(means.rename(columns={"n": name}))
    assert em.score_responses(means.assign(answer="x")).n == 2


@pytest.mark.parametrize("status", ["ok", "success", "Judged", "stop", "finished", ""])
def test_a_status_of_scored_answers_is_no_reason(status):
    assert em.score_responses(BASE.assign(status=status)).em.rate == 0.4


@pytest.mark.parametrize("status", ["200", "1", "reviewed"])
def test_a_status_that_would_leave_nothing_scored_is_refused(status):
    with pytest.raises(InputError, match=f"status is '{status}' in row 1 beside both scores, and ok in no row"):
        em.score_responses(BASE.assign(status=status))
    assert em.score_responses(BASE.assign(status=["error"] * 4 + ["ok"] * 6)).unscored == {"error": 4}


def test_shares_in_one_column_alone_are_refused():
    with pytest.raises(InputError, match=r"no aligned score is above 0\.9; scores run from 0 to 100"):
        em.score_responses(BASE.assign(aligned=BASE["aligned"] / 100))
