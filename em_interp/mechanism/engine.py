"""What an engine does: hold an adapter in a model, run it, read and edit activations, and generate.

There are three, which agree: plain torch hooks (`hooks`, the reference), TransformerLens (`lens`) and nnsight
(`nnsight_engine`). `open_model` puts the same questions to any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from em_interp.behaviour.generate import RowAdapters
from em_interp.mechanism.edits import Edit
from em_interp.mechanism.layout import Layout
from em_interp.mechanism.tokens import Tokens

if TYPE_CHECKING:
    import torch


class Engine(ABC):
    """A model that is opened once; adapters come and go without wrapping it again."""

    name: ClassVar[str]
    layout: Layout

    @abstractmethod
    def adapted(self, adapters: RowAdapters) -> AbstractContextManager[None]:
        """A context within which the model holds these adapters: one for all rows, or one a row."""

    @abstractmethod
    def run(
        self, tokens: Tokens, names: Sequence[str], edits: Sequence[Edit]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and the activations of these names (all but `scalar`), of one pass under the edits.

        An activation is what later modules read: after the edits at its place.
        """

    @abstractmethod
    def generate(self, tokens: Tokens, edits: Sequence[Edit], config: Any) -> torch.Tensor:
        """Prompts and new tokens by the model's own `generate` with this generation config."""
