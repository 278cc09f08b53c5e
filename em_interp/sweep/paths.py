"""Settings by their path, as error messages write it: `training.learning_rate`, `data[0].dataset`."""

from __future__ import annotations

import re
from typing import Any

from em_interp.errors import InputError

_PART = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")


def put(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The settings with `value` at `path`; what was given is left as it is.

    A mapping is put on top of a mapping, key by key, so that its other settings stay; one with a `kind` replaces it.
    Raises InputError for a path that is not of this form or leads through what is no group or list of settings.
    """
    keys: list[str | int] = []
    for part in path.split("."):
        match = _PART.fullmatch(part)
        if match is None:
            raise InputError(f"setting {path!r} is not understood; expected a path such as data[0].dataset")
        keys += [match[1], *map(int, re.findall(r"\d+", match[2]))]
    changed: dict[str, Any] = _put(settings, keys, value, path)
    return changed


def _put(settings: Any, keys: list[str | int], value: Any, path: str) -> Any:
    if not keys:
        if isinstance(settings, dict) and isinstance(value, dict) and "kind" not in value:
            return {**settings, **{key: _put(settings.get(key), [], inner, path) for key, inner in value.items()}}
        return value
    first, *rest = keys
    if isinstance(first, str):
        if not isinstance(settings, (dict, type(None))):
            raise InputError(f"setting {path!r}: {first!r} was to be one of a group of settings; found {settings!r}")
        group = settings or {}
        return {**group, first: _put(group.get(first), rest, value, path)}
    if not isinstance(settings, (list, type(None))) or first > len(settings or ()):
        count = len(settings) if isinstance(settings, list) else settings
        raise InputError(f"setting {path!r}: no entry [{first}] in what is there ({count})")
    items = list(settings or ())
    inner = items[first] if first < len(items) else None
    return [*items[:first], _put(inner, rest, value, path), *items[first + 1 :]]
