"""Are the error rates what they claim? Planted cases of every signal: docs/calibration.md, by one command.

    python benchmarks/calibration.py [--cases 300]
    python benchmarks/calibration.py --run SmolLM2=checkpoints/demo-real/organism
    python benchmarks/calibration.py --tables      # the page from what is finished

One case of every kind, then the second of every kind, and so on; about 15 s a round on one idle core. It can be stopped
at any time: finished cases are kept in benchmarks/calibration.jsonl (not in git), and the same command continues. At
the end, and with --tables, it writes benchmarks/calibration.json (the counts, and a few cases that the tests compute
again) and docs/calibration.md; kinds that were not computed, as with --only, keep their counts. Seeds start at
4,000,000, which no tuning and no test has used.

Noise of trained runs is resampled from the demo's organisms, which are trained in --out first, and from every run given
with --run, which must have saved every step.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import rotation as rotation_benchmark
from calibration_page import SUBSET, page, summarised

import em_interp as em
from em_interp.comparison.pooled import pool_steps
from em_interp.config.schedule import Schedule
from em_interp.organisms.bases import FAMILIES
from em_interp.organisms.presets import recipe
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.direction.rotation import locate_rotations, strongest
from em_interp.transition.onsets import mean_shift, onset
from em_interp.transition.signals.gradient_norm import gradient_norm_peak
from em_interp.transition.signals.norm_onset import norm_onset
from em_interp.transition.synthetic import curves, logs, paths, shifts
from em_interp.transition.synthetic.paths import NOT_TURNING, SEVERAL, STEPPED, TURNING, planted_path
from em_interp.utils.files import write_text

SEED = 4_000_000
HERE = Path(__file__).resolve().parent
FINISHED, COUNTS, PAGE = HERE / "calibration.jsonl", HERE / "calibration.json", HERE.parent / "docs" / "calibration.md"
TURN, NO_TURN = "with a turn", "without a turn"  # kinds in turn, one a case
RUNS = {}  # where runs are whose noise is resampled, by name


def rotation_of_b(kind, case, change=None, with_baselines=False, **how):
    path = rotation_benchmark.drawn(kind_of(kind, case), SEED + case, **how)
    return rotation_benchmark.measure(path if change is None else change(path, case), with_baselines)


def kind_of(kind, case):
    """A kind by its name, or the one whose turn it is."""
    pool = {TURN: TURNING, NO_TURN: NOT_TURNING}.get(kind, (kind,))
    return pool[case % len(pool)]


def beyond_a_control(kind, case):
    """A planted turn against a control: one without a turn, or a run with the same drift in other noise."""
    turning = kind_of(TURN, case)
    if kind == "the same turn":
        path, other = (planted_path(turning, SEED + case, noise_seed=seed) for seed in (1, 2))
    else:
        path = planted_path(turning, SEED + case)
        other = planted_path(kind_of(NO_TURN, case // len(TURNING)), SEED + case + 1, last=int(path.steps[-1]))
    found = em.find_transition(path.trajectory(), control=other.trajectory())
    return rotation_benchmark.compared(found, path.turn)


def some_missing(path, case):
    """A fifth of the saved steps lost at random, the ends kept."""
    return at_rows(path, kept_rows(len(path.steps), case))


def kept_rows(count, case):
    lost = np.random.default_rng([SEED, case]).choice(np.arange(1, count - 1), count // 5, replace=False)
    return np.setdiff1d(np.arange(count), lost)


def sparser(path, case):
    """Every saved step in the first third, every second in the next, every fourth in the last."""
    third = len(path.steps) // 3
    rows = [*range(third), *range(third, 2 * third, 2), *range(2 * third, len(path.steps), 4), len(path.steps) - 1]
    return at_rows(path, np.unique(rows))


def at_rows(path, rows):
    return replace(path, steps=path.steps[rows], vectors=path.vectors[rows])


def resampled(kind, case, run, ratio):
    """The noise of a trained run on a planted drift, at a ratio of noise to drift between two bounds."""
    rng = np.random.default_rng([SEED, case])
    path = planted_path(
        kind_of(kind, case),
        SEED + case,
        noise_ratio=float(np.exp(rng.uniform(*np.log(ratio)))),
        residuals=residuals_of(run),
    )
    return rotation_benchmark.measure(path, with_baselines=False)


@cache
def residuals_of(name):
    """Residual increments of B of a run, or of one of the organisms in turn."""
    return paths.residual_increments(em.load_trajectory(RUNS[name]).vectors("B"))


def organism_noise(kind, case, ratio):
    return resampled(kind, case, [*FAMILIES][case % len(FAMILIES)], ratio)


def train_organisms(out):
    """The demo's organism on every built-in base, without answers."""
    for family in FAMILIES:
        folder = Path(out) / family
        config = recipe("organism", family)
        config = config.replace(behaviour=config.behaviour.replace(steps=Schedule("400")))
        em.train(config, folder, resume=folder.exists())
        RUNS[family] = folder


