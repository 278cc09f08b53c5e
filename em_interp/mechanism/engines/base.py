"""Names of activations, the same in every engine, and the modules of a model where they are found."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from em_interp.behaviour.chat import Tokens
from em_interp.behaviour.generate import RowAdapters, find_module
from em_interp.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

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
class HookPoints:
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
    def of(cls, model: Any, sites: Iterable[str]) -> HookPoints:
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


# --------
# Interventions on the residual stream: add a vector to it, or project a direction out of it.


Positions = Literal["all", "new"]


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change of `resid_post` at some layers and positions; use `AddVector` or `AblateDirection`.

    `vector` is of shape (d_model,), or (row, d_model) for a vector of its own in each row of the batch; a row whose
    vector is zero is left as it is. `layers` None means all of them. `positions` are "all", "new" (tokens that the
    model generates, as they are read back in), or a boolean array (row, position) over the tokens given, padding
    included; new tokens are then left alone.
    """

    vector: Any
    layers: int | Sequence[int] | None = None
    positions: Positions | Bool[np.ndarray, "row position"] = "all"

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """The edited stream; `vector` broadcasts to it."""
        raise NotImplementedError

    def repeated(self, rows: Sequence[int]) -> Intervention:
        """The same edit for a batch made of these rows."""
        import torch

        vector = torch.as_tensor(self.vector)
        positions = self.positions if isinstance(self.positions, str) else np.asarray(self.positions)[list(rows)]
        return replace(self, vector=vector[list(rows)] if vector.ndim == 2 else vector, positions=positions)


@dataclass(frozen=True, eq=False)
class AddVector(Intervention):
    """x + v: steering."""

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x + v."""
        return x + vector


@dataclass(frozen=True, eq=False)
class AblateDirection(Intervention):
    """x - v̂v̂ᵀx: ablation of a direction, whatever the length of v."""

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x - v̂v̂ᵀx."""
        length = vector.norm(dim=-1, keepdim=True)
        unit = vector / length.where(length > 0, 1.0)
        return x - (x * unit).sum(dim=-1, keepdim=True) * unit


class ActiveInterventions:
    """Edits at work during one pass or generation: which layers change, and how, as tokens come in.

    Raises InputError for a layer that is not there, a vector of another size, zero or not finite, positions of
    another shape or none at all, and for "new" positions where nothing is generated.
    """

    def __init__(
        self,
        interventions: Sequence[Intervention],
        layout: HookPoints,
        mask: Bool[torch.Tensor, "row position"],
        new: bool,
    ) -> None:
        self._at: dict[int, list[tuple[Intervention, torch.Tensor, torch.Tensor]]] = {}
        self._seen: dict[int, int] = {}
        for intervention in interventions:
            vector, positions = _vector(intervention, layout, mask), _positions(intervention, mask, new)
            layers = (
                range(layout.layers) if intervention.layers is None else np.atleast_1d(intervention.layers).tolist()
            )
            layout.check_layers(layers)
            for layer in layers:
                self._at.setdefault(layer, []).append((intervention, vector, positions))

    @property
    def layers(self) -> list[int]:
        """Layers that are edited, increasing."""
        return sorted(self._at)

    def __call__(self, layer: int, x: Float[torch.Tensor, "row position d"]) -> Float[torch.Tensor, "row position d"]:
        """The stream after `layer` with its edits; calls for one layer must come in the order of the tokens."""
        import torch

        first = self._seen.get(layer, 0)
        self._seen[layer] = first + x.shape[1]
        for intervention, vector, positions in self._at[layer]:
            # the last column of `positions` stands for every new token
            index = torch.arange(first, first + x.shape[1], device=x.device).clamp(max=positions.shape[1] - 1)
            here = positions[:, index, None]
            x = torch.where(here, intervention.change(x, vector.to(x.dtype)), x)
        return x


def _vector(intervention: Intervention, layout: HookPoints, mask: torch.Tensor) -> Float[torch.Tensor, "rows 1 d"]:
    import torch

    vector = torch.as_tensor(intervention.vector, dtype=torch.float32, device=mask.device)
    size, rows = layout.decoder.config.hidden_size, len(mask)
    if vector.shape not in ((size,), (rows, size)):
        raise InputError(
            f"the vector of {type(intervention).__name__} has shape {tuple(vector.shape)}; expected ({size},) or "
            f"({rows}, {size}), one for each row"
        )
    if not bool(torch.isfinite(vector).all()) or (vector.ndim == 1 and not bool(vector.any())):
        raise InputError(
            f"the vector of {type(intervention).__name__} is zero or not finite, so it would change nothing"
        )
    return vector.reshape(-1, 1, size)


def _positions(
    intervention: Intervention, mask: torch.Tensor, new: bool
) -> Bool[torch.Tensor, "row positions_and_new"]:
    import torch

    if isinstance(intervention.positions, str):
        if intervention.positions not in ("all", "new"):
            raise InputError(
                f"positions are 'all', 'new' or an array of row and position; found {intervention.positions!r}"
            )
        if intervention.positions == "new" and not new:
            raise InputError("positions 'new' are those of generated tokens; here nothing is generated")
        given = torch.full_like(mask, intervention.positions == "all", dtype=torch.bool)
        return torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
    given = torch.as_tensor(np.asarray(intervention.positions), dtype=torch.bool, device=mask.device)
    if given.shape != mask.shape or not bool(given.any()):
        found = f"{tuple(given.shape)} with {int(given.sum())} of them chosen"
        raise InputError(f"positions are {found}; expected {tuple(mask.shape)} with at least one chosen")
    return torch.cat([given, torch.zeros_like(given[:, :1])], dim=1)


# --------
# What an engine does: hold an adapter in a model, run it, read and edit activations, and generate.
# There are three, which agree: plain torch hooks (`hooks`, the reference), TransformerLens (`lens`) and nnsight
# (`nnsight_engine`). `open_model` puts the same questions to any of them.


class Engine(ABC):
    """A model that is opened once; adapters come and go without wrapping it again."""

    name: ClassVar[str]
    layout: HookPoints

    @abstractmethod
    def adapted(self, adapters: RowAdapters) -> AbstractContextManager[None]:
        """A context within which the model holds these adapters: one for all rows, or one a row."""

    @abstractmethod
    def run(
        self, tokens: Tokens, names: Sequence[str], interventions: Sequence[Intervention]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and the activations of these names (all but `scalar`), of one pass under the edits.

        An activation is what later modules read: after the edits at its place.
        """

    @abstractmethod
    def generate(self, tokens: Tokens, interventions: Sequence[Intervention], config: Any) -> torch.Tensor:
        """Prompts and new tokens by the model's own `generate` with this generation config."""
