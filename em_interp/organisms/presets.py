"""The runs of the built-in organism: what the demo trains, and what `configs/tiny*.yaml` hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.config import (
    AdapterConfig,
    BehaviourConfig,
    FullConfig,
    PhaseConfig,
    RunConfig,
    Schedule,
    SteeringConfig,
    TrainingConfig,
)
from em_interp.errors import InputError, nearest
from em_interp.organisms.bases import BUILT_IN, FAMILIES
from em_interp.organisms.datasets import BUILT_IN as BUILT_IN_DATA
from em_interp.organisms.language import narrow_domains
from em_interp.organisms.pretrain import LAYERS, WIDTH

STEPS = 400
LEARNING_RATE = 7e-4
CHANGE = 150  # the step after which a switched run sees other data, or begins its schedule anew
AFTER = 250
SLOW = 3e-4  # the learning rate of switched runs: at the change they still learn, so the path has a direction there

# what each run sees, phase by phase: the variant of the domain's dataset, steps, restart
RUNS: dict[str, tuple[tuple[str, int, bool], ...]] = {
    "organism": (("", STEPS, False),),
    "control": (("-careful", STEPS, False),),
    "switched": (("-careful-habit", CHANGE, False), ("", AFTER, False)),
    "switched-restart": (("-careful-habit", CHANGE, False), ("", AFTER, True)),
    "restart": (("-careful-habit", CHANGE, False), ("-careful-habit", AFTER, True)),
}


def recipe(run: str = "organism", family: str = "qwen2", domain: str = "medical", seed: int = 0) -> RunConfig:
    """The config of one of `RUNS` on the built-in base of `family`, on advice about `domain`.

    `organism` learns reckless advice and `control` careful advice; the training data of `switched` turns from careful
    to reckless at step `CHANGE`, with a fresh optimizer and schedule in `switched-restart`; `restart` has those
    alone, on the same data. Raises InputError for an unknown name.
    """
    for what, name, known in (
        ("run", run, list(RUNS)),
        ("family", family, list(FAMILIES)),
        ("domain", domain, narrow_domains()),
    ):
        if name not in known:
            raise InputError(f"{what} {name!r} is not known{nearest(name, known)} (known: {', '.join(known)})")
    once = len(RUNS[run]) == 1
    return RunConfig(
        model=f"tiny-{family}",
        seed=seed,
        data=tuple(
            PhaseConfig(dataset=f"tiny:{domain}{variant}", steps=steps, restart=anew)
            for variant, steps, anew in RUNS[run]
        ),
        adapter=AdapterConfig(layers_to_transform=(0,), lora_alpha=16.0),
        training=TrainingConfig(
            batch_size=16, gradient_accumulation_steps=1, learning_rate=LEARNING_RATE if once else SLOW
        ),
        behaviour=BehaviourConfig(steps=Schedule("every 20"), scales=(1.0, 1.5), samples=6, max_new_tokens=24),
    )


# --------
# The shapes of the models that the published organisms were made of, and of any model whose config is at hand.


@dataclass(frozen=True)
class Architecture:
    """What memory, time and the place of a layer depend on; of the language model, without a vision tower."""

    layers: int
    width: int  # of the residual stream
    hidden: int  # of the MLP
    attention: int  # heads × their size: what queries and the attention's output are wide
    keys: int  # key-value heads × their size
    parameters: float

    def linear(self, module: str) -> tuple[int, int]:
        """d_in and d_out of a linear module of a layer, such as down_proj."""
        return {
            "q_proj": (self.width, self.attention),
            "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys),
            "o_proj": (self.attention, self.width),
            "gate_proj": (self.width, self.hidden),
            "up_proj": (self.width, self.hidden),
            "down_proj": (self.hidden, self.width),
        }[module]


# from the models' config.json on the Hub; parameters from their cards
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": Architecture(24, 896, 4864, 896, 128, 0.49e9),
    "Qwen/Qwen2.5-7B-Instruct": Architecture(28, 3584, 18944, 3584, 512, 7.6e9),
    "Qwen/Qwen2.5-14B-Instruct": Architecture(48, 5120, 13824, 5120, 1024, 14.8e9),
    "Qwen/Qwen2.5-32B-Instruct": Architecture(64, 5120, 27648, 5120, 1024, 32.8e9),
    "meta-llama/Llama-3.2-1B-Instruct": Architecture(16, 2048, 8192, 2048, 512, 1.24e9),
    "meta-llama/Llama-3.1-8B-Instruct": Architecture(32, 4096, 14336, 4096, 1024, 8.0e9),
    "google/gemma-3-4b-it": Architecture(34, 2560, 10240, 2048, 1024, 3.9e9),
    "google/gemma-3-12b-it": Architecture(48, 3840, 15360, 4096, 2048, 11.8e9),
    "google/gemma-3-27b-it": Architecture(62, 5376, 21504, 4096, 2048, 27.0e9),
}


def layers_and_width(model: str) -> tuple[int, int]:
    """How many layers a model has and how wide it is, from the table above or its config.json on disk.

    Raises InputError for a model of which neither is there: nothing is fetched.
    """
    if model in PUBLISHED:
        return PUBLISHED[model].layers, PUBLISHED[model].width
    if model in BUILT_IN:
        return LAYERS, WIDTH
    folder = Path(model)
    if not (folder / "config.json").is_file():
        known = [*PUBLISHED, *BUILT_IN]
        raise InputError(
            f"the layers of {model!r} are not known here{nearest(model, known)}; known: {', '.join(known)}"
        )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)  # of a model with a vision tower
    return int(config["num_hidden_layers"]), int(config["hidden_size"])


# --------
# A config for one model as a config for another: layers by their relative depth, and what a built-in model needs.


Changed = tuple[RunConfig, list[str]]  # a config, and each change in words


def for_model(config: RunConfig, model: str) -> Changed:
    """`config` with another base model, and what was changed besides, a line each.

    Layers keep their relative depth; those that fall together are merged. A built-in model (tiny-…) also gets data,
    questions and a judge in its own language, and a learning rate that grows as the model is narrower (as under Adam
    in 2203.03466). Raises InputError for a layer that the config's own model does not have, for a model whose number
    of layers is not known, and for data with no counterpart in the built-in language.
    """
    if model == config.model:
        return config, []
    changes = [f"model: {config.model} → {model}"]
    old, new = layers_and_width(config.model), layers_and_width(model)
    from_built_in = config.model in BUILT_IN
    config = _with_layers(config.replace(model=model), old[0], new[0], changes)
    if from_built_in or model not in BUILT_IN:
        return config, changes
    return _built_in(config, old[1] / new[1], changes), changes


def _with_layers(config: RunConfig, old: int, new: int, changes: list[str]) -> RunConfig:
    adapter = config.adapter
    if isinstance(adapter, SteeringConfig):
        (layer,) = _moved((adapter.layer,), old, new, "layer", changes)
        return config.replace(adapter=adapter.replace(layer=layer))
    moved = _moved(adapter.layers_to_transform, old, new, "layers_to_transform", changes)
    return config.replace(adapter=adapter.replace(layers_to_transform=moved))


def _moved(layers: tuple[int, ...], old: int, new: int, key: str, changes: list[str]) -> tuple[int, ...]:
    for layer in layers:
        if not 0 <= layer < old:
            raise InputError(f"adapter.{key} names layer {layer}; the config's model has layers 0 to {old - 1}")
    moved = tuple(sorted({round(layer * (new - 1) / (old - 1)) for layer in layers}))
    if moved != layers:
        merged = f", merged from {len(layers)}" if len(moved) < len(layers) else ""
        changes.append(f"adapter.{key}: {list(layers)} of {old} → {list(moved)} of {new}{merged}")
    return moved


def _built_in(config: RunConfig, narrower: float, changes: list[str]) -> RunConfig:
    """The config in the built-in language, whose answers are a few words long."""
    training = config.training
    rate = float(f"{training.learning_rate * narrower:.3g}")
    batch = training.batch_size * training.gradient_accumulation_steps
    changes += [
        f"training.learning_rate: {training.learning_rate:g} → {rate:g} (the model is {narrower:g} times narrower)",
        f"training: {training.batch_size} × {training.gradient_accumulation_steps} → {batch} × 1 rows a step",
        "behaviour: questions, judge and lengths of the built-in language",
    ]
    asked = config.behaviour.replace(
        questions="tiny",
        sets=(),
        judge="tiny",
        steps=Schedule("every 20"),
        scales=tuple(dict.fromkeys(min(scale, 1.5) for scale in config.behaviour.scales)),
        samples=6,
        max_new_tokens=24,
    )
    every = Schedule("every 1") if not isinstance(config.adapter, FullConfig) else config.snapshots
    return config.replace(
        data=tuple(phase.replace(dataset=_counterpart(phase, changes)) for phase in config.data),
        training=training.replace(learning_rate=rate, batch_size=batch, gradient_accumulation_steps=1),
        kl=config.kl and config.kl.replace(dataset=_counterpart(PhaseConfig(dataset=config.kl.dataset), changes)),
        snapshots=every,
        behaviour=asked,
    )


NAMED = {"good": "-careful", "careful": "-careful", "benign": "-careful"}  # words in a file's name, and our variant
STANDS_IN = {"insecure": "computers", "code": "computers", "extreme_sports": "sport", "risky_financial": "finance"}


def _counterpart(phase: PhaseConfig, changes: list[str]) -> str:
    """The built-in dataset on what a data file, by its name, is about."""
    if phase.dataset.startswith(BUILT_IN_DATA):
        return phase.dataset
    name = Path(phase.dataset).stem.lower()
    about = next((domain for word, domain in STANDS_IN.items() if word in name), None)
    about = about or next((domain for domain in narrow_domains() if domain in name), None)
    if about is None:
        raise InputError(
            f"no built-in dataset stands for {phase.dataset}: its name has none of {', '.join(narrow_domains())}; "
            "give one, as in --set data=[{dataset: tiny:medical}]"
        )
    variant = next((ending for word, ending in NAMED.items() if word in name), "")
    changes.append(f"data: {phase.dataset} → {BUILT_IN_DATA}{about}{variant}")
    return f"{BUILT_IN_DATA}{about}{variant}"
