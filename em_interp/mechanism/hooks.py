"""The reference engine: plain torch hooks on the model as it is, which is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.generate import RowAdapters, adapted
from em_interp.mechanism.edits import Edit, Editor
from em_interp.mechanism.engine import Engine
from em_interp.mechanism.layout import Layout
from em_interp.mechanism.tokens import Tokens

if TYPE_CHECKING:
    import torch


class HooksEngine(Engine):
    """Adapters are hooks too, those that `ask` uses; between two uses nothing is on the model."""

    name = "hooks"

    def __init__(self, model: Any, tokenizer: Any, sites: Sequence[str]) -> None:
        self._model = model
        self.layout = Layout.of(model, sites)

    @contextmanager
    def adapted(self, adapters: RowAdapters) -> Iterator[None]:
        """Hooks that add the adapters' part to what their sites give out."""
        with adapted(self.layout.decoder, adapters):
            yield

    def run(
        self, tokens: Tokens, names: Sequence[str], edits: Sequence[Edit]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One pass of the model."""
        kept: dict[str, torch.Tensor] = {}
        with self._edited(Editor(edits, self.layout, tokens.mask, new=False)), ExitStack() as stack:
            for name in names:  # hooked after the edits, so they see what the edits made
                stack.enter_context(_reading(self.layout, name, kept))
            inputs = {"attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
            logits = self._model(input_ids=tokens.ids, use_cache=False, **inputs).logits
        return logits, kept

    def generate(self, tokens: Tokens, edits: Sequence[Edit], config: Any) -> torch.Tensor:
        """The model's own `generate`."""
        with self._edited(Editor(edits, self.layout, tokens.mask, new=True)):
            return self._model.generate(
                input_ids=tokens.ids, attention_mask=tokens.mask.long(), generation_config=config
            )

    @contextmanager
    def _edited(self, editor: Editor) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in editor.layers:
                hook = _editing(editor, layer)
                handle = self.layout.decoder.layers[layer].register_forward_hook(hook)
                stack.callback(handle.remove)
            yield


def _editing(editor: Editor, layer: int) -> Callable[..., torch.Tensor]:
    def edit(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return editor(layer, output)

    return edit


@contextmanager
def _reading(layout: Layout, name: str, kept: dict[str, torch.Tensor]) -> Iterator[None]:
    place = layout.place(name)

    def read(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept[name] = inputs[0] if place.side == "input" else output

    handle = place.module.register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()
