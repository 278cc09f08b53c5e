"""Who answers: the base through the adapter of a step, or, after full fine-tuning, the model kept at a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from em_interp.errors import InputError
from em_interp.runs import Run
from em_interp.trajectory.weight_change import WEIGHTS

if TYPE_CHECKING:
    from em_interp.behaviour.generate import RowAdapters
    from em_interp.trajectory.adapter import AdapterTrajectory


class Base(Protocol):
    """A base model that can be asked: `em_interp.organisms.bases.Base`, or anything with its attributes."""

    @property
    def model(self) -> Any:
        """A causal language model of transformers, without an adapter."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with a chat template."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def identity(self) -> str:
        """What tells it from every other."""

    def with_weights(self, folder: Path) -> Any:
        """A model of this kind with the weights in `folder`; only runs of full fine-tuning need it."""


def askable_steps(run: Run) -> list[int]:
    """The steps that can be asked: all with adapters; after full fine-tuning those whose weights were kept."""
    folders = {step: run.checkpoint(step) for step in run.steps()}
    return [s for s, folder in folders.items() if not (folder / WEIGHTS).exists() or (folder / "config.json").exists()]


def check_askable(run: Run, trajectory: AdapterTrajectory, steps: Sequence[int], scales: Sequence[float]) -> None:
    """Raise InputError where full weights of a step were not kept, or where there is no adapter to scale."""
    if trajectory.kind != "full":
        return
    there = askable_steps(run)
    for step in steps:
        if step in trajectory.steps and step not in there:
            kept = ", ".join(map(str, there)) or "no step"
            raise InputError(
                f"step {step} of {run.path} cannot be asked: the full weights of {kept} were kept (adapter.weights "
                "says of which steps they are)"
            )
    if set(scales) != {1.0}:
        raise InputError(f"{run.path} has no adapter to scale: expected the scale 1 alone; found {list(scales)}")


class Speakers:
    """The models that answer for a run; of full weights only those asked last are held."""

    def __init__(self, run: Run, base: Base, trajectory: AdapterTrajectory) -> None:
        self.run, self.base, self.trajectory = run, base, trajectory
        self.step, self.model = -1, base.model

    def of(self, steps: Sequence[int], scales: Sequence[float]) -> tuple[Any, RowAdapters]:
        """The model that answers rows of these steps and scales, and the adapters that it answers through.

        After full fine-tuning the rows must be of one step.
        """
        from em_interp.behaviour.generate import RowAdapters

        if self.trajectory.kind != "full":
            return self.base.model, RowAdapters.of(self.trajectory, steps, scales, self.base.model.device)
        (step,) = set(steps)
        if step != self.step:
            self.step, self.model = step, None  # let go of one before the next is read
            self.model = self.base.with_weights(self.run.checkpoint(step))
        return self.model, RowAdapters({}, {})
