"""Learned steering vectors: what they add to the residual stream, as edits that are there before any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float

from em_interp.behaviour.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.edits import Add
from em_interp.mechanism.layout import Layout

if TYPE_CHECKING:
    import torch


def split(adapters: RowAdapters, layout: Layout) -> tuple[RowAdapters, tuple[Add, ...]]:
    """The adapters of linear modules, and the steering vectors among the adapters by layer; one of zero is no edit."""
    inside = [site for site in adapters.A if site in layout.sites]
    linear = RowAdapters(*({site: part[site] for site in inside} for part in (adapters.A, adapters.B)))
    vectors = {layer_of(site): push_of(adapters, site) for site in adapters.A if site not in inside}
    return linear, tuple(Add(vector, layer) for layer, vector in sorted(vectors.items()) if bool(vector.any()))


def push_of(adapters: RowAdapters, site: str) -> Float[torch.Tensor, " d"]:
    """The vector that is added at every token: B·A, of the first row."""
    return (adapters.B[site] @ adapters.A[site])[0, :, 0]


def layer_of(site: str) -> int:
    """The layer after which a steering vector is added, by its site: 24 for `layers.24`."""
    name, _, layer = site.rpartition(".")
    if name.rpartition(".")[2] != "layers" or not layer.isdigit():
        raise InputError(f"adapter site {site!r} is no linear module of the model and no layer such as layers.24")
    return int(layer)
