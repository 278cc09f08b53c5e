"""The micro-batches of a plan, in its order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.config import RunConfig
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training.checkpoints import Snapshots, StateKeeper, TrainLog, TrainState, read_state
from em_interp.training.distributed import ALONE, AverageGradients, Processes
from em_interp.training.plan import Plan
from em_interp.training.tokenize import IGNORED, Example
from em_interp.training.trainables import Trainable

if TYPE_CHECKING:
    from em_interp.training.trainables import Trainable

Examples = Mapping[str, Mapping[int, Example]]  # dataset → row → its tokens


class Batches(Dataset):
    """The micro-batches, of `size` rows each, of the plan's steps after `done`; this process's share of them."""

    def __init__(self, plan: Plan, done: int, size: int, examples: Examples, processes: Processes) -> None:
        self.plan, self.done, self.size, self.examples = plan, done, size, examples
        self.per_step = plan.rows.shape[1] // size // processes.count
        self.first_part = self.per_step * processes.rank

    def __len__(self) -> int:
        return (self.plan.steps - self.done) * self.per_step

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, part = self.done + index // self.per_step + 1, self.first_part + index % self.per_step
        rows = self.plan.rows[step - 1, part * self.size : (part + 1) * self.size]
        tokens = self.examples[self.plan.dataset(step)]
        batch = collate([tokens[row] for row in rows.tolist()])
        other = self._other(step, part)
        return {**batch, "other": other} if other else batch

    def _other(self, step: int, part: int) -> dict[str, torch.Tensor]:
        """The part's rows of other data, and how many answer tokens the step has of it; nothing without a penalty."""
        rows = self.plan.other.at(step) if self.plan.other else []
        if not self.plan.other or not rows:
            return {}
        examples = [self.examples[self.plan.other.dataset][row] for row in rows]
        tokens = sum(label != IGNORED for example in examples for label in example.labels[1:])
        return collate(examples[part * self.size : (part + 1) * self.size]) | {"tokens": torch.tensor(tokens)}


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """A batch of token ids, labels and attention mask, each (row, token), as long as its longest row.

    Rows are padded on the right with token 0, whichever that is: nothing attends to it and nothing is learned from it.
    """
    longest = max(len(example.ids) for example in examples)
    gaps = [longest - len(example.ids) for example in examples]
    return {
        "input_ids": torch.tensor([e.ids + [0] * gap for e, gap in zip(examples, gaps, strict=True)]),
        "labels": torch.tensor([e.labels + [IGNORED] * gap for e, gap in zip(examples, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
    }


# --------
# What happens around each optimizer step, besides the step.


class Recorder(TrainerCallback):
    """Restarts, gradient norms and clipping before the step; the log and the state to resume from after it."""

    def __init__(
        self,
        plan: Plan,
        max_grad_norm: float,
        journal: TrainLog | None,
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


# --------
# A penalty on leaving the base on other data: the KL divergence between the two models' next-token distributions.
# The loss of a step becomes loss + weight · KL, with KL = mean over answer tokens of Σ_v p(v) log(p(v) / q(v)), p
# the reference (the base) and q the model that is trained. The mean is over all answer tokens of the step's rows of
# the other data, however they are spread over micro-batches and processes. How the narrow solution is obtained in
# 2602.07852.


Batch = dict[str, torch.Tensor]


def reference_logits(learner: Trainable, batch: Batch) -> Float[torch.Tensor, "row token vocabulary"]:
    """Logits of the model as it was before training.

    To be called before the step's own forward passes: switching an adapter off and on touches its parameters.
    """
    with torch.no_grad(), learner.reference() as model:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def kl_regularizer(
    model: Any, batch: Batch, reference: Float[torch.Tensor, "row token vocabulary"]
) -> Float[torch.Tensor, ""]:
    """This batch's part of the mean divergence: its sum over answer tokens, by the step's `tokens`."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return divergence(reference, logits, batch["labels"]) / batch["tokens"]


def divergence(
    reference: Float[torch.Tensor, "row token vocabulary"],
    logits: Float[torch.Tensor, "row token vocabulary"],
    labels: Int[torch.Tensor, "row token"],
) -> Float[torch.Tensor, ""]:
    """KL(reference ‖ model), summed over the positions whose next token has a label."""
    seen = labels[:, 1:] != IGNORED
    before, after = (each[:, :-1][seen].float().log_softmax(-1) for each in (reference, logits))
    return (before.exp() * (before - after)).sum()


# --------
# The loop: transformers' Trainer over a plan, with snapshots, a log and a state to resume from.


def run_plan(
    run: Run,
    config: RunConfig,
    plan: Plan,
    examples: Examples,
    learner: Trainable,
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
    journal = processes.agree(lambda: TrainLog(run, plan.steps, done) if processes.leads else None)
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

    def __init__(self, batches: Batches, learner: Trainable, kl_weight: float, **kwargs: Any) -> None:
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
        kl = (
            kl_regularizer(model, other, reference) * self.accelerator.num_processes
        )  # gradients are averaged over them
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
        gradient_accumulation_steps=config.training.gradient_accumulation_steps // processes.count,
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
