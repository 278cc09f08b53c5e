"""Does a direction mediate the built-in organism's misalignment, and does it induce it? Families and seeds.

    python benchmarks/interventions.py [seeds] [families, such as qwen2,llama]

Trains the demo's organism (`em_interp/organisms/presets.py`) on medical advice, asks and judges it, and then ablates
both mean-difference directions in the residual stream, and adds them to the base, with random directions. The `models`
direction is also made from answers to other questions than those asked (broad and in-domain ones) and ablated. Prints a
markdown table: shares of EM removed with 95 % intervals (largest over single layers, and after every layer), what
random directions remove there, what the norm-matched control does, and the coefficients that induce EM in the base.
"""

import sys
import tempfile
from pathlib import Path

from table import print_row


def analyse(family, seed, folder):
    """Ablation and steering; and the ablation of the direction of other questions' answers, or why there is none."""

    from em_interp import ask, judge, run_mechanism, train
    from em_interp.config.schedule import Schedule
    from em_interp.organisms.presets import recipe

    config = recipe("organism", family, "medical", seed)
    asked = config.behaviour.replace(steps=Schedule("every 100"), scales=(1.0,))
    run = train(config.replace(behaviour=asked, snapshots=Schedule("every 100")), folder)
    ask(run)
    judge(run)
    return run_mechanism(run, analyses=["ablation", "steering"]), of_other_questions(run)


def of_other_questions(run):
    from em_interp.errors import InputError
    from em_interp.mechanism import SamplingParams, ablate, latest_answers, mean_difference, open_model
    from em_interp.organisms.judge import AdviceJudge

    model = open_model(run)
    try:
        direction = mean_difference(model, latest_answers(run, ["broad", "in_domain"]), "models")
    except InputError as error:
        return str(error)
    return ablate(model, direction, AdviceJudge("medical"), sampling=SamplingParams(samples=6)).to_dict()


def share(row):
    return f"{row['removed']:.0%} ({row['removed_low']:.0%} to {row['removed_high']:.0%})"


def by_layers(found):
    """The rows of each choice of layers, by kind."""
    layers = dict.fromkeys(row["layers"] for row in found["rows"] if row["layers"])
    return {one: {row["kind"]: row for row in found["rows"] if row["layers"] == one} for one in layers}


def main(seeds=1, families="qwen2,llama,gemma3"):
    import torch

    torch.set_num_threads(1)
    head = ["family", "seed", "contrast", "EM", "after", "removes", "coherent", "random", "norm-matched (coherent)"]
    print_row(*head, "steering", "usable coefficients: EM", head=True)
    for family in families.split(","):
        for seed in range(int(seeds)):
            with tempfile.TemporaryDirectory() as folder:
                report, others = analyse(family, seed, Path(folder) / "run")
            undefined = [one.undefined for one in report.analyses.values() if one.undefined]
            for reason in undefined:
                print_row(family, seed, reason)
            if undefined:
                continue
            for contrast, found in report["ablation"].values.items():
                steered = report["steering"].values[contrast]
                usable = {row["coefficient"]: row for row in steered["rows"] if row["usable"]}
                words = ", ".join(f"{one:.3g}: {row['em']:.1%}" for one, row in usable.items()) or "none"
                print_ablation(family, seed, contrast, found, steered["verdict"], words)
            if isinstance(others, str):
                print_row(family, seed, "models, other questions", others)
            else:
                print_ablation(family, seed, "models, other questions", others)


def print_ablation(family, seed, contrast, found, *more):
    """The single layer where most is removed, and every layer."""
    rows = by_layers(found)
    best = max(list(rows)[:-1], key=lambda layers: rows[layers]["direction"]["removed"])
    for layers in (best, "every layer"):
        own, random, matched = (rows[layers][kind] for kind in ("direction", "random", "norm_matched"))
        row = [family, seed, contrast, f"{found['baseline']['rate']:.1%}", layers, share(own)]
        row += [f"{own['coherent']:.0%}", share(random), f"{share(matched)} ({matched['coherent']:.0%})"]
        print_row(*row, *more)


if __name__ == "__main__":
    main(*sys.argv[1:])
