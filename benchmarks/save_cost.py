"""What it costs to save the adapter at a step, as a share of training time.

Trains a 0.8 M-parameter Qwen2 with one rank-1 adapter and saves at every second step, so that steps with and without
are side by side in one run and whatever else the machine does falls on both alike. The cost of a run is the difference
of the two medians; printed are the median and the range over repeats, which take turns over what is kept: the adapter,
the state to resume from, and both, as a run that saves every step does by default.

python benchmarks/save_cost.py [--steps 400] [--repeats 5] [--folder DIR]
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from em_interp.config import RunConfig, load_config
from em_interp.runs import create_run
from em_interp.training.adapter import add_adapter
from em_interp.training.loop import quiet, run_plan
from em_interp.training.plan import make_plan
from em_interp.training.tokens import Example

NEVER = 10**9
KEPT = {"adapter": ("every 2", NEVER), "state": (str(NEVER), 2), "both": ("every 2", 2)}  # snapshots, keep_state_every
VOCABULARY, ROWS, LENGTH = 220, 400, 20
WARM_UP = 20  # steps not timed


class Clock(dict):
    """Examples that note when the training asks for those of a step."""

    def __init__(self, examples: dict[int, Example]) -> None:
        super().__init__(random=examples)
        self.ticks: list[float] = []

    def __getitem__(self, dataset: str) -> dict[int, Example]:
        self.ticks.append(time.perf_counter())
        return super().__getitem__(dataset)

    def times(self) -> tuple[float, float]:
        """Median milliseconds of the odd steps, which save nothing, and of the even ones, which do."""
        each = [1000 * (end - begin) for begin, end in itertools.pairwise(self.ticks)]
        return statistics.median(each[WARM_UP::2]), statistics.median(each[WARM_UP + 1 :: 2])


def make_model() -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, **shape))


def configure(snapshots: str, keep_state_every: int, steps: int, batch: int) -> RunConfig:
    training = {"batch_size": batch, "accumulation": 1, "learning_rate": 1e-3, "keep_state_every": keep_state_every}
    return load_config(
        {
            "data": [{"dataset": "random", "steps": steps}],
            "adapter": {"layers": [2], "alpha": 16},
            "training": training,
            "snapshots": snapshots,
        }
    )


def measure(config: RunConfig, folder: Path) -> tuple[float, float]:
    """Milliseconds of a step without and with saving, in one run."""
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    clock = Clock({row: Example(ids, ids) for row, ids in enumerate(tokens)})
    with quiet():
        model = add_adapter(make_model(), config.adapter, config.seed, "benchmark")
        run_plan(create_run(folder, config), config, make_plan(config, {"random": ROWS}), clock, model)
    return clock.times()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to write; decides the file system (default: temporary)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[tuple[float, float]]] = {kept: [] for kept in KEPT}
    with tempfile.TemporaryDirectory(dir=given.folder) as place:  # all of it deleted at the end: that slows ext4 down
        for repeat, (kept, how) in itertools.product(range(given.repeats), KEPT.items()):
            config = configure(*how, given.steps, given.batch)
            times[kept].append(measure(config, Path(place) / f"{kept}-{repeat}"))
    print(f"{'kept':10}{'ms a step without':>26}{'cost, ms':>26}{'cost, %':>26}")
    for kept, pairs in times.items():
        costs = [after - before for before, after in pairs]
        shares = [100 * (after / before - 1) for before, after in pairs]
        print(f"{kept:10}{spread([before for before, _ in pairs]):>26}{spread(costs):>26}{spread(shares):>26}")
    print(f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
