"""Real trained paths with a known truth: is a change of the training data found, and a restart left alone?

    python benchmarks/switched.py [seeds] [family] [processes]

Trains the built-in organism's switched runs (`em_interp/organisms/presets.py`), seeds 100, 101, …, which no tuning has
used, and looks for rotations in B, A and ΔW. A hit is a rotation within 15 steps of the change of data, or of the
restart. Chance is the share of the run's steps within 15 of some rotation found: how often a change placed anywhere
would have been hit. Prints a markdown table.
"""

import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from table import print_row, share

SEED = 100
NEAR = 15
KINDS = ("switched", "switched-restart", "restart")


def measure(job):
    """The steps of the rotations found in one trained run, and the run's last step."""
    kind, family, seed = job
    import torch

    from em_interp import find_transitions, load_trajectory, train
    from em_interp.organisms.presets import recipe

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = load_trajectory(train(recipe(kind, family, seed=seed), Path(folder) / "run"))
    found = find_transitions(path, "rotation")
    return {
        "kind": kind,
        "seed": seed,
        "last": int(path.steps[-1]),
        **{of: [t.step for t in found if t.of == of and t.found] for of in ("B", "A", "delta")},
    }


def hit(row, change):
    return any(abs(step - change) <= NEAR for of in ("B", "A", "delta") for step in row[of])


def chance(row):
    steps = np.arange(1, row["last"] + 1)
    found = np.array([step for of in ("B", "A", "delta") for step in row[of]])
    return float((np.abs(steps[:, None] - found) <= NEAR).any(axis=1).mean()) if len(found) else 0.0


def main(seeds=10, family="qwen2", processes=1):
    from em_interp.organisms.presets import SWITCH_STEP

    jobs = [(kind, family, SEED + i) for kind in KINDS for i in range(seeds)]
    with get_context("spawn").Pool(processes, maxtasksperchild=5) as pool:
        rows = pool.map(measure, jobs, chunksize=1)
    print_row("run", "hits, %", "chance", "rotations of B", "of A", "of ΔW", head=True)
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        steps = ["; ".join(", ".join(f"{s:.0f}" for s in row[of]) or "–" for row in mine) for of in ("B", "A", "delta")]
        print_row(kind, share([hit(row, SWITCH_STEP) for row in mine]), f"{np.mean([*map(chance, mine)]):.0%}", *steps)


if __name__ == "__main__":
    main(*(int(a) if a.isdigit() else a for a in sys.argv[1:]))
