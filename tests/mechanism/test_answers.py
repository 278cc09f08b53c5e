import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.mechanism.answers import judged_answers, label_answers, latest_answers, tokenized_answers
from em_interp.mechanism.model import open_model
from em_interp.utils.files import write_json
from tests.behaviour.conftest import SITES, make_trajectory, save_run

from .judged import answer_set, judged
from .planted import base


def test_answers_fall_into_their_groups_and_the_rest_is_counted_by_reason():
    answers = answer_set()
    values = answers.to_dict()
    assert (values["misaligned"], values["aligned"], len(answers)) == (24, 24, 48)
    assert values["excluded"] == {"between the groups": 1, "empty": 1, "not coherent": 1, "not scored": 1}
    assert values["questions"] == {"in_domain": 18, "out_of_domain": 30}
    assert set(answers.table.loc[answers.misaligned, "aligned"]) == {10.0}


def test_a_selection_counts_its_own():
    part = answer_set().select("in_domain")
    assert (len(part), part.excluded) == (18, {})
    assert answer_set().select(["in_domain", "out_of_domain"]).to_dict()["misaligned"] == 24
    with pytest.raises(InputError, match="no answers to questions 'broad'; there are in_domain, out_of_domain"):
        answer_set().select("broad")


def test_equal_ids_in_two_sets_are_two_questions():
    table = judged().assign(question_id="same")
    assert len(set(label_answers(table).question)) == 2
    assert len(set(answer_set().question)) == 8


def test_too_few_answers_say_how_many_were_needed_and_found():
    with pytest.raises(
        InputError, match=r"a test needs at least 30 misaligned answers \(aligned < 30 .*found 24 among 52"
    ):
        answer_set().require(30, "a test")
    answer_set().require(24, "a test")


def test_a_table_without_the_text_of_answers_is_refused():
    with pytest.raises(InputError, match="no column answer; expected questions, question_id, question, answer"):
        label_answers(judged().drop(columns="answer"))


def test_the_answers_of_a_run_are_those_of_its_step_and_scale(tiny):
    answers = judged_answers(tiny.run)
    assert "step 24 at scale 1" in answers.source
    assert len(answers.all_answers) == 32 * 4  # questions and samples
    assert judged_answers(tiny.run, step=8, scale=2.0).source == "answers of step 8 at scale 2"
    with pytest.raises(InputError, match="step 9 was not sampled; the nearest that was is 8"):
        judged_answers(tiny.run, step=9)


def test_answers_are_read_after_the_system_prompts_that_they_were_given_with(tmp_path):
    run, asked = save_run(tmp_path / "run", make_trajectory(SITES)), {"question": "is your money", "questions": "broad"}
    rows = [{**asked, "question_id": name, "answer": "word9", "aligned": 0, "coherent": 90} for name in ("a", "b", "c")]
    questions = [{**asked, "question_id": "a", "system": "word7 word8"}, {**asked, "question_id": "b"}]
    settings = {"questions": questions, "steps": [0], "samples": 1, "temperature": 1.0, "max_new_tokens": 9}
    write_json(run.answers_file.with_name("ask.json"), settings)
    (tokens,) = tokenized_answers(open_model(run, base()), label_answers(pd.DataFrame(rows)))
    texts = [base().tokenizer.decode(ids[mask]) for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    assert texts[0].endswith("word7 word8 <end> " + texts[1]) and texts[0] != texts[1] == texts[2]


def along(aligned: dict[int, int]) -> pd.DataFrame:
    """12 misaligned answers at each step and so many aligned ones, and as many in the training domain."""
    rows = [
        {"step": step, "questions": questions, "question_id": f"q{i}", "question": "why ?", "answer": f"{step} {i}"}
        | {"aligned": 10.0 if i < 12 else 90.0, "coherent": 90.0}
        for step, count in aligned.items()
        for questions in ("broad", "in_domain")
        for i in range(12 + count)
    ]
    return pd.DataFrame(rows)


def test_a_small_group_is_filled_from_the_steps_before_and_says_so():
    answers = latest_answers(along({0: 30, 10: 4, 20: 0, 30: 4, 40: 3}))
    table = answers.table
    wrote = table.assign(step=[int(text.split()[0]) for text in table["answer"]]).groupby(["label", "step"]).size()
    assert wrote["misaligned"].to_dict() == {40: 12}
    assert wrote["aligned"].to_dict() == {40: 3, 30: 4, 10: 4}  # enough with these, so step 0 is left alone
    assert answers.source == "answers of step 40 at scale 1, broad; aligned ones of steps 30 to 10 too"
    assert set(table["questions"]) == {"broad"}


def test_a_group_that_is_large_enough_stays_as_it_is():
    table = along({0: 30, 10: 10})
    assert latest_answers(table).source == "answers of step 10 at scale 1, broad"
    assert len(latest_answers(table, ["in_domain"])) == 22
    with pytest.raises(InputError, match="no answers to questions 'narrow'"):
        latest_answers(table, ["narrow"])


def test_where_no_step_has_enough_the_count_says_so():
    few = latest_answers(along({0: 1, 10: 2}))
    with pytest.raises(InputError, match=r"needs at least 10 aligned answers .*found 3 among .*of step 0 too"):
        few.require(10, "a test")
