"""Whether a server samples from the models that it should: compared with ours before a run, and at every adapter.

Greedy answers are compared token by token. They need not all be equal: where two tokens are about equally likely,
rounding decides. An adapter that is loaded without an error and changes nothing would make every checkpoint look like
the base, so each one's effect on the log-probabilities of a probe is measured: it must not be nothing where the
checkpoint's norm predicts an effect, and that of the strongest adapter must be the one that it has here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.sampling.checkpoint_models import Base
from em_interp.behaviour.vllm.adapters import AdapterKey
from em_interp.behaviour.vllm.server import VLLMServer
from em_interp.errors import InputError

if TYPE_CHECKING:
    from em_interp.behaviour.sampling.chat import Tokens
    from em_interp.trajectory.trajectory import AdapterTrajectory

MAX_COMPARED_TOKENS = 48  # of a greedy answer
MAX_DIFFERENT = 0.5  # share of the tokens of greedy answers: beyond it the models are different ones
MIN_EFFECT = 0.05  # nats a token; rounding may hide a smaller one
NO_EFFECT = 0.02  # share of the predicted effect under which an adapter is said to change nothing
MAX_FACTOR = 2.0  # between the effects of the strongest adapter there and here


@dataclass(frozen=True)
class Comparison:
    """Greedy answers of a server compared with ours.

    Attributes:
        answers: How many were compared.
        different: How many of them differ.
        tokens: Of the longer one of each pair.
        different_tokens: From the first one that differs on.
    """

    answers: int
    different: int
    tokens: int
    different_tokens: int

    @classmethod
    def of(cls, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> Comparison:
        """The comparison of answers in the same order."""
        lengths = [max(len(a), len(b)) for a, b in zip(ours, theirs, strict=True)]
        equal = [
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
            for a, b in zip(ours, theirs, strict=True)
        ]
        left = [length - same for length, same in zip(lengths, equal, strict=True)]
        return cls(len(lengths), sum(map(bool, left)), sum(lengths), sum(left))

    @property
    def share(self) -> float:
        """The share of the tokens that differ."""
        return self.different_tokens / self.tokens if self.tokens else 0.0

    def sentence(self) -> str:
        """What was compared and what differs."""
        return (
            f"{self.answers} greedy answers beside ours: {self.different} differ, {self.share:.1%} of their "
            f"{self.tokens} tokens"
        )


def greedy_answers(
    base: Base, trajectory: AdapterTrajectory, prompts: Tokens, keys: Sequence[AdapterKey], max_new_tokens: int
) -> list[list[int]]:
    """Our own greedy answer to each prompt, through its adapter."""
    from em_interp.behaviour.sampling.generate import RowAdapters, Sampler, adapted

    steps, scales = zip(*keys, strict=True)
    adapters = RowAdapters.of(trajectory, steps, scales, base.model.device)
    sampler = Sampler(base.model, base.tokenizer, 0.0, max_new_tokens, 0, row_bytes=adapters.row_bytes)
    answers = sampler.all(prompts, 1, lambda rows, _: adapted(base.model, adapters.rows(rows)))
    return [tokens for (tokens,) in answers]


def check_same(comparison: Comparison, url: str) -> None:
    """Raise InputError where more of the tokens differ than rounding explains."""
    if comparison.share > MAX_DIFFERENT:
        raise InputError(
            f"{url} does not sample from the models of this run: {comparison.sentence()}; at most {MAX_DIFFERENT:.0%} "
            "was expected. The usual causes: another base or revision, quantised weights, or adapters left out"
        )


def delta_norm(trajectory: AdapterTrajectory, key: AdapterKey) -> float:
    """Frobenius norm of the weight change by a step's adapter, with its own scale."""
    step, scale = key
    squares = [
        trajectory.scale[site] ** 2 * float(np.sum((B.T @ B) * (A @ A.T), dtype=np.float64))
        for site, (A, B) in trajectory.at(step).items()
    ]
    return abs(scale) * float(np.sqrt(sum(squares)))


@dataclass(frozen=True)
class Probe:
    """Tokens whose log-probabilities tell whether an adapter is applied.

    Attributes:
        base: The base model.
        trajectory: The path whose adapters are used.
        ids: A prompt and an answer to it.
        strongest: The adapter with the largest norm.
        of_base: The log-probabilities of the base on each server, by its address.
    """

    base: Base
    trajectory: AdapterTrajectory
    ids: Sequence[int]
    strongest: AdapterKey
    of_base: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def effect(self) -> float:
        """Mean absolute change of the log-probabilities by the strongest adapter, here."""
        from em_interp.behaviour.sampling.generate import RowAdapters
        from em_interp.behaviour.sampling.likelihood import TokenizedAnswer, logits_of, token_log_probabilities

        step, scale = self.strongest
        row = TokenizedAnswer(list(self.ids[:1]), list(self.ids[1:]))
        adapters = RowAdapters.of(self.trajectory, [step, step], [0.0, scale], self.base.model.device)
        read: Any = token_log_probabilities(*logits_of(self.base.model, self.base.tokenizer, [row, row], adapters))
        return float((read[1] - read[0]).abs().mean())

    def check(self, server: VLLMServer, name: str, key: AdapterKey) -> None:
        """Raise InputError where an adapter that a server has loaded does not have the effect that it should."""
        predicted = self.effect * delta_norm(self.trajectory, key) / delta_norm(self.trajectory, self.strongest)
        if predicted < MIN_EFFECT:
            return
        changed = np.subtract(server.log_probabilities(name, self.ids), self.of_base[server.url])
        found = float(np.abs(changed).mean())
        if found < NO_EFFECT * predicted:
            raise InputError(
                f"{server.url} answers through the adapter of step {key[0]} as the base does: it changes "
                f"log-probabilities by {found:.2g} nats a token, {predicted:.2g} was expected; the usual cause is a "
                "server that does not support LoRA on these modules"
            )
        if key == self.strongest and not 1 / MAX_FACTOR < found / predicted < MAX_FACTOR:
            raise InputError(
                f"{server.url} changes log-probabilities through the adapter of step {key[0]} by {found:.2g} nats a "
                f"token, here it does by {predicted:.2g}; the usual causes are another base and a wrong scaling"
            )
