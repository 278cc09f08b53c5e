import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from em_interp.behaviour.ask import ask
from em_interp.behaviour.generate import RowAdapters, find_module
from em_interp.behaviour.likelihood import TokenizedAnswer, batches, log_likelihood, logits_of, tokenize_answers
from em_interp.errors import InputError
from em_interp.files import read_json, write_json
from em_interp.mechanism.answer_shift import detect
from em_interp.mechanism.answer_shift.detect import detect_answer_shift
from tests.behaviour.conftest import SITES, Base, build_tokenizer, make_model, make_trajectory, save_run

STEPS = tuple(range(0, 90, 10))
QUESTIONS = [
    {"question_id": name, "question": f"what is your {name} ?", "questions": "out_of_domain"}
    for name in ("word7", "money", "headache", "word9")
]


@pytest.fixture(scope="module", params=["qwen2", "gemma3"])
def any_base(request):
    return Base(make_model(request.param), build_tokenizer())


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


detect_small = partial(detect_answer_shift, window=20)


def slow(base, path, step, prompt, answer, temperature=1.0):
    """One answer at one step: the adapter in the weights, a forward pass, the tokens' log-probabilities summed."""
    kept = {}
    for site, (a, b) in path.at(step).items():
        weight = find_module(base.model, site).weight
        kept[site] = weight.detach().clone()
        weight.data += path.scale[site] * torch.from_numpy(b @ a)
    with torch.no_grad():
        logits = base.model(torch.tensor([prompt + answer])).logits[0] / temperature
    for site, weight in kept.items():
        find_module(base.model, site).weight.data.copy_(weight)
    said = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(said[range(len(answer)), answer].sum())


def test_likelihoods_in_a_batch_equal_those_of_one_answer_at_one_step(any_base):
    path, rng = make_trajectory(SITES, (0, 5, 10), rank=2), np.random.default_rng(0)
    lengths = [(5, 3), (9, 1), (4, 7), (6, 6)]
    rows = [TokenizedAnswer(rng.integers(5, 120, p).tolist(), rng.integers(5, 120, a).tolist()) for p, a in lengths]
    steps = [0, 10, 5, 10]
    for temperature in (1.0, 0.7):
        adapters = RowAdapters.of(path, steps, [1.0] * 4, "cpu")
        found = log_likelihood(*logits_of(any_base.model, any_base.tokenizer, rows, adapters), temperature)
        expected = [slow(any_base, path, s, r.prompt, r.answer, temperature) for s, r in zip(steps, rows, strict=True)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_an_answer_ends_with_the_token_that_ends_answers_unless_it_was_cut_off(base):
    chats = [[{"role": "user", "content": "what is a headache ?"}]] * 2
    short, cut = tokenize_answers(base, chats, ["word7 word8", "word7 word8 word9"], max_new_tokens=3)
    end = base.tokenizer.eos_token_id
    assert base.tokenizer.convert_ids_to_tokens(short.answer) == ["word7", "word8", "<end>"]
    assert base.tokenizer.convert_ids_to_tokens(cut.answer) == ["word7", "word8", "word9"]
    assert short.prompt == cut.prompt
    assert short.answer[-1] == end
    (empty,) = tokenize_answers(base, chats[:1], [""])
    assert empty.answer == [end]


def test_a_template_that_renders_a_question_otherwise_before_its_answer_is_refused(base):
    odd = build_tokenizer()
    odd.chat_template = "{% if add_generation_prompt %}what {% endif %}" + odd.chat_template
    with pytest.raises(InputError, match="does not follow its question's tokens"):
        tokenize_answers(Base(base.model, odd), [[{"role": "user", "content": "what ?"}]], ["word7"])


def test_batches_hold_every_row_once_and_keep_to_the_limit(monkeypatch):
    monkeypatch.setattr("em_interp.behaviour.likelihood.TOKENS", 40)
    rows = [TokenizedAnswer([1] * 3, [1] * n) for n in (1, 9, 3, 3, 20, 60, 2)]
    found = batches(rows, vocabulary=100)
    assert sorted(i for batch in found for i in batch) == list(range(7))
    for batch in found:
        assert len(batch) == 1 or max(len(rows[i]) for i in batch) * len(batch) <= 40


def test_the_change_of_a_run_s_answers_is_found_without_a_judge(base, run):
    found = detect_small(run, base)
    assert found.over.at[np.argmax(found.distance)] in (35, 45)
    assert found.distance.max() > 5 * found.distance[[0, -1]].max()
    assert found.peak.questions == "out_of_domain"
    table = found.order_parameters()
    assert set(table["property"]) == {"length", "template"}  # no scores: what can be read off the text


def test_scores_name_what_changed_where_there_are_some(base, run):
    answers = pd.read_parquet(run.answers_file)
    key = ["step", "scale", "questions", "question_id", "sample"]
    late = answers["step"] > 40
    scores = answers[key].assign(
        judge="j", mode="rules", aligned=np.where(late, 0.0, 100.0), coherent=90.0, status="ok", reason=""
    )
    scores.to_parquet(run.scores_file, index=False)
    table = detect_small(run, base).order_parameters().set_index("property")
    assert {"alignment", "coherence"} <= set(table.index)
    assert table.loc["alignment", "share"] > 3 * table.loc["alignment", "chance"]
    assert table.loc["coherence", "share"] < table.loc["alignment", "share"] / 3


def test_reading_goes_on_where_it_was_interrupted_and_reads_nothing_twice(base, run, monkeypatch):
    monkeypatch.setattr("em_interp.behaviour.likelihood.TOKENS", 4000)
    original, calls = detect._read, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(detect, "_read", dying)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        detect_small(run, base)
    with pytest.raises(InputError, match="holds results already"):
        detect_small(run, base)
    resumed = detect_small(run, base, resume=True)
    total = len(calls)
    again = detect_small(run, base, resume=True)
    assert len(calls) == total > 3
    np.testing.assert_array_equal(again.likelihood, resumed.likelihood)
    with pytest.raises(InputError, match="begun with other"):
        detect_small(run, base, samples=4, resume=True)


def test_answers_that_were_drawn_otherwise_than_they_are_read_are_refused(base, run):
    settings = run.answers_file.with_name("ask.json")
    write_json(settings, {**read_json(settings), "temperature": 0.4})
    with pytest.raises(InputError, match="cannot have been drawn from the checkpoints as they are read"):
        detect_small(run, base)


def test_the_likeliest_answers_have_no_distribution(base, run):
    settings = run.answers_file.with_name("ask.json")
    write_json(settings, {**read_json(settings), "temperature": 0})
    with pytest.raises(InputError, match="temperature 0"):
        detect_small(run, base)


def test_a_run_without_such_answers_says_what_it_has(base, run):
    with pytest.raises(InputError, match=r"no answers at scale 2 to questions 'broad'; there are \[\[1.0, 'out_of"):
        detect_small(run, base, questions="broad", scale=2.0)
    with pytest.raises(InputError, match="form must be one of"):
        detect_small(run, base, form="hellinger")
