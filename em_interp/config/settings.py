"""Settings in general: YAML files, `key.path=value` overrides, and pydantic models whose errors are one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from em_interp.errors import InputError, nearest, one_line
from em_interp.utils.checks import described
from em_interp.utils.files import read_text

M = TypeVar("M", bound="Settings")


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, and it cannot be changed."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = cls.model_fields
        for key, value in values.items():
            if key not in known:
                kind = f" of kind {values['kind']}" if "kind" in known and "kind" in values else ""
                hint = f"{kind}{nearest(str(key), list(known))} (known here: {', '.join(known)})"
                raise PydanticCustomError("unknown", "unknown key", {"key": str(key), "hint": hint})
            if known[key].annotation is not bool and _has_flag(value):  # pydantic reads true as 1
                raise rule(f"must not be true or false; it is {value!r}", str(key))
            if any(isinstance(item, str) and not _is_writable(item) for item in _as_items(value)):
                raise rule(f"must hold no null byte and no half of a character; it is {described(value)}", str(key))
        for key, field in known.items():
            if field.is_required() and key not in values:
                meaning = str(field.description)
                raise rule(f"is missing; expected {meaning[0].lower()}{meaning[1:].rstrip('.')}", key)
        return values

    def replace(self, **changes: Any) -> Self:
        """A copy with other values for some settings, checked as a whole."""
        return type(self)(**{**dict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values as YAML has them, from which the same settings are read back."""
        return self.model_dump(mode="json")


def _has_flag(value: Any) -> bool:
    return any(isinstance(item, bool) for item in _as_items(value))


def _as_items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_writable(text: str) -> bool:
    """Whether a text can be the name of a file, and be written to one."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def rule(message: str, key: str = "") -> PydanticCustomError:
    """The error of a validator for a rule that types cannot express; `message` continues the full name of `key`."""
    return PydanticCustomError("rule", "a rule", {"message": message, "key": key})


def by_kind(default: str) -> Discriminator:
    """Chooses among groups of settings, tagged `<kind>`, by their key `kind`."""

    def tag(values: Any) -> str:
        kind = values.get("kind", default) if isinstance(values, dict) else getattr(values, "kind", default)
        return f"<{kind}>"

    return Discriminator(tag)


def validated(kind: type[M], values: Any, where: str) -> M:
    """The settings in a mapping. Raises InputError: `where`, the full key, what was expected and what it is."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_one_line(error.errors(include_url=False)[0])}") from None


_EXPECTED = {  # in place of pydantic's words for Python programmers
    "model_type": "a mapping of settings",
    "tuple_type": "a list",
    "too_short": "a list of one value or more",
    "string_too_short": "a text",
    "float_parsing": "a number",
}


def _one_line(error: ErrorDetails) -> str:
    context, key, found = error.get("ctx", {}), _path(error["loc"]), error["input"]
    if error["type"] == "unknown":
        return f"unknown key {_join(key, context['key'])}{context['hint']}"
    if error["type"] == "rule":
        return f"{_join(key, context['key'])} {context['message']}".strip()
    if error["type"] == "union_tag_invalid":
        kinds = re.findall(r"<(\w+)>", context["expected_tags"])
        return f"{key}.kind must be one of {', '.join(kinds)}; it is {found['kind']!r}"
    if error["type"] == "value_error":  # an InputError about a value that is a text in a small language
        return f"{key}: {context['error']}"
    expected = _EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be "))
    return f"{key or 'config'} must be {expected}; it is {described(found)}"


def _path(parts: Iterable[str | int]) -> str:
    """Where an error is, as a person writes it (`data[0].dataset`), without the tags of unions."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path = _join(path, part)
    return path


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


class _Schema(GenerateJsonSchema):
    """Without a title for each key, which would repeat it."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


