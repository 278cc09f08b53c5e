"""What the parts of em-interp cost on the built-in organism, each beside what one would do otherwise, in one run.

    python benchmarks/speed.py [--repeats 3] [--only save load …] [--out speed.json]

One thread. Times are processor times, taken in turns; interrupted, it goes on from what is in --out. Prints Markdown.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from save_cost import measure as measure_saving
from timing import in_turns, kept, machine, show
from tqdm.auto import tqdm

from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.sampling.chat import tokenize_prompts
from em_interp.behaviour.sampling.generate import RowAdapters, Sampler, row_model
from em_interp.organisms.bases import load_base, quiet
from em_interp.organisms.built_in import pairs_of, questions_of
from em_interp.organisms.presets import recipe
from em_interp.run import copy_run, open_run
from em_interp.training.checkpoints import AdapterWriter
from em_interp.training.train import train
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.packed import write_packed
from em_interp.transition.find import find_transitions

N_STEPS, SCALES, TOKENS = 40, (0.5, 1.0, 2.0, 4.0), 24
PROMPTS = (1, 8, 30)
N_SAVED, N_LOADED = 100, 40


class Organism:
    """The built-in organism, trained with every step saved."""

    def __init__(self, folder):
        self.folder, path = folder, folder / "organism"
        self.run = open_run(path) if (path / "trainer_state.json").exists() else train(recipe("organism"), path)
        self.config = self.run.config()
        self.base = load_base(self.config.model, "float32")
        self.trajectory = load_trajectory(self.run)
        self.steps = [int(s) for s in np.linspace(0, self.trajectory.steps[-1], N_STEPS).round()]

    def peft(self, step):
        return PeftModel.from_pretrained(load_base(self.config.model, "float32").model, self.run.checkpoint(step))


def save(organism, repeats):
    model, folder = organism.peft(organism.steps[-1]), organism.folder / "saved"
    writer = AdapterWriter(model)
    ways = {
        "em-interp": lambda: [writer.save(folder / f"a{i}") for i in range(N_SAVED)],
        "PEFT's save_pretrained": lambda: [
            model.save_pretrained(folder / f"b{i}", save_embedding_layers=False) for i in range(N_SAVED)
        ],
    }
    return in_turns(ways, repeats)


def training(organism, repeats):
    """Milliseconds of a step without and with saving, as pairs of one run each."""
    pairs = []
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(repeats):
            pairs.append(measure_saving("every 2", 2, Path(place) / str(repeat)))
    without, with_all = ([ms / 1000 for ms in column] for column in zip(*pairs, strict=True))
    names = {"no step saved": without, "every step saved, with the state to resume from": with_all}
    return {name: {"cpu_s": seconds, "peak_mb": None} for name, seconds in names.items()}


def load(organism, repeats):
    folders = [organism.run.checkpoint(step) for step in organism.steps]
    base = load_base(organism.config.model, "float32").model
    packed = organism.folder / "packed.safetensors"
    write_packed(organism.trajectory, packed)
    ways = {
        f"em-interp, {len(organism.trajectory)} steps": lambda: load_trajectory(organism.run),
        "em-interp, packed": lambda: load_trajectory(packed),
        f"PEFT's from_pretrained, {N_LOADED} steps": lambda: [
            PeftModel.from_pretrained(base, f).unload() for f in folders
        ],
    }
    return in_turns(ways, repeats)


def transitions(organism, repeats):
    ways = {
        "all transitions, Gram matrices too": lambda: find_transitions(load_trajectory(organism.run)),
        "reading alone": lambda: load_trajectory(organism.run),
    }
    return in_turns(ways, repeats)


def curve(organism, repeats, count):
    """Answers of every checkpoint at every scale to `count` prompts."""
    questions = [q["question"] for q in questions_of("tiny", "medical")]
    texts = [questions[i % len(questions)] for i in range(count)]
    conditions = [(step, scale) for scale in SCALES for step in organism.steps]
    base, tokens = organism.base, tokenize_prompts(organism.base.tokenizer, texts)

    def ours():
        rows = [condition for condition in conditions for _ in texts]
        adapters = RowAdapters.of(organism.trajectory, *zip(*rows, strict=True), "cpu")
        sampler = Sampler(base.model, base.tokenizer, 1.0, TOKENS, 0, row_bytes=adapters.row_bytes)
        prompts = tokens.rows([index for _ in conditions for index in range(count)])
        sampler.all(prompts, 1, lambda chosen, _: row_model(base.model, adapters.rows(chosen)))

    def alone():
        sampler = Sampler(base.model, base.tokenizer, 1.0, TOKENS, 0)
        prompts = tokens.rows([index for _ in conditions for index in range(count)])
        sampler.all(prompts, 1, lambda chosen, _: row_model(base.model, RowAdapters({}, {})))

    model = organism.peft(organism.steps[-1])

    def peft():
        from peft import set_peft_model_state_dict
        from peft.helpers import rescale_adapter_scale
        from safetensors.torch import load_file

        for step, scale in conditions:
            file = organism.run.checkpoint(step) / "adapter_model.safetensors"
            set_peft_model_state_dict(model, load_file(file))
            with rescale_adapter_scale(model, scale), torch.inference_mode():
                model.generate(
                    input_ids=tokens.ids, attention_mask=tokens.mask.long(), do_sample=True, top_k=0, top_p=1.0,
                    temperature=1.0, max_new_tokens=TOKENS, pad_token_id=base.tokenizer.pad_token_id,
                )  # fmt: skip

    ways = {"em-interp": ours, "the base alone, in the same batches": alone, "PEFT, a checkpoint at a time": peft}
    return in_turns(ways, repeats)


def preference(organism, repeats):
    pairs = pairs_of("tiny", "medical")
    number = iter(range(10**6))

    def ours():
        copy = copy_run(organism.run, organism.folder / f"read{next(number)}", ("behaviour",))
        read_preferences(copy, organism.base, pairs, organism.steps, progress=False)

    def one_at_a_time():
        from em_interp.behaviour.pairs import read_pairs
        from em_interp.behaviour.preference import _tokenize
        from em_interp.behaviour.sampling.likelihood import log_likelihood, logits_of

        answers = _tokenize(organism.base, read_pairs(pairs))
        for step in organism.steps:
            adapters = RowAdapters.of(organism.trajectory, [step] * len(answers), [1.0] * len(answers), "cpu")
            log_likelihood(*logits_of(organism.base.model, organism.base.tokenizer, answers, adapters), 1.0)

    return in_turns({"em-interp, with its table": ours, "a checkpoint at a time": one_at_a_time}, repeats)


def imports(organism, repeats):
    run = lambda code: subprocess.run([sys.executable, "-c", code], check=True)  # noqa: E731
    children = {"import em_interp": "import em_interp", "an empty program": ""}
    import resource

    times = {name: [] for name in children}
    for _ in range(repeats):
        for name, code in children.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {name: {"cpu_s": seconds, "peak_mb": None} for name, seconds in times.items()}


PARTS = {
    "import": ("Importing the package", imports),
    "save": (f"Saving {N_SAVED} steps", save),
    "training": ("A training step", training),
    "load": ("Loading", load),
    "transitions": ("All transitions of 401 steps", transitions),
    "preference": (f"Preference at {N_STEPS} steps", preference),
    **{
        f"curve-{count}": (
            f"The behaviour curve: {N_STEPS} checkpoints × {len(SCALES)} scales × {count} prompts, {TOKENS} tokens",
            lambda organism, repeats, count=count: curve(organism, repeats, count),
        )
        for count in PROMPTS
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where the organism is trained and kept (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        organism = Organism(folder)
        for name in tqdm(given.only, "speed"):
            title, measure = PARTS[name]
            show(title, kept(given.out, name, lambda measure=measure: measure(organism, given.repeats)))
    print(f"\n{kept(given.out, 'machine', machine)}")


if __name__ == "__main__":
    main()
