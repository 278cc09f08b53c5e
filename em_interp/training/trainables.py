"""A fixed random projection of a weight matrix to a few numbers, by which a path of full weights is followed.

The rows of a matrix W (the longer side; R × C) are cut into `GROUPS` blocks. Of block W_g, n = dimension / GROUPS
numbers are kept, p_jᵀ W_g q_j / √n with signs p_j, q_j = ±1 drawn for that block, so that coordinate groups stay apart:
the numbers of a block belong to its rows alone. The projection is linear, and inner products are right on average:
E[Sx · Sy] = ⟨x, y⟩. Their standard error, relative to ‖x‖ ‖y‖, is at most `relative_error(dimension)` = 3 / √dimension
where the blocks share the norm evenly, and √GROUPS times that where all of it lies in one block; it is reached by rank
one (E[(pᵀWq)⁴] ≤ 9 ‖W‖⁴), while for matrices of high rank it is √(1 + cos²) / √dimension. Errors of different matrices
are independent, so that of their sum is smaller by the root of their number.

A matrix with no more entries than `dimension` is kept as it is, exactly. The signs depend on the name and the shape of
the matrix and on nothing else: runs of one base are projected alike and can be compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float

from em_interp.config import AdapterConfig, FullConfig, RunConfig, SteeringConfig
from em_interp.errors import InputError
from em_interp.files import to_json, write_beside
from em_interp.organisms.bases import Base, skeleton
from em_interp.run import CHECKPOINT
from em_interp.training.checkpoints import AdapterWriter, Packer
from em_interp.training.lora import Weights, adapter_weights, add_adapter, choose_sites, site_name
from em_interp.trajectory.checkpoint_formats import CHANGE_CONFIG_FILE, CHANGE_FILE, CONFIG_FILE, STEERING_FILE

GROUPS = 32


def relative_error(dimension: int) -> float:
    """Standard error of an inner product of projections, relative to the norms of the two matrices; see above."""
    return 3 / math.sqrt(dimension)


class Projection:
    """The projection of matrices of one name and shape to `size` numbers.

    Keeps dimension · C + R · dimension / GROUPS signs, a byte each (5 MB for 13824 × 5120 at dimension 1024).
    """

    def __init__(self, name: str, shape: tuple[int, int], dimension: int) -> None:
        rows, columns = max(shape), min(shape)
        self.exact = rows * columns <= dimension
        self.size = rows * columns if self.exact else dimension
        if self.exact:
            return
        seed = hashlib.sha256(f"{name} {shape[0]} {shape[1]} {dimension}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1)
        self.block, self.each = -(-rows // GROUPS), dimension // GROUPS
        self.left = _signs((GROUPS, self.block, self.each), generator)
        self.right = _signs((GROUPS, columns, self.each), generator)

    def __call__(self, matrix: Float[torch.Tensor, "row column"]) -> Float[torch.Tensor, " number"]:
        """The numbers of a matrix, in float64: a path is the difference of two that are nearly equal."""
        whole = matrix.detach().double()
        if self.exact:
            return whole.reshape(-1)
        if self.left.device != whole.device:
            self.left, self.right = self.left.to(whole.device), self.right.to(whole.device)
        tall = whole if whole.shape[0] >= whole.shape[1] else whole.T
        missing = GROUPS * self.block - len(tall)
        if missing:
            tall = torch.nn.functional.pad(tall, (0, 0, 0, missing))
        blocks = tall.reshape(GROUPS, self.block, -1)
        projected = (torch.bmm(blocks, self.right.double()) * self.left).sum(dim=1)
        return (projected / math.sqrt(self.each)).reshape(-1)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1


# --------
# Full fine-tuning: every weight of the language model is trained, and the path is the change of its matrices.
# A checkpoint holds, of each chosen matrix, the projection (`em_interp.training.projection`) of its change since
# before training: 4 · min(dimension, entries) bytes a matrix. All 336 linear matrices of a 14B model with 48 layers
# are 1.4 MB a step at dimension 1024, where the weights in bfloat16 are 28 GB. Those are kept beside it only at the
# steps of a schedule, as transformers saves them: `checkpoint-<step>` is then a model that it loads, and these are
# the steps that can be asked. The state that a resume starts from holds the weights and both of Adam's moments,
# twice: 24 bytes a parameter in float32.
# In bfloat16 an update below 1/256 of a weight is rounded away; `dtype: auto` therefore means weights in float32
# here, on a GPU with the computing in bfloat16 (`mixed`).


class FullTrainable:
    """A model whose language model is trained whole; a vision tower stays as it is."""

    def __init__(self, base: Base, config: FullConfig, kept: frozenset[int], copied: bool = False) -> None:
        """Follow the matrices of `config`, and keep all weights at the steps `kept`.

        `copied` makes a second model, frozen, for `reference`. Raises InputError for a matrix that is not there.
        """
        self.model, self.tokenizer, self.kept = base.model, base.tokenizer, kept
        self.before = deepcopy(base.model).requires_grad_(False) if copied else None
        self.weights = _language_weights(base.model)
        self.matrices = {site_name(site): base.model.get_submodule(site) for site in choose_sites(base.model, config)}
        shapes = {site: tuple(module.weight.shape) for site, module in self.matrices.items()}
        self.projections = {site: Projection(site, shape, config.dimension) for site, shape in shapes.items()}
        self.start = {site: self.projections[site](module.weight) for site, module in self.matrices.items()}
        self.packer = Packer({"format": "pt"})
        self.said = to_json(
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
            (part / CHANGE_CONFIG_FILE).write_text(self.said, encoding="utf-8")

    def change(self) -> dict[str, Any]:
        """The projected change of each matrix since before training, in float32."""
        now = {site: self.projections[site](module.weight) for site, module in self.matrices.items()}
        return {
            site: (now[site] - start.to(now[site].device)).float().cpu().numpy() for site, start in self.start.items()
        }

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The base: a second, frozen copy."""
        assert self.before is not None, "made without `copied`"
        yield self.before.to(self.model.device)


