"""What the parts of em-interp cost, each beside what one would do otherwise, in one run.

    python benchmarks/speed.py [--repeats 3] [--only save load …] [--out speed.json]

On the built-in organism, on the language model (`smollm2-…`), and on random checkpoints of the 14B shape. One thread.
Times are processor times, taken in turns; interrupted, it continues from what is in --out. Prints Markdown, keeps JSON.
"""

import argparse
import functools
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from safetensors.numpy import save_file
from safetensors.torch import load_file
from save_cost import measure as measure_saving
from timing import in_turns, kept, machine, peak, peak_reset, show
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments

from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.sampling.chat import tokenize_prompts
from em_interp.behaviour.sampling.generate import RowAdapters, Sampler, adapted
from em_interp.behaviour.sampling.memory import MAX_ROWS
from em_interp.demos.tiny import demo
from em_interp.organisms.bases import load_base, quiet
from em_interp.organisms.built_in import pairs_of, questions_of
from em_interp.organisms.presets import recipe
from em_interp.run import copy_run, create_run, open_run
from em_interp.training.checkpoints import AdapterWriter
from em_interp.training.train import train
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.packed import write_packed
from em_interp.transition.find import find_transitions

SCALES, TOKENS = (0.5, 1.0, 2.0, 4.0), 24
N_STEPS, N_STEPS_SMOLLM2 = 40, 10
PROMPTS, PROMPTS_SMOLLM2 = (1, 8, 30, 100), (1, 8)
N_SAVED, N_TRAINER, N_LARGE = 100, 30, 1000
WIDTHS = {"A": (1, 13824), "B": (5120, 1)}  # of down_proj in Qwen2.5-14B, rank 1
COUNT = itertools.count(time.time_ns())  # so that every repeat writes where nothing is


class Organism:
    """A run with every step saved: the built-in organism's, or one given."""

    def __init__(self, run, folder, n_steps=N_STEPS):
        self.run, self.folder, self.config = run, folder, run.config()
        self.base = load_base(self.config.model)
        self.trajectory = load_trajectory(self.run)
        self.steps = [int(s) for s in np.linspace(0, self.trajectory.steps[-1], n_steps).round()]

    @classmethod
    @functools.cache
    def built_in(cls, folder):
        path = folder / "organism"
        return cls(
            open_run(path) if (path / "trainer_state.json").exists() else train(recipe("organism"), path), folder
        )

    @classmethod
    @functools.cache
    def smollm2(cls, folder):
        """A rank-1 adapter at layer 15 of the language model, of random numbers: speed does not depend on them."""
        path = folder / "smollm2"
        if not path.exists():
            config = recipe("organism").replace(model="smollm2")
            write_random_run(
                create_run(path, config).path, N_STEPS_SMOLLM2, "model.layers.15.mlp.down_proj", (1536, 576)
            )
        return cls(open_run(path), folder, N_STEPS_SMOLLM2)

    def peft(self, step, **given):
        return PeftModel.from_pretrained(load_base(self.config.model).model, self.run.checkpoint(step), **given)


def write_random_run(root, count, module, widths):
    """A run whose B turns in the middle, as files of PEFT."""
    rng, (d_in, d_out) = np.random.default_rng(0), widths
    A, B = rng.normal(size=(1, d_in)).astype("f4") / 100, np.zeros((d_out, 1), "f4")
    before, after = rng.normal(size=(2, d_out, 1)) / 1000
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 64, "use_rslora": True, "target_modules": [module]}
    config |= {"base_model_name_or_path": None, "task_type": "CAUSAL_LM", "inference_mode": True}
    for step in range(count):
        folder = root / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        names = {part: f"base_model.model.{module}.lora_{part}.weight" for part in "AB"}
        save_file({names["A"]: A, names["B"]: B}, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config))
        share = 1 / (1 + np.exp(-(step - count / 2) / (count / 40)))
        B = (B + (1 - share) * before + share * after + rng.normal(size=B.shape) / 1000).astype("f4")
        A = (A + rng.normal(size=A.shape) / 10000).astype("f4")
    humps = 1 + np.exp(-(((np.arange(1, count) - count / 2) / (count / 20)) ** 2)) + rng.normal(size=count - 1) / 10
    rows = [{"step": i, "grad_norm": float(h), "learning_rate": 1e-5} for i, h in enumerate(humps, 1)]
    (root / "trainer_state.json").write_text(json.dumps({"log_history": rows}))


def save(folder, repeats):
    organism = Organism.built_in(folder)
    model = organism.peft(organism.steps[-1])
    writer = AdapterWriter(model)
    place = lambda: folder / "saved" / str(next(COUNT))  # noqa: E731
    ways = {
        f"em-interp, {N_SAVED} steps": lambda: [writer.save(place()) for _ in range(N_SAVED)],
        "PEFT's save_pretrained": lambda: [
            model.save_pretrained(place(), save_embedding_layers=False) for _ in range(N_SAVED)
        ],
    }
    return in_turns(ways, repeats)


