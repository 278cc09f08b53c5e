"""Adapters are what their keys and settings say: the same model as PEFT's, or refused by name."""

import json

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.training.export import export_merged, merge
from em_interp.trajectory.load import load_trajectory
from tests.trajectory.saving import SITE, save_adapter, save_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT asks by the old name
    pytest.mark.filterwarnings("ignore:.*lora_bias=True.*", "ignore:.*invalid shape.*lora_B.bias.*"),
]


def a_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def save_kind(root, **settings):
    """Two checkpoints as PEFT writes them, the second after B has changed; and the logits of PEFT's own model there."""
    torch.manual_seed(1)
    kind = {"r": 2, "lora_alpha": 8, "target_modules": ["down_proj"], "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(a_model(), LoraConfig(**kind))
    for step in (0, 1):
        model.save_pretrained(root / f"checkpoint-{step}", save_embedding_layers=False)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name or "magnitude" in name:
                    weight.add_(torch.randn_like(weight) / 4)
    loaded = peft.PeftModel.from_pretrained(a_model(), str(root / "checkpoint-1")).eval()
    with torch.no_grad():
        return loaded(torch.arange(12)[None]).logits


PLAIN = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random": {"init_lora_weights": False},
    "patterns": {"rank_pattern": {"layers.0.mlp.down_proj": 1}, "alpha_pattern": {r"layers\.[12]\.mlp\.down_proj": 3}},
    "anchored": {"alpha_pattern": {"^model.layers.1.mlp.down_proj": 2, "2.mlp.down_proj": 9}},
    "some layers": {"layers_to_transform": [1, 2], "target_modules": ["q_proj", "up_proj"]},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_the_base_with_the_adapter_is_the_model_that_peft_has(tmp_path, kind):
    expected = save_kind(tmp_path, **PLAIN[kind])
    path, model = load_trajectory(tmp_path), a_model()
    before = model(torch.arange(12)[None]).logits
    merge(model, path, 1)
    found = model(torch.arange(12)[None]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - before).abs().max() > 0.01 and path.extra_tensors == ()


CHANGED = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa by iteration": {"init_lora_weights": "pissa_niter_2"},
    "olora": {"init_lora_weights": "olora"},
    "mica": {"init_lora_weights": "mica"},
    "parameters": {"target_modules": [], "target_parameters": ["mlp.down_proj.weight"]},
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_setting_under_which_a_and_b_mean_something_else_is_refused_by_name(tmp_path, kind):
    save_kind(tmp_path, **CHANGED[kind])
    with pytest.raises(InputError, match=r"init_lora_weights is '|target_parameters is set"):
        load_trajectory(tmp_path)


def test_settings_that_peft_may_have_one_day_are_refused_by_name(tmp_path):
    for key, value in (
        ("use_qalora", True),
        ("use_rslora", "false"),
        ("use_dora", "no"),
        ("use_whatever", True),
        ("new_config", {"k": 1}),
        ("kasa_config", {"k": 1}),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("rank_pattern", [1]),
        ("modules_to_save", 0.5),
        ("modules_to_save", "lm_head"),
    ):
        with pytest.raises(InputError, match=key):
            load_trajectory(save_run(tmp_path, **{key: value}))
    harmless = {"use_rslora": False, "eva_config": {"rho": 2.0}, "fan_in_fan_out": True, "peft_version": "1.0"}
    assert load_trajectory(save_run(tmp_path, **harmless)).scale == {"layers.21.mlp.down_proj": 64}


BESIDES = {
    "head": ({"modules_to_save": ["lm_head"]}, "lm_head"),
    "bias of LoRA": ({"lora_bias": True}, "lora_B.bias"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_tokens_delta"),
    "embedding": ({"target_modules": ["embed_tokens", "down_proj"]}, "lora_embedding_A"),
    "aLoRA": ({"alora_invocation_tokens": [5, 6]}, r"aLoRA \(in effect after its invocation tokens only\)"),
    "replicated": ({"layer_replication": [[0, 2], [1, 3]]}, "replicated layers"),
    "DoRA": ({"use_dora": True}, "DoRA's magnitudes"),
}


@pytest.mark.parametrize("kind", BESIDES)
def test_what_was_trained_besides_is_told_once_and_neither_asked_nor_merged(tmp_path, kind):
    settings, name = BESIDES[kind]
    save_kind(tmp_path, **settings)
    path = load_trajectory(tmp_path)
    assert len(path.sites) >= 3 and np.linalg.norm(path.B[path.sites[0]][1]) > 0
    with pytest.raises(InputError, match=f"was trained with .*{name}.* besides A and B"):
        RowAdapters.of(path, [1], [1.0], "cpu")
    with pytest.raises(InputError, match=name):
        export_merged(tmp_path, 1, tmp_path / "merged", base="nowhere")
    assert [note for note in path.notes if "left out of the path" in note] == [path.notes[0]]


def test_dora_is_read_as_direction_and_magnitude(tmp_path):
    save_kind(tmp_path, use_dora=True)
    path = load_trajectory(tmp_path)
    saved = load_file(tmp_path / "checkpoint-1/adapter_model.safetensors")
    for site in path.sites:
        own = next(tensor for key, tensor in saved.items() if site in key and "magnitude" in key)
        np.testing.assert_array_equal(path.magnitude[site][1], own.ravel())
    changes = path.frame()["magnitude_change"].tolist()
    assert changes[0] == 0 and changes[1] > 0.01


def with_tensors(root, more):
    for step in (0, 1):
        file = save_adapter(root / f"checkpoint-{step}", value=float(step)) / "adapter_model.safetensors"
        save_file(load_file(file) | more, file)
    return root


def test_several_adapters_in_a_file_are_told_apart_by_name(tmp_path):
    key = f"base_model.model.{SITE}.lora_{{}}.{{}}weight"
    other = {key.format("A", "ref."): np.ones((1, 5), "f4"), key.format("B", "ref."): np.full((4, 1), 9, "f4")}
    with_tensors(tmp_path, other)
    with pytest.raises(InputError, match="holds several adapters: default, ref; choose one with adapter=…"):
        load_trajectory(tmp_path)
    assert load_trajectory(tmp_path, adapter="ref").B["layers.21.mlp.down_proj"][:, 0, 0].tolist() == [9, 9]
    assert load_trajectory(tmp_path, adapter="default").B["layers.21.mlp.down_proj"][:, 0, 0].tolist() == [0, 1]
    with pytest.raises(InputError, match=r"holds no adapter 'mine' \(adapters: default, ref\)"):
        load_trajectory(tmp_path, adapter="mine")


def test_an_adapter_that_is_not_there_is_not_taken_for_the_only_one(tmp_path):
    save_run(tmp_path / "one")
    with pytest.raises(InputError, match=r"holds no adapter 'mine' \(adapters: default\)"):
        load_trajectory(tmp_path / "one", adapter="mine")
    for step in (0, 1):
        save_adapter(tmp_path / f"own/checkpoint-{step}/mine", value=float(step))
    assert load_trajectory(tmp_path / "own", adapter="mine").steps.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["default", "my-adapter", "v1.5"])
def test_the_name_of_the_only_adapter_may_be_anything(tmp_path, name):
    save_run(tmp_path, key=f"base_model.model.{{}}.lora_{{}}.{name}.weight")
    assert load_trajectory(tmp_path).sites == ("layers.21.mlp.down_proj",)


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.model.language_model.",
        "base_model.model.language_model.model.",
        "model.",
        "module.base_model.model.model.",
        "base_model.model._orig_mod.model.",
        "_fsdp_wrapped_module.base_model.model.model.",
        "base_model.model.model._checkpoint_wrapped_module.",
    ],
)
def test_what_wraps_the_model_is_no_part_of_a_site(tmp_path, prefix):
    path = load_trajectory(save_run(tmp_path, modules=(f"{prefix}layers.3.mlp.down_proj",), key="{}.lora_{}.weight"))
    assert path.sites == ("layers.3.mlp.down_proj",)


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    for wrapped in (f"base_model.model.{SITE}.lora_A.default.weight", f"{SITE}.lora_A.weight"):
        with pytest.raises(InputError, match="there twice"):
            load_trajectory(with_tensors(tmp_path, {wrapped: np.ones((1, 5), "f4")}))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lora_alpha": float("inf")}, "lora_alpha should be a number other than 0; it is inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha should be a number other than 0; it is nan"),
        ({"lora_alpha": 0}, "other than 0; it is 0"),
        ({"lora_alpha": True}, "it is True"),
        ({"r": 0}, "has rank 1; .* says 0"),
        ({"alpha_pattern": {"(": 3}}, "the pattern '\\(' cannot be matched"),
        ({"alpha_pattern": {"x" * 2000: 3}}, "it has 2000 characters"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, settings, expected):
    with pytest.raises(InputError, match=expected):
        load_trajectory(save_run(tmp_path, modules=("model." + "a" * 60 + ".down_proj",), **settings))


