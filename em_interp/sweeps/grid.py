"""The plan of a sweep: settings that all its runs share, those that vary, and the runs and controls they give."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from em_interp.comparison.cross_base.similarity import band_rank
from em_interp.config.run_config import RunConfig, load_config
from em_interp.config.settings import Settings, put, read_yaml, to_yaml, validated
from em_interp.errors import InputError

REPLICATE = "seed"  # runs that differ in nothing else are pooled
DATASET = "data[0].dataset"  # what `data` is short for, where its values are names
LEVEL = 0.95  # of every band and interval
MAX_LABEL = 60  # characters of a value in a run's name


class SweepConfig(Settings):
    """What the YAML file of a sweep may hold. Keys of settings are written as in errors: `data[0].dataset`."""

    base: Annotated[dict[str, Any], WithJsonSchema({"type": ["string", "object"]})] = Field(default_factory=dict)
    """The settings of every run, or the name of a run's config beside this file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Changes of the base."""
    grid: dict[str, Any] = Field(default_factory=dict)
    """A list of values for each setting that varies."""
    control: dict[str, Any] = Field(default_factory=dict)
    """What makes the control of a run: a value, or one for each value of the grid."""
    across: int = Field(default=0, strict=True)
    """Random adapters that runs of different bases are compared beside; 0: they are not compared."""


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run of a sweep, before it is trained."""

    name: str  # that of its folder
    config: RunConfig
    values: dict[str, Any]  # of each setting that varies
    group: str  # its name without the seed: runs of one group are pooled
    control: str | None = None  # the name of its control


@dataclass(frozen=True, eq=False)
class SweepGrid:
    """The runs of a sweep and their controls; `load_sweep` reads `config` back to the same."""

    runs: tuple[PlannedRun, ...]
    controls: tuple[PlannedRun, ...]
    axes: dict[str, list[Any]]  # the values of each setting that varies
    config: SweepConfig

    @property
    def all(self) -> tuple[PlannedRun, ...]:
        """Everything that is trained: the runs and their controls."""
        return (*self.runs, *self.controls)

    def to_yaml(self) -> str:
        """The sweep as YAML, independent of the file that its base config came from."""
        return to_yaml(self.config)


def load_sweep(source: str | Path | dict[str, Any]) -> SweepGrid:
    """The runs that a YAML file or a mapping describes, every config of them checked.

    `base` is a mapping or the name of a run's config, looked for beside the file and then from here. In `grid` and
    `control` a dataset may be given by its name under `data`. A control has the settings of its run with those in
    `control` on top, and the first seed; runs whose controls are equal share one. Raises InputError for an unknown
    key, a value that no run can have, a run given twice, and a control with other questions than its run.
    """
    where, folder = ("sweep", Path()) if isinstance(source, dict) else (str(source), Path(source).parent)
    values = dict(source) if isinstance(source, dict) else read_yaml(Path(source))
    if isinstance(base := values.get("base"), str):
        values["base"] = load_config(_base_file(folder, base)).to_dict()
    config = validated(SweepConfig, values, where)
    if config.across:
        band_rank(LEVEL, config.across)
    shared = load_config(config.base).to_dict()
    for key, value in config.settings.items():
        shared = put(shared, _long(key, [value]), value)
    config = config.replace(base=_checked(shared, f"{where}: settings").to_dict(), settings={})
    axes = dict(_axes(config.grid, where))
    runs = list(_runs(config.base, axes, where))
    if equal := _equal([to_yaml(run.config) for run in runs]):
        first, second = (runs[index].name for index in equal)
        raise InputError(f"{where}: {first} and {second} are the same run; name each value of the grid once")
    runs, controls = _with_controls(runs, axes, config.control, where)
    return SweepGrid(tuple(runs), tuple(controls), axes, config)


def _base_file(folder: Path, name: str) -> Path:
    places = (folder / name, Path(name))
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(f"base {name!r} is not there; looked for {' and '.join(dict.fromkeys(map(str, places)))}")
    return file


def _long(key: Any, values: Sequence[Any]) -> str:
    """The key in full: names of datasets may stand at `data`."""
    return DATASET if key == "data" and all(isinstance(value, str) for value in values) else str(key)


def _axes(grid: dict, where: str) -> Iterator[tuple[str, list[Any]]]:
    if not grid:
        raise InputError(f"{where}: grid names nothing that varies; expected a list of values for a setting or more")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: grid.{key} must be a list of one value or more; it is {values!r}")
        yield _long(key, values), values


def _runs(shared: dict[str, Any], axes: dict[str, list[Any]], where: str) -> Iterator[PlannedRun]:
    labels = {key: _labels(key, values) for key, values in axes.items()}
    for chosen in product(*(range(len(values)) for values in axes.values())):
        values = {key: axes[key][index] for key, index in zip(axes, chosen, strict=True)}
        parts = {key: labels[key][index] for key, index in zip(axes, chosen, strict=True)}
        settings = shared
        for key, value in values.items():
            settings = put(settings, key, value)
        group = "_".join(part for key, part in parts.items() if key != REPLICATE)
        yield PlannedRun("_".join(parts.values()), _checked(settings, f"{where}: {values}"), values, group)


def _checked(settings: dict[str, Any], where: str) -> RunConfig:
    try:
        return load_config(settings)
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('config: ')}") from None


def _equal(texts: Sequence[str]) -> tuple[int, int] | None:
    """The places of the first two equal texts."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        if first.setdefault(text, index) != index:
            return first[text], index
    return None


