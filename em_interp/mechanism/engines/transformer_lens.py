"""The TransformerLens engine: its bridge around a copy of the model.

The bridge changes the model it wraps for good (PEFT and `save_pretrained` no longer work on it), so it is given a copy
that shares the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.chat import Tokens
from em_interp.behaviour.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.engines.base import ActiveInterventions, Engine, HookPoints, Intervention

if TYPE_CHECKING:
    import torch


class TransformerLensEngine(Engine):
    """`bridge` is TransformerLens' own object, for all else it can do; its hooks see the adapter that is held."""

    name = "transformer_lens"

    def __init__(self, model: Any, tokenizer: Any, sites: Sequence[str]) -> None:
        try:
            from transformer_lens.model_bridge.sources import build_bridge_from_module
        except ImportError:
            raise InputError("the engine transformer_lens needs TransformerLens: pip install '.[mechanism]'") from None

        from em_interp.mechanism.engines.lora_slots import SlottedModel

        self._slotted = SlottedModel(model, sites)
        self._model = self._slotted.model
        self.layout = HookPoints.of(model, sites)  # of the model itself, whose names the bridge does not change
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

    def adapted(self, adapters: RowAdapters) -> AbstractContextManager[None]:
        """The adapters in the slots of the copy."""
        return self._slotted.with_adapter(adapters)

    def run(
        self, tokens: Tokens, names: Sequence[str], interventions: Sequence[Intervention]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One pass of the bridge."""
        kept: dict[str, torch.Tensor] = {}
        hooks = self._edits(ActiveInterventions(interventions, self.layout, tokens.mask, new=False))
        hooks += [(self.hook_name(name), _keeping(name, kept)) for name in names]
        inputs = {"attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
        return self.bridge.run_with_hooks(tokens.ids, fwd_hooks=hooks, **inputs), kept

    def generate(self, tokens: Tokens, interventions: Sequence[Intervention], config: Any) -> torch.Tensor:
        """The copy's own `generate`, whose modules are the bridge's."""
        with self.bridge.hooks(
            fwd_hooks=self._edits(ActiveInterventions(interventions, self.layout, tokens.mask, new=True))
        ):
            return self._model.generate(
                input_ids=tokens.ids, attention_mask=tokens.mask.long(), generation_config=config
            )

    def hook_name(self, name: str) -> str:
        """What TransformerLens calls an activation, such as `blocks.2.hook_resid_post`."""
        if name in self._hook:
            return self._hook[name]
        kind, _, layer = name.partition(".")
        return f"blocks.{layer}.hook_{kind}"

    def _edits(self, editor: ActiveInterventions) -> list[tuple[str, Callable[..., torch.Tensor]]]:
        return [(self.hook_name(f"resid_post.{layer}"), _editing(editor, layer)) for layer in editor.layers]


def _editing(editor: ActiveInterventions, layer: int) -> Callable[..., torch.Tensor]:
    def intervention(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return editor(layer, value)

    return intervention


def _keeping(name: str, kept: dict[str, torch.Tensor]) -> Callable[..., None]:
    def keep(value: torch.Tensor, hook: Any) -> None:
        kept[name] = value.flatten(start_dim=2)  # the bridge splits what attention's modules give into heads

    return keep
