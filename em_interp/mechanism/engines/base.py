"""Names of activations, the same in every engine, and the interface of an engine.

There are three engines, which agree: plain torch hooks (`hooks`, the reference), TransformerLens (`transformer_lens`)
and nnsight (`nnsight`). `em_interp.mechanism.open_model` opens a model in any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from jaxtyping import Int

from em_interp.behaviour.sampling.generate import find_module
from em_interp.errors import InputError, nearest
from em_interp.trajectory.composition import RESIDUAL_WRITERS, layer_of, writes_residual

if TYPE_CHECKING:
    import torch

    from em_interp.behaviour.sampling.chat import Tokens
    from em_interp.behaviour.sampling.generate import RowAdapters
    from em_interp.mechanism.engines.interventions import ActiveInterventions, Intervention

LAYER_ACTIVATIONS = ("resid_post", "mlp_out")
SITE_ACTIVATIONS = ("site_in", "site_out", "scalar")


class Engine(ABC):
    """A model that is wrapped once; adapters are exchanged without wrapping it again."""

    name: ClassVar[str]
    hook_points: HookPoints

    @abstractmethod
    def with_adapter(self, adapters: RowAdapters) -> AbstractContextManager[None]:
        """A context in which the model has these adapters: one for all rows, or one a row."""

    @abstractmethod
    def run(
        self, tokens: Tokens, names: Sequence[str], interventions: Sequence[Intervention], logits_to_keep: int = 0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and the activations of these names (all kinds but `scalar`), of one forward pass.

        An activation is what later modules read: after the interventions at its hook point. The logits are those of
        the last `logits_to_keep` positions; 0: of all.
        """

    @abstractmethod
    def generating(
        self, prompts: Tokens, interventions: Sequence[Intervention]
    ) -> AbstractContextManager[InterventionModel]:
        """The model for a batch of answers to these prompts under the interventions (see `behaviour.decode`)."""


@dataclass(frozen=True)
class InterventionModel:
    """A model under the interventions of a batch."""

    forward: Callable[..., Any]
    active: ActiveInterventions

    def __call__(self, **inputs: Any) -> Any:
        """The model's output."""
        return self.forward(**inputs)

    def select(self, rows: Int[torch.Tensor, " some"]) -> None:
        """Continue with these rows of the batch alone."""
        self.active.select(rows)


class HookPoint(NamedTuple):
    """A module, and whether an activation is its input or its output."""

    module: Any
    side: Literal["input", "output"]


class ResidualWrite(NamedTuple):
    """How a site's output is added to the residual stream: after which layer, and through which norm if any."""

    layer: int
    norm: Any | None


@dataclass(frozen=True, eq=False)
class HookPoints:
    """The activations of a model that can be read, by name.

    | name | what | shape |
    |---|---|---|
    | `resid_post.L` | the residual stream after layer L, which is what layer L + 1 reads | (row, position, d_model) |
    | `mlp_out.L` | what the MLP of layer L adds to the residual stream; in Gemma 3 after the post-norm | the same |
    | `site_in.S` | the input of the adapted module S | (row, position, d_in) |
    | `site_out.S` | its output with the adapter; in Gemma 3 before the post-norm | (row, position, d_out) |
    | `scalar.S` | s·A·x, what the adapter computes there: one number a token at rank 1 | (row, position, rank) |

    Layers count from 0; S is a site of the adapter, such as `layers.24.mlp.down_proj`.
    """

    decoder: Any
    sites: tuple[str, ...]

    @classmethod
    def of(cls, model: Any, sites: Iterable[str]) -> HookPoints:
        """Those of a causal language model of transformers; of a multimodal one, of its language layers.

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
        """The number of decoder layers."""
        return len(self.decoder.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all activations."""
        of_layers = [f"{kind}.{layer}" for layer in range(self.layers) for kind in LAYER_ACTIVATIONS]
        return (*of_layers, *(f"{kind}.{site}" for site in self.sites for kind in SITE_ACTIVATIONS))

    def check(self, names: Sequence[str]) -> None:
        """Raise InputError for an unknown name, with the nearest known one and those that exist."""
        for name in names:
            if name not in self.names:
                of_layers = f"{' and '.join(LAYER_ACTIVATIONS)} of layers 0 to {self.layers - 1}"
                known = f"{of_layers}; {', '.join(SITE_ACTIVATIONS)} of {', '.join(self.sites)}"
                raise InputError(f"there is no activation {name!r}{nearest(name, self.names)} (there are {known})")

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise InputError for a layer that the model does not have."""
        for layer in layers:
            if not 0 <= layer < self.layers:
                near = min(max(layer, 0), self.layers - 1)
                raise InputError(f"there is no layer {layer}; the model has 0 to {self.layers - 1}, the nearest {near}")

    def module(self, site: str) -> Any:
        """The module of an adapted site."""
        return find_module(self.decoder, site)

    def hook_point(self, name: str) -> HookPoint:
        """Where an activation other than `scalar` is read."""
        kind, _, where = name.partition(".")
        if kind in ("site_in", "site_out"):
            return HookPoint(self.module(where), "input" if kind == "site_in" else "output")
        layer = self.decoder.layers[int(where)]
        if kind == "resid_post":
            return HookPoint(layer, "output")
        return HookPoint(getattr(layer, "post_feedforward_layernorm", layer.mlp), "output")  # Gemma's norm comes first

    def residual_write(self, site: str) -> ResidualWrite | None:
        """How a site's output is added to the residual stream; None where it is not (`q_proj`, `up_proj`).

        Raises InputError for the layers of Granite and GLM-4, which scale it, or have norms of other names.
        """
        if not writes_residual(site):
            return None
        layer = layer_of(site)
        block, norm = self.decoder.layers[layer], RESIDUAL_WRITERS[site.rpartition(".")[2]]
        if hasattr(block, "residual_multiplier") or hasattr(block, "post_mlp_layernorm"):
            raise InputError(
                f"what {site} writes is not known: {type(block).__name__} scales or norms its output in its own way; "
                "expected layers like those of Qwen, Llama, Mistral, OLMo or Gemma"
            )
        normed = hasattr(block, "post_feedforward_layernorm")
        return ResidualWrite(layer, getattr(block, norm).forward if normed else None)
