"""How much a rotation depends on the momentum that its noise is taken to have, 0.9 a step in the tool.

    python benchmarks/noise_memory.py RUN RUN… (such as checkpoints/demo/organism)
    python benchmarks/noise_memory.py --planted 120

The rotations of each run's B, A and ΔW with noise of other momenta; or how many straight paths, whose noise has such a
momentum in truth, the tool calls turning. Prints markdown tables; 95 % Wilson intervals in brackets.
"""

import itertools
import sys
from unittest.mock import patch

from rotation import SEED
from table import print_row, share

MOMENTA = (0.9, 0.95, 0.98)
RATIOS = (None, 0.6, 1.0, 2.0, 4.0)  # of noise and drift over 10 steps; None: drawn from 0.1 to 0.4


def of_run(path):
    """The clearest rotation by part and momentum."""
    from em_interp import find_transition
    from em_interp.transition.direction import path_noise

    found = {}
    for momentum in MOMENTA:
        with patch.object(path_noise, "MOMENTUM", momentum):
            found |= {(part, momentum): find_transition(path, of=part) for part in ("B", "A", "delta")}
    return found


def planted(momentum, ratio, count):
    """Whether each of `count` straight paths with noise of this momentum is called turning."""
    from em_interp.transition.direction.rotation import locate_rotations
    from em_interp.transition.synthetic import paths

    with patch.object(paths, "MOMENTUM", momentum):
        drawn = (paths.planted_path("straight", seed, noise_ratio=ratio) for seed in itertools.count(SEED))
        slow = (path for path in drawn if path.settings["noise_in_time"] == "momentum")
        return [
            any(turn.found for turn in locate_rotations(path.gram, path.steps, path.cumulative_lr))
            for path in itertools.islice(slow, count)
        ]


def words(found):
    """A rotation in a cell."""
    from em_interp.transition.result import p_text

    at = f" at {found.step:.0f}" if found.found else ""
    return f"{found.verdict}{at}{'' if found.p_value is None else f', {p_text(found.p_value)}'}"


def main(*given):
    from em_interp import load_trajectory

    if given[:1] == ("--planted",):
        print_row("noise over drift", *(f"momentum {momentum}, %" for momentum in MOMENTA), head=True)
        for ratio in RATIOS:
            print_row(ratio or "0.1 to 0.4", *(share(planted(momentum, ratio, int(given[1]))) for momentum in MOMENTA))
        return
    print_row("run", "of", *(f"momentum {momentum}" for momentum in MOMENTA), head=True)
    for run in given:
        found = of_run(load_trajectory(run))
        for part in ("B", "A", "delta"):
            print_row(run, part, *(words(found[part, momentum]) for momentum in MOMENTA))


if __name__ == "__main__":
    main(*sys.argv[1:])
