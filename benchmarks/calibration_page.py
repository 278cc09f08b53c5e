"""docs/calibration.md: counts of the cases of benchmarks/calibration.py, and their tables."""

from collections import defaultdict

import numpy as np
from table import rate_text, table, wilson

LEVELS = (0.01, 0.05, 0.1)
NEAR = 15  # steps
REAL_DIFFERENCES = ("glitch", "trifle")
NAMES = {
    "ruptures": "ruptures",
    "e_divisive": "E-divisive",
    "k = 10": "heuristic, k = 10",
    "k = 15": "k = 15",
    "k = 20": "k = 20",
}
SUBSET = (  # computed again by the tests: name, kind, case
    ("rotation of B", "abrupt", 0),
    ("rotation of B", "straight", 1),
    ("rotation of B: stored in bfloat16", "with a turn", 2),
    ("rotation of B: a fifth of the steps missing", "without a turn", 0),
    ("rotation of B beyond a control", "the same turn", 0),
    ("rotation of ΔW, A growing with B", "with a turn", 0),
    ("several turns", "two or three turns", 2),
    ("gradient-norm hump", "gaussian", 0),
    ("gradient-norm hump", "valley", 1),
    ("norm onset", "sharp", 0),
    ("onset of behaviour", "plain", 0),
    ("onset of preference", "as_control", 0),
    ("offset", "turn and onset", 0),
    ("pooled steps of a bend", "one step", 0),
)


def summarised(rows, order, nulls):
    """The counts of every kind, and the cases of SUBSET."""
    groups = defaultdict(dict)
    for row in rows:
        name, kind, case = row["case"]
        groups[name, kind][case] = row
    cells = [
        {"name": name, "kind": kind, "null": kind in nulls[name], **counts([*groups[name, kind].values()])}
        for name, kind in order
        if groups[name, kind]
    ]
    subset = [groups[name, kind][case] for name, kind, case in SUBSET if case in groups[name, kind]]
    return {"cells": cells, "subset": subset}


def counts(rows):
    """What the tables need of the cases of one kind."""
    found = [row for row in rows if row["verdict"] == "transition"]
    placed = [row for row in rows if "covers" in row]
    p = [1.0 if row.get("p") is None else row["p"] for row in rows]
    cell = {
        "n": len(rows),
        "transition": len(found),
        "inconclusive": sum(row["verdict"] == "inconclusive" for row in rows),
        "p": {str(level): sum(each <= level for each in p) for level in LEVELS},
        "placed": len(placed),
        "near_own": sum(row["error"] <= NEAR for row in placed),
    }
    for key in ("covers", "covers_unrounded", "covers_tenth"):
        if placed and all(key in row for row in placed):
            cell[key] = sum(row[key] for row in placed)
    if placed:
        cell["error"] = quantiles([row["error"] for row in placed])
        cell["half"] = float(f"{np.median([row['half'] for row in placed]):.4g}")
    for key in ("named", "near"):
        if rows and all(key in row for row in rows):
            cell[key] = {name: sum(row[key][name] for row in rows) for name in NAMES}
    if rows and "planted" in rows[0]:
        covers = [each for row in rows for each in row["all_cover"]]
        cell |= {"planted": sum(row["planted"] for row in rows), "hits": sum(row["hits"] for row in rows)}
        cell |= {"extra": sum(row["extra"] for row in rows), "near_found": len(covers), "near_cover": sum(covers)}
        cell["error"] = quantiles([each for row in rows for each in row["errors"]])
    return cell


def quantiles(values):
    return [float(f"{np.quantile(values, share):.4g}") for share in (0.5, 0.95)] if values else None


