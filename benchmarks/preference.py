"""How well the onset of a mean over questions does on planted shifts: found share, error, coverage, false positives.

    python benchmarks/preference.py [cases a kind]

Prints a markdown table. Seeds start with 779, which no tuning and no test has used. 95 % binomial (Wilson) intervals
in brackets; errors and intervals in per cent of the run.
"""

import sys

import numpy as np
from table import print_nulls, share

from em_interp.transition.onsets.mean_shift import locate_shift, verdict_of
from em_interp.transition.synthetic.shifts import NULLS, RISES, planted_shift

SEED = 779


def outcome(kind, case, seed=SEED):
    """One set of curves: verdict, p-value, error, and whether the interval covers the truth."""
    planted = planted_shift(kind, np.random.default_rng([seed, (RISES + NULLS).index(kind), case]))
    found = locate_shift(planted.curves, *planted.given)
    verdict, length = verdict_of(found)[0], planted.curves.steps[-1]
    row = {"verdict": verdict, "p": found.p_value}
    if verdict == "transition" and planted.midpoint is not None:
        low, high = found.shift.midpoint_interval
        row |= {"error": 100 * abs(found.shift.midpoint - planted.midpoint) / length}
        row |= {"covers": low <= planted.midpoint <= high, "half": 50 * (high - low) / length}
    return row


def outcomes(kind, cases):
    return (outcome(kind, case) for case in range(cases))


def main(cases):
    """Print the two tables."""
    print("| shift | found % | half covered % | median error | 95 % of errors | ± interval |")
    print("|---|---|---|---|---|---|")
    for kind in RISES:
        rows = list(outcomes(kind, cases))
        found = [row for row in rows if "error" in row]
        errors = [row["error"] for row in found]
        cells = [share([row["verdict"] == "transition" for row in rows]), share([row["covers"] for row in found])]
        cells += [f"{np.median(errors):.1f}", f"{np.quantile(errors, 0.95):.1f}"]
        print(f"| {kind} | " + " | ".join(cells) + f" | {np.median([row['half'] for row in found]):.1f} |", flush=True)
    print_nulls("no shift", NULLS, outcomes, cases)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
