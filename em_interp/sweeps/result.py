"""Runs of different bases beside each other: `compare_across_bases` on a few of them.

Every run read by many random adapters costs as much as training it, so of each base two seeds of one setting are
taken, the same setting for all: two are the fewest that give turning profiles a null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from em_interp.comparison.compare import compare
from em_interp.comparison.cross_base.compare import compare_across_bases
from em_interp.comparison.page import CROSS_BASE_LIMITS, write_families
from em_interp.comparison.pooled import Agreement, pool_steps
from em_interp.comparison.result import DirectionComparison
from em_interp.errors import InputError, nearest
from em_interp.files import read_json
from em_interp.run import Run
from em_interp.sweeps.grid import REPLICATE, Cell
from em_interp.sweeps.jobs import FINDINGS, run_path
from em_interp.trajectory.load import load_trajectory
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FOLDER = "across"  # in the sweep's
RUNS = 2  # of each base


@dataclass(frozen=True)
class Candidate:
    """A run that could be compared."""

    name: str
    base: str  # its identity
    setting: str  # what it has in common with runs of other bases: all that varies but the base and the seed
    path: Path


@dataclass(frozen=True, eq=False)
class AcrossBases:
    """What `compare_across_bases` left in a folder, or why there is nothing."""

    folder: Path
    reason: str | None = None

    @property
    def found(self) -> dict[str, Any]:
        """`families.json`, or an empty mapping."""
        return {} if self.reason else dict(read_json(self.folder / "families.json"))

    @property
    def lines(self) -> list[str]:
        """What was compared and each measure against chance, in words; or why nothing was."""
        return [self.reason] if self.reason else [*self.found["sentence"].splitlines(), CROSS_BASE_LIMITS]

    def figures(self) -> list[go.Figure]:
        """Likeness of what the adapters change, and how they turn along normalised time."""
        import pandas as pd

        from em_interp.figures import cross_base as draw

        if self.reason:
            return []
        tables = {name: pd.read_csv(self.folder / f"{name}.csv") for name in ("likeness", "profiles", "turning")}
        about = self.lines[0]
        likeness = draw.similarity(tables["likeness"], self.found["level"], about)
        return [likeness, draw.turning_profiles(tables["profiles"], tables["turning"], about)]


def across_bases(
    candidates: Sequence[Candidate], draws: int, out: Path, log: Callable[[str], None] = lambda says: None
) -> AcrossBases | None:
    """Compare runs of the bases there are beside `draws` random adapters each; None where there is one base or none.

    What is in the folder already is kept where it is of the same runs and as many draws.
    """
    from em_interp.pipeline import one_thread

    folder = out / FOLDER
    if len({one.base for one in candidates}) < 2:
        return None
    if not draws:
        chosen = " ".join(f"runs/{one.name}" for one in choose(candidates))
        return AcrossBases(folder, f"not asked for; across: 39 in the sweep asks, or: em-interp compare {chosen}")
    runs = choose(candidates)
    if not runs:
        return AcrossBases(folder, "not compared: no setting was made on every base")
    if not _is_there(folder, runs, draws):
        try:
            with one_thread():
                write_families(
                    compare_across_bases([one.path for one in runs], draws=draws, log=log), folder, overwrite=True
                )
        except InputError as error:
            return AcrossBases(folder, f"not compared: {error}")
    return AcrossBases(folder)


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first runs of each base, of the first setting that every base has; none where there is no such setting."""
    bases = dict.fromkeys(one.base for one in candidates)
    for setting in dict.fromkeys(one.setting for one in candidates):
        of = {base: [one for one in candidates if (one.base, one.setting) == (base, setting)] for base in bases}
        if all(of.values()):
            return [one for runs in of.values() for one in runs[:RUNS]]
    return []


def _is_there(folder: Path, runs: Sequence[Candidate], draws: int) -> bool:
    """Whether the folder holds the comparison of these runs; its page is the last of it that is written."""
    if not (folder / "families.html").exists():
        return False
    kept = read_json(folder / "families.json")
    return [one["name"] for one in kept["runs"]] == [one.name for one in runs] and kept["random_adapters"] == draws


# --------
# Runs of one base beside each other: their directions against chance, as `em.compare` has them.


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


# --------
# What a sweep found: each run's transitions, what runs of one group have in common, and what could not be told.


