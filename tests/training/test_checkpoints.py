import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from em_interp.config.run_config import AdapterConfig
from em_interp.training.checkpoints import AdapterWriter, Packer, TrainStateSaver, read_state
from em_interp.training.lora import add_adapter

from .conftest import make_model

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
ADAPTER = AdapterConfig(target_modules=("down_proj", "q_proj"), layers_to_transform=(0, 2), r=2)


def perturbed(family: str, seed: int):
    model = add_adapter(make_model(family), ADAPTER, seed=0, base="base")
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_a_saved_step_loaded_by_peft_gives_the_live_model_s_logits(family, tmp_path):
    from peft import PeftModel

    live = perturbed(family, seed=5)
    AdapterWriter(live).save(tmp_path / "checkpoint-5")
    loaded = PeftModel.from_pretrained(make_model(family), tmp_path / "checkpoint-5").eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, live(ids).logits)
        assert not torch.equal(loaded(ids).logits, make_model(family).eval()(ids).logits)


def test_the_bytes_depend_on_the_weights_alone(tmp_path):
    for folder in ("one", "two"):
        AdapterWriter(perturbed("qwen2", seed=1)).save(tmp_path / folder)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_save_that_fails_half_way_leaves_no_checkpoint(tmp_path):
    writer = AdapterWriter(perturbed("qwen2", seed=1))
    writer.config_text = "\ud800"  # cannot be encoded; the config is written after the weights
    with pytest.raises(UnicodeEncodeError):
        writer.save(tmp_path / "checkpoint-1")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_whole_without_those_saved_before_it(tmp_path):
    writer = AdapterWriter(perturbed("qwen2", seed=1))
    for step in (1, 2, 3):
        writer.save(tmp_path / f"checkpoint-{step}")
        shutil.rmtree(tmp_path / f"checkpoint-{step - 1}", ignore_errors=True)
    writer.config_file = tmp_path / "gone"
    writer.save(tmp_path / "checkpoint-4")
    for step in (3, 4):
        assert (tmp_path / f"checkpoint-{step}" / "adapter_config.json").read_text() == writer.config_text


def test_the_packer_writes_what_safetensors_does():
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(3), "c": np.arange(5, dtype=np.uint8)
    }  # fmt: skip
    packer = Packer({"format": "pt"})
    for values in (arrays, {name: np.asarray(array + 1) for name, array in arrays.items()}):
        assert packer.pack(values) == safetensors.numpy.save(values, {"format": "pt"})


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "renamed", "reshaped", "no header", "a pipe", "a folder", "not logged"]
)
def test_a_damaged_state_is_passed_over(damage, tmp_path):
    weights = {"a": torch.nn.Parameter(torch.ones(3, 4)), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW(weights.values())
    saver, kept = TrainStateSaver(tmp_path, weights, optimizer, every=1), {}
    for step in range(1, 6):
        sum(weight.pow(2).sum() for weight in weights.values()).backward()
        optimizer.step()
        saver.save(step)
        kept[step] = {name: weight.detach().clone() for name, weight in weights.items()}
    [latest] = [file for file in tmp_path.iterdir() if safetensors.numpy.load_file(file)["step"] == 5]
    content = bytearray(latest.read_bytes())
    if damage == "changed":
        content[-10] ^= 1
    elif damage == "renamed":
        content = content.replace(b'"exp_avg/a"', b'"exp/avg_a"')
    elif damage == "reshaped":
        content = content.replace(b"[3,4]", b"[4,3]")
    elif damage != "not logged":
        latest.unlink()
        content = {"cut": content[: len(content) // 2], "no header": b"\xff" * 100}.get(damage, b"")
    if damage in ("a pipe", "a folder"):
        os.mkfifo(latest) if damage == "a pipe" else latest.mkdir()
    else:
        latest.write_bytes(content)
    state = read_state(tmp_path, last=4 if damage == "not logged" else 5)
    assert state is not None and state.step == 4
    state.restore(weights, optimizer)
    assert all(torch.equal(weights[name], value) for name, value in kept[4].items())
