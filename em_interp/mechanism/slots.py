"""A copy of a model with a slot for an adapter at every site; for libraries that wrap what they are given."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float

from em_interp.behaviour.generate import RowAdapters
from em_interp.mechanism.layout import Layout


class Slot(torch.nn.Module):
    """In a linear module's place: the module, plus s·(x·Aᵀ)·Bᵀ of the adapters held, in their own number type."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.held: tuple[Float[torch.Tensor, "row rank d_in"], Float[torch.Tensor, "row d_out rank"]] | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The module's own weight, without the adapter; libraries look at its shape."""
        return self.inner.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The module's own bias."""
        return self.inner.bias

    def forward(self, x: Float[torch.Tensor, "row position d_in"]) -> Float[torch.Tensor, "row position d_out"]:
        """What the adapted module gives out."""
        out = self.inner(x)
        if self.held is None:
            return out
        A, B = self.held
        inside = x.to(A.dtype) @ A.transpose(1, 2)
        return out + (inside @ B.transpose(1, 2)).to(out.dtype)


class SlottedModel:
    """The copy shares the weights, so that nothing is held twice, and whatever is done to it the model is untouched."""

    def __init__(self, model: Any, sites: Sequence[str]) -> None:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        layout = Layout.of(self.model, sites)
        self.slots = {site: Slot(layout.site(site)) for site in sites}
        names = {id(module): name for name, module in self.model.named_modules()}
        for slot in self.slots.values():
            self.model.set_submodule(names[id(slot.inner)], slot)

    @contextmanager
    def holding(self, adapters: RowAdapters) -> Iterator[None]:
        """Within the block the slots hold these adapters."""
        for site in adapters.A:
            self.slots[site].held = (adapters.A[site], adapters.B[site])
        try:
            yield
        finally:
            for slot in self.slots.values():
                slot.held = None
