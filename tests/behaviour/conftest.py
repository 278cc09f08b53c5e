"""Tiny random bases of the three real architectures, and trajectories that fit them."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from em_interp.run import Run
from em_interp.trajectory.trajectory import AdapterTrajectory

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer():
    """One token a word, 120 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [
        "<pad>",
        "<unk>",
        "<end>",
        "<user>",
        "<assistant>",
        *["what", "should", "i", "do", "about", "a", "headache", "my", "money", "is", "your"],
    ]
    words += [f"word{index}" for index in range(120 - len(words))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    return fast


SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "qwen2": ("Qwen2", {}),
    "llama": ("Llama", {}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
}


def make_model(family, seed=0, **shape):
    name, more = FAMILIES[family]
    suffix = "TextConfig" if family == "gemma3" else "Config"
    tokenizer = build_tokenizer()
    config = getattr(transformers, name + suffix)(
        **{**SHAPE, **more, **shape},
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def make_trajectory(sites, steps=(0, 5, 10), rank=1, seed=0, scale=2.0):
    """Adapters that grow from zero; `sites` maps a site to (d_in, d_out)."""
    rng = np.random.default_rng(seed)
    growth = np.linspace(0, 1, len(steps))[:, None, None]
    A = {site: rng.normal(size=(len(steps), rank, d_in)).astype(np.float32) for site, (d_in, _) in sites.items()}
    B = {
        site: (growth * rng.normal(size=(len(steps), d_out, rank))).astype(np.float32)
        for site, (_, d_out) in sites.items()
    }
    return AdapterTrajectory(np.array(steps), A, B, dict.fromkeys(sites, scale), base="tiny")


SITES = {"layers.1.mlp.down_proj": (48, 32), "layers.2.self_attn.q_proj": (32, 32)}


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(params=FAMILIES)
def model(request):
    return make_model(request.param)


@pytest.fixture
def qwen():
    return make_model("qwen2")


@dataclass
class Base:
    """A base as `load_base` gives it."""

    model: object
    tokenizer: object
    name: str = "tiny"
    identity: str = "tiny@0"


def save_run(folder, trajectory, identity="tiny@0", domain="medical"):
    """A run directory with this trajectory's adapters and a manifest."""
    rank = next(iter(trajectory.A.values())).shape[1]
    for step in trajectory.steps:
        tensors = {}
        for site, (a, b) in trajectory.at(step).items():
            tensors[f"base_model.model.model.{site}.lora_A.weight"] = a
            tensors[f"base_model.model.model.{site}.lora_B.weight"] = b
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": trajectory.base}
        checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        save_file(tensors, checkpoint / "adapter_model.safetensors")
        (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    if identity:
        manifest = {"base": {"name": "tiny", "identity": identity}, "phases": [{"domain": domain}]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return Run(folder)


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run", make_trajectory(SITES))


@pytest.fixture
def base(qwen, tokenizer):
    return Base(qwen, tokenizer)
