"""Runs of one base beside each other: their directions against chance, as `em.compare` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from em_interp.comparison.compare import compare
from em_interp.comparison.result import DirectionComparison
from em_interp.errors import InputError
from em_interp.trajectory.load import load_trajectory


@dataclass(frozen=True, eq=False)
class WithinBase:
    """The runs of one base, or why their directions are not compared."""

    base: str
    runs: tuple[str, ...]
    comparison: DirectionComparison | None
    reason: str | None = None

    @property
    def lines(self) -> list[str]:
        """What the comparison says of directions; steps are pooled by group, not over everything on a base."""
        if self.comparison is None:
            return [self.reason or ""]
        agreements = {agreement.sentence() for agreement in self.comparison.agreements}
        return [line for line in self.comparison.sentence().splitlines() if line not in agreements]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the runs, the words, and every pair's cosines with their bands."""
        pairs = None if self.comparison is None else self.comparison.to_dict()["pairs"]
        return {"base": self.base, "runs": list(self.runs), "said": self.lines, "pairs": pairs}


def within_bases(runs: Sequence[tuple[str, Path]]) -> tuple[WithinBase, ...]:
    """The runs of each base compared; `runs` are the identity of the base and the run's folder."""
    groups: dict[str, list[Path]] = {}
    for base, path in runs:
        groups.setdefault(base, []).append(path)
    return tuple(_within(base, paths) for base, paths in groups.items())


def _within(base: str, paths: list[Path]) -> WithinBase:
    names = tuple(path.name for path in paths)
    if len(paths) < 2:
        return WithinBase(base, names, None, "one run of this base: nothing to compare it with")
    try:
        loaded = zip(_short(names), map(load_trajectory, paths), strict=True)
        return WithinBase(base, names, compare([replace(path, source=name) for name, path in loaded]))
    except InputError as error:  # such as adapters at sites that no two runs share
        return WithinBase(base, names, None, str(error))


def _short(names: Sequence[str]) -> list[str]:
    """The names without what they all begin with, such as that of the base; there is little room in figures."""
    parts = [name.split("_") for name in names]
    same = next((k for k, of_all in enumerate(zip(*parts, strict=False)) if len(set(of_all)) > 1), 0)
    return ["_".join(rest[same:]) for rest in parts]
