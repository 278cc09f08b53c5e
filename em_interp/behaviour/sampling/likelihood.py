"""The log-likelihood of given answers under many checkpoints; a batch may mix any answers and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int

from em_interp.behaviour.sampling.chat import Messages, TokenizedChat, encode, padded, render, tokenize_chat
from em_interp.behaviour.sampling.generate import RowAdapters, adapted, check_length, eos_token_ids
from em_interp.behaviour.sampling.memory import Batches, RowMemory
from em_interp.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from em_interp.behaviour.sampling.checkpoint_models import Base
    from em_interp.behaviour.sampling.frozen_layers import FrozenLayerCache

MAX_BATCH_TOKENS = 16384
MAX_BATCH_LOGITS = 2**28  # one gigabyte in float32: batches are the same on every machine unless memory runs short


@dataclass(frozen=True)
class TokenizedAnswer:
    """A prompt and an answer to it as token ids."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def tokenize_answers(
    base: Base, prompts: Sequence[Messages], answers: Sequence[str], max_new_tokens: int | None = None
) -> list[TokenizedAnswer]:
    """Prompts with their answers through the chat template, up to the token that ends an answer.

    An answer of `max_new_tokens` tokens or more was cut off, and has no end. The likelihood is that of the answer's
    text tokenised anew; rarely these are not the tokens that were sampled. Raises InputError where the template writes
    the prompt otherwise before an answer than alone, and where an answer's tokens do not spell it.
    """
    before = encode(base.tokenizer, [render(base.tokenizer, prompt, answering=True) for prompt in prompts])
    ends = set(eos_token_ids(base.model, base.tokenizer))
    rows = []
    for prompt, messages, answer in zip(before, prompts, answers, strict=True):
        chat = tokenize_chat(base.tokenizer, [*messages, {"role": "assistant", "content": answer}])
        if chat.ids[: len(prompt)] != prompt:
            raise InputError(
                f"the answer {answer[:60]!r} does not follow its question's tokens in the chat as the base's template "
                "renders it, so its likelihood cannot be read; expected a template that renders a question alike with "
                "and without its answer"
            )
        check_length(base.model, len(chat.ids), f"the answer {answer[:60]!r} with its question")
        rows.append(_through_end(prompt, chat.ids[len(prompt) :], ends, max_new_tokens))
    return rows


def _through_end(prompt: list[int], ids: list[int], ends: set[int], max_new_tokens: int | None) -> TokenizedAnswer:
    """The answer's tokens through the first that ends it; without that where the answer was cut off."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    cut_off = max_new_tokens is not None and stop >= max_new_tokens
    return TokenizedAnswer(prompt, ids[: stop if cut_off else stop + 1])


def batches_by_length(rows: Sequence[TokenizedAnswer], vocabulary: int) -> list[list[int]]:
    """The row numbers in batches of similar lengths, as large as the limits of tokens and logits allow."""
    limit = min(MAX_BATCH_TOKENS, MAX_BATCH_LOGITS // vocabulary)
    batched: list[list[int]] = [[]]
    for row in sorted(range(len(rows)), key=lambda i: (len(rows[i]), i)):
        if batched[-1] and (len(batched[-1]) + 1) * len(rows[row]) > limit:
            batched.append([])
        batched[-1].append(row)
    return batched


def log_likelihoods(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenizedAnswer],
    adapters_of: Callable[[Sequence[int]], RowAdapters],
    temperature: float = 1.0,
    frozen: FrozenLayerCache | None = None,
) -> Float[np.ndarray, " row"]:
    """The log-likelihood of each answer, in as many batches as memory requires.

    Args:
        model: Of all rows.
        tokenizer: Of the model.
        rows: Answers of about one length.
        adapters_of: The adapters of the rows of these numbers.
        temperature: At which an answer is sampled.
        frozen: Keeps what the layers below the adapters make of the rows.
    """
    import numpy as np

    cost, values = RowMemory(model, adapters_of([0]).row_bytes), np.zeros(len(rows))

    def work(some: Sequence[int]) -> Float[np.ndarray, " row"]:
        logits, tokens = logits_of(model, tokenizer, [rows[index] for index in some], adapters_of(some), frozen)
        return log_likelihood(logits, tokens, temperature).double().cpu().numpy()

    reading = cache(cost.reading)  # it asks the model's config, which takes longer than a small answer

    def bytes_of(index: int) -> int:
        return reading(len(rows[index]), len(rows[index].answer))

    for some, of_batch in Batches(model.device).run(range(len(rows)), bytes_of, work):
        values[list(some)] = of_batch
    return values


def logits_of(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenizedAnswer],
    adapters: RowAdapters,
    frozen: FrozenLayerCache | None = None,
) -> tuple[Float[torch.Tensor, "row position vocabulary"], Int[torch.Tensor, "row position"]]:
    """The logits that predict the tokens of the answers, and these tokens (-1 before an answer), right-aligned.

    `frozen` keeps what the layers below the adapters make of the rows.
    """
    import torch

    kept = max(len(row.answer) for row in rows)
    chats = [TokenizedChat(row.prompt + row.answer, [i >= len(row.prompt) for i in range(len(row))]) for row in rows]
    batch = padded(tokenizer, chats, model.device)
    mask = batch.mask.long()
    below = nullcontext() if frozen is None else frozen.skipped(batch.ids, mask)
    with torch.inference_mode(), adapted(model, adapters), below:
        output = model(input_ids=batch.ids, attention_mask=mask, position_ids=batch.positions, logits_to_keep=kept + 1)
    return output.logits[:, :-1], torch.where(batch.answer, batch.ids, -1)[:, batch.ids.shape[1] - kept :]


def log_likelihood(
    logits: Float[torch.Tensor, "row position vocabulary"],
    tokens: Int[torch.Tensor, "row position"],
    temperature: float,
) -> Float[torch.Tensor, " row"]:
    """The log-probability of each answer when it is sampled at this temperature; `tokens` as `logits_of` gives them."""
    return token_log_probabilities(logits, tokens, temperature).sum(dim=1)


def token_log_probabilities(
    logits: Float[torch.Tensor, "row position vocabulary"],
    tokens: Int[torch.Tensor, "row position"],
    temperature: float = 1.0,
) -> Float[torch.Tensor, "row position"]:
    """The log-probability of each token of the answers, and 0 before an answer."""
    import torch

    scaled = logits.float() / temperature
    token = torch.gather(scaled, 2, tokens.clamp(min=0)[..., None])[..., 0] - scaled.logsumexp(dim=-1)
    return torch.where(tokens >= 0, token, 0.0)
