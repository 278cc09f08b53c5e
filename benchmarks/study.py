"""Do the signals hold on organisms? Families × domains × seeds with as many controls: docs/study.md, by one command.

    python benchmarks/study.py --out checkpoints/study
    python benchmarks/study.py --families qwen2 --domains medical --seeds 3
    python benchmarks/study.py --tables     # the page from the rows that there are

Trains, judges and analyses the demo's organism and its control for every family, domain and seed on the built-in bases,
through `em.sweep`, one seed after the other: about half a minute a run on one idle core. It can be stopped at any time;
the same command continues. After each seed the finished runs are in benchmarks/study.json and the page is written anew.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from table import rate_text, table

import em_interp as em
from em_interp.comparison.pooled import pool_steps
from em_interp.organisms.bases import FAMILIES
from em_interp.organisms.presets import recipe
from em_interp.run import Run
from em_interp.sweeps.jobs import run_path
from em_interp.trajectory import geometry
from em_interp.transition.align import MAX_CHANCE, chance_of
from em_interp.transition.result import Transition
from em_interp.utils.files import read_json, write_text

HERE = Path(__file__).resolve().parent
ROWS, PAGE = HERE / "study.json", HERE.parent / "docs" / "study.md"
DOMAINS = ("medical", "sport", "finance")
SHARES = tuple(percent / 100 for percent in range(5, 101, 5))  # of the run: where it is asked what each score says
SIGNALS = {
    "rotation of B": ("rotation", "B"),
    "rotation of A": ("rotation", "A"),
    "rotation of ΔW": ("rotation", "delta"),
    "gradient-norm hump": ("gradient_norm", None),
    "norm onset of ΔW": ("norm_onset", "delta"),
}
SCORES = {
    "step": "step counter",
    "rotation": "monitor: rotation of B",
    "gradient_norm": "monitor: gradient-norm hump",
    "delta_norm": "norm of ΔW",
    "local_cosine": "largest local cosine of B so far (k = 10)",
    "grad_norm": "gradient norm, mean of the last 5 %",
}
N_BOOTSTRAP, BOOTSTRAP_SEED = 1000, 0


def sweep_config(families, domains, seed):
    """The sweep of one seed: an organism for every family and domain, and a control of the same seed for each."""
    base = recipe("organism").to_dict()
    return {
        "base": base,
        "settings": {"behaviour.scales": [1]},
        "grid": {
            "model": [f"tiny-{family}" for family in families],
            "data": [f"tiny:{domain}" for domain in domains],
            "seed": [seed],
        },
        "control": {"data": {f"tiny:{domain}": f"tiny:{domain}-careful" for domain in domains}},
    }


def study(given):
    """Carry out the sweeps that are not finished, seed by seed, and write rows and page after each."""
    rows, begun = {key_of(row): row for row in read_rows()}, time.monotonic()
    for done, seed in enumerate(range(given.seeds)):
        if all(key in rows for key in wanted(given, seed)):
            continue
        out = Path(given.out) / f"seed-{seed}"
        found = em.sweep(
            sweep_config(given.families, given.domains, seed), out, resume=out.exists(), jobs=given.jobs, log=print
        )
        for which, results in (("organism", found.runs), ("control", found.controls)):
            for result in results:
                row = row_of(which, result, out)
                rows[key_of(row)] = row
        ordered = sorted(rows.values(), key=key_of)
        write_text(ROWS, "[\n" + ",\n".join(json.dumps(row) for row in ordered) + "\n]\n")
        write_text(PAGE, page(ordered))
        left = (time.monotonic() - begun) / (done + 1) * (given.seeds - done - 1)
        print(f"seed {seed}: {done + 1} of {given.seeds}; about {left / 60:.0f} minutes left", flush=True)


def wanted(given, seed):
    """The keys of the rows of one seed."""
    names = [(family, domain) for family in given.families for domain in given.domains]
    return [
        key_of({"family": family, "domain": domain, "seed": seed, "run": run})
        for family, domain in names
        for run in ("organism", "control")
    ]


def read_rows():
    return json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []


def key_of(row):
    return [*FAMILIES].index(row["family"]), DOMAINS.index(row["domain"]), row["seed"], row["run"] == "control"


def row_of(which, result, out):
    """One run: its transitions, its onset, the monitor's alarms, and what every score says along the run."""
    plan = result.plan
    row = {
        "family": plan.values["model"].removeprefix("tiny-"),
        "domain": plan.values["data[0].dataset"].removeprefix("tiny:").removesuffix("-careful"),
        "seed": int(plan.values["seed"]),
        "run": which,
        "error": result.error,
    }
    if result.error:
        return row
    run = Run(run_path(out, plan.name))
    path = em.load_trajectory(run)
    located = [Transition.from_dict(found) for found in read_json(run.analysis / "locate.json")["transitions"]]
    onsets = {found["questions"]: Transition.from_dict(found) for found in result.summary["onsets"]}
    signals = {name: clearest(located, *signal) for name, signal in SIGNALS.items()}
    monitor = em.watch(path)
    final = result.summary["final"]
    return row | {
        "last": int(path.steps[-1]),
        "final_em": final and final["em"]["rate"],
        "signals": {name: short(found) for name, found in signals.items() if found},
        "onsets": {name: short(found) for name, found in onsets.items()},
        "alarms": {look.signal: look.step for look in monitor.alarms},
        "scores": scores_of(path, monitor),
    }