def page(summary):
    """The page of these counts."""
    cells = summary["cells"]
    groups = defaultdict(list)
    for cell in cells:
        groups[cell["name"]].append(cell)
    sizes = sorted({cell["n"] for cell in cells})
    span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    parts = [HEAD.format(cases=span), summary["note"], "## Summary", summary_text(cells), NULLS, null_table(cells)]
    parts += [PLANTED, planted_table(cells), SEVERAL, several_table(groups["several turns"])]
    parts += [BASELINES, baseline_table(cells), REST]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def summary_text(cells):
    """Where a null exceeds its level, and where an interval covers too seldom, beyond the binomial interval."""
    nulls = [cell for cell in cells if null_holds(cell)]
    over = [
        f"{title(cell)}: p ≤ {level} in {rate_text(cell['p'][str(level)], cell['n'])} %"
        for cell in nulls
        for level in LEVELS
        if wilson(cell["p"][str(level)], cell["n"])[0] > level
    ]
    placed = [cell for cell in cells if cell.get("placed") and not cell["null"]]
    short = [
        f"{title(cell)}: {rate_text(cell['covers'], cell['placed'])} % covered"
        for cell in placed
        if wilson(cell["covers"], cell["placed"])[1] < 0.95
    ]
    lines = [
        "- Means over the kinds of a signal, without intervals, since several kinds reuse the same paths:",
        "",
        signal_table(nulls, placed),
        "",
        f"- Kinds with p ≤ α significantly more often than α ({len(nulls)} kinds × 3 levels, so about "
        f"{0.025 * 3 * len(nulls):.0f} by chance if every test were exact): {'; '.join(over) or 'none'}.",
        f"- Kinds with coverage significantly below 95 % (of {len(placed)}): {'; '.join(short) or 'none'}.",
    ]
    return "\n".join(lines)


def signal_table(nulls, placed):
    """P(p ≤ 0.05) without a transition and coverage with one, each the mean over all cases of a signal."""
    body = []
    for signal in dict.fromkeys(signal_of(cell) for cell in (*nulls, *placed)):
        shares = []
        for group, key, of in (
            (nulls, lambda cell: cell["p"]["0.05"], "n"),
            (placed, lambda cell: cell["covers"], "placed"),
        ):
            cells = [cell for cell in group if signal_of(cell) == signal]
            count, n = sum(map(key, cells)), sum(cell[of] for cell in cells)
            shares.append(f"{100 * count / n:.1f} ({len(cells)} kind{'s' * (len(cells) > 1)}, {n} cases)" if n else "–")
        body.append((signal, *shares))
    return table(("signal", "without a transition: p ≤ 0.05 in %", "with one: the interval holds the truth in %"), body)


def signal_of(cell):
    """The signal of an experiment, whatever its paths are stored as or their noise is."""
    name = cell["name"].split(":")[0].split(",")[0]
    return "pooled steps" if name.startswith("pooled") else name


def title(cell):
    return f"{cell['name']}, {cell['kind'].replace('_', ' ')}"


def null_table(cells):
    head = ("signal", "kind", "cases", "transition %", "inconclusive %", *(f"p ≤ {level} %" for level in LEVELS))
    body = [
        (
            cell["name"],
            cell["kind"],
            cell["n"],
            *(rate_text(cell[verdict], cell["n"]) for verdict in ("transition", "inconclusive")),
            *(rate_text(cell["p"][str(level)], cell["n"]) for level in LEVELS),
        )
        for cell in cells
        if is_null(cell)
    ]
    return table(head, body)


def null_holds(cell):
    """Whether the null hypothesis is true: one odd checkpoint, or a shift too small to matter, is a real difference."""
    return is_null(cell) and cell["kind"] not in REAL_DIFFERENCES


def is_null(cell):
    """Kinds without a transition, and offsets, whose `chance` has a null of its own."""
    return cell["null"] or cell["name"] == "offset"


def planted_table(cells):
    head = ("signal", "kind", "cases", "found %", "covered %", "error: median, 95 %", "± interval")
    body = [
        (
            cell["name"],
            cell["kind"],
            cell["n"],
            rate_text(cell["transition"], cell["n"]),
            covered_text(cell),
            f"{cell['error'][0]:.3g}, {cell['error'][1]:.3g}" if cell.get("error") else "–",
            f"{cell['half']:.3g}" if "half" in cell else "–",
        )
        for cell in cells
        if not cell["null"] and "planted" not in cell
    ]
    return table(head, body)


def covered_text(cell):
    if not cell["placed"]:
        return "–"
    text = rate_text(cell["covers"], cell["placed"])
    if "covers_unrounded" in cell:
        text += f"; before rounding {100 * cell['covers_unrounded'] / cell['placed']:.1f}"
    if "covers_tenth" in cell:
        text += f"; of the tenth point {100 * cell['covers_tenth'] / cell['placed']:.1f}"
    return text


