import json

import numpy as np
import pytest
import torch
import yaml

import em_interp as em
from em_interp.behaviour.generate import RowAdapters, adapted
from em_interp.config import dump_config, load_config
from em_interp.errors import InputError
from em_interp.organisms.bases import fingerprint, load_base
from em_interp.organisms.datasets import load_chats
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import encode
from em_interp.training.train import train
from em_interp.training.trainables import SteeringTrainable

from .test_train import contents, log


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


def reference(values):
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
        for example in encode(chats, rows, base.tokenizer, 256).values():
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
    for step, expected in enumerate(reference(values), start=1):
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
    learner = SteeringTrainable(base.model, load_config(values).adapter, base.name)
    assert [name for name, weight in base.model.named_parameters() if weight.requires_grad] == [
        "model.layers.1.steering_vector"
    ]
    learner.vector.data += 1
    assert not torch.equal(base.model(ids).logits, plain)
    with learner.reference() as model:
        assert torch.equal(model(ids).logits, plain)
    assert fingerprint(load_base(values["model"]).model) == before


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_each_row_of_a_batch_is_asked_through_the_vector_of_its_step_at_its_scale(family, steering, tmp_path):
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


def test_an_interrupted_run_resumes_to_the_same_bytes(steering, tmp_path, monkeypatch):
    whole = train(steering(), tmp_path / "whole")
    save = SteeringTrainable.save

    def stop(learner, folder):
        if folder.name == "checkpoint-7":
            raise KeyboardInterrupt
        save(learner, folder)

    monkeypatch.setattr(SteeringTrainable, "save", stop)
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
    assert load_config(yaml.safe_load(dump_config(config))) == config
