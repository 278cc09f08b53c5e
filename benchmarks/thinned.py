"""Does the interval of a rotation contain the step that is estimated from fewer checkpoints?

    python benchmarks/thinned.py RUN RUN… (such as checkpoints/tiny-sweep/runs/tiny-*)

For every run whose B turns: the nearest rotation in every 2nd, 4th and 5th checkpoint. The paths are trained ones, with
as many bends as they have. Prints a markdown table; 95 % Wilson intervals in brackets.
"""

import sys

import numpy as np
from table import print_row, share

KEPT = (2, 4, 5)


def found_in(path, every=1):
    from em_interp.transition.direction.rotation import locate_rotations

    rows = np.arange(0, len(path.steps), every)
    lr = None if np.isnan(path.cumulative_lr).any() else path.cumulative_lr[rows]
    return [turn for turn in locate_rotations(path.gram("B")[np.ix_(rows, rows)], path.steps[rows], lr) if turn.found]


def main(*runs):
    from em_interp import load_trajectory
    from em_interp.transition.direction.rotation import strongest

    held, widths = {every: [] for every in KEPT}, []
    for run in runs:
        path = load_trajectory(run)
        if not (whole := found_in(path)):
            continue
        turn = strongest(whole)
        low, high = turn.interval
        widths.append(high - low)
        for every in KEPT:
            if thinned := found_in(path, every):
                nearest = min((other.step for other in thinned), key=lambda step: abs(step - turn.step))
                held[every].append(low <= nearest <= high)
    print_row("saved every", "found again", "within the interval of the whole path, %", head=True)
    for every, hits in held.items():
        print_row(every, f"{len(hits)} of {len(widths)}", share(hits))
    print(f"\nInterval of the whole path, in steps: median {np.median(widths):.0f}, largest {max(widths):.0f}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