def several_table(cells):
    head = ("turns", "paths", "turns found %", "covered %", "error: median, 95 %", "paths with a turn too many %")
    body = [
        (
            cell["kind"],
            cell["n"],
            rate_text(cell["hits"], cell["planted"]),
            rate_text(cell["near_cover"], cell["near_found"]),
            f"{cell['error'][0]:.3g}, {cell['error'][1]:.3g}" if cell["error"] else "–",
            rate_text(cell["extra"], cell["n"]),
        )
        for cell in cells
    ]
    return table(head, body)


def baseline_table(cells):
    """Within 15 steps of a planted turn, and answers without one."""
    head = ("paths", "kind", "", "em_interp %", *(f"{name} %" for name in NAMES.values()))
    body = []
    for cell in cells:
        if "named" in cell:
            what, key = ("answers", "named") if cell["null"] else ("within 15 steps", "near")
            own = rate_text(cell["transition" if cell["null"] else "near_own"], cell["n"])
            body.append(
                (cell["name"], cell["kind"], what, own, *(rate_text(cell[key][name], cell["n"]) for name in NAMES))
            )
    return table(head, body)


HEAD = """
# Calibration
Are p-values, intervals and recall what they claim? This page tests every signal on planted (synthetic) cases, {cases}
of each kind, which `python benchmarks/calibration.py` computes and counts. No tuning and no test has used their seeds.
Brackets are 95 % binomial (Wilson) intervals. The counts are in `benchmarks/calibration.json`, with a few cases that
the tests compute again.

The cases come from `em.planted_path`, `planted_log`, `planted_norm`, `planted_curve` and `planted_shift`. The rows
*with a turn* and *without a turn* take the kinds of paths in rotation. *Noise of the tiny organisms*: a planted drift
with the residual increments of B of the demo's organism on each of the three bases, resampled in blocks of 20 steps
(`residual_increments` in `em_interp.transition.synthetic.paths`); *of SmolLM2*: with those of the organism of
`make demo-real`, 200 steps. *ΔW*: B is the planted path, and A grows with it by up to half of its initial size.
*Beyond a control*: the turn is tested against a control's path, which has no turn, or the same drift with the same turn
in different noise.
"""
NULLS = """
## Without a transition
P(p ≤ α) should be at most α. For rotations and humps it is far below, because their null hypotheses are wide (a turn
of up to 20°; any trend without a hump) and few planted cases are at the edge. For pooled steps the p-value is that of
Cochran's Q, and all runs have one true step. For an offset it is `chance`, and turn and onset are placed independently.

A glitch (one checkpoint that answers differently) and a trifle (a shift of 0.003 nats) are real differences. The
p-value may detect them, but the verdict should not be a transition.
"""
PLANTED = """
## With a transition
Errors and intervals are in steps, for preference in per cent of the run. Coverage is that of the nominal 95 % interval
in cases where a transition was found. Intervals of rotations are rounded outward to whole steps; their coverage before
rounding is given too. If a fifth of the saved steps is missing at random, only the longest evenly spaced stretch is
used, and more verdicts are inconclusive. `at_once`: a rise from step 0 on that is not logistic but an exponential
approach, whose half-rise is counted from step 0. `read_early`: the same, measured at 13 steps, half of them in the
first fifth of the run, with noise that all questions share. An order of two changes is claimed only if the tenth points
agree with it; their coverage is given beside that of the half-rise. Pooled: the true steps of the runs have a standard
deviation of 20 steps.
"""
SEVERAL = """
## Several turns along one path
The paths have two or three turns of 60 to 120° in 400 to 800 steps. A turn counts as found if a rotation is within 15
steps of it, or within its width if that is more; every other rotation is one too many.
"""
BASELINES = """
## Baselines
How often each method names a step within 15 steps of the planted turn, and, on paths without a turn, any step at all.
ruptures: `KernelCPD`, linear kernel, BIC penalty. E-divisive: energy distance, 199 permutations at 0.05. Both use the
directions of successive displacements over 10 steps. To them any bend is a change of the mean, and noise with momentum
violates their assumption of independence. The heuristic, the step of the largest local cosine, always names a step.
"""
REST = """
## What is not covered
Paths whose noise has heavier tails than Gaussian or is slower than momentum (the residuals above lack noise slower
than 41 steps), and turns below 60°. Intervals are for one training run and say nothing about other seeds; pooled steps
do.
"""
