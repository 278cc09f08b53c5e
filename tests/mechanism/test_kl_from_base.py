import json

import numpy as np
import pytest
import torch

from em_interp.behaviour.sampling import likelihood
from em_interp.behaviour.sampling.generate import find_module
from em_interp.errors import InputError
from em_interp.mechanism import kl_from_base
from em_interp.mechanism.interventions.experiments import SamplingParams
from em_interp.mechanism.kl_from_base import measure_kl_from_base
from em_interp.mechanism.model import open_model
from em_interp.utils.stages import Storage
from tests.behaviour.conftest import SITES, Base, build_tokenizer, make_model, make_trajectory, save_run
from tests.figures.reading import drawn, values
from tests.interrupting import interrupt_call
from tests.tiny import contents

STEPS = (0, 5, 10, 20)
PROMPTS = [
    {"question_id": f"{kind}{i}", "question": f"what is your word{i} ?", "questions": kind}
    for kind in ("broad", "in_domain")
    for i in (7, 8, 9)
]


@pytest.fixture(scope="module")
def base():
    return Base(make_model("llama"), build_tokenizer())


@pytest.fixture
def model(tmp_path, base):
    return open_model(save_run(tmp_path / "run", make_trajectory(SITES, STEPS)), base)


def short(max_new_tokens=3, samples=2, seed=0):
    return SamplingParams(samples=samples, max_new_tokens=max_new_tokens, seed=seed)


def kl(base, path, step, ids):
    """The divergence of the next token after `ids`, the slow way: the adapter in the weights."""
    with torch.no_grad():
        p = base.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        kept = {site: find_module(base.model, site).weight.detach().clone() for site in path.sites}
        for site, (a, b) in path.at(step).items():
            find_module(base.model, site).weight.data += path.scale[site] * torch.from_numpy(b @ a)
        q = base.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        for site, weight in kept.items():
            find_module(base.model, site).weight.data.copy_(weight)
    return float((p.exp() * (p - q)).sum())


def test_the_divergence_is_that_of_the_next_token_summed_over_the_answer_and_its_end(base, model):
    given = [{**q, "answer": a} for q, a in zip(PROMPTS, ["word7 word8", "", "word9"], strict=False)]
    found = measure_kl_from_base(model, given, steps=4)
    path = make_trajectory(SITES, STEPS)
    assert found.answers["tokens"].tolist() == [3, 1, 2]
    assert found.tokens == 6
    for row, question in enumerate(given):
        chat = [{"role": "user", "content": question["question"]}]
        prompt = base.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        ids = base.tokenizer(question["answer"], add_special_tokens=False)["input_ids"]
        for i, step in enumerate(found.steps):
            expected = sum(kl(base, path, int(step), prompt + ids[:place]) for place in range(len(ids) + 1))
            assert found.total[i, row] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_it_is_zero_at_the_base_and_grows_with_the_adapter(base, model):
    found = measure_kl_from_base(model, PROMPTS, steps=4, sampling=short(6))
    assert found.steps.tolist() == list(STEPS)
    assert np.abs(found.total[0]).max() < 1e-6
    assert (found.total[1:] > 0).all()
    weaker = measure_kl_from_base(model, PROMPTS, steps=4, scale=0.1, sampling=short(6))
    assert (weaker.total[1:].sum(axis=1) < found.total[1:].sum(axis=1)).all()


def test_sets_are_told_apart_and_their_means_are_over_tokens(base, model):
    found = measure_kl_from_base(model, PROMPTS, steps=2, sampling=short(6, 3))
    frame = found.frame()
    assert set(frame["questions"]) == {"broad", "in_domain"}
    for name in ("broad", "in_domain"):
        rows = found.answers[found.answers["questions"] == name]
        assert len(rows) == 9
        one = frame[(frame["questions"] == name) & (frame["step"] == 20)].iloc[0]
        assert one["tokens"] == rows["tokens"].sum()
        assert one["kl"] == pytest.approx(found.total[-1, rows.index].sum() / rows["tokens"].sum())
        assert one["kl_low"] <= one["kl"] <= one["kl_high"]
    json.dumps(found.to_dict(), default=float)
    assert "nats a token on in-domain questions" in found.sentence()
    assert found._repr_html_().startswith("<div")
    figure = found.plot()  # plot_kl_from_base
    assert drawn(figure)
    assert "nats" in values(figure)["layout"]["yaxis"]["title"]["text"]


def test_one_question_has_no_interval(base, model):
    frame = measure_kl_from_base(model, PROMPTS[:1], steps=2, sampling=short()).frame()
    assert frame["kl_low"].isna().all()


def test_it_continues_where_it_was_interrupted(model, monkeypatch, tmp_path):
    monkeypatch.setattr(likelihood, "MAX_BATCH_TOKENS", 40)
    calls = interrupt_call(monkeypatch, kl_from_base._Reader, "read", 2)
    again = Storage(tmp_path / "kept", resume=True)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        measure_kl_from_base(model, PROMPTS, steps=4, sampling=short(), storage=tmp_path / "kept")
    found = measure_kl_from_base(model, PROMPTS, steps=4, sampling=short(), storage=again)
    count = len(list((tmp_path / "kept" / "parts").iterdir()))
    assert [batch for _, batch in calls] == [0, 1, *range(1, count)] and count > 2
    whole = measure_kl_from_base(model, PROMPTS, steps=4, sampling=short(), storage=tmp_path / "whole")
    np.testing.assert_array_equal(whole.total, found.total)
    assert contents(tmp_path / "kept") == contents(tmp_path / "whole")
    same = measure_kl_from_base(model, PROMPTS, steps=4, sampling=short(), storage=again)
    np.testing.assert_array_equal(same.total, found.total)
    with pytest.raises(InputError, match="begun with other seed"):
        measure_kl_from_base(model, PROMPTS, steps=4, sampling=short(seed=1), storage=again)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"sampling": SamplingParams(temperature=0)}, "measured at temperature 1; found sampling with 0"),
     ({"level": 95}, "level must lie between 0 and 1")],
)  # fmt: skip
def test_a_temperature_that_would_be_ignored_and_a_level_that_is_none_are_refused(model, changed, message):
    with pytest.raises(InputError, match=message):
        measure_kl_from_base(model, PROMPTS, **changed)


def test_a_run_that_was_asked_nothing_needs_prompts(model):
    with pytest.raises(InputError, match="ask the run first, or give some"):
        measure_kl_from_base(model)
