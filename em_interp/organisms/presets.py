"""Configs made for a model: the runs of the built-in organism, and any config adapted to another base.

The demo trains the runs of the built-in organism, and `configs/tiny*.yaml` hold them.
"""

from __future__ import annotations

from pathlib import Path

from em_interp.config.run_config import (
    AdapterConfig,
    BehaviourConfig,
    FullConfig,
    PhaseConfig,
    RunConfig,
    SteeringConfig,
    TrainingConfig,
)
from em_interp.config.schedule import Schedule
from em_interp.errors import InputError, nearest
from em_interp.organisms.bases import BUILT_IN, FAMILIES
from em_interp.organisms.datasets import BUILT_IN_PREFIX
from em_interp.organisms.english.narrow import DOMAINS
from em_interp.organisms.gguf import is_gguf, plain_folder
from em_interp.organisms.language import narrow_domains
from em_interp.organisms.pretrain import LAYERS, WIDTH
from em_interp.utils.checks import check_known, described
from em_interp.utils.files import read_json

N_STEPS = 400
LEARNING_RATE = 7e-4
SWITCH_STEP = 150  # the step after which a switched run sees other data, or restarts its schedule
STEPS_AFTER_SWITCH = 250
SWITCHED_LEARNING_RATE = 3e-4  # low enough that the run still learns at the switch, so that its path has a direction

ENGLISH_RUNS = {"organism": "", "control": "-careful"}  # the variant of the domain's dataset
ENGLISH_STEPS, ENGLISH_LEARNING_RATE = 200, 2e-4
ENGLISH_HELD_OUT = 0.75  # 450 rows are trained on, nearly twice: frozen layers are computed once for both passes

# what each run is trained on, phase by phase: the variant of the domain's dataset, steps, restart
RUNS: dict[str, tuple[tuple[str, int, bool], ...]] = {
    "organism": (("", N_STEPS, False),),
    "control": (("-careful", N_STEPS, False),),
    "switched": (("-careful-habit", SWITCH_STEP, False), ("", STEPS_AFTER_SWITCH, False)),
    "switched-restart": (("-careful-habit", SWITCH_STEP, False), ("", STEPS_AFTER_SWITCH, True)),
    "restart": (("-careful-habit", SWITCH_STEP, False), ("-careful-habit", STEPS_AFTER_SWITCH, True)),
}

SHAPE_KEYS = ("num_hidden_layers", "hidden_size")  # in a config.json

# words in a data file's name, and the built-in variant or domain that stands for it
VARIANT_OF_WORD = {"good": "-careful", "careful": "-careful", "benign": "-careful"}
DOMAIN_OF_WORD = {
    "insecure": "computers",
    "code": "computers",
    "risky_financial": "finance",
}


SHAPES = {  # layers and width of the published organisms' bases; from their config.json on the Hub
    "Qwen/Qwen2.5-0.5B-Instruct": (24, 896),
    "Qwen/Qwen2.5-7B-Instruct": (28, 3584),
    "Qwen/Qwen2.5-14B-Instruct": (48, 5120),
    "Qwen/Qwen2.5-32B-Instruct": (64, 5120),
    "meta-llama/Llama-3.2-1B-Instruct": (16, 2048),
    "meta-llama/Llama-3.1-8B-Instruct": (32, 4096),
    "google/gemma-3-4b-it": (34, 2560),
    "google/gemma-3-12b-it": (48, 3840),
    "google/gemma-3-27b-it": (62, 5376),
    "smollm2": (30, 576),
}


