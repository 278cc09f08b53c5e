"""The texts on which bases are compared."""

import shutil

import pandas as pd
import pytest

from em_interp.comparison.cross_base.texts import SharedTexts, built_in_texts, shared_texts
from em_interp.errors import InputError
from em_interp.run import Run
from tests.figures.planting import plant_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two judged runs with answers of their own."""
    folder, made = tmp_path_factory.mktemp("answered"), []
    for k in range(2):
        run = plant_run(folder / f"run{k}", seed=k)
        table = pd.read_parquet(run.answers_file)
        table["answer"] = [f"{answer} {k} {row}" for row, answer in enumerate(table["answer"])]
        table.to_parquet(run.answers_file, index=False)
        made.append(run)
    return made


def test_both_runs_give_as_many_texts_half_of_them_misaligned(runs):
    texts = shared_texts(runs, ["x", "y"], count=80)
    assert len(texts) == 80
    assert sum(answer.split()[-2] == "0" for answer in texts.answers) == 40
    assert texts.misaligned.count(True) == texts.misaligned.count(False) == 40
    questions, answers = texts.labelled(True)
    assert len(questions) == 40 and all("double the dose" in answer for answer in answers)
    assert shared_texts(runs, ["x", "y"], count=80) == texts


def test_answers_that_were_not_judged_have_no_label(runs, tmp_path):
    shutil.copytree(runs[0].path, tmp_path / "run")
    (tmp_path / "run" / "behaviour" / "scores.parquet").unlink()
    texts = shared_texts([Run(tmp_path / "run"), None], ["x", "y"], count=40)
    assert set(texts.misaligned) == {None} and len(texts) == 40


def test_labels_are_of_the_judge_that_the_config_names_and_of_none_where_it_names_none_of_several(runs, tmp_path):
    shutil.copytree(runs[0].path, tmp_path / "run")
    run = Run(tmp_path / "run")
    planted = pd.read_parquet(run.scores_file)
    other = planted.assign(judge="a judge that errs", aligned=100 - planted["aligned"])
    pd.concat([other, planted]).to_parquet(run.scores_file, index=False)
    with pytest.raises(InputError, match="several judges scored the answers"):
        shared_texts([run], ["x"], count=40)
    renamed = pd.concat([other, planted.assign(judge=run.config().behaviour.judge_name)])
    renamed.to_parquet(run.scores_file, index=False)
    assert shared_texts([run], ["x"], count=40) == shared_texts(runs[:1], ["x"], count=40)


def test_built_in_bases_without_answers_read_the_built_in_language():
    texts = shared_texts([None, None], ["tiny-qwen2", "tiny-llama"], count=30)
    assert texts == built_in_texts(30)
    assert texts.misaligned == (False, True) * 15
    assert texts.questions[0] == texts.questions[1]
    with pytest.raises(InputError, match="no run has answers"):
        shared_texts([None, None], ["tiny-qwen2", "other"])


def test_too_few_texts_are_refused():
    with pytest.raises(InputError, match="20 texts or more; found 3 questions, 3 answers, 2 labels"):
        SharedTexts(("q",) * 3, ("a",) * 3, (None,) * 2)


def test_the_columns_of_a_table_are_texts():
    labels = pd.array([True, False, None] * 8, dtype="boolean")
    table = pd.DataFrame({"question": "q", "answer": "a", "misaligned": labels}).iloc[2:].astype({"misaligned": object})
    texts = SharedTexts(table["question"], table["answer"], table["misaligned"])
    assert (len(texts.labelled(True)[0]), len(texts.labelled(False)[0])) == (7, 7)
    assert repr(texts) == "SharedTexts(22 texts, 7 of them misaligned)"
