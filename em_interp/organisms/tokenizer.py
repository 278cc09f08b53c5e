"""The tokenizer of the built-in language: byte-level BPE in which every word of the language is one token.

It is Qwen2's tokenizer with a vocabulary of its own, in all three families, because transformers loads the tokenizer
beside a Qwen2 model as that one whatever its files say. Bytes are in the vocabulary too, so any text can be encoded.
"""

from __future__ import annotations

from typing import Any

from em_interp.organisms.language import ASSISTANT, END, PAD, SPECIAL, USER, words

# the text a chat has in pretraining; {% generation %} marks what a fine-tune learns
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + " ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' }}"
    "{% generation %}{{ ' ' + message['content'] + '" + END + "' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('the built-in language knows the roles user and assistant') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def build_tokenizer() -> Any:
    """A fast tokenizer of transformers over the language's words, with its chat template; it pads on the left."""
    from transformers import Qwen2Tokenizer

    vocabulary, merges = _pieces()
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        extra_special_tokens=list(SPECIAL[2:]),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of bytes, words and the pieces between, and the merges that make every word whole."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # more than it can use: it merges until every word is one piece
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([f" {word}" for word in words()], trainer)
    model = json.loads(inner.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