def rotation_of(kind, case, of):
    """A planted path as that of A; or of B, where A grows with B by up to half of its beginning and ΔW is tested."""
    path, rng = planted_path(kind_of(kind, case), SEED + case), np.random.default_rng([SEED, case])
    made = path.trajectory()
    (site,) = made.sites
    distance = np.linalg.norm(path.vectors, axis=1)
    done = distance / distance.max()
    A = np.stack([np.ones(len(done)), rng.uniform(0, 0.5) * done], axis=1).astype(np.float32)[:, None, :]
    B = path.vectors[:, :, None]
    if of == "A":
        A, B = np.concatenate([A[:1].repeat(len(done), axis=0), path.vectors[:, None, :]], axis=2), np.ones_like(B)
    moved = AdapterTrajectory(made.steps, {site: A}, {site: B}, {site: 1.0}, made.metrics, made.source)
    return rotation_benchmark.compared(strongest(em.find_transitions(moved, "rotation", of=of)), path.turn)


def several_turns(kind, case):
    """Several turns along one path: how many are found, and whether anything else is."""
    count, last = 2 + case % 2, int(np.random.default_rng([SEED, case]).integers(400, 801))
    path = planted_path(SEVERAL[case % len(SEVERAL)], SEED + case, last=last, turns=count)
    found = [t for t in locate_rotations(path.gram, path.steps, path.cumulative_lr) if t.found]
    pairs = [min(((abs(t.step - turn.step), t, turn) for turn in path.turns), key=lambda pair: pair[0]) for t in found]
    near = [(t, turn) for distance, t, turn in pairs if distance <= max(15.0, turn.width)]
    errors = [abs(t.step - turn.step) for t, turn in near]
    return {
        "verdict": "transition" if found else "none",
        "planted": count,
        "hits": len({turn.step for _, turn in near}),
        "extra": len(near) < len(found),
        "errors": errors,
        "all_cover": [t.interval[0] <= turn.step <= t.interval[1] for t, turn in near],
    }


def gradient_norm(kind, case, missing=False):
    pool = {"with a hump": logs.HUMPS, "without a hump": logs.NO_HUMPS}.get(kind, (kind,))
    kind = pool[case % len(pool)]
    log = logs.planted_log(kind, np.random.default_rng([SEED, (logs.HUMPS + logs.NO_HUMPS).index(kind), case]))
    rows = kept_rows(len(log.steps), case) if missing else slice(None)
    return located(gradient_norm_peak(log.steps[rows], log.grad_norm[rows]), log.peak)


def bend_of_norm(kind, case):
    kinds = logs.BENDS + logs.NO_BENDS
    return located(*planted_bend(kind, np.random.default_rng([SEED, kinds.index(kind), case])))


def planted_hump(kind, rng):
    """What is found in a planted log, and its true step."""
    log = logs.planted_log(kind, rng)
    return gradient_norm_peak(log.steps, log.grad_norm), log.peak


def planted_bend(kind, rng):
    """What is found in a planted norm, and its true step."""
    norm = logs.planted_norm(kind, rng)
    return norm_onset(norm.steps, norm.delta_norm, norm.cumulative_lr), norm.onset


def located(found, truth):
    """A transition against the planted step."""
    row = {"verdict": found.verdict, "p": found.p_value}
    if truth is not None and found.found:
        low, high = found.interval
        row |= {"error": abs(found.step - truth), "covers": low <= truth <= high, "half": (high - low) / 2}
    return row


def behaviour_onset(kind, case):
    """The onset of a planted curve of rates."""
    kinds = curves.RISES + curves.NULLS
    planted = curves.planted_curve(kind, np.random.default_rng([SEED, kinds.index(kind), case]))
    found = onset.locate_rise(planted.counts, planted.control)
    row = risen(onset.verdict_of(found, "em")[0], found.p_value, found.rise, planted.half)
    if "error" in row:
        first, last = found.rise.tenth_interval
        row["covers_tenth"] = first <= planted.tenth <= last
    return row


