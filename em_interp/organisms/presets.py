"""A config for one model as a config for another: layers by their relative depth, and what a built-in model needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from em_interp.config import FullConfig, PhaseConfig, RunConfig, SteeringConfig
from em_interp.errors import InputError
from em_interp.organisms.architectures import layers_and_width
from em_interp.organisms.bases import BUILT_IN
from em_interp.organisms.data import BUILT_IN as BUILT_IN_DATA
from em_interp.organisms.questions import narrow_domains
from em_interp.schedule import Schedule

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
    config = _with_layers(replace(config, model=model), old[0], new[0], changes)
    if from_built_in or model not in BUILT_IN:
        return config, changes
    return _built_in(config, old[1] / new[1], changes), changes


def _with_layers(config: RunConfig, old: int, new: int, changes: list[str]) -> RunConfig:
    adapter = config.adapter
    if isinstance(adapter, SteeringConfig):
        if adapter.layer is None:
            return config
        (layer,) = _moved((adapter.layer,), old, new, "layer", changes)
        return replace(config, adapter=replace(adapter, layer=layer))
    return replace(config, adapter=replace(adapter, layers=_moved(adapter.layers, old, new, "layers", changes)))


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
    batch = training.batch_size * training.accumulation
    changes += [
        f"training.learning_rate: {training.learning_rate:g} → {rate:g} (the model is {narrower:g} times narrower)",
        f"training: {training.batch_size} × {training.accumulation} → {batch} × 1 rows a step",
        "behaviour: questions, judge and lengths of the built-in language",
    ]
    asked = replace(
        config.behaviour,
        questions="tiny",
        sets=(),
        judge="tiny",
        steps=Schedule("every 20"),
        scales=tuple(dict.fromkeys(min(scale, 1.5) for scale in config.behaviour.scales)),
        samples=6,
        max_new_tokens=24,
    )
    every = Schedule("every 1") if not isinstance(config.adapter, FullConfig) else config.snapshots
    return replace(
        config,
        data=tuple(replace(phase, dataset=_counterpart(phase, changes)) for phase in config.data),
        training=replace(training, learning_rate=rate, batch_size=batch, accumulation=1),
        kl=config.kl and replace(config.kl, dataset=_counterpart(PhaseConfig(config.kl.dataset), changes)),
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
