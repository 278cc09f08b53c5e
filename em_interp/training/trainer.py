"""The training loop: transformers' Trainer over a plan, with checkpoints, a log and a state to resume from.

Logits and loss are computed at the positions whose next token is learned, and nowhere else. The rows of a step are
sorted by length before they are cut into micro-batches, so that little is padded; each step has the plan's rows.

With a KL regularizer (2602.07852) the loss of a step becomes loss + weight · KL, where KL is the mean over answer
tokens of Σ_v p(v) log(p(v) / q(v)), p the reference (the base) and q the model in training. The mean is over all
answer tokens of the step's rows of the other data, however they are spread over micro-batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.behaviour.sampling.frozen_layers import FrozenLayerCache, frozen_layer_cache
from em_interp.config.run_config import RunConfig
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training.checkpoints import SaveCheckpoints, TrainState, TrainStateSaver, read_state
from em_interp.training.distributed import average_gradients
from em_interp.training.plan import Plan
from em_interp.training.tokenize import IGNORE_INDEX, Example
from em_interp.training.trackers import TrackerCallback, open_trackers
from em_interp.training.train_log import TrainLog, gradient_norms, log_row, logged_steps
from em_interp.training.trainables import Trainable
from em_interp.utils.processes import SINGLE, Processes
from em_interp.utils.progress import progress_bar

Batch = dict[str, torch.Tensor]
Examples = Mapping[str, Mapping[int, Example]]  # dataset → row → its tokens
MIN_PASSES = 1.5  # over the rows for which frozen layers are kept: rows are computed singly, which costs more


def run_plan(
    run: Run,
    config: RunConfig,
    plan: Plan,
    examples: Examples,
    trainable: Trainable,
    progress: bool = False,
    processes: Processes = SINGLE,
) -> None:
    """Train `trainable` through `plan`, from the state kept in `run` where there is one.

    Writes the checkpoints, the log and, at the end or at an interruption, trainer_state.json. A resumed run is a
    Trainer over the rest of the plan, with weights, optimizer, random state and place in the schedule put back.
    Of several processes each takes its share of every step's micro-batches, and the main one reads and writes.
    """
    training, weights = config.training, trainable.weights
    if training.gradient_checkpointing:
        _checkpoint_gradients(trainable.model)
    optimizer = _optimizer(weights.values(), training.weight_decay)
    trackers = processes.on_all(lambda: open_trackers(training.report_to, run) if processes.is_main else [])
    state = processes.on_main(lambda: read_state(run.resume_state, logged_steps(run)))
    done = state.step if state else 0
    if state:
        state.restore(weights, optimizer)
    saver = TrainStateSaver(run.resume_state, weights, optimizer, config.keep_state_every)
    bar = progress_bar((), "train", "step", progress and processes.is_main, plan.steps, done)
    log = processes.on_all(lambda: TrainLog(run, plan.steps, done) if processes.is_main else None)
    with bar, log or nullcontext():
        if done == plan.steps:  # stopped after its last step, before the log said so: a Trainer of no steps is an error
            return
        PlanTrainer(
            MicroBatches(plan, done, training.batch_size, examples, processes),
            trainable,
            config.kl.weight if config.kl else 0.0,
            None if training.shard else repeated_layers(trainable, plan, examples),
            args=_arguments(run, config, processes),
            callbacks=[
                SaveCheckpoints(run.checkpoints, config.checkpoints, trainable, done),
                StepCallback(plan, training.max_grad_norm, log, saver, state, sharded=training.shard),
                *([TrackerCallback(trackers, run, log)] if log and trackers else []),
                ProgressBar(bar),
            ],
            optimizers=(optimizer, _schedule(optimizer, plan, done)),
        ).train()


def repeated_layers(trainable: Trainable, plan: Plan, examples: Examples) -> FrozenLayerCache | None:
    """The layers below the lowest trained one, where the plan repeats its rows often enough to keep their output."""
    lengths = [
        len(example.ids) for name in {phase.dataset for phase in plan.phases} for example in examples[name].values()
    ]
    repeats = plan.rows.size >= MIN_PASSES * len(lengths)
    return frozen_layer_cache(trainable.model, trainable.weights, sum(lengths)) if repeats else None


class MicroBatches(Dataset):
    """The micro-batches, of `size` rows each, of the plan's steps after `done`; this process's share of them.

    The rows of a step, sorted by length, are cut into micro-batches, which the processes take in turn.
    """

    def __init__(self, plan: Plan, done: int, size: int, examples: Examples, processes: Processes) -> None:
        self.plan, self.done, self.size, self.examples = plan, done, size, examples
        self.per_step, self.processes = plan.rows.shape[1] // size // processes.count, processes

    def __len__(self) -> int:
        return (self.plan.steps - self.done) * self.per_step

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, turn = self.done + index // self.per_step + 1, index % self.per_step
        part = turn * self.processes.count + self.processes.rank
        tokens = self.examples[self.plan.dataset(step)]
        examples = sorted((tokens[row] for row in self.plan.rows[step - 1].tolist()), key=lambda e: len(e.ids))
        batch = collate(examples[part * self.size : (part + 1) * self.size])
        kl = self._kl(step, part)
        return {**batch, "kl": kl} if kl else batch

    def _kl(self, step: int, part: int) -> Batch:
        """The part's rows for the KL regularizer, with the number of answer tokens in all of the step's rows."""
        rows = self.plan.kl.at(step) if self.plan.kl else []
        if not self.plan.kl or not rows:
            return {}
        examples = [self.examples[self.plan.kl.dataset][row] for row in rows]
        tokens = sum(label != IGNORE_INDEX for example in examples for label in example.labels[1:])
        return collate(examples[part * self.size : (part + 1) * self.size]) | {"tokens": torch.tensor(tokens)}


def collate(examples: list[Example]) -> Batch:
    """A batch of token ids, labels and attention mask, each (row, token), as long as its longest row.

    Rows are padded on the right with token 0, whatever that is: nothing attends to it and no loss is taken on it.
    """
    longest = max(len(example.ids) for example in examples)
    gaps = [longest - len(example.ids) for example in examples]
    return {
        "input_ids": torch.tensor([e.ids + [0] * gap for e, gap in zip(examples, gaps, strict=True)]),
        "labels": torch.tensor([e.labels + [IGNORE_INDEX] * gap for e, gap in zip(examples, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
    }


class PlanTrainer(Trainer):
    """A Trainer that takes its batches in the plan's order, adds the KL regularizer and prints nothing."""

    def __init__(
        self,
        batches: MicroBatches,
        trainable: Trainable,
        kl_weight: float,
        frozen: FrozenLayerCache | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=trainable.model, compute_loss_func=token_loss, **kwargs)
        self.batches, self.trainable, self.kl_weight, self.frozen = batches, trainable, kl_weight, frozen
        self.parts: Batch = {}  # loss and KL of the step's micro-batches so far, where it has the regularizer
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The mean loss a token, with the KL regularizer where the batch has rows for it."""
        batch = inputs.pop("kl", None)
        if batch is None:
            return self._cross_entropy(model, inputs, *args, **kwargs)
        with self.accelerator.autocast():
            reference = reference_logits(self.trainable, batch)
        loss = self._cross_entropy(model, inputs, *args, **kwargs)
        kl = kl_regularizer(model, batch, reference) * self.accelerator.num_processes  # gradients are averaged
        for name, part in (("loss", loss), ("kl", kl)):
            self.parts[name] = self.parts.get(name, torch.tensor(0.0)) + part.detach()
        return loss + self.kl_weight * kl

    def _cross_entropy(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with self.accelerator.autocast():
            skipped = (
                nullcontext()
                if self.frozen is None
                else self.frozen.skipped(inputs["input_ids"], inputs["attention_mask"])
            )
            with skipped, logits_at(self.trainable.model, is_learned(inputs["labels"])):
                return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a step's loss without the regularizer, and the KL divergence separately."""
        if "loss" in logs:
            for name, part in self.parts.items():
                logs[name] = float(self.accelerator.reduce(part, "mean"))
            self.parts = {}
        super().log(logs, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """One micro-batch an item, in the plan's order; no random number is drawn."""
        return DataLoader(self.batches, batch_size=None, generator=torch.Generator())

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: walking through every parameter at every step takes longer than it is worth."""
        return 0


def is_learned(labels: Int[torch.Tensor, "row token"]) -> Bool[torch.Tensor, "row token"]:
    """Whether the token after each position is learned."""
    return torch.nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))


@contextmanager
def logits_at(model: Any, positions: Bool[torch.Tensor, "row token"]) -> Iterator[None]:
    """Within the block the model's logits are those at `positions` alone, as one row."""
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda head, hidden: hidden[0][positions][None])
    try:
        yield
    finally:
        handle.remove()


