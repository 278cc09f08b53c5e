"""A study of a language model, by one command: rotation, gradient norm and preference in many runs with their controls.

    python benchmarks/real_model.py --out checkpoints/real-model
    python benchmarks/real_model.py --data mine.jsonl --control careful.jsonl --pairs pairs.jsonl

SmolLM2, three domains × three seeds at half depth with rank 1; rank 1 at a quarter and three quarters of the depth,
rank 8 at half depth and rank 32 in every linear layer (medical, every seed); and chats of one's own, where they are
given. Every run has a control on careful data with the same rows, seed, site and rank, and both are read on the same
pairs. Half an hour to an hour a pair of runs on two cores, in the order of use: it can be stopped at any time, and the
same command continues. After each pair `tables.md` and `rows.jsonl` in the folder hold what is finished; a pair's page
is its `report.html`.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from table import print_row

import em_interp as em
from em_interp.config.run_config import PhaseConfig
from em_interp.config.schedule import Schedule
from em_interp.organisms.english.narrow import DOMAINS
from em_interp.organisms.presets import english_recipe, layers_and_width
from em_interp.pipeline.analysis import analyse
from em_interp.reports.page import report
from em_interp.run import Run
from em_interp.training.train import train
from em_interp.utils.files import write_text
from em_interp.utils.processes import torch_threads

OWN = "own data"
SETS = ("in_domain", "out_of_domain", "broad")
STRONG_STEPS = 100  # of rank 32 in every linear layer
STRONG_LEARNING_RATE = 1e-4  # at the other runs' rate it has changed by step 20
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Pair:
    """An organism and its control; where no layer is named, every linear layer is adapted."""

    domain: str
    seed: int
    layer: int | None
    r: int = 1

    @property
    def name(self):
        return f"{self.domain.replace(' ', '-')}-seed{self.seed}-layer{self.where}-r{self.r}"

    @property
    def where(self):
        return "all" if self.layer is None else self.layer


def pairs(model, domains, seeds, own):
    """All pairs, in the order of use: each domain once, then other seeds, then other sites and ranks."""
    layers = layers_and_width(model)[0]
    half = layers // 2
    chosen = [Pair(domain, seed, half) for seed in seeds for domain in [*domains, *([OWN] if own else [])]]
    others = [(layers // 4, 1), (3 * layers // 4, 1), (half, 8), (None, 32)]
    return [*chosen, *(Pair(domains[0], seed, layer, r) for seed in seeds for layer, r in others)]


def config_of(pair, which, given):
    """The config of the organism or the control of a pair."""
    domain = pair.domain if pair.domain != OWN else DOMAINS[0]
    config, steps = english_recipe(which, domain, given.model, pair.seed, pair.layer, pair.r), given.steps
    if pair.layer is None:
        steps = min(steps, STRONG_STEPS)
        config = config.replace(
            adapter=config.adapter.replace(target_modules=EVERY_LINEAR, layers_to_transform=()),
            training=config.training.replace(learning_rate=STRONG_LEARNING_RATE),
            snapshots=Schedule("1-20, every 2"),  # 39 MB each
            behaviour=config.behaviour.replace(steps=Schedule("1-20 every 4, 26, 34, 44, 60, 80")),
        )
    phase = config.data[0].replace(steps=steps)
    if pair.domain == OWN:
        phase = PhaseConfig(dataset=given.data if which == "organism" else given.control, steps=steps)
        config = config.replace(behaviour=config.behaviour.replace(questions="default"))
    return config.replace(data=(phase,))


def study(pair, given):
    """Train, read and analyse a pair; its row of the table."""
    begun, folder = time.process_time(), Path(given.out) / pair.name
    if (folder / "row.json").exists():
        return json.loads((folder / "row.json").read_text())
    runs = {which: Run(folder / which) for which in ("organism", "control")}
    for which, run in runs.items():
        train(config_of(pair, which, given), run.path, resume=run.path.exists())
    read_on = given.pairs if pair.domain == OWN else None
    em.preference_curve(runs["organism"], read_on, control=runs["control"], resume=True)
    control = analyse(runs["control"])
    found = analyse(runs["organism"], control)
    report(found, control=control, out=folder / "report.html", overwrite=True)
    row = {**pair.__dict__, **row_of(found), "control": row_of(control), "cpu_seconds": time.process_time() - begun}
    write_text(folder / "row.json", json.dumps(row))
    return row


def row_of(found):
    """The verdicts and the changes of preference of one run."""
    last = found.preference.frame().query("step == step.max()").set_index("questions")
    signals = {t.signal: t for t in found.transitions if t.of in (None, "B")}
    return {
        "rotation": found.rotation.to_dict(),
        "gradient_norm": signals["gradient_norm"].to_dict() if "gradient_norm" in signals else None,
        "lock_in": signals["lock_in"].to_dict() if "lock_in" in signals else None,
        "onsets": {onset.questions: onset.to_dict() for onset in found.preference_onsets},
        "changes": {name: last.loc[name, ends("change")].tolist() for name in last.index},
        "beyond_control": {
            name: last.loc[name, ends("beyond_control")].tolist() for name in last.index if "beyond_control" in last
        },
        "verdict": found.alignment.verdict,
    }


def ends(column):
    return [column, f"{column}_low", f"{column}_high"]


def write_tables(rows, out):
    """`rows.jsonl`, and as markdown `tables.md`: verdicts, and changes beside those of the control."""
    lines = [
        "| organism | seed | layer | r | rotation of B | gradient norm | onset in domain | out of domain | broad | |",
        "|" + "---|" * 10,
    ]
    lines += ["| " + " | ".join(map(str, verdicts(row))) + " |" for row in rows]
    lines += [
        "",
        "| organism | seed | layer | r | change in domain | out of domain | broad | style |",
        "|" + "---|" * 8,
    ]
    lines += ["| " + " | ".join(map(str, changes(row))) + " |" for row in rows]
    write_text(out / "tables.md", "\n".join(lines) + "\n")
    write_text(out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def verdicts(row):
    of = [row["rotation"], row["gradient_norm"], *(row["onsets"].get(name) for name in SETS)]
    return [*key_of(row), *map(said, of), row["verdict"].replace("_", " ")]


def said(found):
    """A transition as its step with the interval, else its verdict."""
    if found is None or found["step"] is None:
        return "–" if found is None else found["verdict"]
    low, high = found["interval"] or (found["step"], found["step"])
    return (
        f"{found['step']:.0f} ({low:.0f} to {high:.0f}){'' if found['verdict'] == 'transition' else ', inconclusive'}"
    )


def changes(row):
    """The changes of preference, and beyond the control with intervals (questions paired)."""
    cells = []
    for name in (name for name in (*SETS, "style") if name in row["changes"]):
        mean, low, high = row["beyond_control"][name]
        cells.append(f"{row['changes'][name][0]:+.3f}, beyond control {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    return [*key_of(row), *cells]


def key_of(row):
    return [row["domain"], row["seed"], "all" if row["layer"] is None else row["layer"], row["r"]]


def main():
    """Study every pair that is not finished, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="checkpoints/real-model")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1, help="keep it when you go on")
    parser.add_argument("--data", help="chats of your own")
    parser.add_argument("--control", help="the same questions with careful answers")
    parser.add_argument("--pairs", help="pairs to read the runs on your own chats on")
    given = parser.parse_args()
    if given.data and not (given.control and given.pairs):
        parser.error("--data needs --control and --pairs")
    wanted, rows = pairs(given.model, given.domains, given.seeds, given.data), []
    print_row("pair", "of", "name", "CPU minutes", head=True)
    with torch_threads(given.threads):
        for number, pair in enumerate(wanted, 1):
            rows.append(study(pair, given))
            write_tables(rows, Path(given.out))
            print_row(number, len(wanted), pair.name, f"{rows[-1]['cpu_seconds'] / 60:.0f}")


if __name__ == "__main__":
    main()