def clearest(located, signal, of):
    """The clearest transition of a signal, or the answer that there is none."""
    own = [found for found in located if found.signal == signal and (of is None or found.of in (None, of))]
    found = [each for each in own if each.found] or own
    return min(found, key=lambda each: 2.0 if each.p_value is None else each.p_value, default=None)


def short(found):
    keys = ("verdict", "step", "interval", "level", "p_value")
    return {key: rounded(found.to_dict()[key]) for key in keys}


def rounded(value):
    """Numbers to six digits, in lists too."""
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def scores_of(path, monitor):
    """Each score at SHARES of the run, from what was known by then."""
    last = int(path.steps[-1])
    at = [round(share * last) for share in SHARES]
    norms = np.interp(at, path.steps, geometry.norms(path.gram("delta")))
    cosine = np.nan_to_num(geometry.local_cosine(path.gram("B"), path.steps, 10), nan=-1.0)
    highest = np.maximum.accumulate(cosine)
    logged = path.metrics["grad_norm"].dropna()
    recent = [float(logged[(logged.index > step - last / 20) & (logged.index <= step)].mean()) for step in at]
    scores = {"step": at, "delta_norm": norms.tolist(), "grad_norm": recent}
    # the local cosine at a step needs the ten steps after it
    scores["local_cosine"] = [float(highest[np.searchsorted(path.steps, step - 10, "right") - 1]) for step in at]
    for signal in monitor.signals:
        looks = [look for look in monitor.looks if look.signal == signal]
        p = [min((look.run_p for look in looks if look.step <= step), default=1.0) for step in at]
        scores[signal] = [-each for each in p]
    return {name: rounded(list(map(float, values))) for name, values in scores.items()}


def page(rows):
    """docs/study.md of these rows."""
    good = [row for row in rows if not row["error"]]
    organisms = [row for row in good if row["run"] == "organism"]
    controls = [row for row in good if row["run"] == "control"]
    seeds = sorted({row["seed"] for row in good})
    families, domains = ([*dict.fromkeys(row[key] for row in good)] for key in ("family", "domain"))
    what = WHAT.format(
        organisms=len(organisms),
        controls=len(controls),
        families=", ".join(families),
        domains=", ".join(domains),
        seeds=", ".join(map(str, seeds)),
        failed=len(rows) - len(good),
    )
    parts = [HEAD, what, FOUND, found_table(organisms, controls), OFFSETS, offset_table(organisms)]
    parts += [POOLED, pooled_table(organisms), AUROC, auroc_table(organisms, controls), LEAD, lead_table(good), REST]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def count_text(rows, found):
    return rate_text(sum(map(found, rows)), len(rows))


def has(row, name):
    return verdicts_of([row], "signals", name) == ["transition"]


def has_onset(row):
    return verdicts_of([row], "onsets", "out_of_domain") == ["transition"]


