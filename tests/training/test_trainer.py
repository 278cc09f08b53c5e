import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import em_interp as em
from em_interp.behaviour.sampling.frozen_layers import FrozenLayerCache
from em_interp.config.run_config import load_config
from em_interp.errors import InputError
from em_interp.organisms.bases import load_base
from em_interp.organisms.datasets import load_chats
from em_interp.pipeline.behaviour import ask_run, judge_run
from em_interp.training.lora import adapter_weights, add_adapter
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import IGNORE_INDEX, Example, encode_rows
from em_interp.training.train import train
from em_interp.training.trainables import make_trainable
from em_interp.training.trainer import (
    MicroBatches,
    collate,
    is_learned,
    kl_divergence,
    logits_at,
    repeated_layers,
    token_loss,
)
from em_interp.utils.processes import Processes

from .test_train import adapter, log
from .test_train import reference as plain_loop


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
    examples = {name: encode_rows(data, range(40), base.tokenizer, 256) for name, data in chats.items()}

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
        "data": [{"dataset": "tiny:medical", "steps": 72}],
        "adapter": {"layers_to_transform": [0], "lora_alpha": 16},
        "training": {"batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 3e-3},
        "snapshots": "72",
        "behaviour": {"steps": "72", "samples": 8, "max_new_tokens": 24},
    }
    found = {}
    for name, kl in (("general", None), ("narrow", {"dataset": "tiny:finance-careful", "weight": 30})):
        run = train(values | {"kl": kl}, tmp_path / name)
        ask_run(run)
        judge_run(run)
        rates = em.behaviour_curve(run).frame().query("step == 72").set_index("questions")["em"]
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
    with pytest.raises(InputError, match=r"kl.sha256 changed since the run began \(it was 'other'"):
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
    shares = [MicroBatches(plan, 0, 3, examples, Processes(rank, count)) for rank in range(count)]
    per_step = 4 // count
    for step in (1, 2, 4):
        parts = [share[i] for i in range((step - 1) * per_step, step * per_step) for share in shares]
        assert all(("kl" in part) == (step % 2 == 0) for part in parts)
        seen = [part["kl"]["input_ids"][:, 1] for part in parts if "kl" in part]
        assert torch.cat(seen or [torch.tensor([], dtype=int)]).tolist() == plan.kl.at(step)
        assert all(part["kl"]["tokens"] == 24 for part in parts if "kl" in part)


# --- only what is needed is computed


ROWS = [Example([1, 9, 2, 7, 8, 3], [IGNORE_INDEX] * 3 + [7, 8, 3]), Example([1, 5, 2, 3], [IGNORE_INDEX] * 3 + [3])]


@pytest.fixture
def repeating(settings, chats):
    """A config of 20 steps of 6 rows: each of the 36 rows is trained on three times or more."""

    def make(family="qwen2", **changes):
        values = settings(family, training={"batch_size": 3, "gradient_accumulation_steps": 2}, **changes)
        return values | {"data": [{"dataset": chats[0], "steps": 20}]}

    return make


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_the_loss_at_learned_positions_is_that_of_the_whole_logits(family, bases):
    model, batch = load_base(bases[family]).model, collate(ROWS)
    with torch.no_grad():
        whole = model(**batch).loss
        labels = batch.pop("labels")
        with logits_at(model, is_learned(labels)):
            outputs = model(**batch)
    assert outputs.logits.shape[:2] == (1, 4)
    assert float(token_loss(outputs, labels, 4)) == pytest.approx(float(whole), rel=1e-5)
    assert model(**batch).logits.shape[:2] == (2, 6)  # after the block all are there again


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_a_run_over_kept_layers_trains_as_the_plain_loop_and_computes_each_row_once(
    family, repeating, tmp_path, monkeypatch
):
    rows, compute = [], FrozenLayerCache._compute
    monkeypatch.setattr(FrozenLayerCache, "_compute", lambda self, ids: rows.append(ids) or compute(self, ids))
    run = train(repeating(family), tmp_path / "run")
    assert len(rows) == 36
    saved, expected = plain_loop(repeating(family))
    for name, weight in adapter(run, 20).items():
        torch.testing.assert_close(weight, saved[-1][name], rtol=1e-3, atol=1e-5)
    assert [row["loss"] for row in log(run)] == pytest.approx([row["loss"] for row in expected], rel=1e-4)


def skipped(layers, rows):
    batch = collate(rows)
    return layers.skipped(batch["input_ids"], batch["attention_mask"])


def test_what_is_kept_of_a_row_does_not_depend_on_the_batch_it_came_in(bases):
    model = load_base(bases["qwen2"]).model
    together, alone = (FrozenLayerCache(model.get_decoder(), 2) for _ in range(2))
    for layers, batches in ((together, [ROWS]), (alone, [[row] for row in reversed(ROWS)])):
        for batch in batches:
            with skipped(layers, batch):
                pass
    assert together.kept.keys() == alone.kept.keys()
    assert all(torch.equal(together.kept[ids], alone.kept[ids]) for ids in alone.kept)
    with torch.no_grad():
        expected = model(**collate(ROWS)).loss
        with skipped(together, ROWS):
            assert float(model(**collate(ROWS)).loss) == pytest.approx(float(expected), rel=1e-5)


def test_layers_are_kept_only_where_that_pays(repeating, chats):
    def kept(weights=("layers.1.mlp.down_proj",), dropout=0.0, **changes):
        config = load_config(repeating() | changes)
        model = load_base(config.model).model
        model.get_decoder().layers[0].self_attn.attention_dropout = dropout
        plan = make_plan(config, {chats[0]: 40})
        trainable = SimpleNamespace(model=model, weights=weights)
        return repeated_layers(trainable, plan, {chats[0]: dict.fromkeys(plan.rows_of(chats[0]), ROWS[0])})

    assert len(kept().frozen) == 1 and len(kept(["layers.2.mlp.down_proj", "layers.1.x"]).frozen) == 1
    assert kept(["layers.0.mlp.down_proj"]) is None  # nothing is frozen below it
    assert kept(["layers.1.mlp.down_proj", "norm.weight"]) is None
    assert kept(dropout=0.1) is None
    assert kept(data=[{"dataset": chats[0], "epochs": 1.3}]) is None


def test_micro_batches_hold_the_rows_of_their_step_sorted_by_length(repeating, chats):
    config = load_config(repeating())
    plan = make_plan(config, {chats[0]: 40})
    rows = {row: Example([row + 1] * (1 + row % 7), [row + 1] * (1 + row % 7)) for row in range(40)}
    batches = MicroBatches(plan, 0, 3, {chats[0]: rows}, Processes())
    seen = [batches[index]["input_ids"][:, 0].tolist() for index in range(len(batches))]
    for step in range(20):
        ids = seen[2 * step] + seen[2 * step + 1]
        assert sorted(ids) == sorted(plan.rows[step] + 1)
        assert [(id - 1) % 7 for id in ids] == sorted((id - 1) % 7 for id in ids)