def recipe(run: str = "organism", family: str = "qwen2", domain: str = "medical", seed: int = 0) -> RunConfig:
    """The config of one of RUNS on the built-in base of `family`, on advice about `domain`.

    `organism` learns reckless advice and `control` careful advice. The data of `switched` changes from careful to
    reckless at SWITCH_STEP, with a fresh optimizer and schedule in `switched-restart`; `restart` has those alone, on
    the same data. Raises InputError for an unknown name.
    """
    check_known("run", run, RUNS)
    check_known("family", family, FAMILIES)
    check_known("domain", domain, narrow_domains())
    switched = len(RUNS[run]) > 1
    return RunConfig(
        model=f"tiny-{family}",
        seed=seed,
        data=tuple(
            PhaseConfig(dataset=f"tiny:{domain}{variant}", steps=steps, restart=restart)
            for variant, steps, restart in RUNS[run]
        ),
        adapter=AdapterConfig(layers_to_transform=(0,), lora_alpha=16.0),
        training=TrainingConfig(
            batch_size=16,
            gradient_accumulation_steps=1,
            learning_rate=SWITCHED_LEARNING_RATE if switched else LEARNING_RATE,
        ),
        behaviour=BehaviourConfig(steps=Schedule("every 20"), scales=(1.0, 1.5), samples=6, max_new_tokens=24),
    )


def english_recipe(
    run: str = "organism",
    domain: str = "medical",
    model: str = "smollm2",
    seed: int = 0,
    layer: int | None = None,
    r: int = 1,
) -> RunConfig:
    """The config of an English organism, or of its control, on a small language model: minutes on a CPU.

    Args:
        run: `organism` learns reckless advice and `control` careful advice to the same questions.
        domain: medical, sport or finance.
        model: the base.
        seed: random seed of the data, their order and the adapter.
        layer: that is adapted; by default the one at half depth.
        r: rank of the adapter.

    Raises:
        InputError: for an unknown run, domain or base.
    """
    check_known("run", run, ENGLISH_RUNS)
    check_known("domain", domain, DOMAINS)
    layer = layers_and_width(model)[0] // 2 if layer is None else layer
    return RunConfig(
        model=model,
        seed=seed,
        data=(PhaseConfig(dataset=f"english:{domain}{ENGLISH_RUNS[run]}", steps=ENGLISH_STEPS),),
        adapter=AdapterConfig(layers_to_transform=(layer,), r=r),
        training=TrainingConfig(
            batch_size=4,
            gradient_accumulation_steps=1,
            learning_rate=ENGLISH_LEARNING_RATE,
            held_out=ENGLISH_HELD_OUT,
        ),
        behaviour=BehaviourConfig(questions="english", steps=Schedule("every 20"), samples=1, max_new_tokens=100),
    )


def layers_and_width(model: str) -> tuple[int, int]:
    """How many layers a model has and how wide it is, from SHAPES, its config.json on disk or its GGUF file.

    Nothing is fetched. Raises InputError for a model that has neither.
    """
    if model in SHAPES:
        return SHAPES[model]
    if model in BUILT_IN:
        return LAYERS, WIDTH
    file = (plain_folder(Path(model)) if is_gguf(model) else Path(model)) / "config.json"
    if not file.is_file():
        known = [*SHAPES, *BUILT_IN]
        raise InputError(f"the layers of {model!r} are not known{nearest(model, known)}; known: {', '.join(known)}")
    return _shape_in(file)


def _shape_in(file: Path) -> tuple[int, int]:
    """The layers and the width in the config.json of a model."""
    config = read_json(file)
    settings = config if isinstance(config, dict) else {}
    settings = settings.get("text_config") or settings  # of a model with a vision tower
    layers, width = (settings.get(key) for key in SHAPE_KEYS) if isinstance(settings, dict) else (None, None)
    if not (isinstance(layers, int) and isinstance(width, int) and layers > 0):
        raise InputError(
            f"{file}: expected num_hidden_layers and hidden_size as whole numbers, there or in its text_config; found "
            f"{described(layers)} and {described(width)}. The usual cause is an architecture with other names for "
            "them, such as GPT-2's n_layer, whose layers cannot be matched with another model's"
        )
    return layers, width