def _with_controls(
    runs: list[PlannedRun], axes: dict[str, list[Any]], control: dict[str, Any], where: str
) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """The runs with the names of their controls, and the controls."""
    controls: dict[str, PlannedRun] = {}
    matched = []
    for run in runs if control else ():
        values = {**run.values, **{key: axes[key][0] for key in axes if key == REPLICATE}}
        settings = run.config.to_dict()
        values |= dict(_control_values(control, run, where))
        for key, value in values.items():
            settings = put(settings, key, value)
        config = _checked(settings, f"{where}: control")
        _check_questions(run, config, where)
        text = to_yaml(config)
        if text not in controls:
            parts = [_labels(key, [value])[0] for key, value in values.items() if key != REPLICATE]
            name = "_".join(["control", *parts])
            name += f"_{len(controls) + 1}" if name in {known.name for known in controls.values()} else ""
            controls[text] = PlannedRun(name, config, values, name)
        matched.append(replace(run, control=controls[text].name))
    return matched or runs, list(controls.values())


def _control_values(control: dict[str, Any], run: PlannedRun, where: str) -> Iterator[tuple[str, Any]]:
    """The settings in which the control of a run differs from it."""
    for short, given in control.items():
        key = _long(short, list(given.values()) if isinstance(given, dict) else [given])
        value = run.values.get(key)
        if not (isinstance(given, dict) and key in run.values) or isinstance(value, (list, dict)):
            yield key, given  # no key of a mapping can name a list or a mapping
        elif value in given:
            yield key, given[value]
        else:
            raise InputError(
                f"{where}: control.{short} has no entry for {value!r}; it has {', '.join(map(str, given))}"
            )


def _check_questions(run: PlannedRun, control: RunConfig, where: str) -> None:
    """Raise InputError where a run and its control would have other questions: they could not be compared."""
    if _question_settings(run.config) != _question_settings(control):
        raise InputError(
            f"{where}: {run.name} and its control would have other questions, steps or scales; give each dataset its "
            "own control, such as {data: {tiny:medical: tiny:medical-careful, …}}"
        )


def _question_settings(config: RunConfig) -> tuple[Any, ...]:
    """The settings of the questions; the judge and the number of samples may differ."""
    return config.behaviour.replace(judge="tiny", samples=1), _domain(config)


def _domain(config: RunConfig) -> str | None:
    """The domain of the built-in questions."""
    from em_interp.organisms.datasets import BUILT_IN_PREFIX

    dataset = config.data[-1].dataset if config.data else ""
    if config.behaviour.questions != "tiny" or not dataset.startswith(BUILT_IN_PREFIX):
        return None
    return dataset.removeprefix(BUILT_IN_PREFIX).split("-")[0]


def _labels(key: str, values: Sequence[Any]) -> list[str]:
    """The label of each value of a setting in names: short where that distinguishes them."""
    word = re.sub(r"\[\d+\]", "", key).rsplit(".", 1)[-1]
    for short in (True, False):
        labels = [_label(word, value, short) for value in values]
        if len({label.lower() for label in labels}) == len(labels):  # some disks do not tell a from A
            return labels
    return [f"{label}-{number}" for number, label in enumerate(labels, 1)]


def _label(word: str, value: Any, short: bool) -> str:
    text = re.sub(r"[^\w.+-]+", "-", "-".join(_leaves(value, short))).strip("-.")[:MAX_LABEL]
    named = isinstance(value, str) or (isinstance(value, list) and not any(isinstance(v, (int, float)) for v in value))
    return text if named and text else word + text


def _leaves(value: Any, short: bool) -> Iterator[str]:
    """The values of a setting, without their keys; of paths and datasets, the last part."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item, short)
    elif isinstance(value, str) and short:
        yield re.split(r"[/:]", value.rstrip("/"))[-1].removesuffix(".jsonl")
    elif value is not None:
        yield f"{value:g}" if isinstance(value, float) else str(value)
