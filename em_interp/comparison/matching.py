"""Which runs can be compared at all: one base, the same dimensions, and the sites that all of them adapt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.trajectory.load import (
    TrajectorySource,
    as_trajectory,
    base_identity,
    run_folder,
    source_run,
    weights_of,
)
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.utils.checks import as_list

Sources = Sequence[TrajectorySource] | Mapping[str, TrajectorySource]  # a mapping names the runs
MEANINGLESS = "raw cosines across bases mean nothing, for each has its own coordinates: use em.compare_across_bases"


class OtherBases(InputError):
    """The runs are of different bases; `compare_across_bases` is for those."""


@dataclass(frozen=True, eq=False)
class MatchedRuns:
    """Runs that share a base, and the sites they have in common."""

    names: tuple[str, ...]  # short and different from each other
    paths: tuple[AdapterTrajectory, ...]
    runs: tuple[Run | None, ...]  # the directory of each, where it was given as one
    sites: tuple[str, ...]  # adapted by every run
    unmatched: dict[str, tuple[str, ...]]  # by run: its sites that some other run does not adapt, not compared
    base: str | None

    def duplicates(self) -> list[tuple[str, str]]:
        """Pairs of runs with equal steps and equal last adapters: one run, given twice."""
        return [
            (name, second_name)
            for (name, path), (second_name, second) in self._pairs()
            if np.array_equal(path.steps, second.steps)
            and self._equal_at(path.A, second.A, -1)
            and self._equal_at(path.B, second.B, -1)
        ]

    def same_start(self) -> list[tuple[str, str]]:
        """Pairs of runs with the same A at step 0, as two runs of one seed have: A is similar from the start.

        Only LoRA adapters have an A that is trained.
        """
        named = zip(self.names, self.paths, strict=True)
        started = [(name, path) for name, path in named if path.steps[0] == 0 and path.kind == "lora"]
        return [
            (name, second_name)
            for (name, path), (second_name, second) in combinations(started, 2)
            if self._equal_at(path.A, second.A, 0)
        ]

    def _pairs(self) -> combinations[tuple[tuple[str, AdapterTrajectory], tuple[str, AdapterTrajectory]]]:
        return combinations(zip(self.names, self.paths, strict=True), 2)

    def _equal_at(self, first: dict[str, np.ndarray], second: dict[str, np.ndarray], row: int) -> bool:
        return all(np.array_equal(first[site][row], second[site][row]) for site in self.sites)


def match(sources: Sources, same_base: bool = False) -> MatchedRuns:
    """Open the runs and find what they share.

    With `same_base` the caller vouches that different names of the base (a mirror, a folder) mean the same weights.
    Raises InputError for fewer than two runs, for runs of different bases (by the hash in their manifests or packed
    files, else by the name in their adapters), of different dimensions at a shared site, and without any shared site.
    """
    paths, runs, names = open_all(sources)
    shared = tuple(site for site in paths[0].sites if all(site in path.sites for path in paths[1:]))
    for name, path in zip(names[1:], paths[1:], strict=True):
        _check_dimensions(names[0], paths[0], name, path)
    if not same_base:
        _check_bases(names, paths, runs)
    if not shared:
        found = "; ".join(f"{name}: {', '.join(path.sites)}" for name, path in zip(names, paths, strict=True))
        raise InputError(f"no site is adapted by every run, so there is nothing to compare ({found})")
    rest = {name: tuple(s for s in path.sites if s not in shared) for name, path in zip(names, paths, strict=True)}
    base = next((path.base for path in paths if path.base), None)
    return MatchedRuns(names, paths, runs, shared, {name: sites for name, sites in rest.items() if sites}, base)


def open_all(
    sources: Sources,
) -> tuple[tuple[AdapterTrajectory, ...], tuple[Run | None, ...], tuple[str, ...]]:
    """The paths, the run directories (None where a source is not one) and the names. Raises InputError for one run."""
    given = list(sources.values()) if isinstance(sources, Mapping) else as_list(sources)
    if len(given) < 2:
        found = "one" if given else "none"
        raise InputError(f"a comparison is of two runs or more; {found} was given (several go in a list: [run, other])")
    paths, runs = zip(*map(_open, given), strict=True)
    return paths, runs, tuple(map(str, sources)) if isinstance(sources, Mapping) else names_of(paths)


def _open(source: TrajectorySource) -> tuple[AdapterTrajectory, Run | None]:
    if isinstance(source, AdapterTrajectory):
        return source, None
    path = as_trajectory(source)
    folder = source.path if isinstance(source, Run) else run_folder(source)
    return path, Run(folder) if folder.is_dir() else None


def names_of(paths: Sequence[AdapterTrajectory]) -> tuple[str, ...]:
    """The name of each run: the shortest unique suffix of its path, else the path with a number."""
    parts = [_parts(path.source) if path.source else (f"run {n}",) for n, path in enumerate(paths, 1)]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(part[-d:]) for part, d in zip(parts, depth, strict=True)]
        counts = Counter(names)
        longer = [k for k, name in enumerate(names) if counts[name] > 1 and depth[k] < len(parts[k])]
        if not longer:
            break
        for k in longer:
            depth[k] += 1
    seen: Counter[str] = Counter()
    for k, name in enumerate(names):
        seen[name] += 1
        names[k] = name if seen[name] == 1 else f"{name} #{seen[name]}"
    return tuple(names)


def _parts(source: str) -> tuple[str, ...]:
    path = Path(source)
    return (path.resolve() if path.name in ("", "..") else path).parts


def _check_dimensions(name: str, path: AdapterTrajectory, second_name: str, second: AdapterTrajectory) -> None:
    for site in path.sites:
        if site not in second.sites:
            continue
        size, second_size = ((p.B[site].shape[1], p.A[site].shape[2]) for p in (path, second))
        if size != second_size:
            bases = f" (bases: {path.base or 'unknown'}, {second.base or 'unknown'})"
            sizes = f"{size[0]} × {size[1]} in {name} and {second_size[0]} × {second_size[1]} in {second_name}{bases}"
            error = OtherBases if path.base and second.base and path.base != second.base else InputError
            raise error(f"ΔW of {site} is {sizes}; {MEANINGLESS}")


def _check_bases(names: Sequence[str], paths: Sequence[AdapterTrajectory], runs: Sequence[Run | None]) -> None:
    """Raise InputError for two runs of different bases: by the hash of the weights, else by their names."""
    hashes = [_weights_hash(run or source_run(path)) for path, run in zip(paths, runs, strict=True)]
    known = zip(names, [path.base for path in paths], hashes, strict=True)
    for (name, base, weights), (other_name, other_base, other_weights) in combinations(known, 2):
        if weights and other_weights:
            if weights == other_weights:
                continue
            first, second = (base or "an unnamed base", other_base or "an unnamed base")
            found = f"{name} has {first} ({weights[:12]}) and {other_name} {second} ({other_weights[:12]})"
        elif not base or not other_base or base.rstrip("/") == other_base.rstrip("/"):
            continue
        else:
            found = f"{name} was trained on {base} and {other_name} on {other_base}"
        raise OtherBases(f"{found}; {MEANINGLESS}; if these are the same weights, give same_base=True")


def _weights_hash(run: Run) -> str | None:
    """The hash of the base's weights, without its name; None where it is not recorded."""
    identity = base_identity(run)
    return None if identity is None else weights_of(identity)
