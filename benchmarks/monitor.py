"""False alarms, delay and cost of the live monitor on planted runs: the tables of docs/monitor.md.

    python benchmarks/monitor.py [runs a kind] [--out FILE]
    python benchmarks/monitor.py --cost [RUN]

Follows every planted run to its end with `em.watch` and prints three markdown tables; about 0.1 s a path and 0.05 s a
log. Runs that are done are kept in FILE (benchmarks/monitor.jsonl by default, not in git), so that an interrupted
benchmark continues; `--tables` prints what is there. Seeds start at 3,000,000, which no tuning and no test has used.
95 % binomial (Wilson) intervals in brackets.

`--cost` trains the built-in organism in a plain Trainer with the callback, and prints the callback's share of the
processor time; with the directory of a run also that of the looks at it, played back.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from table import print_row, share
from transformers import PrinterCallback, Trainer, TrainingArguments

from em_interp.organisms.bases import load_base
from em_interp.organisms.datasets import load_chats
from em_interp.organisms.presets import recipe
from em_interp.training.callbacks import MonitorCallback
from em_interp.training.tokenize import encode_rows
from em_interp.training.trainables import make_trainable
from em_interp.training.trainer import collate
from em_interp.trajectory.load import load_trajectory
from em_interp.transition.monitoring.monitor import Monitor
from em_interp.transition.monitoring.watch import watch
from em_interp.transition.synthetic.logs import HUMPS, NO_HUMPS, planted_log
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path

SEED = 3_000_000
VARIANTS = {
    "as drawn": {},
    "noise 1.5 times the drift": {"noise_ratio": 1.5},
    "stored in bfloat16": {"storage": "bfloat16"},
}


def follow_path(kind, variant, seed):
    path = planted_path(kind, seed, **VARIANTS[variant])
    start = time.process_time()
    monitor = watch(path.trajectory())  # both signals share the level; there is no log to look at
    return row_of(monitor, path.settings["last"], path.turn and path.turn.step, time.process_time() - start)


def follow_log(kind, variant, seed):
    log = planted_log(kind, seed)
    monitor, start = Monitor(int(log.steps[-1])), time.process_time()
    for step, norm in zip(log.steps.tolist(), log.grad_norm.tolist(), strict=True):
        monitor.update(step, grad_norm=norm)
    return row_of(monitor, int(log.steps[-1]), log.peak, time.process_time() - start)


def row_of(monitor, last, truth, seconds):
    alarm = monitor.alarms[0] if monitor.alarms else None
    return {
        "last": last,
        "truth": truth,
        "seconds": seconds,
        "run_p": min((look.run_p for look in monitor.looks), default=1.0),
        "alarm": alarm and alarm.step,
        "estimate": alarm and alarm.transition.step,
        "looks": [[look.step / last, look.run_p] for look in monitor.looks],
    }


def cases(runs):
    """What is to be followed, one run of every kind before the second of any; a fifth as many with a transition."""
    null = [(kind, variant) for variant in VARIANTS for kind in NOT_TURNING] + [(kind, "log") for kind in NO_HUMPS]
    true = [(kind, variant) for variant in VARIANTS for kind in TURNING] + [(kind, "log") for kind in HUMPS]
    for case in range(runs):
        for kind, variant in null + (true if case % 5 == 0 else []):
            yield kind, variant, case


def measure(runs, file):
    done = {tuple(row["case"]) for row in read(file)}
    with file.open("a", encoding="utf-8") as out:
        for kind, variant, case in cases(runs):
            if (kind, variant, case) not in done:
                follow = follow_log if variant == "log" else follow_path
                row = {"case": [kind, variant, case], **follow(kind, variant, SEED + case)}
                out.write(json.dumps(row) + "\n")
                out.flush()


def read(file):
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def print_tables(rows):
    print_false_alarms(rows)
    print()
    print_delays(rows)
    print()
    print_scores(rows)


def print_false_alarms(rows):
    print_row("no transition", *VARIANTS, "runs a cell", head=True)
    for kind in NOT_TURNING:
        cells = [of(rows, kind, variant) for variant in VARIANTS]
        print_row(kind, *(share([row["alarm"] is not None for row in cell]) for cell in cells), counts(cells))
    every = [[row for kind in NOT_TURNING for row in of(rows, kind, variant)] for variant in VARIANTS]
    print_row("all paths", *(share([row["alarm"] is not None for row in cell]) for cell in every), counts(every))
    for kind in NO_HUMPS:
        cell = of(rows, kind, "log")
        print_row(f"log: {kind}", share([row["alarm"] is not None for row in cell]), "–", "–", counts([cell]))
    logs = [row for kind in NO_HUMPS for row in of(rows, kind, "log")]
    print_row("all logs", share([row["alarm"] is not None for row in logs]), "–", "–", counts([logs]))


def print_delays(rows):
    heads = ("runs", "alarms %", "before the transition %", "delay, % of the run: median, 90 %", "step error: median")
    print_row("transition", "variant", *heads, head=True)
    for variant in (*VARIANTS, "log"):
        for kind in HUMPS if variant == "log" else TURNING:
            cell = of(rows, kind, variant)
            found = [row for row in cell if row["alarm"] is not None]
            delay = [100 * (row["alarm"] - row["truth"]) / row["last"] for row in found]
            error = [abs(row["estimate"] - row["truth"]) for row in found]
            print_row(
                kind,
                "gradient norm" if variant == "log" else variant,
                len(cell),
                share([row["alarm"] is not None for row in cell]),
                share([late < 0 for late in delay]),
                f"{np.median(delay):.0f}, {np.quantile(delay, 0.9):.0f}" if delay else "–",
                f"{np.median(error):.1f}" if error else "–",
            )


def print_scores(rows):
    """How well the state at a look tells whether the transition has happened yet, the step counter beside it."""
    print_row("at every look: has it happened yet?", "monitor's AUROC", "step counter's AUROC", "looks", head=True)
    for name, kinds, variants in (
        ("runs with a turn alone", TURNING, ["as drawn"]),
        ("runs with and without a turn", TURNING + NOT_TURNING, ["as drawn"]),
        ("runs with and without a turn, noise 1.5 times the drift", TURNING + NOT_TURNING, [[*VARIANTS][1]]),
        ("logs with and without a hump", HUMPS + NO_HUMPS, ["log"]),
    ):
        chosen = [row for kind in kinds for variant in variants for row in of(rows, kind, variant)]
        labels, states, steps = [], [], []
        for row in chosen:
            state = 1.0
            for at, run_p in full(row["looks"]):
                state = min(state, run_p)
                labels.append(row["truth"] is not None and at * row["last"] >= row["truth"])
                states.append(-state)
                steps.append(at)
        print_row(name, *(f"{roc_auc_score(labels, score):.3f}" for score in (states, steps)), len(labels))


def full(looks):
    """The looks, and after an alarm those that were spared: what was found stays found."""
    shares = [percent / 100 for percent in range(20, 101, 5)]
    return [*looks, *([at, looks[-1][1]] for at in shares if looks and at > looks[-1][0] + 0.02)]


def of(rows, kind, variant):
    return [row for row in rows if row["case"][:2] == [kind, variant]]


def counts(cells):
    sizes = sorted({len(cell) for cell in cells})
    return "–".join(map(str, sizes))


def print_cost(rows):
    path = [row["seconds"] for row in rows if row["case"][1] != "log"]
    log = [row["seconds"] for row in rows if row["case"][1] == "log"]
    names = ("path of B", np.mean(path)), ("gradient norm", np.mean(log))
    print("\n" + "; ".join(f"{name}: {seconds:.2f} s of processor time a run" for name, seconds in names))


class TimedCallback(MonitorCallback):
    """The callback, with the processor time that it takes and that of all training."""

    spent = 0.0

    def timed(self, method, *args, **kwargs):
        start = time.process_time()
        method(*args, **kwargs)
        self.spent += time.process_time() - start

    def on_train_begin(self, *args, **kwargs):
        self.begun = time.process_time()
        self.timed(super().on_train_begin, *args, **kwargs)

    def on_step_end(self, *args, **kwargs):
        self.timed(super().on_step_end, *args, **kwargs)

    def on_log(self, *args, **kwargs):
        self.timed(super().on_log, *args, **kwargs)

    def on_train_end(self, *args, **kwargs):
        self.trained = time.process_time() - self.begun - self.spent


def measure_cost(run):
    """The built-in organism or its control in a plain Trainer: its callback after it."""
    config = recipe(run)
    (phase,) = config.data
    base, chats = load_base(config.model), load_chats(phase.dataset, config.seed)
    rows = encode_rows(chats, range(len(chats)), base.tokenizer, config.training.max_length)
    trainable = make_trainable(base, config, phase.steps)
    callback = TimedCallback()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=phase.steps, per_device_train_batch_size=config.training.batch_size, use_cpu=True,
            learning_rate=config.training.learning_rate, save_strategy="no", report_to=[], disable_tqdm=True,
            logging_steps=1,
        )  # fmt: skip
        trainer = Trainer(trainable.model, arguments, collate, list(rows.values()), callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return callback


def print_costs(run, repeats=3):
    torch.set_num_threads(1)
    measure_cost("organism")  # imports and caches
    print_row("run", "ms a step of training", "ms a step of the monitor", "share %", "looks", head=True)
    for which in ("organism", "control"):
        done = [measure_cost(which) for _ in range(repeats)]
        steps = done[0].monitor.last
        shares = [100 * each.spent / each.trained for each in done]
        trained, spent = (1000 * np.median([getattr(e, name) for e in done]) / steps for name in ("trained", "spent"))
        share = f"{np.median(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"
        print_row(which, f"{trained:.2f}", f"{spent:.3f}", share, len(done[0].monitor.looks))
    if run:
        path = load_trajectory(run)
        start = time.process_time()
        monitor = watch(path)
        print(f"\n{run}: {time.process_time() - start:.2f} s for {len(monitor.looks)} looks at {monitor.last} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=int, default=300)
    parser.add_argument("--cost", nargs="?", const="", help="measure the callback's share of training; a run to follow")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--tables", action="store_true", help="print what has been measured")
    given = parser.parse_args()
    if given.cost is not None:
        print_costs(given.cost)
        raise SystemExit
    if not given.tables:
        measure(given.runs, given.out)
    measured = read(given.out)
    print_tables(measured)
    print_cost(measured)
