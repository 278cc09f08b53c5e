"""Error rates of `rotation` and of the published heuristic on planted paths: the tables of docs/rotation.md.

    python benchmarks/rotation.py [cases a kind] [processes]

Prints two markdown tables for the planted paths as they are, two for paths whose noise over 10 steps is 1 to 5 times
the drift (as on real paths; `noisy_turn` is for those), and one for paths stored in 16 bits. Seeds start at 1,000,000,
which no tuning and no test has used. 95 % binomial (Wilson) intervals in brackets.
"""

import sys
from functools import partial
from multiprocessing import Pool

import numpy as np
from table import print_row, share

from em_interp.transition.local_cosine import largest_local_cosine
from em_interp.transition.rotation import locate_rotations, strongest
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path

SEED = 1_000_000
SPACINGS = (10, 15, 20)


NOISY = (1.0, 5.0)  # noise over drift
LONG = (600, 1600)  # steps of a noisy run


def measure(case, kind, noisy=False, storage="float32"):
    """The answers of the estimator and of the heuristic on one path."""
    rng, more = np.random.default_rng(SEED + case), {}
    if noisy:
        more = {"last": int(rng.integers(*LONG)), "noise_ratio": float(np.exp(rng.uniform(*np.log(NOISY))))}
    path = planted_path(kind, SEED + case, storage=storage, **more)
    gram, last, rounding = path.gram, path.settings["last"], path.trajectory().rounding("B")
    found = strongest(locate_rotations(gram, path.steps, path.cumulative_lr, rounding=rounding))
    row = {"last": last, "verdict": found.verdict, "p": found.p_value, "settings": path.settings}
    for k in SPACINGS:
        step, height = largest_local_cosine(gram, path.steps, k)
        row[f"named_{k}"], row[f"height_{k}"] = step, height
    if path.turn is not None:
        row["beyond"] = max(8.0, path.turn.width / 2)
        for k in SPACINGS:
            row[f"hit_{k}"] = row[f"named_{k}"] is not None and abs(row[f"named_{k}"] - path.turn.step) <= 15
        if found.found:
            row |= {"error": abs(found.step - path.turn.step), "angle": found.angle_deg - path.turn.angle_deg}
            row["covers"] = found.interval[0] <= path.turn.step <= found.interval[1]
            row["covers_unrounded"] = found.evidence["ramp"][0] <= path.turn.step <= found.evidence["ramp"][1]
            row["half"] = (found.interval[1] - found.interval[0]) / 2
    return row


def print_turning(kind, rows):
    found = [row for row in rows if "error" in row]
    error = np.array([row["error"] for row in found])
    print_row(
        kind,
        share([row["verdict"] == "transition" for row in rows if row["last"] >= 300]),
        share([row["verdict"] == "transition" for row in rows if row["last"] < 300]),
        f"{np.median(error):.2f}, {error.max():.1f}" if len(error) else "",
        share([row["error"] > row["beyond"] for row in found]),
        share([row["covers_unrounded"] for row in found]),
        share([row["covers"] for row in found]),
        f"{np.median([row['half'] for row in found]):.1f}" if found else "",
        *(share([row[f"hit_{k}"] for row in rows]) for k in SPACINGS),
    )


def print_not_turning(kind, rows):
    p = np.array([1.0 if row["p"] is None else row["p"] for row in rows])
    print_row(
        kind,
        *(share([row["verdict"] == word for row in rows]) for word in ("transition", "inconclusive")),
        *(share(p <= alpha) for alpha in (0.01, 0.05, 0.1)),
        *(share([row[f"named_{k}"] is not None for row in rows]) for k in SPACINGS),
    )


def print_tables(pool, cases, **how):
    tables = {kind: pool.map(partial(measure, kind=kind, **how), range(cases)) for kind in TURNING + NOT_TURNING}
    heads = [f"heuristic within 15 steps, k = {k}" for k in SPACINGS]
    print_row(
        "turn",
        "found %, 300 steps and more",
        "found %, 150 to 300",
        "error in steps: median, largest",
        "further than max(8, half the width) %",
        "covered before rounding %",
        "covered %",
        "± interval",
        *heads,
        head=True,
    )
    for kind in TURNING:
        print_turning(kind, tables[kind])
    print()
    heads = [f"heuristic answers, k = {k}" for k in SPACINGS]
    print_row("no turn", "transition %", "inconclusive %", "p ≤ 0.01 %", "p ≤ 0.05 %", "p ≤ 0.1 %", *heads, head=True)
    for kind in NOT_TURNING:
        print_not_turning(kind, tables[kind])
    print(flush=True)


def print_storage(pool, cases):
    """Verdicts of the same paths in the number types in which adapters are stored."""
    print_row("stored as", "kinds", "transition %", "none %", "inconclusive %", head=True)
    for storage in ("float32", "bfloat16", "float16"):
        for name, kinds in (("with a turn", TURNING), ("without", NOT_TURNING)):
            rows = [r for kind in kinds for r in pool.map(partial(measure, kind=kind, storage=storage), range(cases))]
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
