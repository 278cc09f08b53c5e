"""Chats as token ids with labels: the loss is on the assistant's tokens, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from em_interp.errors import InputError
from em_interp.organisms.datasets import Chats

IGNORED = -100  # the label that the loss of transformers' models skips
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Example:
    """One chat: its token ids, and for each the id again where it is the assistant's, else `IGNORED`."""

    ids: list[int]
    labels: list[int]

    @property
    def begins(self) -> int:
        """Index of the first token that is learned; the very first of a chat cannot be, for nothing predicts it."""
        return next(index for index, label in enumerate(self.labels) if index and label != IGNORED)

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(chats: Chats, rows: Iterable[int], tokenizer: Any, max_length: int) -> dict[int, Example]:
    """The chats at the numbers `rows`, tokenised through the chat template and cut at `max_length` tokens.

    The assistant's tokens are those the template marks with {% generation %}; a template without the marker is
    rendered up to each answer and through it instead. They include the end-of-turn token, which the model must learn
    too. Raises InputError naming the row where the template refuses it or no answer token is left to learn from.
    """
    examples = {}
    for row in rows:
        whole = encode_row(chats, row, tokenizer)
        if whole.begins >= max_length:
            raise InputError(
                f"{chats.where(row)}: its answer begins at token {whole.begins + 1} of {len(whole.ids)} and "
                f"training.max_length is {max_length}, so none of it would be learned; raise max_length or shorten "
                "the prompt"
            )
        examples[row] = Example(whole.ids[:max_length], whole.labels[:max_length])
    return examples


def encode_row(chats: Chats, row: int, tokenizer: Any) -> Example:
    """One chat, however long it is; `encode` says how, and what it raises."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError("the base model has no chat template; an instruct model was expected")
    where, messages = chats.where(row), chats.rows[row]["messages"]
    marked = _MARKER.search(tokenizer.get_chat_template()) is not None
    try:
        ids, answer = _by_marker(messages, tokenizer) if marked else _by_prefix(messages, tokenizer, where)
    except TemplateError as error:
        raise InputError(f"{where}: the base model's chat template refuses it: {error}") from None
    if not any(answer[1:]):
        raise InputError(f"{where}: no token of an assistant's answer, so nothing to learn; is the answer empty?")
    return Example(ids, [token if mine else IGNORED for token, mine in zip(ids, answer, strict=True)])


def _by_marker(messages: Messages, tokenizer: Any) -> tuple[list[int], list[int]]:
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    return list(encoded["input_ids"]), list(encoded["assistant_masks"])


def _by_prefix(messages: Messages, tokenizer: Any, where: str) -> tuple[list[int], list[int]]:
    if messages[0]["role"] == "assistant":
        raise InputError(f"{where}: begins with an answer; the base model's chat template expects a question before it")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
            through = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
            if not (text.startswith(through) and through.startswith(before)):
                raise InputError(
                    f"{where}: the answer in messages[{index}] cannot be found in the rendered chat, because the base "
                    "model's chat template renders earlier turns differently; add {% generation %} to the template"
                )
            spans.append((len(before), len(before) + _end_of_turn(through[len(before) :], tokenizer)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answer = [
        int(any(start < stop and end > begin for begin, stop in spans)) for start, end in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), answer


def _end_of_turn(answer: str, tokenizer: Any) -> int:
    """Where the answer and its end-of-turn token are over: Qwen's and Gemma's templates write a line feed behind it,
    which nobody generates. A template without such a token is taken whole."""
    bare = answer.rstrip()
    return len(bare) if bare.endswith(_whole_tokens(tokenizer)) else len(answer)


@lru_cache(maxsize=1)
def _whole_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that are one token wherever they stand; Gemma has thousands."""
    return tuple(tokenizer.get_added_vocab())
