import numpy as np
import pytest
import torch
from scipy import stats

from em_interp.behaviour.sampling import decode as module
from em_interp.behaviour.sampling.decode import uniforms
from em_interp.behaviour.sampling.generate import RowAdapters, generate
from tests.behaviour.conftest import SITES, make_trajectory

QUESTIONS = ["what should i do about a headache ?", "what is your wish ?", "i am bored . what should i do ?"]


def test_a_stream_is_uniform_depends_on_its_name_alone_and_a_longer_one_begins_with_a_shorter():
    numbers = uniforms("0 1 medical", 5000)
    assert stats.kstest(numbers, "uniform").pvalue > 0.01
    assert (uniforms("0 1 medical", 10) == numbers[:10]).all()
    assert abs(np.corrcoef(numbers, uniforms("0 2 medical", 5000))[0, 1]) < 0.06


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_answers_are_identical_in_batches_of_1_7_and_64(model, tokenizer, temperature):
    trajectory = make_trajectory(SITES)
    adapters = RowAdapters.of(trajectory, [0, 5, 10], [1.0, 1.0, 2.0], "cpu")

    def answers(batch):
        more = {"samples": 12, "temperature": temperature, "max_new_tokens": 6, "seed": 3, "batch": batch}
        return generate(model, tokenizer, QUESTIONS, adapters, **more)

    whole = answers(64)
    assert answers(7) == answers(1) == whole
    assert len({answer for of_prompt in whole for answer in of_prompt}) > 20


def test_no_token_without_probability_is_chosen_and_the_others_as_often_as_they_should(monkeypatch):
    monkeypatch.setattr(module, "MAX_CUMULATED", 500)  # several blocks
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf, 2.0, -torch.inf]).repeat(3000, 1)
    numbers = torch.from_numpy(np.append(uniforms("x", 2998), [0.0, 1 - 2**-53]))
    tokens = module._choose(logits, 0.5, numbers)
    counts = torch.bincount(tokens, minlength=6)
    assert counts[[0, 3, 5]].sum() == 0
    expected = torch.softmax(torch.tensor([0.0, 2.0, 4.0]), 0) * 3000
    assert stats.chisquare(counts[[1, 2, 4]].numpy(), expected.numpy(), sum_check=False).pvalue > 0.01


def test_prompts_are_read_once_and_finished_answers_are_dropped(qwen, tokenizer):
    tokens, forward = [], qwen.forward

    def counted(*arguments, **inputs):
        tokens.append(tuple(inputs["input_ids"].shape))
        return forward(*arguments, **inputs)

    qwen.forward = counted
    adapters = RowAdapters.of(make_trajectory(SITES), [10, 10], [1.0, 1.0], "cpu")
    generate(qwen, tokenizer, QUESTIONS[:2], adapters, samples=50, max_new_tokens=40, temperature=3.0)
    (_, measured), (prompts, length), *steps = tokens
    assert measured == 1 and prompts == 2 and length > 5  # the cost of a row, then each prompt once for all its answers
    rows = [count for count, _ in steps]
    assert rows[0] == 100 and rows == sorted(rows, reverse=True) and rows[-1] <= 80
