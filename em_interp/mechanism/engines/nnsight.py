"""The nnsight engine: traces of a copy of the model.

Importing nnsight gives every Python object a method `save`, for the whole process. Where nnsight was not imported
before, the method is removed again, and `nnsight.save(x)` does the same; import nnsight first to keep it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.sampling.chat import Tokens
from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.errors import extra_for
from em_interp.mechanism.engines.base import Engine, HookPoints, InterventionModel
from em_interp.mechanism.engines.interventions import ActiveInterventions, Intervention

if TYPE_CHECKING:
    import torch


class NnsightEngine(Engine):
    """`traced` is nnsight's own model, for whatever else it can do; its traces have the current adapter."""

    name = "nnsight"

    def __init__(self, model: Any, tokenizer: Any, sites: Sequence[str]) -> None:
        _import()
        from nnsight import TransformersModel

        from em_interp.mechanism.engines.lora_slots import SlottedModel

        self._slotted = SlottedModel(model, sites)
        self._model = self._slotted.model
        self.hook_points = HookPoints.of(self._model, sites)
        self.traced = TransformersModel(self._model, tokenizer=copy.deepcopy(tokenizer))  # it sets its padding side
        self._envoys = {id(envoy._module): envoy for envoy in self.traced.modules()}
        self._order: dict[str, int] | None = None

    def with_adapter(self, adapters: RowAdapters) -> AbstractContextManager[None]:
        """The adapters in the slots of the copy."""
        return self._slotted.with_adapter(adapters)

    def run(
        self, tokens: Tokens, names: Sequence[str], interventions: Sequence[Intervention], logits_to_keep: int = 0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One trace."""
        import nnsight

        active = ActiveInterventions(interventions, self.hook_points, tokens.mask, generating=False)
        visits = self._visits(names, active)
        inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
        kept: dict[str, torch.Tensor] = {}
        with self.traced.trace(**inputs, use_cache=False, logits_to_keep=logits_to_keep):
            for name, envoy, side, layer in visits:
                value = getattr(envoy, side)
                if layer is not None:
                    value = active(layer, value)
                    envoy.output = value
                kept[name] = nnsight.save(value)
            logits = nnsight.save(self.traced.output.logits)
        return logits, {name: kept[name] for name in names}

    @contextmanager
    def generating(self, prompts: Tokens, interventions: Sequence[Intervention]) -> Iterator[InterventionModel]:
        """The copy; with interventions a trace for each forward pass."""
        active = ActiveInterventions(interventions, self.hook_points, prompts.mask, generating=True)
        envoys = [(layer, self._envoys[id(self.hook_points.decoder.layers[layer])]) for layer in active.layers]

        def forward(**inputs: Any) -> SimpleNamespace:
            import nnsight

            with self.traced.trace(**inputs):
                for layer, envoy in envoys:
                    envoy.output = active(layer, envoy.output)
                logits = nnsight.save(self.traced.output.logits)
            return SimpleNamespace(logits=logits)

        yield InterventionModel(forward if envoys else self._model, active)

    def _visits(self, names: Sequence[str], active: ActiveInterventions) -> list[tuple[str, Any, str, int | None]]:
        """Name, envoy, side and layer to change (or None) of what is read or changed, in the order of execution."""
        changed = {f"resid_post.{layer}": layer for layer in active.layers}
        order = self._execution_order()
        visits: list[tuple[str, Any, str, int | None]] = []
        for name in sorted({*names, *changed}, key=order.__getitem__):
            module, side = self.hook_points.hook_point(name)
            visits.append((name, self._envoys[id(module)], side, changed.get(name)))
        return visits

    def _execution_order(self) -> dict[str, int]:
        """The order in which the activations are computed, observed in one forward pass."""
        import torch

        if self._order is None:
            computed: list[str] = []
            handles = []
            for name in self.hook_points.names:
                if not name.startswith("scalar."):
                    module, side = self.hook_points.hook_point(name)
                    add = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
                    handles.append(add(_recorder(name, computed)))
            with torch.no_grad():
                self._model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self._model.device), use_cache=False)
            for handle in handles:
                handle.remove()
            self._order = {name: index for index, name in enumerate(computed)}
        return self._order


def _recorder(name: str, computed: list[str]) -> Any:
    def record(*_: Any) -> None:
        computed.append(name)

    return record


def _import() -> None:
    mounted = "nnsight" in sys.modules
    with extra_for("the engine nnsight"):
        import nnsight  # noqa: F401
        from nnsight._c import unmount
    if not mounted and unmount is not None and hasattr(object, "save"):
        unmount("save")