def test_patterns_that_overlap_are_refused_where_the_order_that_peft_does_not_keep_decides(tmp_path):
    save_kind(tmp_path / "peft", alpha_pattern={"layers.1.mlp.down_proj": 2, "down_proj": 9})
    with pytest.raises(
        InputError, match=r"gives model\.layers\.1\.mlp\.down_proj 9, 2; .* which was used is not known"
    ):
        load_trajectory(tmp_path / "peft")
    known = {"rank_pattern": {"down_proj": 3, "mlp.down_proj": 1}, "alpha_pattern": {"down_proj": 3, "mlp.*": 3}}
    assert load_trajectory(save_run(tmp_path / "known", **known)).scale == {"layers.21.mlp.down_proj": 3}


def test_a_pattern_that_would_take_for_ever_is_stopped(tmp_path):
    slow = {"alpha_pattern": {r"(?:a|aa|aaa)*(?:a|aa|aaa)*(?:a|aa)*(?:a|aa)*[!?]": 3}}
    with pytest.raises(InputError, match="it takes too long"):
        load_trajectory(save_run(tmp_path, modules=("model." + "a" * 200,), **slow))


@pytest.mark.parametrize("key, pattern", [("alpha_pattern", "(a+)+[!?]"), ("rank_pattern", "(.*)*(.*)*[!?]")])
def test_a_pattern_on_which_other_matchers_go_back_for_ever_is_matched_at_once(tmp_path, key, pattern):
    path = load_trajectory(save_run(tmp_path, modules=("model." + "a" * 200,), **{key: {pattern: 1}}))
    assert path.sites == ("a" * 200,)