SIGNALS = ("rotation", "gradient_norm", "onset", "offset")
TITLES = {
    "rotation": "Rotation of B",
    "gradient_norm": "Gradient-norm peak",
    "onset": "EM onset, out of domain",
    "offset": "Onset after rotation",
}
Table = Literal["cells", "pooled", "signals"]
TABLES: tuple[str, ...] = get_args(Table)
POOLED = ["group", "signal", "mean", "low", "high", "level", "between_runs_sd", "pooled_runs"]
POOLED += ["transition", "none", "inconclusive", "without_interval"]  # runs by verdict


@dataclass(frozen=True, eq=False)
class CellResult:
    """One run of the sweep: what was found, or why nothing was."""

    cell: Cell
    path: Path
    error: str | None  # why it could not be made or analysed
    told: dict[str, Any]  # of `work.told`; empty where there is an error

    @property
    def control(self) -> str | None:
        """The control that it was held against; None also where that failed."""
        return self.told.get("control")

    @property
    def signals(self) -> dict[str, Transition]:
        """Rotation of B, gradient-norm peak, onset of EM out of domain, and the offset of it from the rotation."""
        if not self.told:
            return {}
        found = {name: Transition.from_dict(self.told[name]) for name in SIGNALS[:-1]}
        return {**found, "offset": _offset(found["rotation"], found["onset"], self.told["offset"])}


def _offset(rotation: Transition, onset: Transition, offset: dict[str, Any] | None) -> Transition:
    """The offset in the form of a transition, so that it is pooled and drawn as the steps are."""
    if offset is not None:
        interval = None if offset["interval"] is None else tuple(offset["interval"])
        chance = "" if offset["chance"] is None else f"; chance of being as near {offset['chance']:.2g}"
        reason = f"from the rotation of B to the onset of EM{chance}"
        return Transition(
            "offset", "transition", reason, step=offset["steps"], interval=interval, level=offset["level"]
        )
    lacking = {"rotation": rotation.verdict, "onset": onset.verdict}
    reason = " and ".join(f"{name}: {word}" for name, word in lacking.items() if word != "transition")
    return Transition("offset", "none" if "none" in lacking.values() else "inconclusive", reason)


def _agreements(members: Sequence[CellResult]) -> dict[str, Agreement]:
    names = [one.cell.name for one in members]
    return {name: pool_steps(names, [one.signals[name] for one in members]) for name in SIGNALS if members}


def _numbers(found: Transition | None) -> dict[str, float]:
    """Step and interval, NaN where there is none."""
    step = np.nan if found is None or found.step is None else found.step
    low, high = (np.nan, np.nan) if found is None or found.interval is None else found.interval
    return {"step": step, "low": low, "high": high}


def _plain(one: CellResult) -> dict[str, Any]:
    """A run for `sweep.json`; paths are from the sweep's folder, so that it can be moved."""
    offset = {"offset": {**one.signals["offset"].to_dict(), **(one.told["offset"] or {})}} if one.told else {}
    who = {"run": one.cell.name, "path": str(Path("runs") / one.cell.name), "settings": one.cell.values}
    return {**who, "group": one.cell.group, "error": one.error, **one.told, **offset}


