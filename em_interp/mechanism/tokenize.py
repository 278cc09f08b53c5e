"""Chats and texts as batches of token ids, with a mark on the tokens of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Int

from em_interp.behaviour.generate import Messages
from em_interp.errors import InputError

if TYPE_CHECKING:
    import torch

OTHER = "\ufffc"  # an answer that begins like no other: where two chats part, the answer begins


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of token ids, padded on the left."""

    ids: Int[torch.Tensor, "row position"]
    mask: Bool[torch.Tensor, "row position"]  # no padding
    answer: Bool[torch.Tensor, "row position"]  # tokens of an answer's own text; none in prompts and texts

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def positions(self) -> Int[torch.Tensor, "row position"]:
        """Positions as the model counts them: from 0 at each row's first token."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    def rows(self, index: Sequence[int]) -> Tokens:
        """Some rows, in this order, without the padding that they no longer need."""
        chosen = self.mask[list(index)]
        first = int(chosen.any(dim=0).int().argmax())
        return Tokens(*(part[list(index)][:, first:] for part in (self.ids, self.mask, self.answer)))

    def batches(self, size: int) -> Iterator[Tokens]:
        """The rows in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self.rows(range(first, min(first + size, len(self))))


def prompts(tokenizer: Any, questions: Sequence[str | Messages], device: Any = "cpu") -> Tokens:
    """Questions (texts, or the messages of a chat) through the chat template, up to where the answer begins."""
    return texts(tokenizer, [_render(tokenizer, question) for question in questions], device)


def texts(tokenizer: Any, plain: Sequence[str], device: Any = "cpu") -> Tokens:
    """Texts as they are; no token is added. Raises InputError where there is none, or an empty one."""
    return _padded(tokenizer, [(text, 0, 0) for text in plain], device)


def chats(tokenizer: Any, questions: Sequence[str | Messages], answers: Sequence[str], device: Any = "cpu") -> Tokens:
    """Questions with their answers through the chat template; the tokens of the answer's text are marked.

    The end-of-turn token is not part of the answer. Raises InputError for an empty answer, and where the template
    does not write the answer as it is.
    """
    spans = []
    for question, answer in zip(questions, answers, strict=True):
        text = answer.strip()
        if not text:
            raise InputError(f"the answer {answer!r} to {question!r} is empty; expected text")
        whole = _render(tokenizer, question, text)
        other = _render(tokenizer, question, OTHER)
        start = next((i for i, (one, two) in enumerate(zip(whole, other, strict=False)) if one != two), len(whole))
        if not whole.startswith(text, start):
            raise InputError(f"the chat template does not write the answer {answer!r} to {question!r} as it is")
        spans.append((whole, start, start + len(text)))
    return _padded(tokenizer, spans, device)


def _render(tokenizer: Any, question: str | Messages, answer: str | None = None) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template, so there is no telling how a question is put to the model; "
            "an instruct model was expected (plain text can be read with `texts`)"
        )
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)


def _padded(tokenizer: Any, spans: list[tuple[str, int, int]], device: Any) -> Tokens:
    """Texts, each with the place of the answer in it, as one batch."""
    import torch

    if not spans:
        raise InputError("there is nothing to read: no text, question or answer was given")
    encoded = tokenizer([text for text, _, _ in spans], add_special_tokens=False, return_offsets_mapping=True)
    longest = max(map(len, encoded["input_ids"]))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((len(spans), longest), pad)
    mask, answer = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, (text, start, stop) in enumerate(spans):
        tokens = encoded["input_ids"][row]
        if not tokens:
            raise InputError(f"the text {text!r} has no token; expected at least one")
        inside = [a < stop and b > start and b > a for a, b in encoded["offset_mapping"][row]]
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = True
        answer[row, longest - len(tokens) :] = torch.tensor(inside)
    return Tokens(ids.to(device), mask.to(device), answer.to(device))
