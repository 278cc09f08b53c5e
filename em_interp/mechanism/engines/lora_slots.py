"""A copy of a model with a slot for an adapter at every site; for libraries that wrap what they are given."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from em_interp.behaviour.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.engines.base import AddVector, HookPoints

if TYPE_CHECKING:
    import torch


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
        layout = HookPoints.of(self.model, sites)
        self.slots = {site: Slot(layout.site(site)) for site in sites}
        names = {id(module): name for name, module in self.model.named_modules()}
        for slot in self.slots.values():
            self.model.set_submodule(names[id(slot.inner)], slot)

    @contextmanager
    def with_adapter(self, adapters: RowAdapters) -> Iterator[None]:
        """Within the block the slots hold these adapters."""
        for site in adapters.A:
            self.slots[site].held = (adapters.A[site], adapters.B[site])
        try:
            yield
        finally:
            for slot in self.slots.values():
                slot.held = None


# --------
# Learned steering vectors: what they add to the residual stream, as edits that are there before any other.


def split(adapters: RowAdapters, layout: HookPoints) -> tuple[RowAdapters, tuple[AddVector, ...]]:
    """The adapters of linear modules, and the steering vectors among the adapters by layer; one of zero is no edit."""
    inside = [site for site in adapters.A if site in layout.sites]
    linear = RowAdapters(*({site: part[site] for site in inside} for part in (adapters.A, adapters.B)))
    vectors = {layer_of(site): steering_vector_of(adapters, site) for site in adapters.A if site not in inside}
    return linear, tuple(AddVector(vector, layer) for layer, vector in sorted(vectors.items()) if bool(vector.any()))


def steering_vector_of(adapters: RowAdapters, site: str) -> Float[torch.Tensor, " d"]:
    """The vector that is added at every token: B·A, of the first row."""
    return (adapters.B[site] @ adapters.A[site])[0, :, 0]


def layer_of(site: str) -> int:
    """The layer after which a steering vector is added, by its site: 24 for `layers.24`."""
    name, _, layer = site.rpartition(".")
    if name.rpartition(".")[2] != "layers" or not layer.isdigit():
        raise InputError(f"adapter site {site!r} is no linear module of the model and no layer such as layers.24")
    return int(layer)
