"""The TransformerLens engine: its bridge around a copy of the model.

The bridge changes the model it wraps for good (PEFT and `save_pretrained` no longer work on it), so it is given a copy
that shares the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.sampling.chat import Tokens
from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.errors import extra_for
from em_interp.mechanism.engines.base import Engine, HookPoints, InterventionModel
from em_interp.mechanism.engines.interventions import ActiveInterventions, Intervention

if TYPE_CHECKING:
    import torch


class TransformerLensEngine(Engine):
    """`bridge` is TransformerLens' own object, for whatever else it can do; its hooks have the current adapter."""

    name = "transformer_lens"

    def __init__(self, model: Any, tokenizer: Any, sites: Sequence[str]) -> None:
        with extra_for("the engine transformer_lens"):
            from transformer_lens.model_bridge.sources import build_bridge_from_module

        from em_interp.mechanism.engines.lora_slots import SlottedModel

        self._slotted = SlottedModel(model, sites)
        self._model = self._slotted.model
        self.hook_points = HookPoints.of(model, sites)  # of the model itself, whose names the bridge does not change
        self.bridge = build_bridge_from_module(
            self._model, type(self._model).__name__, hf_config=self._model.config, model_name="local"
        )
        self.bridge.tokenizer = tokenizer  # given later: on being built it would look for one that adds a first token
        called = {id(point): name for name, point in self.bridge.hook_dict.items()}
        around = {id(getattr(part, "original_component", None)): part for part in self.bridge.modules()}
        self._hook = {
            f"{kind}.{site}": called[id(getattr(around[id(slot)], hook))]
            for site, slot in self._slotted.slots.items()
            for kind, hook in (("site_in", "hook_in"), ("site_out", "hook_out"))
        }

    def with_adapter(self, adapters: RowAdapters) -> AbstractContextManager[None]:
        """The adapters in the slots of the copy."""
        return self._slotted.with_adapter(adapters)

    def run(
        self, tokens: Tokens, names: Sequence[str], interventions: Sequence[Intervention], logits_to_keep: int = 0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One forward pass of the bridge."""
        kept: dict[str, torch.Tensor] = {}
        hooks = self._changes(ActiveInterventions(interventions, self.hook_points, tokens.mask, generating=False))
        hooks += [(self.hook_name(name), _reader(name, kept)) for name in names]
        inputs = {"attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
        inputs |= {"logits_to_keep": logits_to_keep} if logits_to_keep else {}
        return self.bridge.run_with_hooks(tokens.ids, fwd_hooks=hooks, **inputs), kept

    @contextmanager
    def generating(self, prompts: Tokens, interventions: Sequence[Intervention]) -> Iterator[InterventionModel]:
        """The copy, whose modules are the bridge's, with the bridge's hooks."""
        active = ActiveInterventions(interventions, self.hook_points, prompts.mask, generating=True)
        with self.bridge.hooks(fwd_hooks=self._changes(active)):
            yield InterventionModel(self._model, active)

    def hook_name(self, name: str) -> str:
        """TransformerLens' name of an activation, such as `blocks.2.hook_resid_post`."""
        if name in self._hook:
            return self._hook[name]
        kind, _, layer = name.partition(".")
        return f"blocks.{layer}.hook_{kind}"

    def _changes(self, active: ActiveInterventions) -> list[tuple[str, Callable[..., torch.Tensor]]]:
        return [(self.hook_name(f"resid_post.{layer}"), _changer(active, layer)) for layer in active.layers]


def _changer(active: ActiveInterventions, layer: int) -> Callable[..., torch.Tensor]:
    def change(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return active(layer, value)

    return change


def _reader(name: str, kept: dict[str, torch.Tensor]) -> Callable[..., None]:
    def read(value: torch.Tensor, hook: Any) -> None:
        kept[name] = value.flatten(start_dim=2)  # the bridge splits what attention's modules give into heads

    return read
