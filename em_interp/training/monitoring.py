"""A callback that follows a run of any transformers Trainer while it trains, and acts on an alarm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.checks import check_type, check_whole
from em_interp.training.checkpoints import AdapterWriter
from em_interp.training.lora import Weights, trained_adapter
from em_interp.training.snapshots import SnapshotCallback
from em_interp.transition.monitoring.monitor import FALSE_ALARM_RATE, SIGNALS, Look, Monitor, MonitorSignal

DENSE_SHARE = 0.10  # of the run, after a suspicious look, in which more steps are saved


class MonitorCallback(TrainerCallback):
    """Raises an alarm when B turns or the gradient norm has a hump; at most 5 % of runs without either give one.

    For a transformers Trainer, TRL's trainers and whatever else runs their callbacks, on a model with one LoRA adapter
    in training. The Trainer is made to log every step, because the gradient norm is read from its log. `monitor` is
    the `em.Monitor` of the run, with every look so far; its docstring has the guarantee and what it assumes.

        snapshots = em.SnapshotCallback("runs/mine", "every 20")
        monitor = em.MonitorCallback(lambda look: print(look.transition.sentence()), snapshots=snapshots)
        SFTTrainer(model, train_dataset=rows, callbacks=[snapshots, monitor]).train()
        monitor.monitor

    A Trainer that resumes at step N is followed from there: looks before step N are skipped, which keeps the
    false-alarm bound.
    Of several processes each follows the run, and all come to the same alarms; the main one calls `on_alarm`.

    Args:
        on_alarm: Called with the `Look` that raised an alarm.
        stop: Stop training at an alarm.
        snapshots: The run's SnapshotCallback: after an alarm, or a look that would be significant as a single test,
            it saves more steps for a tenth of the run.
        save_every: Spacing of these steps.
        level: Probability of any alarm in a run without a transition.
        signals: What is followed: `rotation` of B, `gradient_norm`.
        controls: Monitors of finished control runs, such as `em.watch("runs/control")`.

    Raises:
        InputError: When training begins, for a model without a LoRA adapter in training, or a sharded one.
    """

    def __init__(
        self,
        on_alarm: Callable[[Look], Any] | None = None,
        *,
        stop: bool = False,
        snapshots: SnapshotCallback | None = None,
        save_every: int = 1,
        level: float = FALSE_ALARM_RATE,
        signals: Sequence[MonitorSignal] = SIGNALS,
        controls: Sequence[Monitor] = (),
    ) -> None:
        check_type("snapshots", snapshots, (SnapshotCallback, type(None)), "the run's SnapshotCallback")
        check_whole("save_every", save_every, minimum=1)
        self.on_alarm, self.stop, self.snapshots, self.save_every = on_alarm, stop, snapshots, save_every
        self._settings = (level, signals, controls)
        self.monitor = Monitor(1, level, signals)  # of the run, once its length is known
        self._weights: Weights = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to follow the run."""
        weights = AdapterWriter(kwargs["model"], trained_adapter(kwargs["model"])).weights
        self._weights = {name: weight for name, weight in weights.items() if ".lora_B." in name}
        self.monitor = Monitor(state.max_steps, *self._settings)
        self.monitor.update(state.global_step, self._position())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the Trainer log the step."""
        control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the step's position and gradient norm, and act on what the monitor finds."""
        logs, step = kwargs["logs"], state.global_step
        if "loss" not in logs:  # an evaluation, or the summary
            return
        position = self._position() if self.monitor.wants(step) else None
        for look in self.monitor.update(step, position, logs.get("grad_norm")):
            if self.snapshots is not None and look.suspicious:
                self.snapshots.save_more(range(step, step + int(DENSE_SHARE * state.max_steps) + 1, self.save_every))
            if look.alarm:
                if self.on_alarm is not None and state.is_world_process_zero:
                    self.on_alarm(look)
                control.should_training_stop = control.should_training_stop or self.stop

    def _position(self) -> Float32[np.ndarray, " coordinate"]:
        """B of all sites, flattened."""
        parts = [weight.detach().float().cpu().numpy().ravel() for weight in self._weights.values()]
        return np.concatenate(parts)