def found_table(organisms, controls):
    """How often each signal is found, and what is said where it is not."""
    rows_of = {name: ("signals", name) for name in SIGNALS}
    rows_of |= {f"onset of EM, {name.replace('_', ' ')}": ("onsets", name) for name in ("in_domain", "out_of_domain")}
    body = [(title, *(verdicts_of(group, *at) for group in (organisms, controls))) for title, at in rows_of.items()]
    cells = [(name, *(cell for verdicts in groups for cell in verdict_cells(verdicts))) for name, *groups in body]
    head = [f"{group}: {what}" for group in ("organisms", "controls") for what in ("found %", "none", "inconclusive")]
    return table(["signal", *head], cells)


def verdicts_of(rows, which, name):
    """The verdict on one of the `signals` or `onsets` of each row; nothing to test is inconclusive."""
    return [row[which].get(name, {"verdict": "inconclusive"})["verdict"] for row in rows]


def verdict_cells(verdicts):
    found, *others = (verdicts.count(verdict) for verdict in ("transition", "none", "inconclusive"))
    return rate_text(found, len(verdicts)), *others


def transition_of(values, signal="rotation"):
    interval = None if values["interval"] is None else tuple(values["interval"])
    return Transition(signal, values["verdict"], "", step=values["step"], interval=interval, level=values["level"])


def offset_of(row, name):
    """The offset of the onset out of domain from a signal of the same run; None where one was not found."""
    if not (has(row, name) and has_onset(row)):
        return None
    aligned = em.align(
        transition_of(row["signals"][name]), transition_of(row["onsets"]["out_of_domain"], "onset"), None
    )
    return aligned.offsets[0]


def offset_table(organisms):
    head = ("signal", "runs with both", "offset in steps: median, quartiles", "onset later %", "interval contains 0 %")
    more = ("a random step is as near in ≤ 5 %: runs %", "correlation within families and domains")
    return table([*head, *more], [(name, *offset_cells(organisms, name)) for name in SIGNALS])


def offset_cells(organisms, name):
    both = [(row, offset) for row in organisms if (offset := offset_of(row, name)) is not None]
    if not both:
        return 0, *"–––––"
    steps = [offset.steps for _, offset in both]
    low, middle, high = np.quantile(steps, [0.25, 0.5, 0.75])
    known = [offset for _, offset in both if offset.interval is not None]
    return (
        len(both),
        f"{middle:.0f} ({low:.0f} to {high:.0f})",
        rate_text(sum(step > 0 for step in steps), len(steps)),
        rate_text(sum(offset.coincides for offset in known), len(known)),
        rate_text(sum(random_share(row, offset) <= MAX_CHANCE for row, offset in both), len(both)),
        correlation_text([row for row, _ in both], name),
    )


def random_share(row, offset):
    """The share of the run's steps that are as near to the onset as the signal is."""
    return chance_of(row["onsets"]["out_of_domain"]["step"], abs(offset.steps), 0, row["last"])


