"""Decode one batch of answers: the prompts once through the model, then token by token until every answer has ended.

Every answer has a random stream of its own (`uniforms`), one uniform number a token, and a token is the inverse of the
cumulative distribution at that number. So what is sampled does not depend on what else is in the batch, on how many
answers fit in memory, on the number of processes or on an interruption. What remains is rounding: the logits of a row
differ in the last bits between batches of other sizes, which alters a token where its number is within that of an
edge of the distribution: seldom in float32, more often in bfloat16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.sampling.chat import Tokens, position_ids

if TYPE_CHECKING:
    import torch

MAX_FINISHED = 0.2  # share of finished rows at which they are dropped from the batch
MAX_CUMULATED = 2**24  # probabilities that are cumulated at once, in float64


class RowModel(Protocol):
    """A model of a batch whose rows may each have their own adapter or interventions."""

    def __call__(self, **inputs: Any) -> Any:
        """The model's output, with logits, for the next tokens of all rows."""

    def select(self, rows: Int[torch.Tensor, " some"]) -> None:
        """Continue with these rows of the batch alone."""


def uniforms(stream: str, count: int) -> Float[np.ndarray, " token"]:
    """The first numbers of a random stream, uniform in [0, 1)."""
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


@dataclass(frozen=True)
class _Batch:
    """Answers that are not finished."""

    row: Int[torch.Tensor, " alive"]  # their numbers
    cache: Any  # keys and values
    mask: Int[torch.Tensor, "alive position"]  # 0 at padding

    def select(self, keep: Int[torch.Tensor, " some"]) -> _Batch:
        self.cache.batch_select_indices(keep)
        return _Batch(self.row[keep], self.cache, self.mask[keep])

    def forward(self, model: RowModel, ids: Int[torch.Tensor, "alive new"]) -> Float[torch.Tensor, "alive vocabulary"]:
        """Logits after the last of the new tokens; the mask covers them already."""
        output = model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=position_ids(self.mask)[:, -ids.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def decode(
    model: RowModel,
    prompts: Tokens,
    prompt_of: Sequence[int],
    cache: Any,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    streams: Sequence[str],
) -> list[list[int]]:
    """The tokens of a batch of answers, each without the token that ends it.

    Args:
        model: Its rows are the prompts; it is told which of them the answers belong to, and which are left.
        prompts: The prompts.
        prompt_of: The number of each answer's prompt. A prompt is read once, however many answers it has.
        cache: An empty cache for the model's keys and values.
        ends: Tokens that end an answer.
        max_new_tokens: Largest number of tokens of an answer.
        temperature: Sampling temperature, over the whole vocabulary; 0 is greedy.
        streams: The random stream of each answer.
    """
    import torch

    device = prompts.ids.device
    batch = _Batch(torch.arange(len(prompts), device=device), cache, prompts.mask.long())
    logits = batch.forward(model, prompts.ids)
    repeats = torch.tensor(list(prompt_of), device=device)
    model.select(repeats)
    batch = replace(batch.select(repeats), row=torch.arange(len(repeats), device=device))
    return _decode(model, batch, logits[repeats], ends, max_new_tokens, temperature, streams)


def _decode(
    model: RowModel,
    batch: _Batch,
    logits: Float[torch.Tensor, "answer vocabulary"],
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    streams: Sequence[str],
) -> list[list[int]]:
    import torch

    device = batch.row.device
    numbers = _numbers(streams, max_new_tokens, device) if temperature else None
    end = torch.tensor(list(ends), device=device)
    tokens = torch.full((len(batch.row), max_new_tokens), -1, device=device)
    done = torch.zeros_like(batch.row, dtype=torch.bool)
    for position in range(max_new_tokens):
        new = _choose(logits, temperature, None if numbers is None else numbers[batch.row, position])
        done = done | torch.isin(new, end)
        tokens[batch.row, position] = torch.where(done, -1, new)
        finished = int(done.sum())
        if finished == len(done) or position + 1 == max_new_tokens:
            break
        if finished >= MAX_FINISHED * len(done):
            keep = torch.nonzero(~done)[:, 0]
            batch, new, done = batch.select(keep), new[keep], done[keep]
            model.select(keep)
        batch = replace(batch, mask=torch.cat([batch.mask, torch.ones_like(new)[:, None]], dim=1))
        logits = batch.forward(model, new[:, None])
    return [[token for token in row if token >= 0] for row in tokens.tolist()]


def _numbers(streams: Sequence[str], count: int, device: torch.device) -> Float[torch.Tensor, "answer token"]:
    import torch

    drawn = torch.from_numpy(np.stack([uniforms(stream, count) for stream in streams]))
    return drawn.to(device, torch.float32 if device.type == "mps" else torch.float64)  # MPS has no float64


def _choose(
    logits: Float[torch.Tensor, "alive vocabulary"], temperature: float, number: Float[torch.Tensor, " alive"] | None
) -> Int[torch.Tensor, " alive"]:
    """The next token of each row: the likeliest, or the one at its number in the cumulative distribution."""
    import torch

    if number is None:
        return logits.argmax(dim=-1)
    rows = max(1, MAX_CUMULATED // logits.shape[1])
    pairs = zip(logits.split(rows), number.split(rows), strict=True)
    return torch.cat([_at(part.float() / temperature, numbers) for part, numbers in pairs])


def _at(logits: Float[torch.Tensor, "row vocabulary"], number: Float[torch.Tensor, " row"]) -> torch.Tensor:
    import torch

    cumulated = torch.softmax(logits, dim=-1).to(number.dtype).cumsum(dim=-1)
    token = torch.searchsorted(cumulated, number[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return token.clamp(max=logits.shape[1] - 1)
