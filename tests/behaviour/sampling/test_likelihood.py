import numpy as np
import pytest
import torch

from em_interp.behaviour.sampling.generate import RowAdapters, find_module
from em_interp.behaviour.sampling.likelihood import (
    TokenizedAnswer,
    batches_by_length,
    log_likelihood,
    logits_of,
    tokenize_answers,
)
from em_interp.errors import InputError
from tests.behaviour.conftest import SITES, Base, build_tokenizer, make_model, make_trajectory
from tests.training.conftest import make_tokenizer


@pytest.fixture(scope="module", params=["qwen2", "gemma3"])
def any_base(request):
    return Base(make_model(request.param), build_tokenizer())


@pytest.fixture(scope="module")
def base():
    return Base(make_model("qwen2"), build_tokenizer())


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
    with pytest.raises(InputError, match="cannot be found in the rendered chat"):
        tokenize_answers(Base(base.model, odd), [[{"role": "user", "content": "what ?"}]], ["word7"])


def test_an_answer_whose_first_token_reaches_into_the_question_is_refused(base):
    """The template ends a question with a space, which an answer's first token takes."""
    with pytest.raises(InputError, match="does not follow its question's tokens"):
        tokenize_answers(Base(base.model, make_tokenizer()), [[{"role": "user", "content": "later"}]], ["rest now"])


def test_the_last_of_several_answers_in_a_chat_is_the_one_that_is_read(base):
    asked, said = {"role": "user", "content": "what ?"}, {"role": "assistant", "content": "word7"}
    (row,) = tokenize_answers(base, [[asked, said, asked]], ["word8 word9"])
    assert base.tokenizer.convert_ids_to_tokens(row.answer) == ["word8", "word9", "<end>"]
    assert base.tokenizer.decode(row.prompt).count("word7") == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{{ 'word1 ' + m['content'] }}", "the turn of an answer is ' word1 word7 word8 <end>'"),
        ("{{ m['content'] + ' word1' }}", "the answer is 'word7 word8'"),
        ("{{ m['content'].replace('word8', 'word9') }}", "rewrites answers or adds text of its own"),
        ("{{ m['content'][:5] }}", "rewrites answers"),
    ],
)
def test_a_template_that_writes_another_answer_is_refused(base, answer, said):
    odd = build_tokenizer()
    odd.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} <end> {% else %}<assistant> "
        + answer
        + " <end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    with pytest.raises(InputError, match=said) as caught:
        tokenize_answers(Base(base.model, odd), [[{"role": "user", "content": "what ?"}]], ["word7 word8"])
    assert "\n" not in str(caught.value)


def test_batches_hold_every_row_once_and_keep_to_the_limit(monkeypatch):
    monkeypatch.setattr("em_interp.behaviour.sampling.likelihood.MAX_BATCH_TOKENS", 40)
    rows = [TokenizedAnswer([1] * 3, [1] * n) for n in (1, 9, 3, 3, 20, 60, 2)]
    found = batches_by_length(rows, vocabulary=100)
    assert sorted(i for batch in found for i in batch) == list(range(7))
    for batch in found:
        assert len(batch) == 1 or max(len(rows[i]) for i in batch) * len(batch) <= 40
