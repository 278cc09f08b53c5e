"""The reference engine: plain torch hooks on the model as it is, which is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.chat import Tokens
from em_interp.behaviour.generate import RowAdapters, adapted
from em_interp.mechanism.engines.base import ActiveInterventions, Engine, HookPoints, Intervention

if TYPE_CHECKING:
    import torch


class HooksEngine(Engine):
    """Adapters are hooks too, those that `ask` uses; between two uses nothing is on the model."""

    name = "hooks"

    def __init__(self, model: Any, tokenizer: Any, sites: Sequence[str]) -> None:
        self._model = model
        self.layout = HookPoints.of(model, sites)

    @contextmanager
    def adapted(self, adapters: RowAdapters) -> Iterator[None]:
        """Hooks that add the adapters' part to what their sites give out."""
        with adapted(self.layout.decoder, adapters):
            yield

    def run(
        self, tokens: Tokens, names: Sequence[str], interventions: Sequence[Intervention]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One pass of the model."""
        kept: dict[str, torch.Tensor] = {}
        with (
            self._edited(ActiveInterventions(interventions, self.layout, tokens.mask, new=False)),
            ExitStack() as stack,
        ):
            for name in names:  # hooked after the edits, so they see what the edits made
                stack.enter_context(_reading(self.layout, name, kept))
            inputs = {"attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
            logits = self._model(input_ids=tokens.ids, use_cache=False, **inputs).logits
        return logits, kept

    def generate(self, tokens: Tokens, interventions: Sequence[Intervention], config: Any) -> torch.Tensor:
        """The model's own `generate`."""
        with self._edited(ActiveInterventions(interventions, self.layout, tokens.mask, new=True)):
            return self._model.generate(
                input_ids=tokens.ids, attention_mask=tokens.mask.long(), generation_config=config
            )

    @contextmanager
    def _edited(self, editor: ActiveInterventions) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in editor.layers:
                hook = _editing(editor, layer)
                handle = self.layout.decoder.layers[layer].register_forward_hook(hook)
                stack.callback(handle.remove)
            yield


def _editing(editor: ActiveInterventions, layer: int) -> Callable[..., torch.Tensor]:
    def intervention(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return editor(layer, output)

    return intervention


@contextmanager
def _reading(layout: HookPoints, name: str, kept: dict[str, torch.Tensor]) -> Iterator[None]:
    place = layout.place(name)

    def read(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept[name] = inputs[0] if place.side == "input" else output

    handle = place.module.register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()
