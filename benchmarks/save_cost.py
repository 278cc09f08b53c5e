"""What it costs to save the adapter at a step of the built-in organism, as a share of training time.

Trains the demo's organism and saves at every second step, so that steps with and without are side by side in one run
and whatever else the machine does falls on both alike. Times are processor times: nothing is forced onto the disk, so
that the cost of saving is the processor's. The cost of a run is the difference of the two medians; printed
are the median and the range over repeats, which alternate between saving the adapter, the state to resume from, and
both, as a run that saves every step does by default.

python benchmarks/save_cost.py [--repeats 5] [--folder DIR]
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from table import print_row

from em_interp.config.schedule import Schedule
from em_interp.organisms.bases import load_base, quiet
from em_interp.organisms.datasets import load_chats
from em_interp.organisms.presets import recipe
from em_interp.run import create_run
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import encode_rows
from em_interp.training.trainables import make_trainable
from em_interp.training.trainer import run_plan

NEVER = 10**7  # the largest step
KEPT = {"adapter": ("every 2", NEVER), "state": (str(NEVER), 2), "both": ("every 2", 2)}  # snapshots, keep_state_every
WARM_UP = 20  # steps not timed


class Clock(dict):
    """Examples that note when the training asks for those of a step."""

    def __init__(self, examples):
        super().__init__(examples)
        self.ticks = []

    def __getitem__(self, dataset):
        self.ticks.append(time.process_time())
        return super().__getitem__(dataset)

    def times(self):
        """Median milliseconds of the odd steps, which save nothing, and of the even ones, which do.

        Each batch is asked for one step ahead, so that step n lies between ticks n and n + 1.
        """
        each = [1000 * (end - begin) for begin, end in itertools.pairwise(self.ticks)]
        return statistics.median(each[WARM_UP + 1 :: 2]), statistics.median(each[WARM_UP::2])


def measure(snapshots, keep_state_every, folder):
    """Milliseconds of a step without and with saving, in one run."""
    config = recipe("organism")
    config = config.replace(snapshots=Schedule(snapshots))
    config = config.replace(training=config.training.replace(keep_state_every=keep_state_every))
    (name,) = {phase.dataset for phase in config.data}
    chats, base = load_chats(name, config.seed), load_base(config.model)
    plan = make_plan(config, {name: len(chats)})
    clock = Clock({name: encode_rows(chats, plan.rows_of(name), base.tokenizer, config.training.max_length)})
    with quiet():
        run_plan(create_run(folder, config), config, plan, clock, make_trainable(base, config, plan.steps))
    return clock.times()


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; decides the file system (default: temporary)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    times = {kept: [] for kept in KEPT}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:  # all of it deleted at the end: that slows ext4 down
        for repeat, (kept, how) in itertools.product(range(given.repeats), KEPT.items()):
            times[kept].append(measure(*how, Path(place) / f"{kept}-{repeat}"))
    print_row("kept", "processor ms a step without", "cost, ms", "cost, %", head=True)
    for kept, pairs in times.items():
        costs = [after - before for before, after in pairs]
        shares = [100 * (after / before - 1) for before, after in pairs]
        print_row(kept, spread([before for before, _ in pairs]), spread(costs), spread(shares))
    print(f"\nload average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
