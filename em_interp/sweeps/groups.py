"""The runs of a sweep compared: within each base by their directions, and a few of them across bases.

Across bases every run is read by many random adapters, which costs as much as training it, so two seeds of one setting
are taken of each base, the same setting for all: two are the fewest that give turning profiles a null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.comparison.compare import compare
from em_interp.comparison.cross_base.compare import compare_across_bases
from em_interp.comparison.cross_base.result import CrossBaseComparison
from em_interp.comparison.page import write_comparison
from em_interp.comparison.result import DirectionComparison
from em_interp.errors import InputError
from em_interp.trajectory.load import load_trajectory
from em_interp.utils.stages import read_saved

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACROSS_FOLDER = "across"  # in the sweep's
RUNS_OF_A_BASE = 2


@dataclass(frozen=True, eq=False)
class WithinBase:
    """The runs of one base, or why their directions are not compared."""

    base: str
    runs: tuple[str, ...]
    comparison: DirectionComparison | None
    reason: str | None = None

    @property
    def lines(self) -> list[str]:
        """The comparison of directions in words; steps are pooled by group, not over everything on a base."""
        if self.comparison is None:
            return [self.reason or ""]
        agreements = {agreement.sentence() for agreement in self.comparison.agreements}
        return [line for line in self.comparison.sentence().splitlines() if line not in agreements]

    def figures(self) -> list[go.Figure]:
        """The directions at the end against chance, and the paths in one plane."""
        if self.comparison is None:
            return []
        return [self.comparison.plot("pairs"), self.comparison.plot("plane", self.comparison.plane["measure"].iloc[0])]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the runs, the words, and every pair's cosines with their bands."""
        pairs = None if self.comparison is None else self.comparison.to_dict()["pairs"]
        return {"base": self.base, "runs": list(self.runs), "lines": self.lines, "pairs": pairs}


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
        loaded = zip(_without_prefix(names), map(load_trajectory, paths), strict=True)
        return WithinBase(base, names, compare([replace(path, source=name) for name, path in loaded]))
    except InputError as error:  # such as adapters at sites that no two runs share
        return WithinBase(base, names, None, str(error))


def _without_prefix(names: Sequence[str]) -> list[str]:
    """The names without their common first parts, such as the base; there is little room in figures."""
    parts = [name.split("_") for name in names]
    same = next((k for k, of_all in enumerate(zip(*parts, strict=False)) if len(set(of_all)) > 1), 0)
    return ["_".join(rest[same:]) for rest in parts]


@dataclass(frozen=True)
class Candidate:
    """A run that could be compared across bases."""

    name: str
    base: str  # its identity
    setting: str  # all that varies but the base and the seed
    path: Path


@dataclass(frozen=True, eq=False)
class AcrossBases:
    """The comparison across bases in a folder, or why there is none."""

    folder: Path
    reason: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """`cross_base.json`, or an empty mapping."""
        return {} if self.reason else dict(read_saved(self.folder / "cross_base.json", {"sentence": str}))

    @property
    def lines(self) -> list[str]:
        """The comparison in words; or why there is none."""
        return [self.reason] if self.reason else [*self.values["sentence"].splitlines(), CrossBaseComparison.LIMITS]

    def figures(self) -> list[go.Figure]:
        """Similarity of what the adapters change, and how they turn along normalised time."""
        import pandas as pd

        from em_interp.figures import cross_base as draw

        if self.reason:
            return []
        tables = {name: pd.read_csv(self.folder / f"{name}.csv") for name in ("similarity", "profiles", "turning")}
        about = self.lines[0]
        similarity = draw.similarity(tables["similarity"], self.values["level"], about)
        return [similarity, draw.turning_profiles(tables["profiles"], tables["turning"], about)]


def across_bases(
    candidates: Sequence[Candidate], draws: int, out: Path, log: Callable[[str], None] = lambda says: None
) -> AcrossBases | None:
    """Compare runs of different bases against `draws` random adapters each; None with one base or none.

    A comparison of the same runs and as many draws that is in the folder already is kept.
    """
    from em_interp.utils.processes import torch_threads

    folder = out / ACROSS_FOLDER
    if len({run.base for run in candidates}) < 2:
        return None
    if not draws:
        chosen = " ".join(f"runs/{run.name}" for run in choose(candidates))
        return AcrossBases(
            folder,
            f"not compared: set across: 39 in the sweep (random adapters a run), or run em-interp compare {chosen}",
        )
    runs = choose(candidates)
    if not runs:
        return AcrossBases(folder, "not compared: no setting was trained on every base")
    if not _is_compared(folder, runs, draws):
        try:
            with torch_threads():
                comparison = compare_across_bases([run.path for run in runs], draws=draws, log=log)
                write_comparison(comparison, folder, overwrite=True)
        except InputError as error:
            return AcrossBases(folder, f"not compared: {error}")
    return AcrossBases(folder)


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first runs of each base, of the first setting that every base has; none where there is no such setting."""
    bases = dict.fromkeys(run.base for run in candidates)
    for setting in dict.fromkeys(run.setting for run in candidates):
        of = {base: [run for run in candidates if (run.base, run.setting) == (base, setting)] for base in bases}
        if all(of.values()):
            return [run for runs in of.values() for run in runs[:RUNS_OF_A_BASE]]
    return []


def _is_compared(folder: Path, runs: Sequence[Candidate], draws: int) -> bool:
    """Whether the folder holds the comparison of these runs, not damaged; its page is the last of it to be written."""
    if not (folder / "cross_base.html").exists():
        return False
    form = {"runs": [{"name": str}], "random_adapters": int, "sentence": str}
    try:
        kept = read_saved(folder / "cross_base.json", form)
    except InputError:
        return False
    return [run["name"] for run in kept["runs"]] == [run.name for run in runs] and kept["random_adapters"] == draws
