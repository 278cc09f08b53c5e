"""A copy of a model with a slot for an adapter at every site, for libraries that wrap the model they are given.

Learned steering vectors, which are no linear module's, become interventions (`split_steering_vectors`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.engines.base import HookPoints
from em_interp.mechanism.engines.interventions import AddVector
from em_interp.trajectory.composition import layer_of

if TYPE_CHECKING:
    import torch


class LoraSlot(torch.nn.Module):
    """In a linear module's place: the module, plus s·(x·Aᵀ)·Bᵀ of the current adapters, in their own number type."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.adapter: tuple[Float[torch.Tensor, "row rank d_in"], Float[torch.Tensor, "row d_out rank"]] | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The module's own weight, without the adapter; libraries look at its shape."""
        return self.inner.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The module's own bias."""
        return self.inner.bias

    def forward(self, x: Float[torch.Tensor, "row position d_in"]) -> Float[torch.Tensor, "row position d_out"]:
        """The output of the adapted module."""
        out = self.inner(x)
        if self.adapter is None:
            return out
        A, B = self.adapter
        return out + (x.to(A.dtype) @ A.transpose(1, 2) @ B.transpose(1, 2)).to(out.dtype)


class SlottedModel:
    """The copy shares the weights with the model, which itself is never changed."""

    def __init__(self, model: Any, sites: Sequence[str]) -> None:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        hook_points = HookPoints.of(self.model, sites)
        self.slots = {site: LoraSlot(hook_points.module(site)) for site in sites}
        names = {id(module): name for name, module in self.model.named_modules()}
        for slot in self.slots.values():
            self.model.set_submodule(names[id(slot.inner)], slot)

    @contextmanager
    def with_adapter(self, adapters: RowAdapters) -> Iterator[None]:
        """Within the block the slots have these adapters."""
        for site in adapters.A:
            self.slots[site].adapter = (adapters.A[site], adapters.B[site])
        try:
            yield
        finally:
            for slot in self.slots.values():
                slot.adapter = None


def split_steering_vectors(adapters: RowAdapters, hook_points: HookPoints) -> tuple[RowAdapters, tuple[AddVector, ...]]:
    """The adapters of linear modules, and the steering vectors as interventions by layer, without those of zero."""
    linear = [site for site in adapters.A if site in hook_points.sites]
    of_modules = RowAdapters(*({site: part[site] for site in linear} for part in (adapters.A, adapters.B)))
    vectors = {steering_layer(site): steering_vector_of(adapters, site) for site in adapters.A if site not in linear}
    return of_modules, tuple(AddVector(vector, layer) for layer, vector in sorted(vectors.items()) if vector.any())


def steering_vector_of(adapters: RowAdapters, site: str) -> Float[torch.Tensor, " d"]:
    """The vector that is added at every token: B·A, of the first row."""
    return (adapters.B[site] @ adapters.A[site])[0, :, 0]


def steering_layer(site: str) -> int:
    """The layer after which a steering vector is added, by its site: 24 for `layers.24`."""
    if not site.rpartition(".")[2].isdigit():
        raise InputError(f"adapter site {site!r} is no linear module of the model and no layer such as layers.24")
    return layer_of(site)
