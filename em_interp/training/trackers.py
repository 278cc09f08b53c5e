"""Training metrics sent to trackio, Weights & Biases or TensorBoard, through transformers' own callbacks.

They get the rows of the run's log, by the run's own steps also after a resume. At the end of training the transitions
that the adapter's path and log have are marked: a point of `transition/<signal>` at the step of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training.train_log import TrainLog
from em_interp.trajectory.load import load_trajectory

TENSORBOARD_FOLDER = "tensorboard"  # in the run directory, unless TENSORBOARD_LOGGING_DIR is set


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a name of `training.report_to` whose library is not installed."""
    for name in names:
        _tracker(name)


def open_trackers(names: Sequence[str], run: Run) -> list[TrainerCallback]:
    """The callbacks of `training.report_to`; TensorBoard's events go to the run directory."""
    trackers = [_tracker(name) for name in names]
    for tracker in trackers:
        if getattr(tracker, "logging_dir", "") is None:
            tracker.logging_dir = str(run.path / TENSORBOARD_FOLDER)
    return trackers


def _tracker(name: str) -> TrainerCallback:
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        tracker: TrainerCallback = get_reporting_integration_callbacks([name])[0]()
    except (RuntimeError, ImportError) as error:
        if "installed" not in str(error):  # it is, and fails when it is imported
            raise
        raise InputError(f"training.report_to names {name}, which is not installed (pip install {name})") from None
    return tracker


class TrackerCallback(TrainerCallback):
    """Hands the rows of the run's log to trackers, and marks the transitions when training ends.

    Args:
        trackers: callbacks of transformers.
        run: the run that is trained.
        log: its log, which has the row of a step by the time that this callback gets it.
    """

    def __init__(self, trackers: Sequence[TrainerCallback], run: Run, log: TrainLog) -> None:
        self.trackers, self.run, self.log = trackers, run, log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the trackers."""
        for tracker in self.trackers:
            tracker.on_train_begin(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand on the row of the step."""
        if "loss" in kwargs["logs"]:
            row = dict(self.log.rows[-1])
            self._send(row.pop("step"), row, args, state, control, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the transitions, and close the trackers."""
        self.log.write_state()
        for name, step in found_steps(self.run):
            self._send(step, {f"transition/{name}": 1.0}, args, state, control, kwargs)
        for tracker in self.trackers:
            tracker.on_train_end(args, state, control, **kwargs)

    def _send(
        self,
        step: int,
        logs: dict[str, Any],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        more: dict[str, Any],
    ) -> None:
        at_step = copy(state)
        at_step.global_step = step
        for tracker in self.trackers:
            tracker.on_log(args, at_step, control, **{**more, "logs": dict(logs)})


def found_steps(run: Run) -> list[tuple[str, int]]:
    """The signals with a transition in a run, such as `rotation_B`, and its step; none where a path is too short."""
    from em_interp.transition.find import find_transitions  # half a second that training spends with trackers alone

    try:
        found = find_transitions(load_trajectory(run))
    except InputError:
        return []
    return [
        ("_".join(filter(None, (transition.signal, transition.of))), round(transition.step))
        for transition in found
        if transition.verdict == "transition" and transition.step is not None
    ]
