"""Settings in general: mappings into checked dataclasses, and back."""

from __future__ import annotations

import dataclasses
import re
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


class _Loader(yaml.SafeLoader):
    """YAML as `yaml.safe_load` has it, without a key given twice: the last would win, and nothing say so."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; raises ConstructorError for a key given twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) and key.value != "<<" else set()
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The plain values in a YAML text; raises InputError that says `where` it is not valid."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-99-99 is a ValueError
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{where} is not valid YAML: {reason}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises InputError that names it where it holds none."""
    values = parse_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of settings; it holds {type(values).__name__}")
    return values


_PART = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")


def override(values: dict[str, Any], setting: str) -> dict[str, Any]:
    """The mapping with `key.path=value` in it, the path as in `put`; the value is YAML and replaces what is there."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override {setting!r} is not of the form key.path=value")
    return put(values, key.strip(), parse_yaml(text, f"override {setting!r}: the value"), merge=False)


def put(settings: dict[str, Any], path: str, value: Any, merge: bool = True) -> dict[str, Any]:
    """The settings with `value` at `path`, as errors write it (`data[0].dataset`); what was given is left as it is.

    With `merge` a mapping is put on top of a mapping, key by key, so that its other settings stay; one with a `kind`
    replaces it. A word gives way to a group: `behaviour.judge.model` where the judge was `tiny`. Raises InputError for
    a path that is not of this form or leads through what is no group or list of settings.
    """
    keys: list[str | int] = []
    for part in path.split("."):
        match = _PART.fullmatch(part)
        if match is None:
            raise InputError(f"setting {path!r} is not understood; expected a path such as data[0].dataset")
        keys += [match[1], *map(int, re.findall(r"\d+", match[2]))]
    changed: dict[str, Any] = _put(settings, keys, value, path, merge)
    return changed


def _put(settings: Any, keys: list[str | int], value: Any, path: str, merge: bool) -> Any:
    if not keys:
        if merge and isinstance(settings, dict) and isinstance(value, dict) and "kind" not in value:
            return {
                **settings,
                **{key: _put(settings.get(key), [], inner, path, merge) for key, inner in value.items()},
            }
        return value
    first, *rest = keys
    if isinstance(first, str):
        if not isinstance(settings, (dict, str, type(None))):
            raise InputError(f"setting {path!r}: {first!r} was to be one of a group of settings; found {settings!r}")
        group = settings if isinstance(settings, dict) else {}
        return {**group, first: _put(group.get(first), rest, value, path, merge)}
    if not isinstance(settings, (list, type(None))) or first > len(settings or ()):
        count = len(settings) if isinstance(settings, list) else settings
        raise InputError(f"setting {path!r}: no entry [{first}] in what is there ({count})")
    items = list(settings or ())
    inner = items[first] if first < len(items) else None
    return [*items[:first], _put(inner, rest, value, path, merge), *items[first + 1 :]]


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
        try:
            return Schedule.of(value)
        except InputError as error:
            raise InputError(f"{where}: {key}: {error}") from None
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
