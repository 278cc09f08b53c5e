"""What a sweep is asked to do: settings that all its runs share, those that vary, and the runs that come of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from em_interp.comparison.cross_base.similarity import least_draws
from em_interp.config import RunConfig, dump_config, load_config
from em_interp.errors import InputError
from em_interp.settings import Settings, put, read_yaml, to_yaml, validated

REPLICATE = "seed"  # runs that differ in nothing else are pooled
DATASET = "data[0].dataset"  # what `data` is short for, where its values are names
LEVEL = 0.95  # of every band and interval
LONGEST = 60  # characters of a value in a run's name


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
class Cell:
    """One run of a sweep."""

    name: str  # that of its folder
    config: RunConfig
    values: dict[str, Any]  # of each setting that varies
    group: str  # its name without the seed: what is pooled has the same
    control: str | None = None  # the name of the run it is held against


@dataclass(frozen=True, eq=False)
class Grid:
    """The runs of a sweep and their controls; `asked` is what `load_sweep` reads back to the same."""

    cells: tuple[Cell, ...]
    controls: tuple[Cell, ...]
    axes: dict[str, list[Any]]
    asked: SweepConfig

    @property
    def runs(self) -> tuple[Cell, ...]:
        """Everything that is trained and asked."""
        return (*self.cells, *self.controls)

    def to_yaml(self) -> str:
        """The sweep as YAML, whatever file its base came from."""
        return to_yaml(self.asked)


def load_sweep(source: str | Path | dict[str, Any]) -> Grid:
    """The runs that a YAML file or a mapping asks for, every config of them checked.

    `base` is a mapping or the name of a run's config, looked for beside the file and then from here. In `grid` and
    `control` names of datasets may stand at `data`. A control has the settings of its run, those in `control` put on
    top, and the first seed; runs that come to the same control share it. Raises InputError for an unknown key, a value
    that no run can have, runs that are asked for twice, and controls that would be asked other questions.
    """
    where, folder = ("sweep", Path()) if isinstance(source, dict) else (str(source), Path(source).parent)
    values = dict(source) if isinstance(source, dict) else read_yaml(Path(source))
    if isinstance(base := values.get("base"), str):
        values["base"] = load_config(_beside(folder, base)).to_dict()
    asked = validated(SweepConfig, values, where)
    if asked.across:
        least_draws(LEVEL, asked.across)
    shared = load_config(asked.base).to_dict()
    for key, value in asked.settings.items():
        shared = put(shared, _long(key, [value]), value)
    asked = asked.replace(base=_checked(shared, f"{where}: settings").to_dict(), settings={})
    axes = dict(_axes(asked.grid, where))
    cells = list(_cells(asked.base, axes, where))
    if twice := _twice([dump_config(cell.config) for cell in cells]):
        first, second = (cells[index].name for index in twice)
        raise InputError(f"{where}: {first} and {second} are the same run; name each value of the grid once")
    cells, controls = _with_controls(cells, axes, asked.control, where)
    return Grid(tuple(cells), tuple(controls), axes, asked)


def _beside(folder: Path, name: str) -> Path:
    places = (folder / name, Path(name))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"base {name!r} is not there; looked for {' and '.join(dict.fromkeys(map(str, places)))}")
    return found


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


def _cells(shared: dict[str, Any], axes: dict[str, list[Any]], where: str) -> Iterator[Cell]:
    labels = {key: _labels(key, values) for key, values in axes.items()}
    for chosen in product(*(range(len(values)) for values in axes.values())):
        values = {key: axes[key][index] for key, index in zip(axes, chosen, strict=True)}
        parts = {key: labels[key][index] for key, index in zip(axes, chosen, strict=True)}
        settings = shared
        for key, value in values.items():
            settings = put(settings, key, value)
        group = "_".join(part for key, part in parts.items() if key != REPLICATE)
        yield Cell("_".join(parts.values()), _checked(settings, f"{where}: {values}"), values, group)


def _checked(settings: dict[str, Any], where: str) -> RunConfig:
    try:
        return load_config(settings)
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('config: ')}") from None


def _twice(texts: Sequence[str]) -> tuple[int, int] | None:
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        if first.setdefault(text, index) != index:
            return first[text], index
    return None


def _with_controls(
    cells: list[Cell], axes: dict[str, list[Any]], control: dict, where: str
) -> tuple[list[Cell], list[Cell]]:
    """The cells with the names of their controls, and the controls."""
    made: dict[str, Cell] = {}
    held = []
    for cell in cells if control else ():
        values = {**cell.values, **{key: axes[key][0] for key in axes if key == REPLICATE}}
        settings = cell.config.to_dict()
        for key, value in _of_control(control, cell, where):
            values |= {key: value}
        for key, value in values.items():
            settings = put(settings, key, value)
        config = _checked(settings, f"{where}: control")
        _check_questions(cell, config, where)
        text = dump_config(config)
        if text not in made:
            parts = [_labels(key, [value])[0] for key, value in values.items() if key != REPLICATE]
            name = "_".join(["control", *parts])
            name += f"_{len(made) + 1}" if name in {one.name for one in made.values()} else ""
            made[text] = Cell(name, config, values, name)
        held.append(replace(cell, control=made[text].name))
    return held or cells, list(made.values())


def _of_control(control: dict, cell: Cell, where: str) -> Iterator[tuple[str, Any]]:
    """The settings that make a control of the cell."""
    for short, given in control.items():
        key = _long(short, list(given.values()) if isinstance(given, dict) else [given])
        if not (isinstance(given, dict) and key in cell.values):
            yield key, given
        elif (value := cell.values[key]) in given:
            yield key, given[value]
        else:
            raise InputError(
                f"{where}: control.{short} has no entry for {value!r}; it has {', '.join(map(str, given))}"
            )


def _check_questions(cell: Cell, control: RunConfig, where: str) -> None:
    """A run can be held against its control only where both are asked the same."""
    if _asked(cell.config) != _asked(control):
        raise InputError(
            f"{where}: {cell.name} and its control would be asked other questions, or at other steps or scales; give "
            "each dataset its own control, such as {data: {tiny:medical: tiny:medical-careful, …}}"
        )


def _asked(config: RunConfig) -> tuple[Any, ...]:
    """What a run will be asked; who judges it, and how often it is asked, may differ."""
    return config.behaviour.replace(judge="tiny", samples=1), _domain(config)


def _domain(config: RunConfig) -> str | None:
    """What the built-in questions will be about."""
    from em_interp.organisms.datasets import BUILT_IN_PREFIX

    dataset = config.data[-1].dataset if config.data else ""
    if config.behaviour.questions != "tiny" or not dataset.startswith(BUILT_IN_PREFIX):
        return None
    return dataset.removeprefix(BUILT_IN_PREFIX).split("-")[0]


def _labels(key: str, values: Sequence[Any]) -> list[str]:
    """What each value of a setting is called in names: short where that tells them apart."""
    word = re.sub(r"\[\d+\]", "", key).rsplit(".", 1)[-1]
    for short in (True, False):
        labels = [_label(word, value, short) for value in values]
        if len({label.lower() for label in labels}) == len(labels):  # some disks do not tell a from A
            return labels
    return [f"{label}-{number}" for number, label in enumerate(labels, 1)]


def _label(word: str, value: Any, short: bool) -> str:
    text = re.sub(r"[^\w.+-]+", "-", "-".join(_leaves(value, short))).strip("-.")[:LONGEST]
    named = isinstance(value, str) or (isinstance(value, list) and not any(isinstance(v, (int, float)) for v in value))
    return text if named and text else word + text


def _leaves(value: Any, short: bool) -> Iterator[str]:
    """The values of a setting, without their keys; of paths and datasets, what comes last."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item, short)
    elif isinstance(value, str) and short:
        yield re.split(r"[/:]", value.rstrip("/"))[-1].removesuffix(".jsonl")
    elif value is not None:
        yield f"{value:g}" if isinstance(value, float) else str(value)
