"""Settings in general: mappings into checked dataclasses, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from em_interp.errors import InputError, nearest
from em_interp.runs import read_text
from em_interp.schedule import Schedule

Rule = tuple[str, str, Callable[[Any], bool]]  # a key, what is expected of its value, and whether it is so


def check(config: Any, key: str, name: str, expected: str, fine: Callable[[Any], bool]) -> None:
    """Raise InputError, with the key by its full `name`, where the value at `key` is not as `expected`."""
    found = attrgetter(key)(config)
    if not fine(found):
        raise InputError(f"{name} must be {expected}; it is {to_dict(found)!r}")


def to_dict(value: Any) -> Any:
    """A config, or a part of one, as plain YAML values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, Schedule):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Schedule):
        return value.text
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises InputError that names it where it holds none."""
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of settings; it holds {type(values).__name__}")
    return values


def override(values: dict[str, Any], setting: str) -> dict[str, Any]:
    """The mapping with `key.path=value` put on top; values are YAML."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(f"override {setting!r} is not of the form key.path=value")
    first, _, rest = key.strip().partition(".")
    if rest:
        inner = values.get(first) or {}
        if not isinstance(inner, dict):
            raise InputError(f"override {setting!r}: {first} is not a group of settings")
        return {**values, first: override(inner, f"{rest}={text}")}
    try:
        return {**values, first: yaml.safe_load(text)}
    except yaml.YAMLError:
        raise InputError(f"override {setting!r}: the value is not valid YAML") from None


def build(kind: type, values: Any, where: str, prefix: str) -> Any:
    """A dataclass of `kind` from a mapping, every key known and every value of its type."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: {prefix.rstrip('.') or 'config'} must be a mapping; it is {values!r}")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    of_kind = f" of kind {values['kind']}" if "kind" in known and "kind" in values else ""
    for key in values:
        if key not in known:
            hint = nearest(str(key), known)
            raise InputError(f"{where}: unknown key {prefix}{key}{of_kind}{hint} (known here: {', '.join(known)})")
    return kind(**{key: _convert(hints[key], value, where, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    if kind is Schedule:
        return Schedule.of(value)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where, key + ".")
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return _convert(_choose(kinds, value, where, key), value, where, key)
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        inner = typing.get_args(kind)[0]
        return tuple(_convert(inner, item, where, f"{key}[{i}]") for i, item in enumerate(items))
    return _scalar(kind, value, where, key)


def _choose(kinds: list[Any], value: Any, where: str, key: str) -> Any:
    """Of a word or a group of settings, a mapping is the group; of several groups it is the one of its `kind`."""
    group = isinstance(value, dict)
    named = {k.kind: k for k in kinds if dataclasses.is_dataclass(k) and hasattr(k, "kind")}
    if not group or not named:
        return next((k for k in kinds if dataclasses.is_dataclass(k) == group), kinds[0])
    kind = value.get("kind", next(iter(named)))
    if kind not in list(named):
        raise InputError(f"{where}: {key}.kind must be one of {', '.join(named)}; it is {kind!r}")
    return named[kind]


def _scalar(kind: type, value: Any, where: str, key: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5 as a text
        except ValueError:
            pass
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{where}: {key} must be of type {kind.__name__}; it is {value!r}")
