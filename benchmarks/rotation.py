"""Error rates of `rotation` and of three baselines on planted paths: the tables of docs/rotation.md.

    python benchmarks/rotation.py [cases a kind] [processes]

Prints two markdown tables for the planted paths as they are, two for paths whose noise over 10 steps is 1 to 5 times
the drift (as on real paths; `noisy_turn` is for those), and one for paths stored in 16 bits. Seeds start at 1,000,000,
which no tuning and no test has used. 95 % binomial (Wilson) intervals in brackets. The baselines (`baselines.py`) are
ruptures, E-divisive and the published heuristic.
"""

import sys
from functools import partial
from multiprocessing import Pool

import numpy as np
from baselines import named_steps
from table import print_row, share

from em_interp.transition.direction.rotation import locate_rotations, strongest
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path

SEED = 1_000_000
NOISY = (1.0, 5.0)  # noise over drift
LONG = (600, 1600)  # steps of a noisy run
NEAR = 15  # steps: a baseline's hit
BASELINES = ("ruptures", "e_divisive", "k = 10", "k = 15", "k = 20")


def drawn(kind, seed, noisy=False, **more):
    """A planted path; a noisy one is long and has more noise than drift."""
    if noisy:
        rng = np.random.default_rng(seed)
        more = {"last": int(rng.integers(*LONG)), "noise_ratio": float(np.exp(rng.uniform(*np.log(NOISY)))), **more}
    return planted_path(kind, seed, **more)


def measure(path, with_baselines=True):
    """The answers of the estimator and of the baselines on one path."""
    found = strongest(
        locate_rotations(path.gram, path.steps, path.cumulative_lr, rounding=path.trajectory().rounding("B"))
    )
    row = {"last": path.settings["last"], **compared(found, path.turn)}
    if with_baselines:
        named = named_steps(path)
        row["named"] = {name: step is not None for name, step in named.items()}
        if path.turn is not None:
            near = {name: step is not None and abs(step - path.turn.step) <= NEAR for name, step in named.items()}
            row["near"] = near
    return row


def compared(found, turn):
    """The verdict and p-value of a rotation and, of one that was planted and found, its error and coverage."""
    row = {"verdict": found.verdict, "p": found.p_value}
    if turn is not None and found.found:
        row |= {"error": abs(found.step - turn.step), "beyond": abs(found.step - turn.step) > max(8.0, turn.width / 2)}
        row["covers"] = found.interval[0] <= turn.step <= found.interval[1]
        row["covers_unrounded"] = found.evidence["ramp"][0] <= turn.step <= found.evidence["ramp"][1]
        row["half"] = (found.interval[1] - found.interval[0]) / 2
        row["angle"] = found.angle_deg - turn.angle_deg
    return row


def measure_case(case, kind, **how):
    return measure(drawn(kind, SEED + case, **how))


def title(name):
    return {"e_divisive": "E-divisive"}.get(name, f"heuristic, {name}" if name.startswith("k") else name)


def print_turning(kind, rows):
    found = [row for row in rows if "error" in row]
    error = np.array([row["error"] for row in found])
    print_row(
        kind,
        share([row["verdict"] == "transition" for row in rows if row["last"] >= 300]),
        share([row["verdict"] == "transition" for row in rows if row["last"] < 300]),
        f"{np.median(error):.2f}, {error.max():.1f}" if len(error) else "",
        share([row["beyond"] for row in found]),
        share([row["covers_unrounded"] for row in found]),
        share([row["covers"] for row in found]),
        f"{np.median([row['half'] for row in found]):.1f}" if found else "",
        "{:.0f}, {:.0f} to {:.0f}".format(*np.quantile([row["angle"] for row in found], [0.5, 0, 1])) if found else "",
        *(share([row["near"][name] for row in rows]) for name in BASELINES),
    )


def print_not_turning(kind, rows):
    p = np.array([1.0 if row["p"] is None else row["p"] for row in rows])
    print_row(
        kind,
        *(share([row["verdict"] == word for row in rows]) for word in ("transition", "inconclusive")),
        *(share(p <= alpha) for alpha in (0.01, 0.05, 0.1)),
        *(share([row["named"][name] for row in rows]) for name in BASELINES),
    )


def print_tables(pool, cases, **how):
    tables = {kind: pool.map(partial(measure_case, kind=kind, **how), range(cases)) for kind in TURNING + NOT_TURNING}
    heads = [f"{title(name)} within 15 steps %" for name in BASELINES]
    print_row(
        "turn",
        "found %, 300 steps and more",
        "found %, 150 to 300",
        "error in steps: median, largest",
        "further than max(8, half the width) %",
        "covered before rounding %",
        "covered %",
        "± interval",
        "angle less the planted one: median, range",
        *heads,
        head=True,
    )
    for kind in TURNING:
        print_turning(kind, tables[kind])
    print()
    heads = [f"{title(name)} answers %" for name in BASELINES]
    print_row("no turn", "transition %", "inconclusive %", "p ≤ 0.01 %", "p ≤ 0.05 %", "p ≤ 0.1 %", *heads, head=True)
    for kind in NOT_TURNING:
        print_not_turning(kind, tables[kind])
    print(flush=True)


def print_storage(pool, cases):
    """Verdicts of the same paths in the number types in which adapters are stored."""
    print_row("stored as", "kinds", "transition %", "none %", "inconclusive %", head=True)
    for storage in ("float32", "bfloat16", "float16"):
        for name, kinds in (("with a turn", TURNING), ("without", NOT_TURNING)):
            rows = [
                r for kind in kinds for r in pool.map(partial(measure_case, kind=kind, storage=storage), range(cases))
            ]
            verdicts = ("transition", "none", "inconclusive")
            print_row(storage, name, *(share([row["verdict"] == verdict for row in rows]) for verdict in verdicts))
    print(flush=True)


def main(cases, processes):
    with Pool(processes) as pool:
        print_tables(pool, cases)
        print_tables(pool, cases, noisy=True)
        print_storage(pool, max(1, cases // 5))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300, int(sys.argv[2]) if len(sys.argv) > 2 else 2)
