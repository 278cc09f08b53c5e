"""Error rates of `onset` on planted behaviour curves: power, error, coverage, false positives.

    python benchmarks/onset.py [cases a kind]

Prints a markdown table. Seeds start with 777, which no tuning and no test has used. 95 % binomial (Wilson) intervals
in brackets.
"""

import sys

import numpy as np
from table import print_nulls, share

from em_interp.transition.onsets.onset import locate_rise, verdict_of
from em_interp.transition.synthetic.curves import NULLS, RISES, planted_curve

SEED = 777


def outcome(kind, case, seed=SEED):
    """One curve: verdict, p-value, error in steps, and whether the two intervals cover the truth."""
    planted = planted_curve(kind, np.random.default_rng([seed, (RISES + NULLS).index(kind), case]))
    found = locate_rise(planted.counts, planted.control)
    verdict = verdict_of(found, "em")[0]
    row = {"verdict": verdict, "p": found.p_value}
    if verdict == "transition" and planted.midpoint is not None:
        low, high = found.rise.midpoint_interval
        first, last = found.rise.tenth_interval
        row |= {"error": abs(found.rise.midpoint - planted.midpoint), "half": (high - low) / 2}
        row |= {"covers": low <= planted.midpoint <= high, "covers_tenth": first <= planted.tenth <= last}
    return row


def outcomes(kind, cases):
    return (outcome(kind, case) for case in range(cases))


def main(cases):
    """Print the two tables."""
    print("| rise | found % | half covered % | tenth covered % | median error | 95 % of errors | ± interval |")
    print("|---|---|---|---|---|---|---|")
    for kind in RISES:
        rows = list(outcomes(kind, cases))
        found = [row for row in rows if "error" in row]
        errors = [row["error"] for row in found]
        columns = [share([row["verdict"] == "transition" for row in rows])]
        columns += [share([row[key] for row in found]) for key in ("covers", "covers_tenth")]
        columns += [f"{np.median(errors):.1f}", f"{np.quantile(errors, 0.95):.1f}"]
        print(
            f"| {kind} | " + " | ".join(columns) + f" | {np.median([row['half'] for row in found]):.1f} |", flush=True
        )
    print_nulls("no rise", NULLS, outcomes, cases)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
