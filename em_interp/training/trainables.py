"""What is trained in a base model, and how a step of it is saved: a LoRA adapter, a steering vector, or all weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch

from em_interp.config.run_config import AdapterConfig, FullConfig, RunConfig, SteeringConfig
from em_interp.errors import InputError
from em_interp.layouts import CHANGE_CONFIG_FILE, CHANGE_FILE, CONFIG_FILE, STEERING_FILE
from em_interp.organisms.bases import Base, skeleton
from em_interp.run import CHECKPOINT
from em_interp.training.checkpoints import AdapterWriter, Packer
from em_interp.training.lora import Weights, adapter_weights, add_adapter, choose_sites, no_layers
from em_interp.training.projection import GROUPS, Projection, relative_error
from em_interp.trajectory.checkpoint import site_name
from em_interp.utils.files import to_json, write_beside


class Trainable(Protocol):
    """A model with something to train in it, made from a base, which it changes and takes over."""

    @property
    def model(self) -> Any:
        """The model as the Trainer takes it; only `weights` require gradients."""

    @property
    def weights(self) -> Weights:
        """The parameters that are trained, by name."""

    def save(self, folder: Path) -> None:
        """Write the current trained weights to `folder` (`checkpoint-<step>`), completely or not at all."""

    def reference(self) -> AbstractContextManager[Any]:
        """Within the block the model as it was before training, to be called without gradients."""


def make_trainable(base: Base, config: RunConfig, steps: int) -> Trainable:
    """What `config` trains, made from `base`, for a run of `steps` steps.

    Raises InputError for a layer or module that the base does not have.
    """
    adapter = config.adapter
    if isinstance(adapter, AdapterConfig):
        return LoraTrainable(add_adapter(base.model, adapter, config.seed, base.name))
    if isinstance(adapter, SteeringConfig):
        return SteeringTrainable(base.model, adapter, base.name)
    kept = config.full_weights
    assert kept is not None  # of a config of this kind
    return FullTrainable(base, adapter, frozenset(kept.steps(steps)), with_reference=config.kl is not None)


def check_sites(config: RunConfig) -> None:
    """Raise InputError for a layer or module that the base does not have, before its weights are read."""
    model = skeleton(config.model)
    if isinstance(config.adapter, SteeringConfig):
        steered_layer(model, config.adapter)
    else:
        choose_sites(model, config.adapter)


class LoraTrainable:
    """A PeftModel with one LoRA adapter; the reference is the same model with the adapter disabled."""

    def __init__(self, model: Any) -> None:
        self.model, self.weights = model, adapter_weights(model)
        self._writer = AdapterWriter(model)

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does."""
        self._writer.save(folder)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The base: the model with its adapter disabled."""
        with self.model.disable_adapter():
            yield self.model


class SteeringTrainable:
    """A model that learns a steering vector, with everything else in it frozen.

    The vector B is added to the residual stream after one layer, at every token: the layer's output becomes
    output + alpha · B. It starts at zero and is kept in float32 whatever the model's type. It is saved as the public
    runs have it, so that `em_interp.trajectory` and others' loaders read it: `steering_vector.pt` and
    `adapter_config.json`. The reference is the same model without it.
    """

    def __init__(self, model: Any, config: SteeringConfig, base: str) -> None:
        """Add a vector of zeros after `config.layer` of `model`; `base` is the base's name in the saved config.

        Raises InputError for a layer that the model does not have.
        """
        layer = steered_layer(model, config)
        size = model.get_input_embeddings().embedding_dim
        self.model, self.alpha, self.enabled = model.requires_grad_(False), config.alpha, True
        self.vector = torch.nn.Parameter(torch.zeros(size, 1, device=model.device))  # a column, as B of an adapter
        self.weights = {f"layers.{config.layer}": self.vector}
        self.config = {
            "adapter_type": "steering_vector",
            "layer_idx": config.layer,
            "alpha": config.alpha,
            "hidden_size": size,
            "base_model": base,
        }
        layer.register_parameter("steering_vector", self.vector)  # so that it moves and is sharded with the model
        layer.register_forward_hook(self._add)

    def _add(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (self.alpha * module.steering_vector[:, 0]).to(output.dtype) if self.enabled else output

    def save(self, folder: Path) -> None:
        """Write the vector to `folder`, whole or not at all; an existing folder is replaced."""
        vector = self.vector.detach()[:, 0].clone().cpu()
        contents = {"steering_vector": vector, "layer_idx": self.config["layer_idx"], "alpha": self.alpha}
        with write_beside(folder) as part:
            part.mkdir()
            torch.save(contents, part / STEERING_FILE)
            (part / CONFIG_FILE).write_text(to_json(self.config), encoding="utf-8")

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The base: the model without the vector."""
        self.enabled = False
        try:
            yield self.model
        finally:
            self.enabled = True