def read_cell(cell: Cell, out: Path, error: str | None) -> CellResult:
    """What the workers left of one run."""
    path = run_path(out, cell.name)
    return CellResult(cell, path, error, {} if error else read_json(Run(path).analysis / FINDINGS))


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """All runs of a sweep. Pooled steps are of runs that differ in their seed alone, with random effects."""

    out: Path
    cells: tuple[CellResult, ...]
    controls: tuple[CellResult, ...]
    within: tuple[WithinBase, ...]
    across: AcrossBases | None  # None with one base
    keys: tuple[str, ...]  # the settings that vary

    @property
    def page(self) -> Path:
        """Where its page is written."""
        return self.out / "sweep.html"

    @property
    def failures(self) -> dict[str, str]:
        """Why, by the name of each run that failed."""
        return {one.cell.name: one.error for one in (*self.cells, *self.controls) if one.error}

    def pooled(self) -> list[tuple[str, dict[str, Agreement]]]:
        """Each group of runs that differ in their seed alone, with what they agree on; failed runs are left out."""
        groups: dict[str, list[CellResult]] = {}
        for one in self.cells:
            groups.setdefault(one.cell.group, []).append(one)
        return [(group, _agreements([one for one in members if one.told])) for group, members in groups.items()]

    def counts(self) -> dict[str, dict[str, int]]:
        """For each signal, how many cells have which verdict."""
        there = [one.signals for one in self.cells if one.told]
        return {name: dict(Counter(signals[name].verdict for signals in there)) for name in SIGNALS}

    def frame(self, table: Table = "cells") -> pd.DataFrame:
        """`cells`: a row a run; `signals`: a row a run and signal; `pooled`: a row a group and signal."""
        import pandas as pd

        if table not in TABLES:
            raise InputError(f"there is no table {table!r}{nearest(table, TABLES)} (there are: {', '.join(TABLES)})")
        rows = {"cells": self._cell_rows, "signals": self._signal_rows, "pooled": self._pooled_rows}[table]
        return pd.DataFrame(list(rows()), columns=POOLED if table == "pooled" else None)

    def _cell_rows(self) -> Iterator[dict[str, Any]]:
        for one in self.cells:
            row = {"run": one.cell.name, "group": one.cell.group, **one.cell.values}
            for name in SIGNALS:
                found = one.signals.get(name)
                row[f"{name}_verdict"] = found.verdict if found else "failed"
                row |= {f"{name}_{part}": value for part, value in _numbers(found).items()}
            offset, final = one.told.get("offset") or {}, one.told.get("final") or {}
            for rate in ("em", "coherent"):
                row[f"final_{rate}"] = (final.get(rate) or {}).get("rate", np.nan)
            row |= {"offset_chance": offset.get("chance"), "alignment": one.told.get("verdict")}
            yield {**row, "control": one.control, "error": one.error}

    def _signal_rows(self) -> Iterator[dict[str, Any]]:
        for one in self.cells:
            who = {"run": one.cell.name, "group": one.cell.group, REPLICATE: one.cell.values.get(REPLICATE)}
            for name in SIGNALS:
                found = one.signals.get(name)
                if found is None:
                    yield {**who, "signal": name, "verdict": "failed", **_numbers(None), "reason": one.error}
                else:
                    yield {**who, "signal": name, "verdict": found.verdict, **_numbers(found), "reason": found.reason}

    def _pooled_rows(self) -> Iterator[dict[str, Any]]:
        for group, agreements in self.pooled():
            for name, agreement in agreements.items():
                values = agreement.to_dict()
                low, high = values["interval"] or (np.nan, np.nan)
                numbers = {"mean": values["mean"], "low": low, "high": high, "level": agreement.level}
                numbers |= {"between_runs_sd": values["between_runs_sd"], "pooled_runs": values["pooled_runs"]}
                yield {"group": group, "signal": name, **numbers, **agreement.counts}

    def plot(self) -> go.Figure:
        """Every run's steps with their intervals, by group, beside the pooled steps."""
        from em_interp.figures.sweeps import sweep

        return sweep(self.frame("signals"), self.frame("pooled"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: every run with everything found in it, the pooled steps, and the comparisons of directions."""
        return {
            "runs": len(self.cells),
            "failed": len(self.failures),
            "counts": self.counts(),
            "cells": [_plain(one) for one in self.cells],
            "controls": [_plain(one) for one in self.controls],
            "pooled": [
                {"group": group, **{name: one.to_dict() for name, one in agreements.items()}}
                for group, agreements in self.pooled()
            ],
            "within": [one.to_dict() for one in self.within],
            "across": None if self.across is None else self.across.lines,
            "failures": self.failures,
        }

    def sentence(self) -> str:
        """In words, a line each: how many runs, how many of them have each signal, what groups agree on, failures."""
        lines = [f"runs: {len(self.cells)}; controls: {len(self.controls)}; failed: {len(self.failures)}"]
        for name, counts in self.counts().items():
            words = [f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda one: -one[1])]
            lines.append(f"{TITLES[name]}: {', '.join(words) or 'no run'}")
        lines += [f"failed: {name}: {why}" for name, why in self.failures.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Sweep({len(self.cells)} runs, {len(self.controls)} controls, {len(self.failures)} failed; {self.out})"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{'<br>'.join(map(escape, self.sentence().splitlines()))}</p>{self.frame().to_html(index=False)}"
