"""Checks of the arguments of public functions; each error is one line with what was expected and what was found."""

from __future__ import annotations

import builtins
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from em_interp.errors import InputError, nearest

MAX_REPR = 60  # characters of a value in a message
EXPECTED = {str: "text", int: "a whole number", float: "a number", Path: "a path", NoneType: "None"}
LISTS = (Sequence, Iterable, list, tuple)
F = TypeVar("F", bound=Callable[..., Any])


def check_type(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise InputError unless `value` is of one of `kinds`; `expected` says in words what these are."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} must be {expected}; found {described(value)}")


def check_level(level: Any) -> None:
    """Raise InputError unless `level`, the probability that an interval contains the truth, lies between 0 and 1."""
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 < float(level) < 1:
        raise InputError(f"level must lie between 0 and 1, such as 0.95; it is {described(level)}")


def check_whole(name: str, value: Any, minimum: int = 0) -> None:
    """Raise InputError unless `value` is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise InputError(f"{name} must be a whole number, {minimum} or more; it is {described(value)}")


def check_known(what: str, name: Any, known: Iterable[str]) -> None:
    """Raise InputError, with the nearest of those `known`, unless `name` is one of them; `what` says what it names."""
    names = list(known)
    if name not in names:
        hint = nearest(name, names) if isinstance(name, str) else ""
        raise InputError(f"{what} {described(name)} is not known{hint} (known: {', '.join(names)})")


def check_characters(text: str, where: str) -> None:
    """Raise InputError for half a character (a lone surrogate), which JSON can write and no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"{where}: half a character ({half}, a lone surrogate) at {error.start}") from None


def as_list(value: Any) -> list[Any]:
    """The items of a list, tuple, set, range, array, series or generator; any other value as a list of one."""
    if isinstance(value, (list, tuple, set, frozenset, range, Iterator)) or getattr(value, "ndim", 0) == 1:
        return list(value)
    return [value]


def described(value: Any) -> str:
    """A value for a message: its beginning where it is a number, text, list, dictionary or None, else its type."""
    if isinstance(value, (Real, Path)) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, (bool, str, list, tuple, dict)):
        text = " ".join(repr(value).split())
        return text if len(text) <= MAX_REPR else f"{text[:MAX_REPR]}…"
    return f"a value of type {type(value).__name__}"


def checked(function: F) -> F:
    """Make a public function refuse, in one line, an argument of a type that its annotation does not allow.

    Where a list is expected, a single value of the right type stands for the list of it.
    Which texts an argument may be is left to the function, which names them; anything is true or false. A value of the
    default's type is always allowed.
    """
    parameters = inspect.signature(function).parameters

    @cache
    def hint_of(name: str) -> Any:
        annotation = parameters[name].annotation
        return eval(annotation, {}, _Names(function.__globals__)) if isinstance(annotation, str) else annotation

    def given(name: str, value: Any) -> Any:
        if isinstance(value, (str, Path)) and not _can_be_named(str(value)):
            raise InputError(f"{name} holds a null byte or half of a character: {described(value)}")
        if name not in parameters or type(value) is type(parameters[name].default) or fits(value, hint_of(name)):
            return value
        if any(fits(value, item) for item in _items_of(hint_of(name))):
            return [value]
        raise InputError(f"{name} must be {_expected(hint_of(name))}; found {described(value)}")

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        positional = [given(name, value) for name, value in zip(parameters, arguments, strict=False)]
        by_name = {name: given(name, value) for name, value in named.items()}
        return function(*positional, *arguments[len(positional) :], **by_name)

    return cast(F, call)


def _can_be_named(text: str) -> bool:
    """Whether a file can have this name; half of a character stands in some for a byte that is not UTF-8."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _items_of(hint: Any) -> list[Any]:
    """What the lists hold that an annotation allows."""
    kind, items = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return [found for item in items for found in _items_of(item)]
    return [items[0]] if kind in LISTS and items else []


class _ByName(type):
    """The type of a stand-in for a class that only type checkers import; a value is of it by its class's name."""

    def __instancecheck__(cls, value: Any) -> bool:
        return any(base.__name__ == cls.__name__ for base in type(value).__mro__)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _ByName(name, (), {})

    def __getitem__(cls, item: Any) -> Any:
        return cls


class _Names(dict[str, Any]):
    """The names that an annotation may use: those of its module, Python's own, and stand-ins for all others."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name) if hasattr(builtins, name) else _ByName(name, (), {})


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, or of what an annotation says."""
    kind, items = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, item) for item in items)
    if kind is Literal:
        return isinstance(value, type(items[0]))
    if kind is Callable:
        return callable(value)
    if kind in (Mapping, dict):
        of_key, of_value = items or (Any, Any)
        return isinstance(value, Mapping) and all(fits(k, of_key) and fits(v, of_value) for k, v in value.items())
    if kind in LISTS:
        return (
            isinstance(value, Iterable)
            and not isinstance(value, (str, bytes, Mapping))
            and (not items or isinstance(value, Iterator) or all(fits(item, items[0]) for item in value))
        )
    return _is_of(value, kind)


def _is_of(value: Any, kind: Any) -> bool:
    if kind in (Any, object, bool, inspect.Parameter.empty):
        return True
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if getattr(kind, "_is_protocol", False):  # a part of it is all that many functions need
        members = [hasattr(value, name) for name in vars(kind) if not name.startswith("_")]
        return sum(members) > len(members) / 2
    return isinstance(value, {Path: PathLike, None: NoneType}.get(kind, kind))


def _expected(hint: Any) -> str:
    """An annotation in words: "a whole number or None", "a list of Transition"."""
    kind, items = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_expected, items)))
    if kind is Literal:
        return "one of " + ", ".join(map(str, items))
    if kind in LISTS:
        return f"a list ({_expected(items[0])} each)"
    if kind in (Mapping, dict):
        return "a dictionary"
    if kind is Callable:
        return "a function"
    return EXPECTED.get(kind) or str(getattr(kind, "__name__", kind))