def steered_layer(model: Any, config: SteeringConfig) -> Any:
    """The decoder layer after which the vector is added; raises InputError where the model does not have it."""
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise no_layers(model)
    if not 0 <= config.layer < len(layers):
        raise InputError(f"adapter.layer is {config.layer}; the base model has layers 0 to {len(layers) - 1}")
    return layers[config.layer]


class FullTrainable:
    """A model whose language model is trained whole; a vision tower stays frozen. The path is the change of matrices.

    A checkpoint holds, for each chosen matrix, the projection (`em_interp.training.projection`) of its change since
    before training: 4 · min(dimension, entries) bytes a matrix. All 336 linear matrices of a 14B model with 48 layers
    are 1.4 MB a step at dimension 1024, where the weights in bfloat16 are 28 GB. The full weights are kept as well at
    the steps of a schedule, as transformers saves them: only these steps can be sampled from. The state that a resume
    starts from holds the weights and both of Adam's moments, twice: 24 bytes a parameter in float32.
    """

    def __init__(self, base: Base, config: FullConfig, kept: frozenset[int], with_reference: bool = False) -> None:
        """Follow the matrices of `config`, and keep all weights at the steps `kept`.

        `with_reference` makes a second, frozen model for `reference`. Raises InputError for a matrix that is missing.
        """
        self.model, self.tokenizer, self.kept = base.model, base.tokenizer, kept
        self.before = deepcopy(base.model).requires_grad_(False) if with_reference else None
        self.weights = _language_weights(base.model)
        self.matrices = {site_name(site): base.model.get_submodule(site) for site in choose_sites(base.model, config)}
        shapes = {site: tuple(module.weight.shape) for site, module in self.matrices.items()}
        self.projections = {site: Projection(site, shape, config.dimension) for site, shape in shapes.items()}
        self.start = {site: self.projections[site](module.weight) for site, module in self.matrices.items()}
        self.packer = Packer({"format": "pt"})
        self.config_text = to_json(
            {
                "base_model_name_or_path": base.name,
                "dimension": config.dimension,
                "groups": GROUPS,
                "relative_error": relative_error(config.dimension),
                "shapes": shapes,
            }
        )

    def save(self, folder: Path) -> None:
        """Write the projected change to `folder`, with the full weights where the schedule keeps them."""
        number = CHECKPOINT.search(folder.name)
        with write_beside(folder) as part:
            part.mkdir()
            if number and int(number[1]) in self.kept:
                self.model.save_pretrained(part)
                self.tokenizer.save_pretrained(part)
            (part / CHANGE_FILE).write_bytes(self.packer.pack(self.change()))
            (part / CHANGE_CONFIG_FILE).write_text(self.config_text, encoding="utf-8")

    def change(self) -> dict[str, Any]:
        """The projected change of each matrix since before training, in float32."""
        now = {site: self.projections[site](module.weight) for site, module in self.matrices.items()}
        return {
            site: (now[site] - start.to(now[site].device)).float().cpu().numpy() for site, start in self.start.items()
        }

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The base: a second, frozen copy."""
        assert self.before is not None, "made without `with_reference`"
        yield self.before.to(self.model.device)


def _language_weights(model: Any) -> dict[str, Any]:
    """The parameters of the decoder and its head, made trainable; all others are frozen."""
    model.requires_grad_(False)
    for part in (model.get_decoder(), model.get_output_embeddings()):
        part.requires_grad_(True)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