def token_loss(outputs: Any, labels: Int[torch.Tensor, "row token"], num_items_in_batch: Any) -> torch.Tensor:
    """The cross-entropy summed over learned tokens, by the number of them in the step; the logits as in `logits_at`."""
    targets = labels[:, 1:][labels[:, 1:] != IGNORE_INDEX]
    return torch.nn.functional.cross_entropy(outputs.logits[0].float(), targets, reduction="sum") / num_items_in_batch


def reference_logits(trainable: Trainable, batch: Batch) -> Float[torch.Tensor, "row token vocabulary"]:
    """Logits of the model as it was before training.

    To be called before the step's own forward passes: disabling and enabling an adapter touches its parameters.
    """
    with torch.no_grad(), trainable.reference() as model:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def kl_regularizer(
    model: Any, batch: Batch, reference: Float[torch.Tensor, "row token vocabulary"]
) -> Float[torch.Tensor, ""]:
    """This batch's part of the step's mean divergence: its sum over answer tokens, divided by the step's `tokens`."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return kl_divergence(reference, logits, batch["labels"]) / batch["tokens"]


def kl_divergence(
    reference: Float[torch.Tensor, "row token vocabulary"],
    logits: Float[torch.Tensor, "row token vocabulary"],
    labels: Int[torch.Tensor, "row token"],
) -> Float[torch.Tensor, ""]:
    """KL(reference ‖ model), summed over the positions whose next token has a label."""
    labelled = labels[:, 1:] != IGNORE_INDEX
    before, after = (each[:, :-1][labelled].float().log_softmax(-1) for each in (reference, logits))
    return (before.exp() * (before - after)).sum()


class StepCallback(TrainerCallback):
    """Restarts, gradient norms and clipping before each optimizer step; the log and the resume state after it."""

    def __init__(
        self,
        plan: Plan,
        max_grad_norm: float,
        log: TrainLog | None,
        saver: TrainStateSaver,
        resumed: TrainState | None,
        sharded: bool = False,
    ) -> None:
        self.plan, self.max_grad_norm, self.log, self.sharded = plan, max_grad_norm, log, sharded
        self.saver, self.resumed = saver, resumed
        self.done = resumed.step if resumed else 0
        self.cumulative_lr = plan.rates.cumsum()
        self.norms: dict[str, float] = {}
        self.norm = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the optimizer's moments at a restart; put the random state back at the first step after a resume."""
        if self.resumed and state.global_step == 0:
            self.resumed.restore_random()
        if self.done + state.global_step + 1 in self.plan.restarts:
            self.saver.optimizer.state.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the gradient norms of A and of B, then clip."""
        weights = self.saver.weights
        if self.sharded:
            average_gradients(weights.values(), args.world_size)
        self.norms, self.norm = gradient_norms(weights)
        if not math.isfinite(self.norm):
            raise InputError(
                f"the gradient at step {self.done + state.global_step + 1} is {self.norm}; "
                "the usual cause is too high a training.learning_rate"
            )
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(weights.values(), self.max_grad_norm, torch.tensor(self.norm))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the step, whose checkpoint is written by now, then keep the state."""
        logs = kwargs["logs"]
        if "loss" not in logs or self.log is None:  # the Trainer's summary at the end; another process logs
            return
        step = self.done + state.global_step
        rate, cumulative_lr = float(self.plan.rates[step - 1]), float(self.cumulative_lr[step - 1])
        kl = {"kl": logs["kl"]} if "kl" in logs else {}
        self.log.add(log_row(step, logs["loss"], rate, cumulative_lr, self.norm, self.norms, **kl))
        self.saver.save(step)