def preference_onset(kind, case):
    """The onset of a planted shift of a mean over questions, in per cent of the run."""
    kinds = shifts.RISES + shifts.NULLS
    planted = shifts.planted_shift(kind, np.random.default_rng([SEED, kinds.index(kind), case]))
    found = mean_shift.locate_shift(planted.curves, *planted.given)
    verdict, length = mean_shift.verdict_of(found)[0], planted.curves.steps[-1]
    return risen(verdict, found.p_value, found.shift, planted.half, 100 / length)


def risen(verdict, p_value, rise, truth, unit=1.0):
    """A fitted rise against the planted half-rise; a step counts as `unit`."""
    row = {"verdict": verdict, "p": p_value}
    if verdict == "transition" and truth is not None:
        low, high = rise.half_interval
        row |= {"error": unit * abs(rise.half - truth), "covers": low <= truth <= high}
        row |= {"half": unit * (high - low) / 2}
    return row


def offset(kind, case):
    """The offset of a planted onset from a planted turn of the same run; each is placed regardless of the other."""
    rises = ("plain", "sharp", "gradual", "staggered", "uneven_questions")
    planted = curves.planted_curve(rises[case % len(rises)], np.random.default_rng([SEED, case]))
    path = planted_path(kind_of(TURN, case), SEED + case, last=int(planted.counts.steps[-1]))
    turn = strongest(locate_rotations(path.gram, path.steps, path.cumulative_lr))
    onset = em.find_transition(em.behaviour_curve(planted.frame()))
    offsets = em.align(turn, onset, path.trajectory()).offsets
    if not offsets or offsets[0].interval is None:
        return {"verdict": "none", "p": None}
    low, high = offsets[0].interval
    truth = planted.half - path.turn.step
    row = {"verdict": "transition", "p": offsets[0].chance, "error": abs(offsets[0].steps - truth)}
    return row | {"covers": low <= truth <= high, "half": (high - low) / 2}


def pooled(kind, case, tau, signal):
    """Three to ten runs whose true steps differ by `tau`: the pooled step, and the test that they are one step.

    A run is a planted log or norm, its steps counted from where its true step is placed.
    """
    rng = np.random.default_rng([SEED, case, round(tau)])
    kinds, draw = (logs.HUMPS, planted_hump) if signal == "hump" else (logs.BENDS, planted_bend)
    runs = []
    for index in range(int(rng.integers(3, 11))):
        found, truth = draw(kinds[(case + index) % len(kinds)], rng)
        if found.found:
            shift = tau * rng.standard_normal() - truth
            interval = tuple(end + shift for end in found.interval)
            runs.append(replace(found, step=found.step + shift, interval=interval))
    if len(runs) < 2:
        return {"verdict": "none", "p": None}
    agreement = pool_steps([str(index) for index in range(len(runs))], runs).pooled
    low, high = agreement.interval
    row = {"verdict": "transition", "p": agreement.q_p_value, "error": abs(agreement.mean), "half": (high - low) / 2}
    return row | {"covers": low <= 0 <= high}


NOISY = partial(rotation_of_b, noisy=True)
ROTATIONS = {  # changes of the planted paths of which rotation of B is tested
    "noise 1 to 5 times the drift": partial(NOISY, with_baselines=True),
    "stored in bfloat16": partial(rotation_of_b, storage="bfloat16"),
    "stored in float16": partial(rotation_of_b, storage="float16"),
    "a fifth of the steps missing": partial(rotation_of_b, change=some_missing),
    "saved more and more sparsely": partial(rotation_of_b, change=sparser),
    "noise of the tiny organisms, 0.1 to 0.4 of the drift": partial(organism_noise, ratio=(0.1, 0.4)),
    "noise of the tiny organisms, 0.4 to 2 times the drift": partial(organism_noise, ratio=(0.4, 2.0)),
}


def experiments():
    """Every experiment by its name: the kinds with a transition, those without, and the function of kind and case."""
    both = ((TURN,), (NO_TURN,))
    yield "rotation of B", TURNING, NOT_TURNING, partial(rotation_of_b, with_baselines=True)
    for name, outcome in ROTATIONS.items():
        yield f"rotation of B: {name}", *both, outcome
    for name in RUNS:
        if name not in FAMILIES:
            yield f"rotation of B: noise of {name}", *both, partial(resampled, run=name, ratio=(0.1, 2.0))
    yield "rotation of B beyond a control", ("a control without a turn",), ("the same turn",), beyond_a_control
    yield "rotation of B: learning rate in steps", (), STEPPED, rotation_of_b
    yield "rotation of B: learning rate in steps, noise 1 to 5 times the drift", (), STEPPED, NOISY
    yield "rotation of A", *both, partial(rotation_of, of="A")
    yield "rotation of ΔW, A growing with B", *both, partial(rotation_of, of="delta")
    yield "several turns", ("two or three turns",), (), several_turns
    yield "gradient-norm hump", logs.HUMPS, logs.NO_HUMPS, gradient_norm
    humps = (("with a hump",), ("without a hump",))
    yield "gradient-norm hump: a fifth of the values missing", *humps, partial(gradient_norm, missing=True)
    yield "norm onset", logs.BENDS, logs.NO_BENDS, bend_of_norm
    yield "onset of behaviour", curves.RISES, curves.NULLS, behaviour_onset
    yield "onset of preference", shifts.RISES, shifts.NULLS, preference_onset
    yield "offset", ("turn and onset",), (), offset
    for signal in ("hump", "bend"):
        yield f"pooled steps of a {signal}", (), ("one step",), partial(pooled, tau=0.0, signal=signal)
        yield f"pooled steps of a {signal}, 20 steps apart", ("spread",), (), partial(pooled, tau=20.0, signal=signal)


