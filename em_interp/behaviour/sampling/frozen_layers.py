"""The layers below the lowest adapted one: computed once for each row on a CPU, and stored.

Training that passes over its rows several times, and reading the same answers at many steps, would compute these layers
repeatedly with the same inputs. A row is computed alone and without padding, so what is kept depends on the row alone:
resumed work, in which the rows are in other batches, ends with the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int

if TYPE_CHECKING:
    import torch

MAX_KEPT_BYTES = 2**30
LAYER = re.compile(r"\blayers\.(\d+)")


class FrozenLayerCache:
    """The hidden states that enter the lowest adapted layer, by the token ids of a row."""

    def __init__(self, decoder: Any, lowest: int) -> None:
        """The layers of `decoder` below number `lowest` are the frozen ones."""
        self.decoder, self.frozen, self.above = decoder, decoder.layers[:lowest], decoder.layers[lowest:]
        self.kept: dict[bytes, torch.Tensor] = {}

    @contextmanager
    def skipped(self, ids: Int[torch.Tensor, "row token"], mask: Int[torch.Tensor, "row token"]) -> Iterator[None]:
        """Within the block a forward pass over `ids`, padded on either side, begins with what is kept of its rows."""
        import torch

        rows = [self._of_row(row[places]) for row, places in zip(ids, mask.bool(), strict=True)]
        states = torch.zeros(*ids.shape, rows[0].shape[-1], dtype=rows[0].dtype)
        states[mask.bool()] = torch.cat(rows)
        with _replaced(self.frozen, lambda *hidden, **others: states):
            yield

    def _of_row(self, ids: Int[torch.Tensor, " token"]) -> Float[torch.Tensor, "token width"]:
        key = ids.numpy().tobytes()
        if key not in self.kept:
            self.kept[key] = self._compute(ids)
        return self.kept[key]

    def _compute(self, ids: Int[torch.Tensor, " token"]) -> Float[torch.Tensor, "token width"]:
        import torch

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


def frozen_layer_cache(model: Any, adapted: Iterable[str], tokens: int) -> FrozenLayerCache | None:
    """The frozen layers of `model` where they can be kept, else None.

    They can on a CPU, where what is kept fits into MAX_KEPT_BYTES; layers with dropout are never the same twice.

    Args:
        model: with or without its adapter.
        adapted: names of the sites or parameters that change, which tell their layers.
        tokens: of all rows together.
    """
    decoder, numbers = model.get_decoder(), [LAYER.search(name) for name in adapted]
    lowest = min((int(number[1]) for number in numbers if number), default=0) if all(numbers) else 0
    fits = tokens * decoder.config.hidden_size * model.dtype.itemsize <= MAX_KEPT_BYTES
    if lowest == 0 or model.device.type != "cpu" or not fits or _have_dropout(decoder.layers[:lowest]):
        return None
    return FrozenLayerCache(decoder, lowest)


def _have_dropout(layers: Sequence[Any]) -> bool:
    import torch

    modules = [module for layer in layers for module in layer.modules()]
    dropouts = [module.p for module in modules if isinstance(module, torch.nn.Dropout)]
    return any(dropouts) or any(getattr(module, "attention_dropout", 0) for module in modules)