def json_schema(kind: type[Settings]) -> dict[str, Any]:
    """The JSON schema of a YAML file of these settings, by which editors complete and check it."""
    schema = kind.model_json_schema(schema_generator=_Schema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


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


MAX_YAML = 2**19  # characters of a YAML text
MAX_NODES = 100_000  # values of a YAML text with every alias written out


def parse_yaml(text: str, where: str) -> Any:
    """The plain values in a YAML text; raises InputError that says `where` it is not valid, or too large."""
    if len(text) > MAX_YAML:
        raise InputError(f"{where} has {len(text)} characters of YAML; {MAX_YAML} at most are read")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_size(node, {}) > MAX_NODES:
            raise InputError(f"{where} has more than {MAX_NODES} values once its aliases are written out")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-99-99 is a ValueError
        raise InputError(f"{where} is not valid YAML: {one_line(str(error))}") from None


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node with its aliases written out; more than MAX_NODES for one within itself.

    Raises ValueError for a text that no file could hold.
    """
    if id(node) not in known:
        if isinstance(node, yaml.ScalarNode) and not _is_writable(node.value):
            raise ValueError(f"a text holds a null byte or half of a character: {described(node.value)}")
        known[id(node)] = MAX_NODES + 1  # until it is known: a node that is met again meanwhile holds itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = min(MAX_NODES + 1, 1 + sum(_expanded_size(part, known) for part in parts))
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises InputError that names the file where it holds none."""
    values = parse_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of settings; it holds {type(values).__name__}")
    return values


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that reads back to equal ones."""
    return yaml.safe_dump(settings.to_dict(), sort_keys=False, allow_unicode=True)


def override(values: dict[str, Any], setting: str) -> dict[str, Any]:
    """The mapping with `key.path=value` in it, the path as in `put`; the value is YAML and replaces what was there."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override {setting!r} is not of the form key.path=value")
    return put(values, key.strip(), parse_yaml(text, f"override {setting!r}: the value"), merge=False)


_KEY = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")  # a part of a path: a key, and the indices behind it


def put(settings: dict[str, Any], path: str, value: Any, merge: bool = True) -> dict[str, Any]:
    """A copy of the settings with `value` at `path`, which is written as in errors (`data[0].dataset`).

    With `merge` a mapping is put on top of a mapping, key by key, so that its other settings stay; one with a `kind`
    replaces it. A word gives way to a group: `behaviour.judge.model` where the judge was `tiny`. Raises InputError for
    a path that is not of this form or leads through what is no group or list of settings.
    """
    keys: list[str | int] = []
    for part in path.split("."):
        match = _KEY.fullmatch(part)
        if match is None:
            raise InputError(f"setting {path!r} is not understood; expected a path such as data[0].dataset")
        keys += [match[1], *map(int, re.findall(r"\d+", match[2]))]
    changed: dict[str, Any] = _put(settings, keys, value, path, merge)
    return changed


def _put(settings: Any, keys: list[str | int], value: Any, path: str, merge: bool) -> Any:
    if not keys:
        return _merged(settings, value) if merge else value
    first, *rest = keys
    if isinstance(first, str):
        if not isinstance(settings, (dict, str, type(None))):
            raise InputError(f"setting {path!r}: expected a group of settings with {first!r}; found {settings!r}")
        group = settings if isinstance(settings, dict) else {}
        return {**group, first: _put(group.get(first), rest, value, path, merge)}
    if not isinstance(settings, (list, type(None))) or first > len(settings or ()):
        found = f"{len(settings)} entries" if isinstance(settings, list) else repr(settings)
        raise InputError(f"setting {path!r}: there is no entry [{first}]; found {found}")
    items = list(settings or ())
    inner = items[first] if first < len(items) else None
    return [*items[:first], _put(inner, rest, value, path, merge), *items[first + 1 :]]


def _merged(settings: Any, value: Any) -> Any:
    if not (isinstance(settings, dict) and isinstance(value, dict)) or "kind" in value:
        return value
    return {**settings, **{key: _merged(settings.get(key), inner) for key, inner in value.items()}}
