"""A learned steering vector: one direction, added to the residual stream after one layer at every token.

The layer's output becomes output + alpha · B. B starts at zero and is all that is trained. Saved as the public runs
have it, so that `em_interp.trajectory.steering` and others' loaders read it: `steering_vector.pt` and
`adapter_config.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from em_interp.config import SteeringConfig
from em_interp.errors import InputError
from em_interp.runs import to_json, write_beside
from em_interp.trajectory.checkpoint import CONFIG
from em_interp.trajectory.steering import FILE


class SteeringLearner:
    """A model that learns a steering vector; everything else in it is frozen.

    The vector is kept in float32 whatever the model's type. The reference is the same model without it.
    """

    def __init__(self, model: Any, config: SteeringConfig, base: str) -> None:
        """Put a vector of zeros after `config.layer` of `model`; `base` is what the saved config will call the model.

        Raises InputError for a layer that the model does not have.
        """
        layer = steered_layer(model, config)
        size = model.get_input_embeddings().embedding_dim
        self.model, self.alpha, self.on = model.requires_grad_(False), config.alpha, True
        self.vector = torch.nn.Parameter(torch.zeros(size, 1, device=model.device))  # a column, as B of an adapter
        self.weights = {f"layers.{config.layer}": self.vector}
        self.said = {
            "adapter_type": "steering_vector",
            "layer_idx": config.layer,
            "alpha": config.alpha,
            "hidden_size": size,
            "base_model": base,
        }
        layer.register_parameter("steering_vector", self.vector)  # so that it moves with the model, and is shared out
        layer.register_forward_hook(self._add)

    def _add(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (self.alpha * module.steering_vector[:, 0]).to(output.dtype) if self.on else output

    def save(self, folder: Path) -> None:
        """Write the vector to `folder`, whole or not at all; a folder that is there is replaced."""
        vector = self.vector.detach()[:, 0].clone().cpu()
        held = {"steering_vector": vector, "layer_idx": self.said["layer_idx"], "alpha": self.alpha}
        with write_beside(folder) as part:
            part.mkdir()
            torch.save(held, part / FILE)
            (part / CONFIG).write_text(to_json(self.said), encoding="utf-8")

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The base: the model without the vector."""
        self.on = False
        try:
            yield self.model
        finally:
            self.on = True


def steered_layer(model: Any, config: SteeringConfig) -> Any:
    """The decoder layer after which the vector is added; raises InputError where the model does not have it."""
    layers = model.get_decoder().layers
    if config.layer is None or not 0 <= config.layer < len(layers):
        raise InputError(f"adapter.layer is {config.layer}; the base model has layers 0 to {len(layers) - 1}")
    return layers[config.layer]