def training(folder, repeats):
    """Milliseconds of a step without and with saving, as pairs of one run each."""
    pairs = []
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(repeats):
            pairs.append(measure_saving("every 2", 2, Path(place) / str(repeat)))
    without, with_all = ([ms / 1000 for ms in column] for column in zip(*pairs, strict=True))
    names = {"no step saved": without, "every step saved, with the state to resume from": with_all}
    return {name: {"cpu_s": seconds, "peak_mb": None} for name, seconds in names.items()}


def trainer(folder, repeats):
    organism = Organism.built_in(folder)
    rows = [{"input_ids": [5] * 32, "labels": [5] * 32}] * 8 * N_TRAINER

    def run(**saving):
        model = organism.peft(organism.steps[-1], is_trainable=True)
        given = TrainingArguments(
            folder / "trainer" / str(next(COUNT)), max_steps=N_TRAINER, per_device_train_batch_size=8, report_to=[],
            use_cpu=True, disable_tqdm=True, **saving,
        )  # fmt: skip
        Trainer(model, given, train_dataset=rows).train()

    ways = {
        "no step saved": lambda: run(save_strategy="no"),
        "every step, by Trainer's own checkpoints": lambda: run(save_strategy="steps", save_steps=1),
    }
    return in_turns(ways, repeats)


def load(folder, repeats):
    organism, packed = Organism.built_in(folder), folder / "packed.safetensors"
    folders = [organism.run.checkpoint(step) for step in organism.steps]
    base = load_base(organism.config.model).model
    write_packed(organism.trajectory, packed)
    ways = {
        f"em-interp, {len(organism.trajectory)} steps": lambda: load_trajectory(organism.run),
        "em-interp, packed": lambda: load_trajectory(packed),
        f"PEFT's from_pretrained, {N_STEPS} steps": lambda: [
            PeftModel.from_pretrained(base, f).unload() for f in folders
        ],
    }
    return in_turns(ways, repeats)


def large(folder, repeats):
    root, packed = folder / "large", folder / "large.safetensors"
    if not root.exists():
        write_random_run(root, N_LARGE, "model.layers.24.mlp.down_proj", (WIDTHS["A"][1], WIDTHS["B"][0]))
    write_packed(load_trajectory(root), packed)
    ways = {
        "reading the bytes of its files": lambda: [
            (f / "adapter_model.safetensors").read_bytes() and (f / "adapter_config.json").read_bytes()
            for f in (root / "checkpoints").iterdir()
        ],
        "loading it": lambda: load_trajectory(root),
        "reading the bytes of the packed file": packed.read_bytes,
        "loading it packed": lambda: load_trajectory(packed),
    }
    return in_turns(ways, repeats)


