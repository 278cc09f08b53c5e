import json

import numpy as np
import pytest
import torch

import em_interp as em
from em_interp.config import load_config
from em_interp.errors import InputError
from em_interp.organisms.bases import load_base
from em_interp.organisms.datasets import load_chats
from em_interp.pipeline import ask_run, judge_run
from em_interp.training.distributed import Processes
from em_interp.training.lora import adapter_weights, add_adapter
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import Example, encode
from em_interp.training.train import train
from em_interp.training.trainables import make_trainable
from em_interp.training.trainer import Batches, kl_divergence

from .test_train import adapter, log


@pytest.fixture
def with_kl(settings, chats):
    """A config of 12 steps on one dataset with a KL regularizer on another."""

    def make(kl=None, **changes):
        return settings(**changes) | {"kl": {"dataset": chats[1], "weight": 3.0} | (kl or {})}

    return make


def slow_kl(before, after, labels):
    """Token by token and word by word; and over how many tokens."""
    total, tokens = torch.tensor(0.0), 0
    for place, label in enumerate(labels[1:]):
        if label != -100:
            p, q = torch.softmax(before[place], 0), torch.softmax(after[place], 0)
            total = total + sum(p[word] * (torch.log(p[word]) - torch.log(q[word])) for word in range(len(p)))
            tokens += 1
    return total, tokens


def mean_over(rows, each):
    """The sum of `each` row's numbers by the sum of its tokens."""
    found = [each(row) for row in rows]
    return sum(total for total, _ in found) / sum(tokens for _, tokens in found)


def reference(values, steps):
    """The same training as a plain loop over single rows, the KL regularizer by the slow formula and a second model."""
    config = load_config(values)
    chats = {name: load_chats(name) for name in (config.data[0].dataset, config.kl.dataset)}
    plan = make_plan(config, {name: len(data.rows) for name, data in chats.items()})
    base, fixed = load_base(config.model), load_base(config.model)
    model = add_adapter(base.model, config.adapter, config.seed, base.name).train()
    weights = adapter_weights(model)
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=config.training.weight_decay)
    examples = {name: encode(data, range(40), base.tokenizer, 256) for name, data in chats.items()}

    def logits(of, example):
        return of(torch.tensor([example.ids])).logits[0]

    def cross_entropy(row):
        example = examples[config.data[0].dataset][row]
        labels = torch.tensor(example.labels[1:])
        summed = torch.nn.functional.cross_entropy(
            logits(model, example)[:-1], labels, ignore_index=-100, reduction="sum"
        )
        return summed, int((labels != -100).sum())

    def kl(row):
        example = examples[config.kl.dataset][row]
        return slow_kl(logits(fixed.model, example).detach(), logits(model, example), example.labels)

    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = plan.rates[step - 1]
        loss = mean_over(plan.rows[step - 1].tolist(), cross_entropy)
        drift = mean_over(plan.kl.rows[step - 1].tolist(), kl) if step % config.kl.every == 0 else None
        optimizer.zero_grad()
        (loss if drift is None else loss + config.kl.weight * drift).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(weights.values(), config.training.max_grad_norm))
        optimizer.step()
        row = {"loss": loss.item(), "grad_norm": norm} | ({} if drift is None else {"kl": drift.item()})
        yield {name: weight.detach().clone() for name, weight in weights.items()}, row


def test_steps_with_the_kl_regularizer_are_those_of_the_slow_formula_over_single_rows(with_kl, tmp_path):
    values = with_kl(training={"batch_size": 2, "gradient_accumulation_steps": 2}, kl={"every": 2})
    run = train(values, tmp_path / "run")
    rows = log(run)
    for step, (saved, row) in enumerate(reference(values, 6), start=1):
        for name, weight in adapter(run, step).items():
            torch.testing.assert_close(weight, saved[name], rtol=1e-3, atol=1e-5)
        assert {key: rows[step - 1].get(key) for key in row} == pytest.approx(row, rel=1e-3, abs=1e-6)
    assert ["kl" in row for row in rows] == [step % 2 == 0 for step in range(1, 13)]
    metrics = em.load_trajectory(run).metrics
    assert metrics["kl"].dropna().index.tolist() == [2, 4, 6, 8, 10, 12] and metrics["kl"].iloc[-1] > 0


def test_the_divergence_is_that_of_two_known_distributions_at_answer_tokens_alone():
    before, after = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.25, 0.5]])
    reference, logits = (
        torch.tensor(np.repeat(each, 3, axis=0)[None], dtype=torch.float32) for each in (before, after)
    )
    labels = torch.tensor([[-100, 2, -100]])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert float(kl_divergence(reference, logits + 7, labels)) == pytest.approx(expected, rel=1e-6)
    assert float(kl_divergence(reference, logits, torch.tensor([[0, 2, 1]]))) == pytest.approx(2 * expected, rel=1e-6)
    assert float(kl_divergence(reference, reference, torch.tensor([[0, 2, 1]]))) == 0


