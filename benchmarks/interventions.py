"""Does a direction carry the built-in organism's misalignment, and does it bring it? Families and seeds.

    python benchmarks/interventions.py [seeds] [families, such as qwen2,llama]

Trains the demo's organism (`em_interp/organisms/recipe.py`) on medical advice, asks and judges it, and then takes both
mean-difference directions out of the residual stream, and adds them to the base, beside random directions. The
`models` direction is also made from answers to other questions than those asked (broad and in-domain ones) and taken
out. Prints a markdown table: shares of EM removed with 95 % intervals (largest over single layers, and after every
layer), what random directions remove there, what as much moved at random does, and the doses that bring EM to the base.
"""

import sys
import tempfile
from pathlib import Path

from table import print_row


def look(family, seed, folder):
    """Both parts, by contrast; and the ablation of the direction of other questions' answers, or why there is none."""

    from em_interp import ask, judge, run_mechanism, train
    from em_interp.config import Schedule
    from em_interp.organisms.presets import recipe

    config = recipe("organism", family, "medical", seed)
    asked = config.behaviour.replace(steps=Schedule("every 100"), scales=(1.0,))
    run = train(config.replace(behaviour=asked, snapshots=Schedule("every 100")), folder)
    ask(run)
    judge(run)
    return run_mechanism(run, parts=["ablation", "steering"])["parts"], of_other_questions(run)


def of_other_questions(run):
    from em_interp.errors import InputError
    from em_interp.mechanism import ablate, find_direction, latest_answers, open_model, questions_of
    from em_interp.mechanism.experiments import SamplingParams
    from em_interp.organisms.judge import AdviceJudge

    model, questions = open_model(run), questions_of(run, "out_of_domain")
    try:
        direction = find_direction(model, latest_answers(run, ["broad", "in_domain"]), "models")
    except InputError as error:
        return str(error)
    folder = run.analysis / "other_questions"
    return ablate(
        folder, model, direction, AdviceJudge("medical"), questions, sampling=SamplingParams(samples=6)
    ).to_dict()


def share(row):
    return f"{row['removed']:.0%} ({row['removed_low']:.0%} to {row['removed_high']:.0%})"


def ablations(found):
    """Of each place: its rows by kind."""
    places = dict.fromkeys(row["place"] for row in found["rows"] if row["place"])
    return {place: {row["kind"]: row for row in found["rows"] if row["place"] == place} for place in places}


def main(seeds=1, families="qwen2,llama,gemma3"):
    import torch

    torch.set_num_threads(1)
    head = ["family", "seed", "contrast", "EM", "where", "removes", "coherent", "random", "moved (coherent)"]
    print_row(*head, "steering", "usable doses: EM", head=True)
    for family in families.split(","):
        for seed in range(int(seeds)):
            with tempfile.TemporaryDirectory() as folder:
                parts, others = look(family, seed, Path(folder) / "run")
            for part in parts.values():
                if "undefined" in part:
                    print_row(family, seed, part["undefined"])
            if any("undefined" in part for part in parts.values()):
                continue
            for contrast, found in parts["ablation"]["values"].items():
                steered = parts["steering"]["values"][contrast]
                doses = {row["dose"]: row for row in steered["rows"] if row["usable"]}
                said = ", ".join(f"{dose:.3g}: {row['em']:.1%}" for dose, row in doses.items()) or "none"
                print_ablation(family, seed, contrast, found, steered["verdict"], said)
            if isinstance(others, str):
                print_row(family, seed, "models, other questions", others)
            else:
                print_ablation(family, seed, "models, other questions", others)


def print_ablation(family, seed, contrast, found, *more):
    """The single layer where most is removed, and every layer."""
    places = ablations(found)
    best = max(list(places)[:-1], key=lambda place: places[place]["direction"]["removed"])
    for place in (best, "every layer"):
        own, random, moved = (places[place][kind] for kind in ("direction", "random", "moved"))
        row = [family, seed, contrast, f"{found['untouched']['rate']:.1%}", place, share(own)]
        row += [f"{own['coherent']:.0%}", share(random), f"{share(moved)} ({moved['coherent']:.0%})"]
        print_row(*row, *more)


if __name__ == "__main__":
    main(*sys.argv[1:])
