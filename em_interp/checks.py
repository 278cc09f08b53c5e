"""Checks of the arguments of public functions; each error is one line with what was expected and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from em_interp.errors import InputError

MAX_REPR = 60  # characters of a value in a message


def check_type(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise InputError unless `value` is of one of `kinds`; `expected` says in words what these are."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} must be {expected}; found {described(value)}")


def check_level(level: Any) -> None:
    """Raise InputError unless `level`, the probability that an interval holds the truth, lies between 0 and 1."""
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 < float(level) < 1:
        raise InputError(f"level must lie between 0 and 1, such as 0.95; it is {described(level)}")


def check_whole(name: str, value: Any, least: int = 0) -> None:
    """Raise InputError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name} must be a whole number, {least} or more; it is {described(value)}")


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
