"""Follow a run that is being trained: its checkpoints and its log, as they appear in its directory, into a Monitor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from em_interp.errors import InputError
from em_interp.run import Run, check_other, open_run
from em_interp.trajectory.load import TrajectorySource, as_trajectory, read_position
from em_interp.trajectory.training_log import find_log
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.monitoring.monitor import FALSE_ALARM_RATE, SIGNALS, Look, Monitor, MonitorSignal
from em_interp.utils.checks import as_list, checked
from em_interp.utils.stages import read_saved

SECONDS_BETWEEN_READS = 2.0


@checked
def watch(
    source: TrajectorySource,
    *,
    level: float = FALSE_ALARM_RATE,
    signals: Sequence[MonitorSignal] = SIGNALS,
    controls: TrajectorySource | Monitor | Sequence[TrajectorySource | Monitor] = (),
    last: int | None = None,
    follow: bool = False,
    on_update: Callable[[Monitor, list[Look]], None] | None = None,
) -> Monitor:
    """The live monitor of a run, fed with the run so far or followed to its end.

    A finished run gives the same looks, at the same steps, as it would have given while it was trained.

    Args:
        source: A run directory that may still be written, or whatever `load_trajectory` reads.
        level: Probability of any alarm in a run without a transition.
        signals: What is followed: `rotation` of B, `gradient_norm`.
        controls: Finished control runs of the same length, or what `em.watch` returned for them, which an alarm must
            exceed; K of them give p-values of 1 / (K + 1) at least.
        last: The run's number of steps; by default that of its trainer_state.json, else its last saved step.
        follow: Wait for more until the run ends. A run has ended at its last step, or where its `resume` folder, which
            exists while it is trained, is gone.
        on_update: Called with the monitor, and the looks that were due, whenever something new was read.

    Returns:
        The monitor. Its error rates and assumptions are those of `em_interp.transition.monitoring.monitor`.

    Raises:
        InputError: For what is not a run, a control that is not finished, and where the run's length is not known.
    """
    for control in as_list(controls):
        check_other(source, control)
    references = [c if isinstance(c, Monitor) else watch(c, level=level, signals=signals) for c in as_list(controls)]
    run = (
        None if isinstance(source, AdapterTrajectory) else Run(source.path if isinstance(source, Run) else Path(source))
    )
    if run is None or not follow:
        path = as_trajectory(source)
        reached = int(path.steps[-1])
        if last is not None and 0 < last < reached:
            raise InputError(
                f"the run has step {reached} already, so it has more steps than the {last} that were given"
            )
        monitor = Monitor(_length(run) or reached if last is None else last, level, signals, references)
        _replay(monitor, path, on_update)
        return monitor
    run = open_run(run.path)
    while not run.trainer_state_file.is_file() and not run.steps():  # training has not begun
        time.sleep(SECONDS_BETWEEN_READS)
    length = _length(run) if last is None else last
    if length is None:
        raise InputError(f"{run.trainer_state_file} with max_steps was expected: without it, give the run's length")
    monitor = Monitor(length, level, signals, references)
    reader = _Reader(run, monitor, on_update)
    while True:
        ended = not run.resume_state.exists()  # asked before reading: what is written in between is read now
        reader.read()
        if ended or monitor.finished:
            return monitor
        time.sleep(SECONDS_BETWEEN_READS)


class _Reader:
    """Feeds a monitor with what is new in a run directory."""

    def __init__(self, run: Run, monitor: Monitor, on_update: Callable[[Monitor, list[Look]], None] | None) -> None:
        self.run, self.monitor, self.on_update = run, monitor, on_update
        self.saved, self.logged = -1, -1  # the last steps that were read

    def read(self) -> None:
        """Read the checkpoints and rows that have appeared, in the order of their steps."""
        norms = {
            step: norm for step, norm in _norms(find_log(self.run.path, [], last=0).table).items() if step > self.logged
        }
        saved = {
            step for step in self.run.steps() if step > self.saved
        }  # after the log: a step is saved before it is logged
        for step in sorted(saved | norms.keys()):
            position = None
            if step in saved:
                self.saved = step
                if self.monitor.wants(step):
                    position = read_position(self.run.checkpoint(step))
            self.logged = step if step in norms else self.logged
            looks = self.monitor.update(step, position, norms.get(step))
            if self.on_update and looks:
                self.on_update(self.monitor, looks)
        if self.on_update and (saved or norms):
            self.on_update(self.monitor, [])


def _norms(log: pd.DataFrame) -> dict[int, float]:
    """The logged gradient norms by step."""
    logged = log["grad_norm"].dropna() if "grad_norm" in log else pd.Series(dtype=float)
    return dict(zip(logged.index.astype(int).tolist(), logged.astype(float).tolist(), strict=True))


def _replay(monitor: Monitor, path: AdapterTrajectory, on_update: Callable[[Monitor, list[Look]], None] | None) -> None:
    norms, rows = _norms(path.metrics), {}
    if path.sites:  # else it is a log alone
        vectors, rows = path.vectors("B"), {int(step): row for row, step in enumerate(path.steps)}
    for step in sorted(rows.keys() | norms.keys()):
        wanted = step in rows and monitor.wants(step)
        looks = monitor.update(step, vectors[rows[step]] if wanted else None, norms.get(step))
        if on_update:
            on_update(monitor, looks)


def _length(run: Run | None) -> int | None:
    """The run's number of steps, where its log says it."""
    if run is None or not run.trainer_state_file.is_file():
        return None
    steps = read_saved(run.trainer_state_file, {"max_steps?": int}).get("max_steps")
    return int(steps) if steps else None
