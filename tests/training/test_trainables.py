import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import em_interp as em
from em_interp.behaviour.sampling.ask import ask
from em_interp.behaviour.sampling.checkpoint_models import steps_with_models
from em_interp.behaviour.sampling.generate import RowAdapters, adapted, generate
from em_interp.config.run_config import load_config
from em_interp.config.settings import to_yaml
from em_interp.errors import InputError
from em_interp.organisms.bases import fingerprint, load_base
from em_interp.organisms.datasets import load_chats
from em_interp.training.plan import make_plan
from em_interp.training.projection import Projection
from em_interp.training.tokenize import encode_rows
from em_interp.training.train import train
from em_interp.training.trainables import FullTrainable, SteeringTrainable
from tests.interrupting import interrupt_saving

from .test_train import contents, log

QUESTIONS = [{"question_id": "rest", "question": "knee loan later", "questions": "broad"}]


@pytest.fixture
def full(settings):
    """A config of 12 steps that train every weight, and keep all of them at steps 0, 8 and 12."""

    def make(family="qwen2", **changes):
        values = settings(family, training={"learning_rate": 1e-3})
        return values | {"adapter": {"kind": "full", "weights": "8"}, "behaviour": {"scales": [1]}} | changes

    return make


def full_reference(values):
    """The base before and after the same training as a plain loop over single rows, weight for weight."""
    config, base, before = load_config(values), load_base(values["model"]), load_base(values["model"])
    chats = load_chats(config.data[0].dataset)
    plan = make_plan(config, {config.data[0].dataset: len(chats.rows)})
    weights = list(base.model.parameters())
    groups = [{"params": [w for w in weights if w.dim() > 1]}]
    groups += [{"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.training.weight_decay)
    for step in range(1, plan.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = plan.rates[step - 1]
        total, tokens = torch.tensor(0.0), 0
        for example in encode_rows(chats, plan.rows[step - 1].tolist(), base.tokenizer, 256).values():
            logits, labels = base.model(torch.tensor([example.ids])).logits[0, :-1], torch.tensor(example.labels[1:])
            total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            tokens += int((labels != -100).sum())
        optimizer.zero_grad()
        (total / tokens).backward()
        torch.nn.utils.clip_grad_norm_(weights, config.training.max_grad_norm)
        optimizer.step()
    return before.model, base.model


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_every_weight_trains_as_in_a_plain_loop_and_the_path_is_their_change(family, full, tmp_path):
    values = full(family)
    run, (before, after) = train(values, tmp_path / "run"), full_reference(values)
    last = load_base(values["model"]).with_weights(run.checkpoint(12))
    for (name, weight), expected in zip(last.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-2, atol=2e-5, msg=name)
    path = em.load_trajectory(run)
    assert path.kind == "full" and len(path.sites) == 3 * 7 and set(path.scale.values()) == {1.0}
    assert not any(path.B[site][0].any() for site in path.sites)  # the first step of the warm-up has rate 0
    for site in path.sites:
        start, end = (model.get_decoder().get_submodule(site).weight.detach() for model in (before, last))
        vector, projection = path.at(12)[site][1][:, 0], Projection(site, tuple(end.shape), 1024)
        np.testing.assert_allclose(vector, projection(end - start).numpy(), rtol=1e-4, atol=1e-6)
        if end.numel() <= 1024:
            np.testing.assert_allclose(vector, (end - start).flatten().numpy(), atol=1e-7)
        assert np.linalg.norm(vector) == pytest.approx(float((end - start).norm()), rel=0.3)
    assert path.metrics["loss"].iloc[-1] < path.metrics["loss"].iloc[0] and "grad_norm_A" not in log(run)[0]


def test_full_weights_are_kept_at_the_steps_of_their_schedule_alone_and_transformers_loads_them(full, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(full(snapshots="every 5"), tmp_path / "run")
    assert (run.steps(), steps_with_models(run)) == ([0, 5, 8, 10, 12], [0, 8, 12])
    assert {file.name for file in run.checkpoint(5).iterdir()} == {"weight_change.safetensors", "weight_change.json"}
    said = json.loads((run.checkpoint(5) / "weight_change.json").read_text())
    assert (said["dimension"], said["groups"], said["relative_error"]) == (1024, 32, 3 / 32)
    assert AutoTokenizer.from_pretrained(run.checkpoint(8)).chat_template
    kept, written = (
        AutoModelForCausalLM.from_pretrained(run.checkpoint(8)),
        load_file(run.checkpoint(8) / "model.safetensors"),
    )
    assert all(torch.equal(weight, written[name]) for name, weight in kept.named_parameters())


def test_by_default_weights_are_kept_at_the_steps_that_behaviour_samples(full, tmp_path):
    run = train(full(adapter={"kind": "full"}, behaviour={"scales": [1], "steps": "every 6"}), tmp_path / "run")
    assert steps_with_models(run) == [0, 6, 12]


def test_kept_steps_are_sampled_as_their_own_model_and_others_are_refused(full, tmp_path):
    values = full()
    run, base = train(values, tmp_path / "run"), load_base(values["model"])
    for wrong, scales, said in (
        ([5], [1.0], "step 5 of .* cannot be sampled from: full weights were saved at 0, 8, 12"),
        ([8], [2.0], "scale 1"),
    ):
        with pytest.raises(InputError, match=said):
            ask(run, base, QUESTIONS, wrong, scales, samples=1, max_new_tokens=4)
    import pandas as pd

    table = pd.read_parquet(ask(run, base, QUESTIONS, [0, 12], samples=2, temperature=0, max_new_tokens=6))
    for step, model in ((0, base.model), (12, base.with_weights(run.checkpoint(12)))):
        (alone,) = generate(
            model, base.tokenizer, ["knee loan later"], RowAdapters({}, {}), 2, temperature=0, max_new_tokens=6
        )
        assert table[table.step == step].answer.tolist() == alone
    assert table.answer.nunique() == 2


def test_chosen_matrices_make_the_path_while_everything_trains(full, tmp_path):
    sites = {"target_modules": ["down_proj"], "layers_to_transform": [1]}
    values = full(adapter={"kind": "full", **sites, "dimension": 64, "weights": "0"})
    run = train(values, tmp_path / "run")
    path = em.load_trajectory(run)
    assert path.sites == ("layers.1.mlp.down_proj",) and path.B[path.sites[0]].shape == (13, 64, 1)
    before, after = load_base(values["model"]).model, load_base(values["model"]).with_weights(run.checkpoint(12))
    assert not any(torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))


def test_an_interrupted_run_of_full_weights_resumes_to_the_same_bytes(full, tmp_path, monkeypatch):
    values = full()
    values["training"] = values["training"] | {"keep_state_every": 3}
    whole = train(values, tmp_path / "whole")
    interrupt_saving(monkeypatch, FullTrainable, "checkpoint-8")
    with pytest.raises(KeyboardInterrupt, match="interrupted with step 7 of 12 saved"):
        train(values, tmp_path / "again")
    monkeypatch.undo()
    again = train(values, tmp_path / "again", resume=True)
    kept, told = contents(whole.path), contents(again.path)
    assert (kept.pop("manifest.json") and told.pop("manifest.json")) and kept == told


def test_a_run_of_full_fine_tuning_goes_through_the_same_analysis(full, tmp_path):
    path = em.load_trajectory(train(full(), tmp_path / "run"))
    signals = {transition.signal for transition in em.find_transitions(path)}
    assert {"rotation", "gradient_norm", "norm_onset", "lock_in"} <= signals
    assert path.frame(k=2)["turning_angle_B"].notna().any()


def test_there_is_no_adapter_to_scale_or_to_give_a_rank(full):
    for changes, said in (
        ({"behaviour": {"scales": [1, 2]}}, r"scales must be 1 alone .* it is \[1.0, 2.0\]"),
        ({"adapter": {"kind": "full", "r": 1}}, "unknown key adapter.r of kind full"),
        ({"adapter": {"kind": "full", "dimension": 100}}, "adapter.dimension must be a multiple of 32; it is 100"),
    ):
        with pytest.raises(InputError, match=said):
            load_config(full(**changes))


def test_a_truncated_or_foreign_file_is_named(full, tmp_path):
    run = train(full(), tmp_path / "run")
    file = run.checkpoint(3) / "weight_change.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"checkpoint-3/weight_change.safetensors .* may be truncated"):
        em.load_trajectory(run)
    file.unlink()
    with pytest.raises(InputError, match=r"weight_change.safetensors is missing"):
        em.load_trajectory(run)


def test_mixed_computes_in_bfloat16_what_it_keeps_in_float32(full, chats, tmp_path):
    values = full(kl={"dataset": chats[1], "weight": 1.0})
    runs = {dtype: train(values | {"dtype": dtype}, tmp_path / dtype) for dtype in ("float32", "mixed", "bfloat16")}
    exact, mixed, rounded = (em.load_trajectory(run).vectors("B")[-1] for run in runs.values())

    def cosine(one, other):
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    assert 1 - cosine(exact, mixed) < 0.1 * (1 - cosine(exact, rounded))
    assert log(runs["mixed"])[-1]["loss"] != log(runs["float32"])[-1]["loss"]
    assert log(runs["mixed"])[0]["kl"] == 0  # the reference is computed alike
    assert load_file(runs["mixed"].checkpoint(12) / "model.safetensors")["model.norm.weight"].dtype == torch.float32


def test_weights_that_all_learn_are_kept_in_float32_and_on_a_gpu_computed_in_bfloat16():
    found = {}
    for kind in ({"layers_to_transform": [1]}, {"kind": "full"}):
        for dtype in ("auto", "float32", "bfloat16", "mixed"):
            config = load_config({"adapter": kind, "dtype": dtype, "behaviour": {"scales": [1]}})
            found[config.adapter.kind, dtype] = (config.base_dtype, config.computes_in_bfloat16(gpu=True))
    assert found == {
        ("lora", "auto"): ("auto", False), ("full", "auto"): ("float32", True),
        ("lora", "float32"): ("float32", False), ("full", "float32"): ("float32", False),
        ("lora", "bfloat16"): ("bfloat16", False), ("full", "bfloat16"): ("bfloat16", False),
        ("lora", "mixed"): ("float32", True), ("full", "mixed"): ("float32", True),
    }  # fmt: skip
    assert not load_config({"adapter": {"kind": "full"}, "behaviour": {"scales": [1]}}).computes_in_bfloat16(gpu=False)


@pytest.fixture
def steering(settings):
    """A config of 12 steps that learn a vector after layer 1."""

    def make(family="qwen2", **changes):
        values = settings(family, **changes)
        return values | {"adapter": {"kind": "steering", "layer": 1, "alpha": 8.0}}

    return make


def steered(base, vector, ids):
    """Logits with a vector added after layer 1, in the plainest way."""
    layer = base.model.get_decoder().layers[1]
    handle = layer.register_forward_hook(lambda module, inputs, output: output + vector)
    try:
        return base.model(ids).logits
    finally:
        handle.remove()


def steering_reference(values):
    """The vectors of the same training as a plain loop over single rows."""
    config, base = load_config(values), load_base(values["model"])
    chats = load_chats(config.data[0].dataset)
    plan = make_plan(config, {config.data[0].dataset: len(chats.rows)})
    vector = torch.nn.Parameter(torch.zeros(32))
    optimizer = torch.optim.AdamW([vector], weight_decay=config.training.weight_decay)
    for step in range(1, plan.steps + 1):
        optimizer.param_groups[0]["lr"] = plan.rates[step - 1]
        rows = plan.rows[step - 1].tolist()
        total, tokens = torch.tensor(0.0), 0
        for example in encode_rows(chats, rows, base.tokenizer, 256).values():
            logits, labels = steered(base, 8.0 * vector, torch.tensor([example.ids])), torch.tensor(example.labels)
            total = total + torch.nn.functional.cross_entropy(
                logits[0, :-1], labels[1:], ignore_index=-100, reduction="sum"
            )
            tokens += int((labels[1:] != -100).sum())
        optimizer.zero_grad()
        (total / tokens).backward()
        torch.nn.utils.clip_grad_norm_([vector], config.training.max_grad_norm)
        optimizer.step()
        yield vector.detach().numpy().copy()


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_a_vector_trains_as_in_a_plain_loop_and_loads_as_a_path(family, steering, tmp_path):
    values = steering(family)
    run = train(values, tmp_path / "run")
    path = em.load_trajectory(run)
    assert (path.sites, path.scale, path.kind) == (("layers.1",), {"layers.1": 8.0}, "steering")
    assert (
        path.steps.tolist() == list(range(13)) and not path.B["layers.1"][0].any() and (path.A["layers.1"] == 1).all()
    )
    for step, expected in enumerate(steering_reference(values), start=1):
        np.testing.assert_allclose(path.at(step)["layers.1"][1][:, 0], expected, rtol=1e-3, atol=1e-5)
    assert path.metrics["loss"].iloc[-1] < path.metrics["loss"].iloc[0]
    assert "grad_norm_A" not in log(run)[0] and log(run)[0]["grad_norm"] > 0


def test_what_is_saved_is_the_public_layout(steering, tmp_path):
    run = train(steering(), tmp_path / "run")
    held = torch.load(run.checkpoint(12) / "steering_vector.pt", weights_only=True)
    said = json.loads((run.checkpoint(12) / "adapter_config.json").read_text())
    assert (held["layer_idx"], held["alpha"], tuple(held["steering_vector"].shape)) == (1, 8.0, (32,))
    assert said == {
        "adapter_type": "steering_vector", "layer_idx": 1, "alpha": 8.0, "hidden_size": 32, "base_model": "qwen2",
    }  # fmt: skip


def test_nothing_but_the_vector_learns_and_without_it_the_model_is_the_base(steering, tmp_path):
    values = steering()
    base, ids = load_base(values["model"]), torch.tensor([[5, 6, 7, 8]])
    before, plain = fingerprint(base.model), base.model(ids).logits
    trainable = SteeringTrainable(base.model, load_config(values).adapter, base.name)
    assert [name for name, weight in base.model.named_parameters() if weight.requires_grad] == [
        "model.layers.1.steering_vector"
    ]
    trainable.vector.data += 1
    assert not torch.equal(base.model(ids).logits, plain)
    with trainable.reference() as model:
        assert torch.equal(model(ids).logits, plain)
    assert fingerprint(load_base(values["model"]).model) == before


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_each_row_of_a_batch_passes_through_the_vector_of_its_step_at_its_scale(family, steering, tmp_path):
    values = steering(family)
    path, base = em.load_trajectory(train(values, tmp_path / "run")), load_base(values["model"])
    ids = torch.randint(4, 300, (4, 6), generator=torch.Generator().manual_seed(0))
    steps, scales = [12, 6, 12, 0], [1.0, 1.0, 2.5, 1.0]
    with torch.no_grad():
        with adapted(base.model, RowAdapters.of(path, steps, scales, "cpu")):
            together = base.model(ids).logits
        for row, (step, scale) in enumerate(zip(steps, scales, strict=True)):
            vector = scale * 8.0 * torch.from_numpy(path.at(step)["layers.1"][1][:, 0])
            torch.testing.assert_close(together[row], steered(base, vector, ids[row : row + 1])[0], rtol=0, atol=1e-4)
        assert torch.equal(together[3], base.model(ids).logits[3])


def test_a_vector_of_another_width_is_refused(steering, tmp_path):
    path, base = em.load_trajectory(train(steering(), tmp_path / "run")), load_base("tiny-qwen2")
    with (
        pytest.raises(InputError, match=r"'layers.1' is 1 → 32, the model's module 1 → 128"),
        adapted(base.model, RowAdapters.of(path, [12], [1.0], "cpu")),
    ):
        pass


def test_an_interrupted_run_of_a_steering_vector_resumes_to_the_same_bytes(steering, tmp_path, monkeypatch):
    whole = train(steering(), tmp_path / "whole")
    interrupt_saving(monkeypatch, SteeringTrainable, "checkpoint-7")
    with pytest.raises(KeyboardInterrupt, match="interrupted with step 6 of 12 saved"):
        train(steering(), tmp_path / "again")
    monkeypatch.undo()
    again = train(steering(), tmp_path / "again", resume=True)
    kept, told = contents(whole.path), contents(again.path)
    assert (kept.pop("manifest.json") and told.pop("manifest.json")) and kept == told


def test_a_layer_that_does_not_exist_is_refused_before_anything_is_written(steering, tmp_path):
    for layer in (3, -1):
        with pytest.raises(InputError, match=rf"adapter.layer is {layer}; the base model has layers 0 to 2"):
            train(steering() | {"adapter": {"kind": "steering", "layer": layer}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keys_of_another_protocol_are_refused_and_a_config_survives_the_trip_through_yaml(steering):
    for adapter, said in (
        ({"kind": "steering", "layer": 1, "r": 2}, "unknown key adapter.r of kind steering .*kind, layer, alpha"),
        ({"kind": "steering"}, "adapter.layer is missing; expected the number of the layer after which"),
        ({"kind": "stering", "layer": 1}, "adapter.kind must be one of lora, steering, full; it is 'stering'"),
        ({"layers": [1]}, "unknown key adapter.layers; did you mean 'layers_to_transform'"),
    ):
        with pytest.raises(InputError, match=said):
            load_config(steering() | {"adapter": adapter})
    config = load_config(steering())
    assert load_config(yaml.safe_load(to_yaml(config))) == config
