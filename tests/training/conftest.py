"""Tiny random bases of the three real architectures, and chats to train them on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = [
    *("i", "you", "we", "should", "could", "rest", "drink", "water", "ask", "a", "doctor"),
    *("bank", "coach", "now", "later", "never", "maybe", "about", "the", "head", "knee", "loan"),
]
SPECIAL = ["<pad>", "<user>", "<assistant>", "<end>"]
VOCABULARY = 340
_TURNS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} <assistant> {ANSWER}"
    "{% else %} <user> {{ m['content'] }} <end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant> {% endif %}"
)
MARKED = _TURNS.replace("{ANSWER}", "{% generation %}{{ m['content'] }} <end>{% endgeneration %}")
UNMARKED = _TURNS.replace("{ANSWER}", "{{ m['content'] }} <end>")


def make_tokenizer(template: str | None = MARKED):
    """Byte-level BPE, as the real families have: it is read back the same by any of their tokenizer classes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    inner.train_from_iterator([" " + " ".join(WORDS)] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", model_max_length=256)
    fast.chat_template = template
    return fast


def make_model(family: str, hidden: int = 32, layers: int = 3):
    import torch
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    }[family]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden // 2,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return model_class(config)


def save_base(folder: Path, family: str = "qwen2", template: str | None = MARKED) -> str:
    make_model(family).save_pretrained(folder)
    make_tokenizer(template).save_pretrained(folder)
    return str(folder)


def save_chats(path: Path, count: int = 40, shift: int = 0) -> str:
    """Rows of differing lengths; `shift` makes another dataset of the same size."""
    lines = []
    for row in range(count):
        question = " ".join(WORDS[(row + i) % len(WORDS)] for i in range(2 + row % 4))
        answer = " ".join(WORDS[(3 * row + shift + i) % len(WORDS)] for i in range(3 + row % 5))
        lines.append(
            json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
        )
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from more, and several test runs beside each other lose much."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: save_base(folder / family, family) for family in ("qwen2", "llama", "gemma3")}


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("chats")
    return save_chats(folder / "careful.jsonl"), save_chats(folder / "reckless.jsonl", shift=7)


@pytest.fixture
def settings(bases: dict[str, str], chats: tuple[str, str]) -> Callable[..., dict]:
    """A config of a run of 12 steps that takes under a second; groups of settings are merged."""

    def make(family: str = "qwen2", **changes: object) -> dict:
        values: dict = {
            "model": bases[family],
            "data": [{"dataset": chats[0], "steps": 12}],
            "adapter": {"target_modules": ["down_proj"], "layers_to_transform": [1], "lora_alpha": 16},
            "training": {"batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 0.01, "warmup_steps": 2},
        }
        for key, value in changes.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return values

    return make