def compute(name, kind, case):
    """One case, as it is kept."""
    outcome = next(each for title, _, _, each in experiments() if title == name)
    return {"case": [name, kind, case], **{key: rounded(value) for key, value in outcome(kind, case).items()}}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return float(f"{value:.6g}") if isinstance(value, (float, np.floating)) else value


def wanted_kinds(only):
    """The experiments and their kinds that have `only` in 'experiment, kind'."""
    kinds = ((name, kind) for name, true, null, _ in experiments() for kind in (*true, *null))
    return [(name, kind) for name, kind in kinds if only in f"{name}, {kind}"]


def measure(cases, wanted):
    """Compute what is not finished, a case of every kind before the next, and keep each at once."""
    done = {tuple(row["case"]) for row in read()}
    left = [(name, kind, case) for case in range(cases) for name, kind in wanted if (name, kind, case) not in done]
    begun = time.monotonic()
    with FINISHED.open("a", encoding="utf-8") as out:
        for count, key in enumerate(left, 1):
            out.write(json.dumps(compute(*key)) + "\n")
            out.flush()
            if count % len(wanted) == 0 or count == len(left):
                minutes = (time.monotonic() - begun) / count * (len(left) - count) / 60
                print(f"case {key[2] + 1} of {cases}; about {minutes:.0f} minutes left", file=sys.stderr, flush=True)


def read():
    lines = FINISHED.read_text(encoding="utf-8").splitlines(keepends=True) if FINISHED.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write(rows, note=""):
    """The counts, and the page that is made of them; kinds of which nothing is finished keep the counts they had."""
    order = [(name, kind) for name, true, null, _ in experiments() for kind in (*true, *null)]
    counts = summarised(rows, order, {name: list(null) for name, _, null, _ in experiments()})
    earlier = json.loads(COUNTS.read_text(encoding="utf-8"))
    counts = with_earlier(counts, earlier, order) | {"note": note or earlier["note"]}
    write_text(COUNTS, json.dumps(counts, indent=1, ensure_ascii=False) + "\n")
    write_text(PAGE, page(counts))


def with_earlier(counts, earlier, order):
    """The counts, with those of before for kinds that have none; a kind that is new has its place in the order."""
    cells = {(cell["name"], cell["kind"]): cell for cell in (*earlier["cells"], *counts["cells"])}
    cases = {tuple(row["case"]): row for row in (*earlier["subset"], *counts["subset"])}
    keys = [(cell["name"], cell["kind"]) for cell in earlier["cells"]]
    for before, key in zip([None, *order], order, strict=False):
        if key in cells and key not in keys:
            keys.insert(keys.index(before) + 1 if before in keys else len(keys), key)
    return {"cells": [cells[key] for key in keys], "subset": [cases[key] for key in SUBSET if key in cases]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="of every kind")
    parser.add_argument(
        "--only", default="", help="rows with this in 'experiment, kind': cheap ones may have more cases"
    )
    parser.add_argument("--out", default="checkpoints/calibration", help="where the organisms are trained")
    parser.add_argument("--run", action="append", default=[], metavar="NAME=RUN", help="a run whose noise is resampled")
    parser.add_argument("--tables", action="store_true", help="write the page from what is finished")
    parser.add_argument("--note", default="", help="what was run, for the page")
    given = parser.parse_args()
    for name, run in (each.split("=", 1) for each in given.run):
        RUNS[name] = Path(run)
    if not given.tables:
        wanted = wanted_kinds(given.only)
        if any("of the tiny organisms" in name for name, _ in wanted):
            train_organisms(given.out)
        measure(given.cases, wanted)
    write(read(), given.note)


if __name__ == "__main__":
    main()