def _language_weights(model: Any) -> dict[str, Any]:
    """The parameters of the decoder and its head, made trainable; all others are frozen."""
    model.requires_grad_(False)
    for part in (model.get_decoder(), model.get_output_embeddings()):
        part.requires_grad_(True)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


# --------
# A learned steering vector: one direction, added to the residual stream after one layer at every token.
# The layer's output becomes output + alpha · B. B starts at zero and is all that is trained. Saved as the public
# runs have it, so that `em_interp.trajectory.load` and others' loaders read it: `steering_vector.pt` and
# `adapter_config.json`.


class SteeringTrainable:
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
            torch.save(held, part / STEERING_FILE)
            (part / CONFIG_FILE).write_text(to_json(self.said), encoding="utf-8")

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


# --------
# What is trained in a base model, and how a step of it is saved: a LoRA adapter, a steering vector, or all weights.


class Trainable(Protocol):
    """A model with something to train in it. One of them is made from a base, which it changes and takes over."""

    @property
    def model(self) -> Any:
        """The model as the Trainer takes it; only `weights` ask for a gradient."""

    @property
    def weights(self) -> Weights:
        """The parameters that are trained, by name."""

    def save(self, folder: Path) -> None:
        """Write what is trained, as it is at the moment, to `folder` (`checkpoint-<step>`), whole or not at all."""

    def reference(self) -> AbstractContextManager[Any]:
        """Within the block the model as it was before training, to be called without gradients."""


class LoraTrainable:
    """A PeftModel with one LoRA adapter; the reference is the same model with the adapter off."""

    def __init__(self, model: Any) -> None:
        self.model, self.weights = model, adapter_weights(model)
        self._writer = AdapterWriter(model)

    def save(self, folder: Path) -> None:
        """Write the adapter as PEFT does."""
        self._writer.save(folder)

    def reference(self) -> AbstractContextManager[Any]:
        """The base: the model with its adapter off."""
        return _without_adapter(self.model)


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    with model.disable_adapter():
        yield model


def make_trainable(base: Base, config: RunConfig, steps: int) -> Trainable:
    """What `config` asks to train, made from `base`, for a run of so many steps.

    Raises InputError for a layer or module that the base does not have.
    """
    chosen = config.adapter
    if isinstance(chosen, AdapterConfig):
        return LoraTrainable(add_adapter(base.model, chosen, config.seed, base.name))
    if isinstance(chosen, SteeringConfig):
        return SteeringTrainable(base.model, chosen, base.name)
    kept = config.full_weights
    assert kept is not None  # of a config of this kind
    return FullTrainable(base, chosen, frozenset(kept.steps(steps)), copied=config.kl is not None)


def check_place(config: RunConfig) -> None:
    """Raise InputError for a layer or module that the base does not have, before its weights are read."""
    model = skeleton(config.model)
    if isinstance(config.adapter, SteeringConfig):
        steered_layer(model, config.adapter)
    else:
        choose_sites(model, config.adapter)
