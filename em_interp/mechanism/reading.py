"""Reading answers back through the model at a step: activations averaged over the tokens of each answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from em_interp.mechanism.answers import AnswerSet
from em_interp.mechanism.model import Activations, ModelAtStep, SteppedModel
from em_interp.mechanism.tokens import Tokens

if TYPE_CHECKING:
    import torch

BATCH = 64  # answers read at a time
MOST = 41  # steps looked at where none are named


def chats_of(model: SteppedModel, answers: AnswerSet, batch: int = BATCH) -> list[Tokens]:
    """The answers in their chats, in order, a batch at a time."""
    tokens = model.chats(answers.table["question"].tolist(), answers.table["answer"].tolist())
    return list(tokens.batches(batch))


def steps_of(model: SteppedModel, steps: Sequence[int] | None = None) -> list[int]:
    """These steps, increasing; by default all that are saved, or 41 of them with the first and the last."""
    saved = model.trajectory.steps
    if steps is None:
        steps = saved[np.unique(np.linspace(0, len(saved) - 1, min(MOST, len(saved))).round().astype(int))].tolist()
    return sorted({int(step) for step in steps})


def passes(model: ModelAtStep, chats: Sequence[Tokens], names: Sequence[str]) -> Iterator[tuple[Tokens, Activations]]:
    """One pass a batch."""
    for tokens in chats:
        yield tokens, model.run(tokens, names)


def answer_means(
    model: ModelAtStep, chats: Sequence[Tokens], names: Sequence[str]
) -> dict[str, Float[np.ndarray, "answer d"]]:
    """Each activation averaged over each answer's tokens, in float64."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for tokens, seen in passes(model, chats, names):
        for name in names:
            parts[name].append(mean_over_answer(seen[name], tokens))
    return {name: np.concatenate(part) for name, part in parts.items()}


def mean_over_answer(x: Float[torch.Tensor, "row position d"], tokens: Tokens) -> Float[np.ndarray, "row d"]:
    """The average over the tokens of each row's answer, in float64."""
    weight = tokens.answer.double() / tokens.answer.sum(dim=1, keepdim=True)
    return (weight[:, None] @ x.double())[:, 0].cpu().numpy()