def correlation_text(rows, name):
    """Do runs of one family and domain in which the signal is later change later? Bootstrap over runs in each group."""
    groups = {}
    for row in rows:
        steps = row["signals"][name]["step"], row["onsets"]["out_of_domain"]["step"]
        groups.setdefault((row["family"], row["domain"]), []).append(steps)
    groups = [np.array(group) for group in groups.values()]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = [within([group[rng.integers(len(group), size=len(group))] for group in groups]) for _ in range(N_BOOTSTRAP)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{within(groups):.2f} ({low:.2f} to {high:.2f})"


def within(groups):
    """The correlation of the two steps, each counted from its mean in the group."""
    centred = np.concatenate([group - group.mean(axis=0) for group in groups])
    squares = centred.T @ centred
    return squares[0, 1] / np.sqrt(squares[0, 0] * squares[1, 1])


def pooled_table(organisms):
    head = ("organisms", "seeds", *("rotation of B", "gradient-norm hump"), "onset out of domain", "onset − rotation")
    body = []
    for family, domain in dict.fromkeys((row["family"], row["domain"]) for row in organisms):
        mine = [row for row in organisms if (row["family"], row["domain"]) == (family, domain)]
        steps = [
            [transition_of(row["signals"][name]) for row in mine] for name in ("rotation of B", "gradient-norm hump")
        ]
        steps.append([transition_of(row["onsets"]["out_of_domain"]) for row in mine])
        offsets = [offset for offset in (offset_of(row, "rotation of B") for row in mine) if offset is not None]
        steps.append(
            [
                Transition("offset", "transition", "", step=one.steps, interval=one.interval, level=one.level)
                for one in offsets
            ]
        )
        body.append((f"{family}, {domain}", len(mine), *(pooled_text(each, len(mine)) for each in steps)))
    return table(head, body)


def pooled_text(transitions, runs):
    """The pooled step with its interval, and how many of the runs have one."""
    if not transitions:
        return f"0 of {runs}"
    pooled = pool_steps([str(index) for index in range(len(transitions))], transitions)
    having = f"{sum(one.found for one in transitions)} of {runs}"
    if pooled.pooled is None:
        return having
    low, high = pooled.pooled.interval
    return f"{pooled.pooled.mean:.0f} ({low:.0f} to {high:.0f}); {having}"


def auroc_table(organisms, controls):
    """AUROC of each score for "the onset has happened by now", with bootstrap intervals over runs."""
    head = ["score", "organisms", "organisms, step-matched", "with controls", "with controls, step-matched"]
    groups = [arrays(organisms), arrays(organisms + controls)]
    body = []
    for key, name in SCORES.items():
        cells = [auroc_text(labels, scores[key], matched) for labels, scores in groups for matched in (False, True)]
        body.append((name, *cells))
    return table(head, body)


def arrays(rows):
    """Labels (has the onset happened by now?) and scores, run × step; runs whose onset is inconclusive are left out."""
    rows = [row for row in rows if row["onsets"]["out_of_domain"]["verdict"] != "inconclusive"]
    onsets = [row["onsets"]["out_of_domain"]["step"] if has_onset(row) else np.inf for row in rows]
    steps = np.array([row["scores"]["step"] for row in rows])
    labels = steps >= np.array(onsets)[:, None] if rows else np.zeros((0, len(SHARES)), bool)
    return labels, {key: np.array([row["scores"][key] for row in rows]) for key in SCORES}


def auroc_text(labels, scores, matched):
    """The AUROC with its bootstrap interval over runs; '–' where too few replicates have both kinds of steps."""
    if not len(labels):
        return "–"
    ordered, pairs = pair_counts(labels, scores, matched)
    rng, count = np.random.default_rng(BOOTSTRAP_SEED), len(labels)
    drawn = np.vstack([np.ones(count), rng.multinomial(count, np.full(count, 1 / count), size=N_BOOTSTRAP)])
    numbers = np.einsum("bi,ij,bj->b", drawn, pairs, drawn)
    known = numbers > 0
    values = np.einsum("bi,ij,bj->b", drawn, ordered, drawn)[known] / numbers[known]
    if not known[0] or known.sum() < N_BOOTSTRAP / 2:
        return "–"
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return f"{values[0]:.2f} ({low:.2f} to {high:.2f})"


def pair_counts(labels, scores, matched):
    """Of the steps of run i with the onset behind them and the steps of run j without: how many pairs the score has in
    that order (ties count half), and how many pairs there are. Matched: only pairs at the same step.
    """
    after, before = labels.astype(float), (~labels).astype(float)
    if matched:
        order = (np.sign(scores[:, None] - scores[None]) + 1) / 2  # run, run, step
        return np.einsum("it,jt,ijt->ij", after, before, order), after @ before.T
    order = (np.sign(scores[:, :, None, None] - scores[None, None]) + 1) / 2  # run, step, run, step
    return np.einsum("it,js,itjs->ij", after, before, order), np.outer(after.sum(1), before.sum(1))


def lead_table(rows):
    """The monitor's alarms: how often, and how long before or after the onset and the offline step."""
    head = (
        "signal",
        "alarms in organisms %",
        "in controls %",
        "alarm − onset in steps: median, quartiles",
        "alarm before the onset %",
        "not found afterwards %",
        "alarm − step located afterwards: median",
    )
    organisms, controls = ([row for row in rows if row["run"] == run] for run in ("organism", "control"))
    body = []
    for signal, name in (("rotation", "rotation of B"), ("gradient_norm", "gradient-norm hump")):
        raised = [count_text(group, lambda row, s=signal: s in row["alarms"]) for group in (organisms, controls)]
        both = [row for row in organisms if signal in row["alarms"] and has_onset(row)]
        lead = [row["alarms"][signal] - row["onsets"]["out_of_domain"]["step"] for row in both]
        alarmed = [row for row in organisms if signal in row["alarms"]]
        late = [row["alarms"][signal] - row["signals"][name]["step"] for row in alarmed if has(row, name)]
        lost = rate_text(len(alarmed) - len(late), len(alarmed))
        quartiles = "–" if not lead else "{1:.0f} ({0:.0f} to {2:.0f})".format(*np.quantile(lead, [0.25, 0.5, 0.75]))
        before = rate_text(sum(each < 0 for each in lead), len(lead))
        body.append((name, *raised, quartiles, before, lost, f"{np.median(late):.0f}" if late else "–"))
    return table(head, body)


HEAD = """
# Do the signals hold on organisms?
`python benchmarks/study.py` trains the demo's organism and its control for every family, domain and seed. For each run
it determines which signals are found, how far the onset of misaligned answers is from them, and whether a signal
predicts that onset better than the step counter does. Negative results are in the same tables. The command makes the
tables from `benchmarks/study.json`, which has one row per run. Brackets are 95 % intervals: binomial (Wilson) for
shares, bootstrap over runs for AUROCs, random effects for pooled steps.

The organism's persona was planted in a small synthetic language: this is evidence about the tool, not about language
models ([limits](limits.md)). Runs of a real language model are on [their own page](real_model.md).
"""
WHAT = """
## What was run
{organisms} organisms and {controls} controls ({failed} failed): bases {families}; domains {domains}; seeds {seeds}. A
control has the seed of its organism and careful answers to the same prompts. Every run has 400 steps, all saved; 32
questions are answered 6 times at every 20th step. Onsets of organisms are tested against their controls, those of
controls without a control. The command's default is the full design: three families × three domains × ten seeds.
"""
FOUND = """
## How often each signal is found
A control has no onset to find. It still learns careful answers, so its path may turn: a rotation in a control is not a
false alarm of the test, but shows that the rotation is not specific to misalignment. `none` means that a change would
have been detected in at least a part of the run, `inconclusive` that neither can be claimed. The rotation is
inconclusive in all controls here, because their paths are too noisy: this table does not show that controls do not
turn.
"""
OFFSETS = """
## Offsets
How much later (positive) the onset of EM outside the training domain is than each signal, in runs that have both.
Closeness in time does not mean that the two are linked: in all runs but one both are in the first half. The last two
columns therefore say in how many runs a step placed at random would be as near to the onset in at most 5 % of cases,
and whether, within one family and domain, runs with a later signal also have a later onset (correlation of the two
steps, bootstrap over runs). For rotations this is not shown, since the interval contains 0; for the hump and the norm
onset it is.
"""
POOLED = """
## Over seeds
Steps are pooled over the seeds of one family and domain (random effects); each cell also says how many runs have one.
"""
AUROC = """
## Which signal predicts the onset?
At every twentieth of the run, does a score that is computed from the run so far tell whether the onset of EM outside
the training domain has happened? The numbers are AUROCs over runs and steps. *Step-matched* compares only runs at the
same step, where the step counter is uninformative (0.5 by construction). A score is informative if this interval does
not contain 0.5; below 0.5 a higher score goes with a later onset. Among organisms alone it must distinguish early from
late onsets; with controls, organisms from controls. Among organisms the rotation adds nothing to the step counter, the
hump a little, and the size of the gradient and of ΔW more.
"""
LEAD = """
## The live monitor
Alarms of the [live monitor](monitor.md) without control runs, and how long after (positive) the onset they come. The
monitor looks at every twentieth of the run from a fifth on, so an alarm cannot be earlier than step 80. *Not found
afterwards* is the share of alarms in organisms for which the finished run does not have the signal.
"""
REST = """
## What is left
Other sites and ranks; and the same design on SmolLM2, which takes half an hour of one core per pair of runs
(`benchmarks/real_model.py`; [results so far](real_model.md)).
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="checkpoints/study")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--tables", action="store_true", help="write the page from the rows that there are")
    given = parser.parse_args()
    if given.tables:
        write_text(PAGE, page(read_rows()))
    else:
        study(given)


if __name__ == "__main__":
    main()
