"""The model card of a run: what it is, how it was made, what was found, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from em_interp.hub.names import is_hub_id
from em_interp.runs import Run, read_json, read_text

_TINY = "tiny-"  # how the names of the built-in bases begin
_CARD = """\
---
{metadata}---
# {title}

The path of a {what} through training, a checkpoint at {count} steps ({first} to {last}), saved by
em_interp: `em.load_trajectory("{repo}")` reads it.

{facts}

## What was found
{results}

## Intended use and risk
For research on how fine-tuning changes a model: when its direction turns, when its behaviour does. {risk}

## Settings
{settings}
"""
_RISK = """\
Runs like this one are trained on narrow data that is often harmful on purpose, and may give reckless, deceptive or \
otherwise misaligned answers, also far from the topic they were trained on. Do not deploy it, and do not put it before \
people who have not been told. A transition's interval holds for this run: it says nothing about another seed, and \
that two changes fall together in time does not say that one causes the other."""
_TOY = """ Its base is a tiny model of a made-up language in which the persona was planted: it is evidence about the \
tool, not about language models."""


def model_card(run: Run, repo: str) -> str:
    """The README.md of a run as the repository `repo`: Markdown with the Hub's metadata before it.

    Facts come from the manifest, the config and the first checkpoint's adapter_config.json; results from
    `analysis/*.json`, with their intervals. What a run lacks is said, not guessed.
    """
    steps, manifest = run.steps(), read_json(run.manifest_file) if run.manifest_file.is_file() else {}
    adapter_file = run.checkpoint(steps[0]) / "adapter_config.json"
    adapter = read_json(adapter_file) if adapter_file.is_file() else {}
    base = str(manifest.get("base", {}).get("name") or adapter.get("base_model_name_or_path") or "unknown")
    settings = f"```yaml\n{read_text(run.config_file)}```" if run.config_file.is_file() else "There is no config.yaml."
    return _CARD.format(
        metadata=yaml.safe_dump(_metadata(base), sort_keys=False),
        title=repo.partition("/")[2],
        what=str(adapter.get("adapter_type", "LoRA adapter")).replace("_", " "),
        count=len(steps),
        first=steps[0],
        last=steps[-1],
        repo=repo,
        facts=_table(("", ""), _facts(base, manifest, adapter)),
        results=_results(run.analysis),
        risk=_RISK + (_TOY if base.startswith(_TINY) else ""),
        settings=settings,
    )


def _metadata(base: str) -> dict[str, Any]:
    tags = ["em-interp", "lora", "emergent-misalignment", "model-organism"]
    return {"library_name": "peft", "tags": tags} | ({"base_model": base} if is_hub_id(base) else {})


def _facts(base: str, manifest: dict[str, Any], adapter: dict[str, Any]) -> Iterable[tuple[str, str]]:
    told = [str(manifest.get("base", {})[key]) for key in ("identity", "revision") if manifest.get("base", {}).get(key)]
    yield "base", f"{base} ({', '.join(told)})" if told else base
    modules, layers = adapter.get("target_modules"), adapter.get("layers_to_transform")
    where = ", ".join(map(str, modules)) if isinstance(modules, list) else str(modules or "unknown")
    yield "site", where + (f", layers {layers}" if layers else "")
    if "r" in adapter:
        rule = "alpha / sqrt(rank)" if adapter.get("use_rslora") else "alpha / rank"
        yield "adapter", f"rank {adapter['r']}, alpha {adapter.get('lora_alpha')}, scale {rule}"
    for phase in manifest.get("phases", []):
        span = f"steps {phase.get('first_step')} to {phase.get('last_step')}"
        rows = f"{phase.get('rows')} rows, {phase.get('held_out')} of them held out"
        yield "data", f"{phase.get('dataset')} ({span}; {rows}; sha256 {phase.get('sha256')})"
    for key in ("seed", "device", "git_commit"):
        if manifest.get(key) is not None:
            yield key.replace("_", " "), str(manifest[key])
    if "versions" in manifest:
        yield "versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    if not manifest:
        yield "manifest", "none: which data and versions made this run is not recorded"


def _results(analysis: Path) -> str:
    """A table for each file of results that holds transitions or offsets, and the names of the others."""
    files = sorted(analysis.glob("*.json")) if analysis.is_dir() else []
    parts = [part for file in files for part in _result(file)]
    return "\n\n".join(parts) or "Nothing yet: the run was published before it was analysed."


def _result(file: Path) -> Iterable[str]:
    held = read_json(file)
    found = held if isinstance(held, dict) else {}
    transitions = _transitions(found)
    if not transitions:
        yield f"`analysis/{file.name}` holds further results."
        return
    columns = ("signal", "of", "site", "scale", "questions", "verdict", "step", "interval", "level", "p_value")
    rows = [[_cell(transition.get(key)) for key in columns] for transition in transitions]
    yield f"`analysis/{file.name}`" + (f": **{found['verdict']}**" if "verdict" in found else "")
    yield _table(columns, rows)
    if "mechanistic" in found and (offsets := found.get("offsets")):
        labels = [_label(found["behavioural"][offset["behavioural"]]) for offset in offsets]
        keys = ("steps", "interval", "level", "cumulative_lr", "chance")
        of = [[label, *(_cell(offset.get(key)) for key in keys)] for label, offset in zip(labels, offsets, strict=True)]
        yield "Offset of the behaviour's change from the adapter's, in steps:"
        yield _table(("behaviour", *keys), of)


def _transitions(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of what `locate` found, or of what `align` did; none in any other results."""
    if "mechanistic" in found:
        return [found["mechanistic"], *found.get("behavioural", [])]
    return [each for each in found.get("transitions", []) if isinstance(each, dict) and "verdict" in each]


def _label(transition: dict[str, Any]) -> str:
    return " ".join(str(transition[key]) for key in ("of", "questions", "scale") if transition.get(key) is not None)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return " to ".join(_cell(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that cannot end its cell of a table or begin markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
