import json
import shutil

import pytest
import torch
from transformers import GPT2Config

from em_interp.config.run_config import AdapterConfig, RunConfig, load_config
from em_interp.errors import InputError
from em_interp.organisms.bases import SHIPPED
from em_interp.training.lora import adapter_config_text, adapter_weights, add_adapter, choose_sites
from em_interp.training.train import train
from em_interp.training.trainables import check_sites

from .conftest import make_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_one_site_of_each_family_gets_one_adapter_under_peft_s_names(family):
    model = add_adapter(make_model(family), AdapterConfig(layers_to_transform=(2,)), seed=0, base="base")
    prefix = "base_model.model.model.layers.2.mlp.down_proj"
    shapes = {name: tuple(weight.shape) for name, weight in adapter_weights(model).items()}
    assert shapes == {f"{prefix}.lora_A.weight": (1, 64), f"{prefix}.lora_B.weight": (32, 1)}
    assert [name.replace(".default", "") for name, p in model.named_parameters() if p.requires_grad] == list(shapes)


def test_every_module_of_every_layer_at_rank_8_is_21_sites():
    from peft import get_peft_model_state_dict

    model = add_adapter(make_model("qwen2"), AdapterConfig(target_modules=ALL, r=8), seed=0, base="base")
    weights = adapter_weights(model)
    assert len(weights) == 2 * 7 * 3
    assert weights.keys() == get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    assert {weight.shape[0] for name, weight in weights.items() if "lora_A" in name} == {8}


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InputError, match="names layer 3; the base model has layers 0 to 2"):
        choose_sites(make_model("llama"), AdapterConfig(layers_to_transform=(1, 3)))


def test_a_module_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InputError, match=r"names 'down'; .* mlp.down_proj, mlp.gate_proj, .*self_attn.v_proj"):
        choose_sites(make_model("gemma3"), AdapterConfig(target_modules=("up_proj", "down")))


def test_a_module_may_be_named_with_its_parent():
    sites = choose_sites(make_model("qwen2"), AdapterConfig(target_modules=("mlp.up_proj",), layers_to_transform=(0,)))
    assert sites == ["model.layers.0.mlp.up_proj"]


def test_the_vision_tower_of_a_large_gemma3_is_left_alone():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=small | {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 300},
        vision_config=small | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    sites = choose_sites(Gemma3ForConditionalGeneration(config), AdapterConfig(target_modules=("q_proj",)))
    assert sites == [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]


def test_the_seed_draws_a_and_b_is_zero():
    first, again, other = (
        adapter_weights(add_adapter(make_model("qwen2"), AdapterConfig(layers_to_transform=(1,)), seed, "base"))
        for seed in (0, 0, 1)
    )
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], other[name]) == ("lora_B" in name)
        assert first[name].any() == ("lora_A" in name)


def test_the_config_text_is_what_peft_writes_with_sets_in_order(tmp_path):
    model = add_adapter(
        make_model("qwen2"), AdapterConfig(target_modules=ALL, layers_to_transform=(0, 2), lora_alpha=64.0), 0, "base"
    )
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    ours = json.loads(adapter_config_text(model))
    assert ours.pop("target_modules") == sorted(theirs.pop("target_modules"))
    assert ours == theirs
    assert ours["base_model_name_or_path"] == "base" and ours["lora_alpha"] == 64


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"layers_to_transform": [9]}, "adapter.layers_to_transform names layer 9; the base model has layers 0 to 3"),
        ({"target_modules": ["up"]}, "adapter.target_modules names 'up'; the base model's layers have"),
        ({"kind": "full", "layers_to_transform": [4]}, "adapter.layers_to_transform names layer 4"),
        ({"kind": "steering", "layer": 7}, "adapter.layer is 7; the base model has layers 0 to 3"),
    ],
)
def test_a_place_that_is_not_there_is_refused_before_any_weight_is_read(adapter, says, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(SHIPPED / "tiny-gemma3", folder)
    (folder / "model.safetensors").write_bytes(b"no weights here")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hi", "completion": "there"}\n' * 4)
    config = {"model": str(folder), "data": [{"dataset": str(rows)}], "adapter": adapter}
    with pytest.raises(InputError, match=says):
        train({**config, "training": {"gradient_accumulation_steps": 1}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "adapter", [{}, {"layers_to_transform": [3]}, {"kind": "full"}, {"kind": "steering", "layer": 1}], ids=str
)
def test_a_model_whose_layers_are_not_read_is_refused_in_one_line(adapter, tmp_path):
    GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=340).save_pretrained(tmp_path)
    config = RunConfig(model=str(tmp_path), adapter=load_config({"adapter": adapter}).adapter)
    with pytest.raises(InputError, match=r"GPT2LMHeadModel has no linear modules in `layers`.*such as Qwen2, Llama or"):
        check_sites(config)
