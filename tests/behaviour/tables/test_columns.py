import pandas as pd
import pytest

import em_interp as em
from em_interp.behaviour.tables.columns import given_columns
from em_interp.cli import main
from em_interp.errors import InputError

BASE = pd.DataFrame(
    {"question": ["q"] * 4, "answer": list("abcd"), "aligned": [10, 90, 90, 90], "coherent": [90] * 4, "step": [1] * 4}
)


@pytest.mark.parametrize(
    "names",
    [
        {"aligned": "aligned_score", "coherent": "coherent_score"},
        {"aligned": "alignment", "coherent": "coherence"},
        {"aligned": "Alignment Score", "coherent": "Coherence-Score", "question": "Prompt", "answer": "completion"},
        {"answer": "response", "step": "checkpoint"},
        {"step": "global_step"},
    ],
)
def test_columns_are_known_by_the_names_that_others_give_them(names):
    curve = em.behaviour_curve(BASE.rename(columns=names))
    assert curve.frame()["em"].tolist() == [0.25] and {"question", "answer"} <= set(curve.answers)


def test_steps_may_be_names_of_checkpoints_and_other_names_of_checkpoints_are_no_steps():
    table = BASE.drop(columns="step").assign(checkpoint=["checkpoint-5", "out/checkpoint-5", "step_9", "9"])
    assert em.behaviour_curve(table).steps.tolist() == [5, 9]
    assert em.score_responses(table.assign(checkpoint="final")).em.rate == 0.25
    renamed = table.assign(checkpoint="final").rename(columns={"aligned": "my_score"})
    assert em.score_responses(renamed, columns={"aligned": "my_score"}).em.rate == 0.25
    with pytest.raises(InputError, match="checkpoint is 'final' in row 1; a whole number was expected"):
        em.score_responses(table.assign(checkpoint="final"), columns={"step": "checkpoint"})
    with pytest.raises(InputError, match="checkpoint is 'final' in row 4; a whole number was expected"):
        em.score_responses(table.assign(checkpoint=["1", "2", "3", "final"]))


def test_a_given_column_comes_before_one_of_our_name(tmp_path, capsys):
    table = BASE.assign(aligned=[True, False, False, False], mine=BASE["aligned"])
    assert em.score_responses(table, columns={"aligned": "mine"}).em.rate == 0.25
    table.to_csv(tmp_path / "a.csv", index=False)
    assert main(["score", str(tmp_path / "a.csv"), "--columns", "aligned=mine"]) == 0
    assert "EM 25.0%" in capsys.readouterr().out
    for wrong, line in {
        "aligned": "expected COLUMN=NAME",
        "alined=mine": "no column 'alined' is read; did you mean 'aligned'?",
        "aligned=yours": "has no column yours, which was given for aligned; found question, answer, aligned",
    }.items():
        assert main(["score", str(tmp_path / "a.csv"), "--columns", wrong]) == 2
        assert line in capsys.readouterr().err
    assert given_columns(["aligned = a b", "coherent=c=d"]) == {"aligned": "a b", "coherent": "c=d"}


def test_an_error_names_the_columns_as_they_are_in_the_table():
    table = BASE.rename(columns={"answer": "response", "aligned": "alignment"})
    with pytest.raises(InputError, match="found question, response, alignment, step"):
        em.score_responses(table.drop(columns="coherent"))
    with pytest.raises(InputError, match="the table: alignment is 101 in row 1"):
        em.score_responses(table.assign(alignment=101))


@pytest.mark.parametrize(
    "table, message",
    [
        (pd.concat([BASE, BASE[["aligned"]]], axis=1), "has the column aligned twice"),
        (pd.concat([BASE, BASE[["answer"]]], axis=1), "has the column answer twice"),
        (
            BASE.drop(columns="aligned").assign(alignment=1, aligned_score=90),
            "several columns for aligned: .*columns=…",
        ),
        (pd.concat({"x": BASE}, axis=1), "2 levels of column names"),
    ],
)
def test_columns_that_are_there_twice_are_refused(table, message):
    with pytest.raises(InputError, match=message):
        em.score_responses(table)


def test_other_columns_may_be_there_twice_and_an_index_with_a_name_is_a_column():
    table = pd.concat([BASE.assign(note=1), BASE[["answer"]].set_axis(["note"], axis=1)], axis=1)
    assert em.score_responses(table).em.rate == em.score_responses(BASE.set_index("question")).em.rate == 0.25