def test_empty_tensors_name_what_left_them_empty(tmp_path):
    key = f"base_model.model.{SITE}.lora_{{}}.weight"
    for tensors, found in (
        ({key.format("A"): np.zeros(0, "f4"), key.format("B"): np.zeros(0, "f4")}, "is empty"),
        ({key.format("A"): np.zeros((0, 2), "f4"), key.format("B"): np.zeros((4, 0), "f4")}, "so rank 0 or no weight"),
        ({}, "it is empty: the adapter matched no module"),
    ):
        for step in (0, 1):
            save_file(tensors, save_adapter(tmp_path / f"checkpoint-{step}") / "adapter_model.safetensors")
        with pytest.raises(InputError, match=f"{found}.*DeepSpeed ZeRO-3"):
            load_trajectory(tmp_path)


MISTAKEN = {
    "a web page": ("adapter_model.safetensors", b"<!DOCTYPE html>\n<html>", "is a web page, not the file itself"),
    "a pointer": ("adapter_model.bin", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "another format": ("adapter_model.safetensors", b"PK\x03\x04" + bytes(90), "its name should be adapter_model.bin"),
    "nothing": ("adapter_model.safetensors", b"", r"\(0 bytes\) is not a whole safetensors file .*may be truncated"),
}


@pytest.mark.parametrize("kind", MISTAKEN)
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(tmp_path, kind):
    name, content, said = MISTAKEN[kind]
    for step in (0, 1):
        (save_adapter(tmp_path / f"checkpoint-{step}") / "adapter_model.safetensors").unlink()
        (tmp_path / f"checkpoint-{step}" / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_trajectory(tmp_path)


def test_a_bin_file_of_old_and_a_missing_config_are_called_what_they_are(tmp_path):
    file = save_adapter(tmp_path / "checkpoint-0") / "adapter_model.safetensors"
    save_adapter(tmp_path / "checkpoint-1")
    file.unlink()
    tensors = {"base_model.model.x.lora_A.weight": torch.ones(1, 2)}
    torch.save(tensors, file.with_suffix(".bin"), _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"is in torch\.save's format of before 1\.6"):
        load_trajectory(tmp_path)
    file.with_name("adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json is missing: it says what the matrices beside it mean"):
        load_trajectory(tmp_path)


UNSLOTH = {  # the settings that Unsloth's own save_pretrained adds to PEFT's, or writes in another form
    "base_model_name_or_path": "unsloth/qwen2.5-14b-instruct-bnb-4bit",
    "auto_mapping": {"base_model_class": "Qwen2ForCausalLM", "parent_library": "m", "unsloth_fixed": True},
    "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp|ffn|dense).*?(?:down_proj).*?)",
    **{"loftq_config": {}, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "init_lora_weights": True},
    **{
        "lora_dropout": 0,
        "bias": "none",
        "inference_mode": True,
        "qalora_group_size": 16,
        "megatron_core": "megatron.core",
    },
}


def test_an_adapter_as_unsloth_writes_it_is_peft_s(tmp_path):
    path = load_trajectory(save_run(tmp_path, where=".", rank=4, **UNSLOTH))
    assert path.base == UNSLOTH["base_model_name_or_path"] and path.extra_tensors == ()
    assert path.scale == {"layers.21.mlp.down_proj": 64 / 4**0.5}


def test_an_adapter_in_a_bin_file_is_read_like_one_in_safetensors(tmp_path):
    save_kind(tmp_path / "new")
    for step in (0, 1):
        folder = tmp_path / f"new/checkpoint-{step}"
        old = tmp_path / f"old/checkpoint-{step}"
        old.mkdir(parents=True)
        tensors = {
            key: torch.from_numpy(value) for key, value in load_file(folder / "adapter_model.safetensors").items()
        }
        torch.save(tensors, old / "adapter_model.bin")
        (old / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    new, old = load_trajectory(tmp_path / "new"), load_trajectory(tmp_path / "old")
    for site in new.sites:
        np.testing.assert_array_equal(new.B[site], old.B[site])
    file = tmp_path / "old/checkpoint-1/adapter_model.bin"
    torch.save(["no", "tensors"], file)
    with pytest.raises(InputError, match="should hold tensors by name; it holds list"):
        load_trajectory(tmp_path / "old")
    assert json.loads((tmp_path / "old/checkpoint-1/adapter_config.json").read_text())["r"] == 2
