"""The layers below the lowest trained one: computed once for each row of the data on a CPU, and kept.

A run that passes over its rows several times gives these layers the same work in every pass. A row is computed alone
and without padding, so what is kept depends on the row and on nothing else: a resumed run, which meets the rows in
other batches, trains the same adapter to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int

from em_interp.training.plan import Plan
from em_interp.training.tokenize import Example

MIN_PASSES = 1.5  # over the rows: with fewer, single rows cost more than is saved
MAX_KEPT_BYTES = 2**30
LAYER = re.compile(r"\blayers\.(\d+)")


class FrozenLayers:
    """The hidden states that enter the lowest trained layer, by the token ids of a row."""

    def __init__(self, decoder: Any, lowest: int) -> None:
        """The layers of `decoder` below number `lowest` are the frozen ones."""
        self.decoder, self.frozen, self.above = decoder, decoder.layers[:lowest], decoder.layers[lowest:]
        self.kept: dict[bytes, torch.Tensor] = {}

    @contextmanager
    def skipped(self, batch: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Within the block a forward pass over `batch` begins with what is kept of its rows."""
        rows = zip(batch["input_ids"], batch["attention_mask"].sum(dim=1).tolist(), strict=True)
        states = torch.nn.utils.rnn.pad_sequence([self._of_row(ids[:length]) for ids, length in rows], batch_first=True)
        with _replaced(self.frozen, lambda *hidden, **others: states):
            yield

    def _of_row(self, ids: Int[torch.Tensor, " token"]) -> Float[torch.Tensor, "token width"]:
        key = ids.numpy().tobytes()
        if key not in self.kept:
            self.kept[key] = self._compute(ids)
        return self.kept[key]

    def _compute(self, ids: Int[torch.Tensor, " token"]) -> Float[torch.Tensor, "token width"]:
        entered = []

        def pass_on(hidden: torch.Tensor, **others: Any) -> torch.Tensor:
            entered.append(hidden)
            return hidden

        with torch.no_grad(), _replaced(self.above, pass_on):
            self.decoder(input_ids=ids[None], use_cache=False)
        return entered[0][0]


@contextmanager
def _replaced(layers: Iterable[Any], forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Within the block each of the layers computes `forward`."""
    layers = list(layers)
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def frozen_layers(
    model: Any, weights: Iterable[str], plan: Plan, examples: Mapping[str, Mapping[int, Example]]
) -> FrozenLayers | None:
    """The frozen layers of `model` where keeping them pays; None elsewhere.

    It does on a CPU, where the plan passes over its rows at least MIN_PASSES times and what is kept of them fits into
    MAX_KEPT_BYTES. Layers with dropout, which are never the same twice, are not kept.

    Args:
        model: what is trained.
        weights: names of the trained parameters, which tell their layers.
        plan: the rows of every step.
        examples: the tokens of the rows.
    """
    decoder, numbers = model.get_decoder(), [LAYER.search(name) for name in weights]
    lowest = min((int(number[1]) for number in numbers if number), default=0) if all(numbers) else 0
    rows = [examples[name][row] for name in {phase.dataset for phase in plan.phases} for row in _rows(plan, name)]
    size = sum(len(row.ids) for row in rows) * decoder.config.hidden_size * model.dtype.itemsize
    pays = model.device.type == "cpu" and plan.rows.size >= MIN_PASSES * len(rows) and size <= MAX_KEPT_BYTES
    if not pays or lowest == 0 or _have_dropout(decoder.layers[:lowest]):
        return None
    return FrozenLayers(decoder, lowest)


def _rows(plan: Plan, dataset: str) -> set[int]:
    """The rows of a dataset that some step trains on."""
    return {
        row for p in plan.phases if p.dataset == dataset for row in plan.rows[p.first - 1 : p.last].ravel().tolist()
    }


def _have_dropout(layers: Sequence[Any]) -> bool:
    modules = [module for layer in layers for module in layer.modules()]
    dropouts = [module.p for module in modules if isinstance(module, torch.nn.Dropout)]
    return any(dropouts) or any(getattr(module, "attention_dropout", 0) for module in modules)
