"""The loop: transformers' Trainer over a plan, with snapshots, a log and a state to resume from."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments

from em_interp.config import RunConfig
from em_interp.errors import InputError
from em_interp.runs import Run
from em_interp.training.batches import Batches, Examples
from em_interp.training.journal import Journal
from em_interp.training.learner import Learner
from em_interp.training.penalty import penalty, reference_logits
from em_interp.training.plan import Plan
from em_interp.training.processes import ALONE, Processes
from em_interp.training.recorder import Progress, Recorder
from em_interp.training.sharding import AverageGradients
from em_interp.training.snapshots import Snapshots
from em_interp.training.state import StateKeeper, read_state


def run_plan(
    run: Run,
    config: RunConfig,
    plan: Plan,
    examples: Examples,
    learner: Learner,
    progress: bool = False,
    processes: Processes = ALONE,
) -> None:
    """Train what `learner` has to train through `plan`, from the state kept in `run` where there is one.

    Writes the checkpoints, the log and, at the end or at an interruption, trainer_state.json. A run that resumes is a
    Trainer over the rest of the plan, with weights, optimizer, random state and place in the schedule put back.
    Of several processes each takes its share of every step's micro-batches, and the first one reads and writes.
    """
    training, weights = config.training, learner.weights
    if training.gradient_checkpointing:
        _checkpoint_gradients(learner.model)
    optimizer = _optimizer(weights.values(), training.weight_decay)
    state = processes.lead(lambda: read_state(run.resume_state))
    done = state.step if state else 0
    if state:
        state.restore(weights, optimizer)
    keeper = StateKeeper(run.resume_state, weights, optimizer, config.keep_state_every)
    bar = tqdm(total=plan.steps, initial=done, desc="train", unit="step", disable=not (progress and processes.leads))
    journal = processes.agree(lambda: Journal(run, plan.steps, done) if processes.leads else None)
    with bar, journal or nullcontext():
        PlanTrainer(
            Batches(plan, done, training.batch_size, examples, processes),
            learner,
            config.kl.weight if config.kl else 0.0,
            args=_arguments(run, config, processes),
            callbacks=[
                *([AverageGradients(weights.values())] if training.shard else []),
                Snapshots(run.checkpoints, config.checkpoints, done, learner),
                Recorder(plan, training.max_grad_norm, journal, keeper, state),
                Progress(bar),
            ],
            optimizers=(optimizer, _schedule(optimizer, plan, done)),
        ).train()


class PlanTrainer(Trainer):
    """A Trainer that takes its batches as they come, prints nothing, and does not count floating-point operations."""

    def __init__(self, batches: Batches, learner: Learner, kl_weight: float, **kwargs: Any) -> None:
        super().__init__(model=learner.model, **kwargs)
        self.batches, self.learner, self.kl_weight = batches, learner, kl_weight
        self.parts: dict[str, torch.Tensor] = {}  # of the step's loss so far, where there is a penalty
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The mean loss a token, with the penalty on the batch's other data where it has some."""
        other = inputs.pop("other", None)
        if other is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self.accelerator.autocast():
            reference = reference_logits(self.learner, other)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        kl = penalty(model, other, reference) * self.accelerator.num_processes  # gradients are averaged over them
        for name, part in (("loss", loss), ("kl", kl)):
            self.parts[name] = self.parts.get(name, 0.0) + part.detach()
        return loss + self.kl_weight * kl

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """A step's loss without the penalty, and the divergence beside it."""
        if "loss" in logs:
            for name, part in self.parts.items():
                logs[name] = float(self.accelerator.reduce(part, "mean"))
            self.parts = {}
        super().log(logs, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """One micro-batch an item, in the plan's order; no random number is drawn."""
        return DataLoader(self.batches, batch_size=None, generator=torch.Generator())

    def floating_point_ops(self, inputs: Any) -> int:
        """None: walking through every parameter at every step takes longer than it is worth."""
        return 0


def _checkpoint_gradients(model: Any) -> None:
    """Have each layer keep its input only, and compute the rest again in the backward pass."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # with frozen inputs the other kind computes no gradient at all


def _optimizer(weights: Iterable[torch.nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """AdamW, with the field's habit of not decaying norms and biases, which only full fine-tuning trains."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for weight in weights:
        (matrices if weight.dim() > 1 else others).append(weight)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0)


def _schedule(optimizer: torch.optim.Optimizer, plan: Plan, done: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The plan's rates after step `done`, to the bit: factors of the optimizer's rate of 1."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda index: float(plan.rates[min(done + index, plan.steps - 1)])
    )


def _arguments(run: Run, config: RunConfig, processes: Processes) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(run.path),
        seed=config.seed,
        per_device_train_batch_size=config.training.batch_size,
        gradient_accumulation_steps=config.training.accumulation // processes.count,
        num_train_epochs=1,  # the plan is one pass over its own batches
        max_grad_norm=0,  # clipping is the Recorder's, after it has seen the norms
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=not torch.cuda.is_available(),
        bf16=config.computes_in_bfloat16(torch.cuda.is_available()),
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # every one is used
    )
    if arguments.world_size != processes.count:
        raise InputError(
            f"{processes.count} processes were to train together; for the Trainer {arguments.world_size} do"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else one process spreads its batch over all GPUs that it sees
    return arguments
