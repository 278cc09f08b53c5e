"""How well the answer shift is located without a judge, on answers whose distributions are known at every step.

    python benchmarks/answer_shift.py [cases a kind]

Prints a markdown table. 12 questions, 6 answers a step, 21 steps of 20, windows of 60 steps on either side; the truth
is the peak of the divergence between the distributions themselves, without jitter. Seeds start with 778, which no
tuning and no test has used. 95 % binomial (Wilson) intervals in brackets.
"""

import sys

import numpy as np
from table import print_row, share

from em_interp.mechanism.answer_shift.divergence import Windows
from em_interp.mechanism.answer_shift.shift import parabola_peak
from em_interp.mechanism.answer_shift.synthetic import (
    HALF_WIDTH,
    STEPS,
    planted_answers,
    planted_divergence,
    planted_rise,
)

SEED = 778


def jittered(values, rng, size):
    return np.clip(values + size * rng.normal(size=len(values)), 0.005, 0.99)


DRIFT = np.linspace(0.1, 0.8, len(STEPS))
FLAT = np.full(len(STEPS), 0.4)
KINDS = {  # the share without jitter, and the jitter of checkpoints
    "abrupt": (planted_rise(200, 3), 0.0),
    "abrupt, 10 % of the answers": (0.02 + planted_rise(200, 3, 0.1), 0.0),
    "rise of scale 12": (planted_rise(200, 12), 0.0),
    "rise of scale 30": (planted_rise(200, 30), 0.0),
    "rise of scale 30, jitter 0.03": (planted_rise(200, 30), 0.03),
    "rise of scale 60": (planted_rise(200, 60), 0.0),
    "nothing": (FLAT, 0.0),
    "steady drift": (DRIFT, 0.0),
    "steady drift, jitter 0.05": (DRIFT, 0.05),
    "jitter 0.05": (FLAT, 0.05),
    "jitter 0.15": (FLAT, 0.15),
    "saturating drift": (0.7 * (1 - np.exp(-STEPS / 60.0)), 0.0),
}


def main(cases):
    """Print the table."""
    print_row(
        "share of the answers", "transition %", "inconclusive %", "covered %", "median error", "± interval", head=True
    )
    for number, (name, (values, jitter)) in enumerate(KINDS.items()):
        peaks, rises = [], name.startswith(("abrupt", "rise"))
        for case in range(cases):
            drawn = jittered(values, np.random.default_rng([SEED, number, case]), jitter) if jitter else values
            exact = planted_divergence(values, "linear", seed=SEED + case)
            truth = parabola_peak(Windows.of(STEPS, HALF_WIDTH).centres, exact)
            peaks.append((planted_answers(drawn, seed=SEED + case).peak, truth))
        found = [(peak, truth) for peak, truth in peaks if peak.found] if rises else []
        cells = [share([peak.verdict == word for peak, _ in peaks]) for word in ("transition", "inconclusive")]
        cells.append(share([peak.interval[0] <= truth <= peak.interval[1] for peak, truth in found]))
        errors = [abs(peak.step - truth) for peak, truth in found]
        halves = [(peak.interval[1] - peak.interval[0]) / 2 for peak, _ in found]
        print_row(name, *cells, *(f"{np.median(one):.0f}" if found else "–" for one in (errors, halves)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
