"""The reference engine: plain torch hooks, removed after each use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.sampling.chat import Tokens
from em_interp.behaviour.sampling.generate import RowAdapters, adapted
from em_interp.mechanism.engines.base import Engine, HookPoints, InterventionModel
from em_interp.mechanism.engines.interventions import ActiveInterventions, Intervention

if TYPE_CHECKING:
    import torch


class HooksEngine(Engine):
    """Adapters, interventions and reads are all forward hooks; the adapters' are those of `em_interp.ask`."""

    name = "hooks"

    def __init__(self, model: Any, tokenizer: Any, sites: Sequence[str]) -> None:
        self._model = model
        self.hook_points = HookPoints.of(model, sites)

    @contextmanager
    def with_adapter(self, adapters: RowAdapters) -> Iterator[None]:
        """Hooks that add the adapters' part to the outputs of their sites."""
        with adapted(self.hook_points.decoder, adapters):
            yield

    def run(
        self, tokens: Tokens, names: Sequence[str], interventions: Sequence[Intervention], logits_to_keep: int = 0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One forward pass."""
        kept: dict[str, torch.Tensor] = {}
        active = ActiveInterventions(interventions, self.hook_points, tokens.mask, generating=False)
        with self._intervening(active), ExitStack() as stack:
            for name in names:  # hooked after the interventions, so that they read the changed stream
                stack.enter_context(_reading(self.hook_points, name, kept))
            inputs = {"attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
            inputs |= {"use_cache": False, "logits_to_keep": logits_to_keep}
            logits = self._model(input_ids=tokens.ids, **inputs).logits
        return logits, kept

    @contextmanager
    def generating(self, prompts: Tokens, interventions: Sequence[Intervention]) -> Iterator[InterventionModel]:
        """The model itself, with hooks."""
        active = ActiveInterventions(interventions, self.hook_points, prompts.mask, generating=True)
        with self._intervening(active):
            yield InterventionModel(self._model, active)

    @contextmanager
    def _intervening(self, active: ActiveInterventions) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in active.layers:
                handle = self.hook_points.decoder.layers[layer].register_forward_hook(_hook(active, layer))
                stack.callback(handle.remove)
            yield


def _hook(active: ActiveInterventions, layer: int) -> Callable[..., torch.Tensor]:
    def change(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return active(layer, output)

    return change


@contextmanager
def _reading(hook_points: HookPoints, name: str, kept: dict[str, torch.Tensor]) -> Iterator[None]:
    module, side = hook_points.hook_point(name)

    def read(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept[name] = inputs[0] if side == "input" else output

    handle = module.register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()
