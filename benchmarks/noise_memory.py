"""How much a rotation depends on the momentum that its noise is taken to have, 0.9 a step in the tool.

    python benchmarks/noise_memory.py RUN RUN… (such as checkpoints/demo/organism)
    python benchmarks/noise_memory.py --planted 120

The rotations of each run's B, A and ΔW with noise of other momenta; or how many straight paths, whose noise has such a
momentum in truth, the tool calls turning. Prints markdown tables; 95 % Wilson intervals in brackets.
"""

import sys

from rotation import SEED
from table import print_row, share

MOMENTA = (0.9, 0.95, 0.98)
RATIOS = (None, 0.6, 1.0, 2.0, 4.0)  # of noise and drift over 10 steps; None: drawn from 0.1 to 0.4


def of_run(path):
    """By part and momentum: the verdict, the step and the p-value of the clearest rotation."""
    from em_interp import find_transition
    from em_interp.transition.direction import path_noise

    taken, found = path_noise.MOMENTUM, {}
    try:
        for momentum in MOMENTA:
            path_noise.MOMENTUM = momentum
            found |= {(part, momentum): find_transition(path, of=part) for part in ("B", "A", "delta")}
    finally:
        path_noise.MOMENTUM = taken
    return found


def planted(momentum, ratio, count):
    """Whether each of `count` straight paths with noise of this momentum is called turning."""
    from em_interp.transition.direction.rotation import locate_rotations
    from em_interp.transition.synthetic import paths

    drawn_with, paths.MOMENTUM, turning, seed = paths.MOMENTUM, momentum, [], SEED
    try:
        while len(turning) < count:
            path, seed = paths.planted_path("straight", seed, noise_ratio=ratio), seed + 1
            if path.settings["noise_in_time"] == "momentum":
                turning.append(any(t.found for t in locate_rotations(path.gram, path.steps, path.cumulative_lr)))
    finally:
        paths.MOMENTUM = drawn_with
    return turning


def words(found):
    """A rotation in a cell."""
    p = "" if found.p_value is None else f", p = {found.p_value:.2g}" if found.p_value > 1e-4 else ", p < 0.001"
    return f"{found.verdict}{f' at {found.step:.0f}' if found.found else ''}{p}"


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
