"""Which steps of a run: when to save a checkpoint, and at which checkpoints to ask questions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from em_interp.errors import InputError

EXPECTED = "expected parts such as 'every 5', 'log 40', '1-10', '1-100 every 5', '17', or a list of them"
_PART = re.compile(r"(?:(?P<first>\d+)(?:\s*-\s*(?P<last>\d+))?)?\s*(?:every\s+(?P<every>\d+))?")
_LOG = re.compile(r"log\s+(\d+)")


@dataclass(frozen=True)
class Schedule:
    """A set of steps, written as parts joined by commas.

    `every 5` is 5, 10, 15, …; `log 40` is about 40 steps evenly spaced in the logarithm; `1-10` is each of those;
    `1-100 every 5` is 5, 10, …, 100; `17` is that step. `1-10, every 5` is what the public organisms saved.
    The first step (0) and the last are always in.
    """

    text: str

    def __post_init__(self) -> None:
        for part in self._parts():
            if _LOG.fullmatch(part) is None and (not part or _PART.fullmatch(part) is None):
                raise InputError(f"schedule part {part!r} is not understood: {EXPECTED}")
            if _names_none(part):
                raise InputError(f"schedule part {part!r} names no step: {EXPECTED}")

    @classmethod
    def of(cls, value: Any) -> Schedule:
        """A schedule from what a YAML file may hold: a text, a step, a list of either, or a mapping `{every: 5}`."""
        if isinstance(value, Schedule):
            return value
        if isinstance(value, dict):
            return cls(", ".join(f"{key} {number}" for key, number in value.items()))
        if isinstance(value, (list, tuple)):
            return cls(", ".join(cls.of(item).text for item in value))
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise InputError(f"schedule {value!r} is not understood: {EXPECTED}")
        return cls(str(value).strip())

    def _parts(self) -> list[str]:
        return [part.strip() for part in self.text.split(",")]

    def steps(self, last: int) -> list[int]:
        """The steps named in 0..last, increasing, 0 and `last` among them."""
        named = {0, last}
        for part in self._parts():
            named.update(step for step in _expand(part, last) if 0 <= step <= last)
        return sorted(named)

    def nearest(self, saved: Iterable[int]) -> list[int]:
        """For each step named, the nearest one in `saved`: which checkpoints to use when not every step was kept."""
        there = sorted(saved)
        if not there:
            return []
        return sorted({min(there, key=lambda s: (abs(s - step), s)) for step in self.steps(there[-1])})


def _names_none(part: str) -> bool:
    """Whether no step can be meant, as by `every 0`, `9-5` or `6-9 every 5`."""
    if log := _LOG.fullmatch(part):
        return int(log.group(1)) == 0
    match = _PART.fullmatch(part)
    assert match is not None  # checked before
    first, every = int(match["first"] or 0), int(match["every"] or 1)
    if not every or match["first"] is None:
        return not every
    return -(-first // every) * every > int(match["last"] or first)  # the first multiple lies behind the last step


def _expand(part: str, last: int) -> Iterable[int]:
    if log := _LOG.fullmatch(part):
        count = int(log.group(1))
        return {round(last ** (i / max(count - 1, 1))) for i in range(count)}
    match = _PART.fullmatch(part)
    assert match is not None  # checked on construction
    every = int(match["every"] or 1)
    if match["first"] is None:
        return range(0, last + 1, every)
    first = int(match["first"])
    end = min(int(match["last"] or first), last)
    return (step for step in range(first, end + 1) if step % every == 0)