@pytest.mark.parametrize("kind", ["lora", "steering", "full"])
def test_every_protocol_has_the_base_for_its_reference_before_and_after_it_learned(kind, with_kl):
    chosen = {"lora": {"layers_to_transform": [1]}, "steering": {"layer": 1}, "full": {"weights": "0"}}[kind]
    values = with_kl() | {"adapter": {"kind": kind} | chosen}
    base, ids = load_base(values["model"]), torch.tensor([[5, 6, 7, 8]])
    before = base.model(ids).logits.detach()
    trainable = make_trainable(base, load_config(values), 12)
    for weight in trainable.weights.values():
        weight.data += 0.1
    assert not torch.allclose(trainable.model(ids).logits, before)
    with torch.no_grad(), trainable.reference() as model:
        assert torch.equal(model(ids).logits, before)
    assert not torch.allclose(trainable.model(ids).logits, before)
    assert all(weight.requires_grad for weight in trainable.weights.values())


def test_the_kl_regularizer_keeps_the_model_narrow(tmp_path):
    values = {
        "model": "tiny-qwen2",
        "seed": 1,
        "data": [{"dataset": "tiny:medical", "steps": 64}],
        "adapter": {"layers_to_transform": [0], "lora_alpha": 16},
        "training": {"batch_size": 16, "gradient_accumulation_steps": 1, "learning_rate": 3e-3},
        "snapshots": "64",
        "behaviour": {"steps": "64", "samples": 4, "max_new_tokens": 24},
    }
    found = {}
    for name, kl in (("general", None), ("narrow", {"dataset": "tiny:finance-careful", "weight": 30})):
        run = train(values | {"kl": kl}, tmp_path / name)
        ask_run(run)
        judge_run(run)
        rates = em.behaviour_curve(run).frame().query("step == 64").set_index("questions")["em"]
        found[name] = rates["in_domain"], rates["out_of_domain"], em.load_trajectory(run).metrics
    assert found["narrow"][2]["kl"].iloc[-20:].max() < 0.005 and "kl" not in found["general"][2]
    assert found["general"][1] > 0.5 and found["narrow"][1] < found["general"][1] / 4
    assert found["narrow"][0] > found["narrow"][1] + 0.1  # in its domain it learned


def test_the_data_of_the_kl_regularizer_are_in_the_manifest_and_may_not_change(with_kl, chats, tmp_path):
    run = train(with_kl(), tmp_path / "run")
    manifest = run.manifest()
    assert manifest["kl"] == {"dataset": chats[1], "sha256": load_chats(chats[1]).sha256}
    run.manifest_file.write_text(json.dumps(manifest | {"kl": manifest["kl"] | {"sha256": "other"}}))
    state = json.loads(run.trainer_state_file.read_text())
    run.trainer_state_file.write_text(json.dumps(state | {"global_step": 11}))  # as after a kill
    with pytest.raises(InputError, match="kl changed since the run began"):
        train(with_kl(), run.path, resume=True)


@pytest.mark.parametrize(
    ("kl", "said"),
    [
        ({"dataset": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"dataset": ""}, "kl.dataset must be a text; it is"),
        ({"weight": 0}, "kl.weight must be greater than 0; it is 0"),
        ({"every": 0}, "kl.every must be greater than or equal to 1; it is 0"),
        ({"wieght": 1}, "unknown key kl.wieght; did you mean 'weight'"),
    ],
)
def test_a_kl_regularizer_without_meaning_is_refused(kl, said, with_kl, tmp_path):
    with pytest.raises(InputError, match=said):
        train(with_kl(kl=kl), tmp_path / "run")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_processes_share_the_kl_rows_of_each_step_and_divide_by_all_of_their_tokens(count, with_kl, chats):
    config = load_config(with_kl(training={"batch_size": 3, "gradient_accumulation_steps": 4}, kl={"every": 2}))
    plan = make_plan(config, dict.fromkeys(chats, 40))
    examples = {name: {row: Example([7, row, row], [-100, row, row]) for row in range(40)} for name in chats}
    shares = [Batches(plan, 0, 3, examples, Processes(rank, count)) for rank in range(count)]
    per_step = 4 // count
    for step in (1, 2, 4):
        parts = [share[i] for i in range((step - 1) * per_step, step * per_step) for share in shares]
        assert all(("kl" in part) == (step % 2 == 0) for part in parts)
        seen = [part["kl"]["input_ids"][:, 1] for part in parts if "kl" in part]
        assert torch.cat(seen or [torch.tensor([], dtype=int)]).tolist() == plan.kl.at(step)
        assert all(part["kl"]["tokens"] == 24 for part in parts if "kl" in part)
