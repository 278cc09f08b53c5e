"""Names of activations, the same in every engine, and the modules of a model where they are found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from em_interp.behaviour.generate import find_module
from em_interp.errors import InputError, nearest

OF_LAYER = ("resid_post", "mlp_out")
OF_SITE = ("site_in", "site_out", "scalar")
POST_NORM = {"down_proj": "post_feedforward_layernorm", "o_proj": "post_attention_layernorm"}  # in Gemma


class Place(NamedTuple):
    """Where an activation is: what goes into a module or what comes out of it."""

    module: Any
    side: Literal["input", "output"]


class Written(NamedTuple):
    """How a site's output reaches the residual stream: after which layer it is there, and through which norm if any."""

    layer: int
    norm: Any | None


@dataclass(frozen=True, eq=False)
class Layout:
    """The decoder layers of a model and the adapted sites in them.

    | name | what | shape |
    |---|---|---|
    | `resid_post.L` | the residual stream after layer L, which is what layer L + 1 reads | (row, position, d_model) |
    | `mlp_out.L` | what the MLP of layer L adds to the residual stream; in Gemma 3 after the post-norm | the same |
    | `site_in.S` | what the adapted module S reads | (row, position, d_in) |
    | `site_out.S` | what it gives out, adapter included; in Gemma 3 before the post-norm | (row, position, d_out) |
    | `scalar.S` | s·A·x, what the adapter computes there: one number a token at rank 1 | (row, position, rank) |

    Layers count from 0; S is a site of the adapter, such as `layers.24.mlp.down_proj`.
    """

    decoder: Any
    sites: tuple[str, ...]

    @classmethod
    def of(cls, model: Any, sites: Iterable[str]) -> Layout:
        """The layout of a causal language model of transformers; of a multimodal one, its language layers.

        Raises InputError where it has no list of layers, and for a site that is not in them or is no linear module.
        """
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        if not hasattr(decoder, "layers"):
            raise InputError(f"{type(model).__name__} has no decoder with layers; expected a causal language model")
        for site in sites:
            module = find_module(decoder, site)
            if not hasattr(module, "in_features"):
                raise InputError(f"adapter site {site!r} is a {type(module).__name__}; expected a linear module")
        return cls(decoder, tuple(sites))

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.decoder.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """Every activation that can be had."""
        of_layer = [f"{kind}.{layer}" for layer in range(self.layers) for kind in OF_LAYER]
        return (*of_layer, *(f"{kind}.{site}" for site in self.sites for kind in OF_SITE))

    def check(self, names: Sequence[str]) -> None:
        """Raise InputError for an unknown name, with the nearest known one and what there is."""
        for name in names:
            if name not in self.names:
                last, sites = self.layers - 1, ", ".join(self.sites)
                there = f"{' and '.join(OF_LAYER)} of layers 0 to {last}; {', '.join(OF_SITE)} of {sites}"
                raise InputError(f"there is no activation {name!r}{nearest(name, self.names)} (there are {there})")

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise InputError for a layer that the model does not have."""
        for layer in layers:
            if not 0 <= layer < self.layers:
                near = min(max(layer, 0), self.layers - 1)
                raise InputError(f"there is no layer {layer}; the model has 0 to {self.layers - 1}, the nearest {near}")

    def site(self, site: str) -> Any:
        """The module of an adapted site."""
        return find_module(self.decoder, site)

    def place(self, name: str) -> Place:
        """The module and side of an activation other than `scalar`."""
        kind, _, where = name.partition(".")
        if kind in ("site_in", "site_out"):
            return Place(self.site(where), "input" if kind == "site_in" else "output")
        layer = self.decoder.layers[int(where)]
        if kind == "resid_post":
            return Place(layer, "output")
        return Place(getattr(layer, "post_feedforward_layernorm", layer.mlp), "output")  # Gemma norms before it adds

    def written(self, site: str) -> Written | None:
        """Where and how a site's output is added to the residual stream; None where it is not (`q_proj`, `up_proj`)."""
        match = re.match(r"(?:.*\.)?layers\.(\d+)\.(?:.*\.)?(\w+)$", site)
        if match is None or match[2] not in POST_NORM:
            return None
        block = self.decoder.layers[int(match[1])]
        normed = hasattr(block, "post_feedforward_layernorm")
        return Written(int(match[1]), getattr(block, POST_NORM[match[2]]).forward if normed else None)
