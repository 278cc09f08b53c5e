"""Error rates of `gradient_norm_peak` and `norm_onset` on planted logs and norms.

    python benchmarks/simple_signals.py [cases a kind]

Prints markdown tables: power, error, coverage of the 95 % interval, false positives. Seeds start with 2029, which
no tuning and no test has used. 95 % binomial (Wilson) intervals in brackets.
"""

import sys
from collections import defaultdict

import numpy as np
from table import share

from em_interp.transition.signals.gradient_norm import gradient_norm_peak
from em_interp.transition.signals.norm_onset import norm_onset
from em_interp.transition.synthetic.logs import BENDS, HUMPS, NO_BENDS, NO_HUMPS, TOO_GRADUAL, planted_log, planted_norm

SEED = 2029


def log_outcome(kind, rng):
    """One planted log: the answer and the truth."""
    planted = planted_log(kind, rng)
    return gradient_norm_peak(planted.steps, planted.grad_norm), planted.peak, {"noise memory": planted.memory}


def norm_outcome(kind, rng):
    """One planted norm: the answer and the truth."""
    planted = planted_norm(kind, rng)
    spacing = "every 5 saved" if np.max(np.diff(planted.steps)) > 1 else "all saved"
    answer = norm_onset(planted.steps, planted.delta_norm, planted.cumulative_lr)
    return answer, planted.onset, {"steps": spacing}


def grouped(outcome, kinds, offset, cases):
    """Answers and truths by kind, over all kinds, and by what else the outcome tells of a case."""
    groups = defaultdict(list)
    for index, kind in enumerate(kinds):
        for case in range(cases):
            answer, truth, more = outcome(kind, np.random.default_rng([SEED, offset + index, case]))
            for name in (kind, "all", *(f"{key} {value}" for key, value in more.items())):
                groups[name].append((answer, truth))
    return {name: groups[name] for name in (*kinds, "all", *sorted(groups.keys() - {*kinds, "all"}))}


def print_found(name, groups):
    """Power, error, and coverage of the interval."""
    print(f"\n| {name} | cases | found % | interval covers % | median error | 95 % of errors | median interval |")
    print("|---|---|---|---|---|---|---|")
    for kind, rows in groups.items():
        found = [(answer, truth) for answer, truth in rows if answer.found]
        errors = [abs(answer.step - truth) for answer, truth in found]
        covered = [answer.interval[0] <= truth <= answer.interval[1] for answer, truth in found]
        wide = np.median([answer.interval[1] - answer.interval[0] for answer, _ in found])
        columns = [len(rows), share([answer.found for answer, _ in rows]), share(covered)]
        columns += [f"{np.median(errors):.1f}", f"{np.quantile(errors, 0.95):.1f}", f"{wide:.0f}"]
        print(f"| {kind} | " + " | ".join(map(str, columns)) + " |", flush=True)


def print_false(name, groups):
    """False positives."""
    print(f"\n| {name} | cases | transition % | inconclusive % | p ≤ 0.01 % | p ≤ 0.05 % | p ≤ 0.1 % |")
    print("|---|---|---|---|---|---|---|")
    for kind, rows in groups.items():
        verdicts = [answer.verdict for answer, _ in rows]
        ps = [np.inf if answer.p_value is None else answer.p_value for answer, _ in rows]
        columns = [len(rows), *(share([v == word for v in verdicts]) for word in ("transition", "inconclusive"))]
        columns += [share([p <= alpha for p in ps]) for alpha in (0.01, 0.05, 0.1)]
        print(f"| {kind} | " + " | ".join(map(str, columns)) + " |", flush=True)


def main(cases):
    """Print the tables."""
    print_found("gradient norm with a hump", grouped(log_outcome, HUMPS, 0, cases))
    print_false("gradient norm without a hump", grouped(log_outcome, NO_HUMPS, 100, cases))
    print_found("norm with a bend", grouped(norm_outcome, BENDS, 200, cases))
    print_false("norm without a bend", grouped(norm_outcome, NO_BENDS, 300, cases))
    print_false("norm that bends all along", grouped(norm_outcome, TOO_GRADUAL, 400, cases))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
