"""What happens around each optimizer step, besides the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.errors import InputError
from em_interp.training.journal import Journal
from em_interp.training.plan import Plan
from em_interp.training.state import StateKeeper, TrainState


class Recorder(TrainerCallback):
    """Restarts, gradient norms and clipping before the step; the log and the state to resume from after it."""

    def __init__(
        self,
        plan: Plan,
        max_grad_norm: float,
        journal: Journal | None,
        keeper: StateKeeper,
        resumed: TrainState | None,
    ) -> None:
        self.plan, self.max_grad_norm, self.journal = plan, max_grad_norm, journal
        self.keeper, self.resumed = keeper, resumed
        self.done = resumed.step if resumed else 0
        self.cumulative = plan.rates.cumsum()
        self.norms: dict[str, float] = {}
        self.total = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """At a restart forget the optimizer's moments; at the first step after a resume put the random state back."""
        if self.resumed and state.global_step == 0:
            self.resumed.restore_random()
        if self.done + state.global_step + 1 in self.plan.restarts:
            self.keeper.optimizer.state.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the gradient norms of A and of B, then clip."""
        self.norms, self.total = self._gradient_norms()
        if not math.isfinite(self.total):
            raise InputError(
                f"the gradient at step {self.done + state.global_step + 1} is {self.total}; "
                "the usual cause is too high a training.learning_rate"
            )
        if self.max_grad_norm > 0:
            weights = self.keeper.weights.values()
            torch.nn.utils.clip_grads_with_norm_(weights, self.max_grad_norm, torch.tensor(self.total))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the step, then keep the state. The snapshot of the step is there already."""
        logs = kwargs["logs"]
        if "loss" not in logs or self.journal is None:  # the Trainer's summary at the end; another process logs
            return
        step = self.done + state.global_step
        self.journal.add(
            {
                "step": step,
                "loss": logs["loss"],
                "grad_norm": self.total,
                "learning_rate": float(self.plan.rates[step - 1]),
                **self.norms,
                "cumulative_lr": float(self.cumulative[step - 1]),
                **{name: value for name, value in logs.items() if name == "kl"},
            }
        )
        self.keeper.keep(step)

    def _gradient_norms(self) -> tuple[dict[str, float], float]:
        """The norms of the gradients of A and of B, where it is an adapter that is trained; and that of all."""
        weights = self.keeper.weights
        parts = {
            f"grad_norm_{which}": [weight.grad for name, weight in weights.items() if f".lora_{which}." in name]
            for which in ("A", "B")
        }
        norms = {name: float(torch.nn.utils.get_total_norm(part)) for name, part in parts.items() if part}
        if norms:
            return norms, math.hypot(*norms.values())
        return {}, float(torch.nn.utils.get_total_norm([weight.grad for weight in weights.values()]))


class Progress(TrainerCallback):
    """Moves a tqdm bar a step at a time."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step further."""
        if "loss" in kwargs["logs"]:
            self.bar.set_postfix(loss=f"{kwargs['logs']['loss']:.3f}", refresh=False)
            self.bar.update()
