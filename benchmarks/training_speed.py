"""A training step of SmolLM2 on a CPU, side by side with transformers' plain Trainer on the same model and rows.

    python benchmarks/training_speed.py [steps] [threads]

One rank-1 site at half depth, batches of 8 English rows. Every way trains the same adapter through the same batches.
Prints a markdown table: processor and wall-clock seconds a step, the median and the fastest, and the loss of the last
step. Processor time is what to compare where other programs are at work.
"""

import sys
import time

import numpy as np
import torch
from table import print_row
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from em_interp.behaviour.sampling.frozen_layers import FrozenLayerCache
from em_interp.config.run_config import load_config
from em_interp.organisms.bases import load_base, quiet
from em_interp.organisms.datasets import load_chats
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import encode_rows
from em_interp.training.trainables import make_trainable
from em_interp.training.trainer import MicroBatches, PlanTrainer
from em_interp.utils.processes import SINGLE

DATASET, BATCH, LAYER = "english:medical", 8, 15
OUT = "/tmp/training-speed"  # nothing is written to it


class Clock(TrainerCallback):
    """Processor and wall-clock seconds of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, *given, **more):
        self.begun = time.process_time(), time.perf_counter()

    def on_step_end(self, *given, **more):
        self.steps.append((time.process_time() - self.begun[0], time.perf_counter() - self.begun[1]))


class PlainTrainer(Trainer):
    """The Trainer as it is, over the same batches."""

    def __init__(self, batches, **more):
        super().__init__(**more)
        self.batches = batches
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None, generator=torch.Generator())


def measured(dtype, ours, steps, kept):
    """The clock of a training through `steps` steps, and its last loss."""
    training = {"batch_size": BATCH, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    adapter = {"layers_to_transform": [LAYER]}
    config = load_config(
        {"model": "smollm2", "data": [{"dataset": DATASET, "steps": steps}], "training": training, "adapter": adapter}
    )
    chats = load_chats(DATASET, 0)
    plan = make_plan(config, {DATASET: len(chats.rows)})
    base = load_base("smollm2", dtype)
    examples = {DATASET: encode_rows(chats, plan.rows_of(DATASET), base.tokenizer, 2048)}
    trainable, clock = make_trainable(base, config, steps), Clock()
    batches = MicroBatches(plan, 0, BATCH, examples, SINGLE)
    arguments = TrainingArguments(
        OUT, num_train_epochs=1, max_grad_norm=0, logging_steps=1, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, learning_rate=1e-4, per_device_train_batch_size=BATCH,
    )  # fmt: skip
    given = {"args": arguments, "callbacks": [clock]}
    if not ours:
        trainer = PlainTrainer(batches, model=trainable.model, **given)
    else:
        layers = FrozenLayerCache(trainable.model.get_decoder(), LAYER)
        if kept:  # as in every pass over the rows but the first
            for batch in (batches[index] for index in range(len(batches))):
                with layers.skipped(batch["input_ids"], batch["attention_mask"]):
                    pass
        trainer = PlanTrainer(batches, trainable, 0.0, layers if kept else None, **given)
    with quiet():
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return np.array(clock.steps[1:]), losses[-1], np.mean([len(e.ids) for e in examples[DATASET].values()])


WAYS = (
    ("plain Trainer, float32", "float32", False, False),
    ("plain Trainer, bfloat16", "bfloat16", False, False),
    ("em-interp, bfloat16: loss at learned positions", "bfloat16", True, False),
    ("em-interp, bfloat16: and frozen layers kept", "bfloat16", True, True),
)


def main(steps, threads):
    """Print the table."""
    torch.set_num_threads(threads)
    heads = ("CPU s a step, median", "fastest", "wall s, median", "fastest", "against plain bfloat16", "last loss")
    print_row("", *heads, head=True)
    plain = None
    for name, dtype, ours, kept in WAYS:
        seconds, loss, _ = measured(dtype, ours, steps, kept)
        (cpu, wall), (best_cpu, best_wall) = np.median(seconds, axis=0), seconds.min(axis=0)
        plain = cpu if (dtype, ours) == ("bfloat16", False) else plain
        times = "" if plain is None else f"{plain / cpu:.2f}×"
        print_row(name, *(f"{s:.2f}" for s in (cpu, best_cpu, wall, best_wall)), times, f"{loss:.4f}")


if __name__ == "__main__":
    main(*(int(word) for word in (*sys.argv[1:], *("12", "1")[len(sys.argv) - 1 :])))
