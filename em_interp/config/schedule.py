"""Step schedules: the steps of a run that are saved or sampled."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from em_interp.errors import InputError
from em_interp.utils.checks import described

SCHEDULE_PARTS = "parts such as 'every 5', 'log 40', '1-10', '1-100 every 5', '17', or a list of them"
MAX_LOG_STEPS = 10**5  # of `log N` in a schedule
MAX_SCHEDULE = 10**6  # characters of a schedule
_N = "[0-9]{1,15}"
_STEPS_PART = re.compile(rf"(?:(?P<first>{_N})(?:\s*-\s*(?P<last>{_N}))?)?\s*(?:every\s+(?P<every>{_N}))?")
_LOG = re.compile(rf"log\s+({_N})")


@dataclass(frozen=True)
class Schedule:
    """A set of steps, written as parts joined by commas.

    `every 5` is 5, 10, 15, …; `log 40` is about 40 steps evenly spaced in the logarithm; `1-10` is each of those;
    `1-100 every 5` is 5, 10, …, 100; `17` is that step. `1-10, every 5` is what the public organisms saved.
    The first step (0) and the last are always in.
    """

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_SCHEDULE:
            raise InputError(f"a schedule of {len(self.text)} characters is too long; write it as {SCHEDULE_PARTS}")
        for part in self._parts():
            log = _LOG.fullmatch(part)
            if log is None and (not part or _STEPS_PART.fullmatch(part) is None):
                raise InputError(f"schedule part {described(part)} is not understood: expected {SCHEDULE_PARTS}")
            if log is not None and int(log[1]) > MAX_LOG_STEPS:
                raise InputError(f"schedule part {part!r} has more steps than {MAX_LOG_STEPS}, the most that log has")
            if _is_empty(part):
                raise InputError(f"schedule part {part!r} names no step: expected {SCHEDULE_PARTS}")

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
            raise InputError(f"schedule {described(value)} is not understood: expected {SCHEDULE_PARTS}")
        return cls(str(value).strip())

    def _parts(self) -> list[str]:
        return [part.strip() for part in self.text.split(",")]

    def steps(self, last: int) -> list[int]:
        """The steps of the schedule in 0..last, increasing, 0 and `last` among them."""
        steps = {0, last}
        for part in self._parts():
            steps.update(step for step in _expand(part, last) if 0 <= step <= last)
        return sorted(steps)

    def nearest(self, saved: Iterable[int]) -> list[int]:
        """For each step of the schedule the nearest in `saved`: which checkpoints to use where some were not kept."""
        saved = sorted(saved)
        if not saved:
            return []
        return sorted({_nearest(saved, step) for step in self.steps(saved[-1])})


def _nearest(increasing: list[int], step: int) -> int:
    """The number that is nearest; of two the smaller one."""
    at = bisect_left(increasing, step)
    return min(increasing[max(0, at - 1) : at + 1], key=lambda saved: (abs(saved - step), saved))


def _is_empty(part: str) -> bool:
    """Whether no step is meant, as by `every 0`, `9-5` or `6-9 every 5`."""
    if log := _LOG.fullmatch(part):
        return int(log.group(1)) == 0
    match = _STEPS_PART.fullmatch(part)
    assert match is not None  # checked before
    first, every = int(match["first"] or 0), int(match["every"] or 1)
    if not every or match["first"] is None:
        return not every
    return -(-first // every) * every > int(match["last"] or first)  # the first multiple lies behind the last step


def _expand(part: str, last: int) -> Iterable[int]:
    if log := _LOG.fullmatch(part):
        count = int(log.group(1))
        return {round(last ** (i / max(count - 1, 1))) for i in range(count)}
    match = _STEPS_PART.fullmatch(part)
    assert match is not None  # checked on construction
    every = int(match["every"] or 1)
    if match["first"] is None:
        return range(0, last + 1, every)
    first = int(match["first"])
    end = min(int(match["last"] or first), last)
    return (step for step in range(first, end + 1) if step % every == 0)
