"""What is trained in a base model, and how a step of it is saved: a LoRA adapter, a steering vector, or all weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from em_interp.config import AdapterConfig, RunConfig, SteeringConfig
from em_interp.organisms.bases import Base, skeleton
from em_interp.training.adapter import Weights, adapter_weights, add_adapter, choose_sites
from em_interp.training.full import FullLearner
from em_interp.training.snapshots import AdapterWriter
from em_interp.training.steering import SteeringLearner, steered_layer


class Learner(Protocol):
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


class LoraLearner:
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


def make_learner(base: Base, config: RunConfig, steps: int) -> Learner:
    """What `config` asks to train, made from `base`, for a run of so many steps.

    Raises InputError for a layer or module that the base does not have.
    """
    chosen = config.adapter
    if isinstance(chosen, AdapterConfig):
        return LoraLearner(add_adapter(base.model, chosen, config.seed, base.name))
    if isinstance(chosen, SteeringConfig):
        return SteeringLearner(base.model, chosen, base.name)
    kept = config.full_weights
    assert kept is not None  # of a config of this kind
    return FullLearner(base, chosen, frozenset(kept.steps(steps)), copied=config.kl is not None)


def check_place(config: RunConfig) -> None:
    """Raise InputError for a layer or module that the base does not have, before its weights are read."""
    model = skeleton(config.model)
    if isinstance(config.adapter, SteeringConfig):
        steered_layer(model, config.adapter)
    else:
        choose_sites(model, config.adapter)
