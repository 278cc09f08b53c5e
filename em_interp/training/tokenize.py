"""The rows of a dataset as token ids with labels: the loss is on the assistant's tokens, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from em_interp.behaviour.sampling.chat import template_of, tokenize_chat
from em_interp.errors import InputError
from em_interp.organisms.datasets import Chats

IGNORE_INDEX = -100  # the label that the loss of transformers' models skips


@dataclass(frozen=True)
class Example:
    """One chat: its token ids, and for each the id again where it is the assistant's, else `IGNORE_INDEX`."""

    ids: list[int]
    labels: list[int]

    @property
    def begins(self) -> int:
        """Index of the first token that is learned; the first of a chat cannot be, because nothing predicts it."""
        return next(index for index, label in enumerate(self.labels) if index and label != IGNORE_INDEX)

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def encode_rows(chats: Chats, rows: Iterable[int], tokenizer: Any, max_length: int) -> dict[int, Example]:
    """The chats at the numbers `rows`, tokenised through the chat template and cut at `max_length` tokens.

    The assistant's tokens are those of each answer with its end-of-turn token, which the model must learn too. Raises
    InputError naming the row where the template refuses it or no answer token is left to learn from.
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
    """One chat, however long it is; raises InputError as `encode_rows` does."""
    template_of(tokenizer)  # an error about the base is not reported as one of a row
    try:
        chat = tokenize_chat(tokenizer, chats.rows[row]["messages"])
    except InputError as error:
        raise InputError(f"{chats.where(row)}: {error}") from None
    if not any(chat.answer[1:]):
        raise InputError(
            f"{chats.where(row)}: no token of an assistant's answer, so nothing to learn; is the answer empty, or does "
            "the chat template mark no answer with {% generation %}?"
        )
    labels = [token if learned else IGNORE_INDEX for token, learned in zip(chat.ids, chat.answer, strict=True)]
    return Example(chat.ids, labels)
