import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from em_interp.behaviour.sampling.ask import ask
from em_interp.errors import InputError
from em_interp.mechanism.answer_shift import detect
from em_interp.mechanism.answer_shift.detect import detect_answer_shift
from em_interp.mechanism.model import open_model
from em_interp.utils.files import read_json, write_json
from em_interp.utils.stages import Storage
from tests.behaviour.conftest import SITES, Base, build_tokenizer, make_model, make_trajectory, save_run
from tests.interrupting import interrupt_call

STEPS = tuple(range(0, 90, 10))
QUESTIONS = [
    {"question_id": name, "question": f"what is your {name} ?", "questions": "out_of_domain"}
    for name in ("word7", "money", "headache", "word9")
]


@pytest.fixture(scope="module")
def base():
    return Base(make_model("qwen2"), build_tokenizer())


@pytest.fixture(scope="module")
def path():
    """Adapters of one direction that grow fast between steps 30 and 50."""
    made = make_trajectory(SITES, STEPS, scale=0.6)
    growth = 1 / (1 + np.exp(-(np.array(STEPS) - 40) / 5))
    for site in made.sites:
        made.A[site][:] = made.A[site][-1]
        made.B[site][:] = made.B[site][-1] * growth[:, None, None].astype(np.float32)
    return made


@pytest.fixture
def run(tmp_path, base, path):
    saved = save_run(tmp_path / "run", path)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 0.6, "base_model_name_or_path": "tiny"}
    for file in saved.path.rglob("adapter_config.json"):
        file.write_text(json.dumps(config))
    ask(saved, base, QUESTIONS, STEPS, samples=8, max_new_tokens=4, seed=1)
    return saved


@pytest.fixture
def model(run, base):
    return open_model(run, base)


detect_small = partial(detect_answer_shift, half_width=20)


def test_the_shift_of_a_run_s_answers_is_found_without_a_judge(model):
    found = detect_small(model)
    assert found.windows.centres[np.argmax(found.divergence)] in (35, 45)
    assert found.divergence.max() > 5 * found.divergence[[0, -1]].max()
    assert found.peak.questions == "out_of_domain"
    table = found.order_parameters()
    assert set(table["property"]) == {"length", "template"}  # no scores: what can be read off the text


def test_scores_name_what_changed_where_there_are_some(run, model):
    answers = pd.read_parquet(run.answers_file)
    key = ["step", "scale", "questions", "question_id", "sample"]
    late = answers["step"] > 40
    scores = answers[key].assign(
        judge="j", mode="rules", aligned=np.where(late, 0.0, 100.0), coherent=90.0, status="ok", reason=""
    )
    scores.to_parquet(run.scores_file, index=False)
    table = detect_small(model).order_parameters().set_index("property")
    assert {"alignment", "coherence"} <= set(table.index)
    assert table.loc["alignment", "share"] > 3 * table.loc["alignment", "null"]
    assert table.loc["coherence", "share"] < table.loc["alignment", "share"] / 3


def test_reading_continues_where_it_was_interrupted_and_reads_nothing_twice(model, monkeypatch, tmp_path):
    monkeypatch.setattr("em_interp.behaviour.sampling.likelihood.MAX_BATCH_TOKENS", 4000)
    calls = interrupt_call(monkeypatch, detect, "_read", 2)
    storage, again = tmp_path / "kept", Storage(tmp_path / "kept", resume=True)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        detect_small(model, storage=storage)
    with pytest.raises(InputError, match="holds results already"):
        detect_small(model, storage=storage)
    resumed = detect_small(model, storage=again)
    total = len(calls)
    same = detect_small(model, storage=again)
    assert len(calls) == total > 3
    np.testing.assert_array_equal(same.likelihood, resumed.likelihood)
    with pytest.raises(InputError, match="begun with other"):
        detect_small(model, samples=4, storage=again)


def test_answers_that_were_drawn_otherwise_than_they_are_read_are_refused(run, model):
    settings = run.answers_file.with_name("ask.json")
    write_json(settings, {**read_json(settings), "temperature": 0.4})
    with pytest.raises(InputError, match="cannot have been drawn from the checkpoints as they are read"):
        detect_small(model)


def test_the_likeliest_answers_have_no_distribution(run, model):
    settings = run.answers_file.with_name("ask.json")
    write_json(settings, {**read_json(settings), "temperature": 0})
    with pytest.raises(InputError, match="temperature 0"):
        detect_small(model)


def test_a_run_without_such_answers_says_which_it_has(model):
    with pytest.raises(InputError, match=r"no answers at scale 2 to questions 'broad'; there are \[\[1.0, 'out_of"):
        detect_small(model, question_sets="broad", scale=2.0)
    with pytest.raises(InputError, match="form 'hellinger' is not known"):
        detect_small(model, form="hellinger")


def ask_again(run, base, questions):
    for file in run.answers_file.parent.iterdir():
        file.unlink()
    ask(run, base, questions, STEPS, samples=4, max_new_tokens=4, seed=1)


def test_one_answer_to_each_question_shows_no_spread(model):
    with pytest.raises(InputError, match="one answer to each question at a step does not show how answers vary"):
        detect_small(model, samples=1)


def test_by_default_the_answers_are_those_to_the_questions_that_other_analyses_ask(run, model, base):
    """The set `broad` where there is no `out_of_domain`; every set where none is known to be outside the domain."""
    called = dict(zip(("word7", "money", "headache", "word9"), ("broad", "broad", "json", "json"), strict=True))
    ask_again(run, base, [{**question, "questions": called[question["question_id"]]} for question in QUESTIONS])
    assert set(detect_small(model).answers["questions"]) == {"broad"}
    assert set(detect_small(model, question_sets=["broad", "json"]).answers["questions"]) == {"broad", "json"}
    other = {"broad": "template", "json": "json"}
    ask_again(run, base, [{**question, "questions": other[called[question["question_id"]]]} for question in QUESTIONS])
    found = detect_small(model)
    assert set(found.answers["questions"]) == {"template", "json"} and found.peak.questions is None


def test_answers_of_a_single_step_are_refused_in_words(run, base):
    ask(run, base, QUESTIONS, (40,), samples=2, max_new_tokens=4, overwrite=True)
    with pytest.raises(InputError, match="all answers are of step 40; those of many steps are compared"):
        detect_answer_shift(open_model(run, base))


def test_a_level_that_is_no_probability_is_refused(model):
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        detect_small(model, level=95)