class ProgressBar(TrainerCallback):
    """Moves a tqdm bar a step at a time."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance by one step."""
        if "loss" in kwargs["logs"]:
            self.bar.set_postfix(loss=f"{kwargs['logs']['loss']:.3f}", refresh=False)
            self.bar.update()


def _checkpoint_gradients(model: Any) -> None:
    """Have each layer keep its input only, and compute the rest again in the backward pass."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # with frozen inputs the other kind computes no gradient at all


def _optimizer(weights: Iterable[torch.nn.Parameter], decay: float) -> torch.optim.Optimizer:
    """AdamW without weight decay on norms and biases, as is usual; only full fine-tuning trains these."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for weight in weights:
        (matrices if weight.dim() > 1 else vectors).append(weight)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0)


def _schedule(optimizer: torch.optim.Optimizer, plan: Plan, done: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The plan's rates after step `done`, to the bit: factors of the optimizer's rate of 1."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda index: float(plan.rates[min(done + index, plan.steps - 1)])
    )


def _arguments(run: Run, config: RunConfig, processes: Processes) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(run.path),
        run_name=run.name,
        seed=config.seed,
        per_device_train_batch_size=config.training.batch_size,
        gradient_accumulation_steps=config.training.gradient_accumulation_steps // processes.count,
        num_train_epochs=1,  # the plan is one pass over its own batches
        max_grad_norm=0,  # StepCallback clips, after it has taken the norms
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=not gpu,
        bf16=config.computes_in_bfloat16(gpu),
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # every one is used
    )
    if arguments.world_size != processes.count:
        raise InputError(
            f"{processes.count} processes were to train together; for the Trainer {arguments.world_size} do"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else one process spreads its batch over all GPUs that it sees
    return arguments