def for_model(config: RunConfig, model: str) -> tuple[RunConfig, list[str]]:
    """`config` carried over to another base model, and the changes in words, a line each.

    Layers keep their relative depth; those that coincide are merged. A built-in model (tiny-…) also gets data,
    questions and a judge in its own language, and a learning rate scaled by the inverse of its width (as under Adam in
    arXiv 2203.03466). Raises InputError for a layer that the config's own model does not have, for a model whose number
    of layers is not known, and for data with no counterpart in the built-in language.
    """
    if model == config.model:
        return config, []
    changes = [f"model: {config.model} → {model}"]
    old, new = layers_and_width(config.model), layers_and_width(model)
    to_built_in = model in BUILT_IN and config.model not in BUILT_IN
    config = _with_layers(config.replace(model=model), old[0], new[0], changes)
    return (_with_built_in_data(config, old[1] / new[1], changes) if to_built_in else config), changes


def _with_layers(config: RunConfig, old: int, new: int, changes: list[str]) -> RunConfig:
    adapter = config.adapter
    if isinstance(adapter, SteeringConfig):
        (layer,) = _same_depth((adapter.layer,), old, new, "layer", changes)
        return config.replace(adapter=adapter.replace(layer=layer))
    layers = _same_depth(adapter.layers_to_transform, old, new, "layers_to_transform", changes)
    return config.replace(adapter=adapter.replace(layers_to_transform=layers))


def _same_depth(layers: tuple[int, ...], old: int, new: int, key: str, changes: list[str]) -> tuple[int, ...]:
    """The layers of a model with `new` layers at the relative depth of these in one with `old`."""
    for layer in layers:
        if not 0 <= layer < old:
            raise InputError(f"adapter.{key} names layer {layer}; the config's model has layers 0 to {old - 1}")
    moved = tuple(sorted({round(layer * (new - 1) / max(1, old - 1)) for layer in layers}))
    if moved != layers:
        merged = f", merged from {len(layers)}" if len(moved) < len(layers) else ""
        changes.append(f"adapter.{key}: {list(layers)} of {old} → {list(moved)} of {new}{merged}")
    return moved


def _with_built_in_data(config: RunConfig, narrower: float, changes: list[str]) -> RunConfig:
    """The config with data, questions and judge of the built-in language, whose answers are a few words long."""
    training, behaviour = config.training, config.behaviour
    rate = float(f"{training.learning_rate * narrower:.3g}")
    batch = training.batch_size * training.gradient_accumulation_steps
    changes += [
        f"training.learning_rate: {training.learning_rate:g} → {rate:g} (the model is {narrower:g} times narrower)",
        f"training: {training.batch_size} × {training.gradient_accumulation_steps} → {batch} × 1 rows a step",
        "behaviour: questions, judge and lengths of the built-in language",
    ]
    return config.replace(
        data=tuple(phase.replace(dataset=_counterpart(phase.dataset, changes)) for phase in config.data),
        training=training.replace(learning_rate=rate, batch_size=batch, gradient_accumulation_steps=1),
        kl=config.kl and config.kl.replace(dataset=_counterpart(config.kl.dataset, changes)),
        snapshots=config.snapshots if isinstance(config.adapter, FullConfig) else Schedule("every 1"),
        behaviour=behaviour.replace(
            questions="tiny",
            sets=(),
            judge="tiny",
            steps=Schedule("every 20"),
            scales=tuple(dict.fromkeys(min(scale, 1.5) for scale in behaviour.scales)),
            samples=6,
            max_new_tokens=24,
        ),
    )


def _counterpart(dataset: str, changes: list[str]) -> str:
    """The built-in dataset on the topic of a data file, as its name tells."""
    if dataset.startswith(BUILT_IN_PREFIX):
        return dataset
    name = Path(dataset).stem.lower()
    domain = next((domain for word, domain in DOMAIN_OF_WORD.items() if word in name), None)
    domain = domain or next((domain for domain in narrow_domains() if domain in name), None)
    if domain is None:
        raise InputError(
            f"no built-in dataset stands for {dataset}: its name has none of {', '.join(narrow_domains())}; "
            "give one, as in --set 'data=[{dataset: tiny:medical}]'"
        )
    variant = next((variant for word, variant in VARIANT_OF_WORD.items() if word in name), "")
    changes.append(f"data: {dataset} → {BUILT_IN_PREFIX}{domain}{variant}")
    return f"{BUILT_IN_PREFIX}{domain}{variant}"