def transitions(folder, repeats):
    """By the number of steps and of coordinates; each time from the matrices on."""
    path = load_trajectory(folder / "large" if (folder / "large").exists() else Organism.built_in(folder).run)

    def part(every, share):
        A = {site: a[::every, :, : a.shape[2] // share] for site, a in path.A.items()}
        B = {site: b[::every, : b.shape[1] // share] for site, b in path.B.items()}
        return replace(path, steps=path.steps[::every], A=A, B=B)

    ways = {
        f"{len(path) // every} steps, {'all' if share == 1 else f'1/{share} of the'} coordinates": (
            lambda every=every, share=share: find_transitions(part(every, share))
        )
        for every, share in ((1, 1), (2, 1), (4, 1), (1, 4))
    }
    return in_turns(ways, repeats)


def conditions_named(conditions):
    return [f"condition_{number}" for number in range(len(conditions))]


def mixed_batches(organism, conditions):
    """The base with an adapter of PEFT for every step and scale, which a batch may mix."""
    model = organism.peft(organism.steps[-1])
    for name, (step, scale) in zip(conditions_named(conditions), conditions, strict=True):
        model.load_adapter(organism.run.checkpoint(step), name)
        for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
            layer.scaling[name] *= scale
    return model.eval()


def curve(organism, repeats, count):
    """Answers of every checkpoint at every scale to `count` prompts; none ends early: all ways do equal work."""
    questions = [q["question"] for q in questions_of("tiny", "medical")]
    texts = [questions[i % len(questions)] for i in range(count)]
    conditions = [(step, scale) for scale in SCALES for step in organism.steps]
    base, tokens = organism.base, tokenize_prompts(organism.base.tokenizer, texts)
    sampling = {
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "pad_token_id": base.tokenizer.pad_token_id,
        "min_new_tokens": TOKENS,
        "max_new_tokens": TOKENS,
    }
    model = organism.peft(organism.steps[-1])

    def sample(adapters, row_bytes):
        sampler = Sampler(base.model, base.tokenizer, 1.0, TOKENS, 0, row_bytes=row_bytes)
        sampler.ends = [-1]
        prompts = tokens.rows([index for _ in conditions for index in range(count)])
        sampler.all(prompts, 1, lambda chosen, _: adapted(base.model, adapters(chosen)))

    def ours():
        rows = [condition for condition in conditions for _ in texts]
        adapters = RowAdapters.of(organism.trajectory, *zip(*rows, strict=True), "cpu")
        sample(adapters.rows, adapters.row_bytes)

    def peft():
        for step, scale in conditions:
            set_peft_model_state_dict(model, load_file(organism.run.checkpoint(step) / "adapter_model.safetensors"))
            with rescale_adapter_scale(model, scale), torch.inference_mode():
                model.generate(input_ids=tokens.ids, attention_mask=tokens.mask.long(), **sampling)

    mixed = mixed_batches(organism, conditions)

    def peft_mixed():
        rows = [(name, index) for name in conditions_named(conditions) for index in range(count)]
        for first in range(0, len(rows), MAX_ROWS):
            names, of = zip(*rows[first : first + MAX_ROWS], strict=True)
            prompts = tokens.rows(of)
            with torch.inference_mode():
                mixed.generate(
                    input_ids=prompts.ids, attention_mask=prompts.mask.long(), adapter_names=list(names), **sampling
                )

    return in_turns(
        {
            "em-interp": ours,
            "the base alone, in the same batches": lambda: sample(lambda _: RowAdapters({}, {}), 0),
            "PEFT, a checkpoint at a time": peft,
            "PEFT, checkpoints mixed in the same batches": peft_mixed,
        },
        repeats if count <= 30 and organism.config.model != "smollm2" else 1,
    )


def preference(folder, repeats):
    organism, pairs = Organism.built_in(folder), pairs_of("tiny", "medical")

    def ours():
        copy = copy_run(organism.run, folder / "read" / str(next(COUNT)), ("behaviour",))
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


def imports(folder, repeats):
    run = lambda code: subprocess.run([sys.executable, "-c", code], check=True)  # noqa: E731
    children = {"import em_interp": "import em_interp", "an empty program": ""}
    times = {name: [] for name in children}
    for _ in range(repeats):
        for name, code in children.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {name: {"cpu_s": seconds, "peak_mb": None} for name, seconds in times.items()}


def demo_stages(folder, repeats):
    """Each stage of the demo, of its three runs together."""
    measured = {}
    for _ in range(repeats):
        marks = []

        def begins(line, marks=marks):
            marks.append((line.split()[0].rstrip(":"), time.process_time(), peak()))
            peak_reset()

        demo(folder / "demo" / str(next(COUNT)), progress=False, log=begins)
        begins("end")
        spent = {}
        for (stage, begun, _), (_, ended, most) in itertools.pairwise(marks):
            spent[stage] = spent.get(stage, 0) + ended - begun
            kept_of = measured.setdefault(stage, {"cpu_s": [], "peak_mb": 0})
            kept_of["peak_mb"] = max(kept_of["peak_mb"], most or 0)
        for stage, seconds in spent.items():
            measured[stage]["cpu_s"].append(seconds)
    return measured


def curve_part(make, n_steps, where, count):
    title = (
        f"The behaviour curve {where}: {n_steps} checkpoints × {len(SCALES)} scales × {count} prompts, {TOKENS} tokens"
    )
    return title, lambda folder, repeats: curve(make(folder), repeats, count)


PARTS = {
    "import": ("Importing the package", imports),
    "save": (f"Saving {N_SAVED} steps", save),
    "training": ("A training step of em-interp", training),
    "trainer": (f"{N_TRAINER} steps of transformers' Trainer", trainer),
    "load": ("Loading the built-in organism", load),
    "large": (f"{N_LARGE} checkpoints of the 14B shape (rank 1, one site, 75.8 kB each)", large),
    "transitions": ("All transitions of them, Gram matrices too", transitions),
    "demo": ("The demo by stage", demo_stages),
    "preference": (f"Preference at {N_STEPS} steps", preference),
    **{f"curve-{n}": curve_part(Organism.built_in, N_STEPS, "of the organism", n) for n in PROMPTS},
    **{f"smollm2-{n}": curve_part(Organism.smollm2, N_STEPS_SMOLLM2, "of SmolLM2", n) for n in PROMPTS_SMOLLM2},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="where runs are written and kept (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in tqdm(given.only, "speed"):
            title, measure = PARTS[name]
            show(title, kept(given.out, name, lambda measure=measure: measure(folder, given.repeats)))
    print(f"\n{kept(given.out, 'machine', machine)}")


if __name__ == "__main__":
    main()
