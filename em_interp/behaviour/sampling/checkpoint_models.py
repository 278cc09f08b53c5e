"""The models of a run's checkpoints: which steps have one, whether the base is theirs, and what names them in settings.

A checkpoint's model is the base through the adapter of its step or, after full fine-tuning, the weights saved there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from em_interp.config.run_config import MAX_SCALE
from em_interp.errors import InputError
from em_interp.layouts import CHANGE_FILE
from em_interp.run import Run
from em_interp.utils.checks import described

if TYPE_CHECKING:
    from em_interp.behaviour.sampling.generate import RowAdapters
    from em_interp.config.run_config import VLLMConfig
    from em_interp.trajectory.trajectory import AdapterTrajectory


class Base(Protocol):
    """A base model: `em_interp.organisms.bases.Base`, or anything with its attributes."""

    @property
    def model(self) -> Any:
        """A causal language model of transformers, without an adapter."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with a chat template."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def identity(self) -> str:
        """Its name and a hash of its weights."""

    def with_weights(self, folder: Path) -> Any:
        """A model of this kind with the weights in `folder`; only runs of full fine-tuning need it."""


def steps_with_models(run: Run) -> list[int]:
    """The saved steps that answers can be sampled from: all with adapters; of full fine-tuning those with weights."""
    from em_interp.trajectory.load import checkpoint_folders

    folders = {step: run.checkpoint(step) for step in run.steps()} or checkpoint_folders(run.path)
    return [
        step
        for step, folder in folders.items()
        if not (folder / CHANGE_FILE).exists() or (folder / "config.json").exists()
    ]


def check_models(run: Run, trajectory: AdapterTrajectory, steps: Sequence[int], scales: Sequence[float]) -> None:
    """Raise InputError for an endless scale, where weights of a step were not saved, and where no adapter is scaled."""
    for scale in scales:
        if not abs(scale) <= MAX_SCALE:
            raise InputError(f"a scale must be a number from {-MAX_SCALE:g} to {MAX_SCALE:g}; it is {described(scale)}")
    trajectory.check_complete()
    if trajectory.kind != "full":
        return
    available = steps_with_models(run)
    for step in steps:
        if step in trajectory.steps and step not in available:
            saved = ", ".join(map(str, available)) or "no step"
            raise InputError(
                f"step {step} of {run.path} cannot be sampled from: full weights were saved at {saved} "
                "(adapter.weights says at which steps)"
            )
    if set(scales) != {1.0}:
        raise InputError(f"{run.path} has no adapter to scale: expected the scale 1 alone; found {list(scales)}")


def check_base(run: Run, trajectory: AdapterTrajectory, base: Base) -> None:
    """Raise InputError where the run's adapters belong to another base.

    An adapter loads without an error into any model of equal dimensions. The hash of the weights in the run's manifest
    decides; where it has none, the base's name in the adapters' config, without the owner before the slash.
    """
    from em_interp.trajectory.load import base_identity, check_identity

    check_identity(run, base.identity)
    named = trajectory.base if base_identity(run) is None else None
    if named is not None and Path(named).name.lower() != Path(base.name).name.lower():
        raise InputError(f"the adapters of {run.path} were trained on {named}; the base given is {base.name}")


class CheckpointModels:
    """The models of a run's checkpoints; of full weights only those of the last step are kept in memory."""

    def __init__(self, run: Run, base: Base, trajectory: AdapterTrajectory) -> None:
        self.run, self.base, self.trajectory = run, base, trajectory
        self.step, self.model = -1, base.model

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's adapter."""
        if self.trajectory.kind == "full":
            return 0
        first = self.trajectory.at(int(self.trajectory.steps[0]))
        return sum(a.nbytes + b.nbytes for a, b in first.values())

    def of(self, steps: Sequence[int], scales: Sequence[float]) -> tuple[Any, RowAdapters]:
        """The model for rows of these steps and adapter scales, with an adapter for each row.

        After full fine-tuning the rows must be of one step, and there are no adapters.
        """
        from em_interp.behaviour.sampling.generate import RowAdapters

        if self.trajectory.kind != "full":
            return self.base.model, RowAdapters.of(self.trajectory, steps, scales, self.base.model.device)
        (step,) = set(steps)
        if step != self.step:
            self.step, self.model = step, None  # free the memory before the next is read
            self.model = self.base.with_weights(self.run.checkpoint(step))
        return self.model, RowAdapters({}, {})


def model_settings(
    base: Base, trajectory: AdapterTrajectory, steps: list[int], scales: Sequence[float], servers: VLLMConfig | None
) -> dict[str, Any]:
    """The settings of a stage that say which models it reads, and where."""
    return {
        **base_settings(base),
        "engine": "local" if servers is None else "vllm",
        "steps": steps,
        "adapters": adapter_digest(trajectory, steps),
        "scales": [float(scale) for scale in scales],
    }


def base_settings(base: Base) -> dict[str, str]:
    """The settings of a stage that say which base it reads: its weights as stored, and their number type here."""
    return {"base": base.identity, "dtype": str(base.model.dtype).removeprefix("torch.")}


def adapter_digest(trajectory: AdapterTrajectory, steps: Iterable[int]) -> str:
    """A hash of the adapters of some steps, so that results of others are never taken for theirs."""
    digest = hashlib.sha256()
    for step in sorted(set(steps)):
        for site, (a, b) in trajectory.at(step).items():
            digest.update(f"{step} {site} {trajectory.scale[site]}".encode())
            digest.update(np.ascontiguousarray(a).tobytes() + np.ascontiguousarray(b).tobytes())
    return digest.hexdigest()[:16]
