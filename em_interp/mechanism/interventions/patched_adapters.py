"""Patched adapters: which A and B of which steps are combined, and the model with one of them for each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.sampling.checkpoint_models import adapter_digest, base_settings
from em_interp.behaviour.sampling.generate import RowAdapters, adapted
from em_interp.errors import InputError
from em_interp.mechanism.interventions.experiments import Experiment
from em_interp.mechanism.model import TrajectoryModel, open_model
from em_interp.mechanism.random_adapters import random_adapters
from em_interp.trajectory import geometry
from em_interp.trajectory.load import TrajectorySource, same_weights
from em_interp.trajectory.trajectory import AdapterTrajectory

if TYPE_CHECKING:
    from em_interp.behaviour.sampling.chat import Tokens
    from em_interp.behaviour.sampling.decode import RowModel

Components = Literal["direction_norm", "A_B"]
COMPONENTS: dict[Components, tuple[str, str]] = {"direction_norm": ("direction", "norm"), "A_B": ("A", "B")}
GRID, CONTROL, BASE, RANDOM, RANDOM_B = "grid", "control", "base", "random", "random_B"  # kinds of patched adapters
RANDOM_KINDS = {RANDOM: "random directions with the final norm", RANDOM_B: "the final A with random B of that norm"}
N_CONTROL = 4  # times as many answers of the control as of a cell: every cell is compared with them
MIN_STEPS = 3


@dataclass(frozen=True)
class PatchedAdapter:
    """A of a step and B of a step, multiplied. `kind`, `row` and `column` are its place in the experiment."""

    kind: str
    row: int
    column: int
    A: int  # step
    B: int  # step
    multiplier: float = 1.0


@dataclass(frozen=True, eq=False)
class PatchingExperiment(Experiment):
    """Patched adapters of several trajectories, which may differ in rank and so do not share a batch."""

    model: TrajectoryModel
    adapters: Sequence[tuple[AdapterTrajectory, Sequence[PatchedAdapter]]]

    def groups(self) -> Iterator[list[tuple[AdapterTrajectory, PatchedAdapter]]]:
        """The patched adapters of each trajectory."""
        for path, patched in self.adapters:
            yield [(path, adapter) for adapter in patched]

    def columns(self, condition: tuple[AdapterTrajectory, PatchedAdapter]) -> dict[str, Any]:
        """Kind, row and column."""
        _, patched = condition
        return {"kind": patched.kind, "row": patched.row, "column": patched.column}

    def settings(self) -> dict[str, Any]:
        """The base, the adapters and how they are combined."""
        digests = [
            adapter_digest(path, [step for adapter in of for step in (adapter.A, adapter.B)])
            for path, of in self.adapters
        ]
        patched = [list(asdict(adapter).values()) for _, of in self.adapters for adapter in of]
        return {**base_settings(self.model.base), "adapters": digests, "patched": patched}

    def open_batch(
        self, conditions: Sequence[tuple[AdapterTrajectory, PatchedAdapter]], prompts: Tokens
    ) -> AbstractContextManager[RowModel]:
        """The model with an adapter for each row of the batch, as in `em_interp.ask`."""
        adapters = row_adapters(conditions[0][0], [patched for _, patched in conditions], self.model.device)
        return adapted(self.model.base.model, adapters)


def row_adapters(path: AdapterTrajectory, patched: Sequence[PatchedAdapter], device: Any) -> RowAdapters:
    """The patched adapters, one a row."""
    reads = RowAdapters.of(path, [adapter.A for adapter in patched], [1.0] * len(patched), device)
    writes = RowAdapters.of(
        path, [adapter.B for adapter in patched], [adapter.multiplier for adapter in patched], device
    )
    return RowAdapters(reads.A, writes.B)


def grid_steps(path: AdapterTrajectory, count: int) -> tuple[Int[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """About `count` saved steps with ΔW > 0, evenly over the run and up to the last, and their ‖ΔW‖."""
    norms = geometry.norms(path.gram("delta"))
    rows = np.flatnonzero(norms > 0)
    if len(rows) < MIN_STEPS or count < MIN_STEPS:
        found = f"{len(rows)} saved steps with ΔW > 0 and {count} requested"
        raise InputError(f"a patching grid needs at least {MIN_STEPS} steps; found {found}")
    wanted = path.steps[-1] * np.arange(1, count + 1) / count
    rows = np.unique([rows[np.argmin(np.abs(path.steps[rows] - step))] for step in wanted])
    return path.steps[rows].astype(int), norms[rows]


def patched_adapters(
    components: Components, steps: Int[np.ndarray, " step"], norms: Float[np.ndarray, " step"]
) -> list[PatchedAdapter]:
    """The cells of the grid, row by row."""
    pairs = [(i, j) for i in range(len(steps)) for j in range(len(steps))]
    where = [(int(steps[i]), int(steps[j])) for i, j in pairs]
    if components == "A_B":
        return [PatchedAdapter(GRID, row, column, row, column) for row, column in where]
    ratio = [float(norms[j] / norms[i]) for i, j in pairs]
    return [PatchedAdapter(GRID, row, column, row, row, x) for (row, column), x in zip(where, ratio, strict=True)]


def control_adapters(
    model: TrajectoryModel, control: TrajectoryModel | TrajectorySource | None
) -> tuple[AdapterTrajectory, list[PatchedAdapter]]:
    """The control's last adapter as trained, or the base."""
    if control is None:
        step = model.last_step
        return model.trajectory, [PatchedAdapter(BASE, number, 0, step, step, 0.0) for number in range(N_CONTROL)]
    path = _trajectory_on(model, control)
    step = int(path.steps[-1])
    return path, [PatchedAdapter(CONTROL, number, 0, step, step) for number in range(N_CONTROL)]


def _trajectory_on(model: TrajectoryModel, source: TrajectoryModel | TrajectorySource) -> AdapterTrajectory:
    """The adapters of another run, which must be of the model's base."""
    control = source if isinstance(source, TrajectoryModel) else open_model(source, model.base)
    if not same_weights(control.base.identity, model.base.identity):
        raise InputError(f"the control is of the base {control.base.identity}; the model's is {model.base.identity}")
    return control.trajectory


def random_patched_adapters(
    path: AdapterTrajectory, count: int, seed: int
) -> Iterator[tuple[AdapterTrajectory, list[PatchedAdapter]]]:
    """`count` random adapters with the final norm, and as many with the final A and a random B."""
    for index, kind in enumerate(RANDOM_KINDS if count else ()):
        drawn = random_adapters(path, range(count), (seed, index), keep_A=kind == RANDOM_B)
        yield drawn, [PatchedAdapter(kind, number, 0, number, number) for number in range(count)]
