"""Callbacks for any transformers Trainer: one writes a run directory, one follows the run and acts on an alarm."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.config.schedule import Schedule
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training.checkpoints import AdapterWriter, SaveCheckpoints
from em_interp.training.lora import Weights, trained_adapter
from em_interp.training.manifest import trainer_manifest, write_or_check_manifest
from em_interp.training.train_log import TrainLog, gradient_norms, log_row
from em_interp.trajectory.lora_files import read_lora
from em_interp.transition.monitoring.monitor import FALSE_ALARM_RATE, SIGNALS, Look, Monitor, MonitorSignal
from em_interp.utils.checks import as_list, check_type, check_whole, checked
from em_interp.utils.files import remove
from em_interp.utils.lock import write_lock

DENSE_SHARE = 0.10  # of the run, after a suspicious look, in which more steps are saved


class SnapshotCallback(TrainerCallback):
    """Saves the LoRA adapter that a Trainer trains at the steps of a schedule, with log and manifest, as a run.

    For a transformers Trainer, TRL's trainers and whatever else runs their callbacks, on a model with one LoRA
    adapter in training (PEFT's, or transformers' `add_adapter`). The run can be read like one of `em_interp.train`:
    `open_run(out)`, `load_trajectory(out)`, `em-interp locate out`.

        trainer = SFTTrainer(model, train_dataset=rows, callbacks=[em.SnapshotCallback("runs/mine", "every 5")])
        trainer.train()
        em.find_transition(em.load_trajectory("runs/mine"))

    The callback makes the Trainer log every step, because the analyses need a gradient norm and a learning rate of
    each. Each row of the log has the loss, the gradient norms (of all, of A, of B) before clipping, the learning rate
    of the step and the sum of learning rates up to and including it. When the Trainer resumes from a checkpoint of its
    own at step N, the run continues from there: its later checkpoints and rows are replaced. When training is stopped
    or killed, trainer_state.json may lack the rows of the last five seconds until it is resumed.

    No other process can write to `out` during training. A Trainer does not notify its callbacks when training fails
    with an error: other processes can then write to the run once the callback or the process has ended.

    Args:
        out: the run directory to write, `out/checkpoints/checkpoint-<step>`, trainer_state.json and manifest.json.
            Not the Trainer's own output_dir, where it keeps checkpoints in another form.
        schedule: the steps to save, such as "every 5", "log 40" or "1-10, every 5"; the first step (0) and the last
            are always saved.
        overwrite: replace a run that is in `out` already, with everything that was made of it.

    Raises:
        InputError: when training begins, for a model without a LoRA adapter in training, one that trains other
            parameters too, an adapter that `load_trajectory` could not read (DoRA and other kinds), a sharded
            adapter (FSDP, DeepSpeed ZeRO-3), and an `out` that holds a run already or what is of no run in the places
            of one (such as `checkpoints/` with other runs), is written by another process or is the Trainer's
            output_dir.
    """

    def __init__(self, out: str | Path, schedule: str | Schedule = "every 1", overwrite: bool = False) -> None:
        check_type("out", out, (str, Path), "the path of a folder")
        check_type("schedule", schedule, (str, Schedule), "a text such as 'every 5' or '1-10, every 5'")
        self.run, self.schedule, self.overwrite = Run(Path(out)), Schedule.of(schedule), overwrite
        self._lock = ExitStack()
        self._writer: AdapterWriter | None = None  # in the main process, while training; so are the next two
        self._saver: SaveCheckpoints | None = None
        self._log: TrainLog | None = None
        self._norms: dict[str, float] = {}  # of the step in progress, after clipping
        self._norm, self._rate, self._cumulative_lr = 0.0, 0.0, 0.0
        self._last: Weights = {}  # a copy of the last step's weights, where the Trainer will load others at the end

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the run can be written, and save the step that training begins at."""
        model = kwargs["model"]
        writer = AdapterWriter(model, trained_adapter(model))
        if not state.is_world_process_zero:
            return
        self._check_place(Path(args.output_dir))
        self._lock.close()  # of a training that broke off
        with ExitStack() as lock:
            lock.enter_context(write_lock(self.run.path))
            self._begin(args, state, control, model, writer)
            self._lock = lock.pop_all()

    def _begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any, writer: AdapterWriter
    ) -> None:
        step = state.global_step
        manifest = trainer_manifest(model, args, state.max_steps, len(self.schedule.steps(state.max_steps)))
        if step and self.run.steps():
            self._resume(step, manifest)
        else:
            self._start(step, manifest, writer)
        log = TrainLog(self.run, state.max_steps, step, complete=False)
        before = log.rows[-1] if log.rows else {"step": 0, "cumulative_lr": 0.0}
        self._cumulative_lr = before["cumulative_lr"] if before["step"] == step else math.nan
        self._saver = SaveCheckpoints(self.run.checkpoints, self.schedule, writer)
        self._saver.on_train_begin(args, state, control)
        self._writer, self._log = writer, log

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the learning rate of the step and the gradient norms, which are those of clipped gradients here."""
        if self._writer:
            scaled = args.fp16 and not args.max_grad_norm  # by the loss scale, which the gradients still include
            self._norms, self._norm = ({}, math.nan) if scaled else gradient_norms(self._writer.weights)
            self._rate = kwargs["optimizer"].param_groups[0]["lr"]
            self._cumulative_lr += self._rate

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the step if the schedule names it, and have the Trainer log it."""
        control.should_log = True  # in every process: they gather the loss
        if self._writer and self._saver:
            self._saver.on_step_end(args, state, control)
            if args.load_best_model_at_end:
                self._last = {name: weight.detach().clone() for name, weight in self._writer.weights.items()}

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the row of the step; evaluations and the Trainer's summary are no rows."""
        logs = kwargs["logs"]
        if self._log is None or "loss" not in logs:
            return
        norm = logs.get("grad_norm", self._norm)  # the Trainer's own is from before clipping
        scale = norm / self._norm if self._norm else 1.0
        norms = {name: part * scale for name, part in self._norms.items()}
        self._log.add(log_row(state.global_step, logs["loss"], self._rate, self._cumulative_lr, norm, norms))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the last step, also where training stopped early, and finish the log."""
        if self._writer is None or self._log is None:
            return
        if not self.run.checkpoint(state.global_step).exists():
            self._writer.weights = self._last or self._writer.weights
            self._writer.save(self.run.checkpoint(state.global_step))
        self._log.write_state()
        shutil.rmtree(self.run.resume_state, ignore_errors=True)
        self._writer = self._saver = self._log = None
        self._lock.close()

    @checked
    def save_more(self, steps: int | Iterable[int]) -> None:
        """Save these steps too, those among them that are still to come."""
        if self._saver:
            self._saver.steps |= frozenset(as_list(steps))

    def _check_place(self, output_dir: Path) -> None:
        if output_dir.resolve() == self.run.path.resolve():
            raise InputError(
                f"{self.run.path} is the Trainer's output_dir, where it keeps checkpoints of its own; give the "
                "SnapshotCallback another folder"
            )

    def _resume(self, step: int, manifest: dict[str, Any]) -> None:
        """Continue the run in `out` after `step`; raises InputError where it is of another base."""
        write_or_check_manifest(self.run, manifest)
        for later in (saved for saved in self.run.steps() if saved > step):
            shutil.rmtree(self.run.checkpoint(later))

    def _start(self, step: int, manifest: dict[str, Any], writer: AdapterWriter) -> None:
        """Begin a run in `out` with its first checkpoint.

        Raises InputError, with nothing left behind, where `out` holds a run or what is of no run in the places of one,
        and for an adapter that the analyses could not read.
        """
        if self.run.is_begun() and not self.overwrite:
            raise InputError(
                f"{self.run.path} holds a run already; give the SnapshotCallback another folder, or overwrite=True"
            )
        self.run.check_replaceable()
        if self.overwrite:
            remove(*self.run.contents())
        first = self.run.checkpoint(step)
        writer.save(first)
        try:
            read_lora(first)
        except InputError:
            shutil.rmtree(first)
            raise
        write_or_check_manifest(self.run, manifest)


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
