"""Runs of different bases beside each other, by what needs no common coordinates: `compare_families` on a few of them.

Every run read by many random adapters costs as much as training it, so of each base two seeds of one setting are
taken, the same setting for all: two are the fewest that give turning profiles a null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.comparison.families import compare_families
from em_interp.comparison.family_page import LIMITS, write_families
from em_interp.errors import InputError
from em_interp.runs import read_json

if TYPE_CHECKING:
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
    """What `compare_families` left in a folder, or why there is nothing."""

    folder: Path
    reason: str | None = None

    @property
    def found(self) -> dict[str, Any]:
        """`families.json`, or an empty mapping."""
        return {} if self.reason else dict(read_json(self.folder / "families.json"))

    @property
    def lines(self) -> list[str]:
        """What was compared and each measure against chance, in words; or why nothing was."""
        return [self.reason] if self.reason else [*self.found["sentence"].splitlines(), LIMITS]

    def figures(self) -> list[go.Figure]:
        """Likeness of what the adapters change, and how they turn along normalised time."""
        import pandas as pd

        from em_interp import figures as draw

        if self.reason:
            return []
        tables = {name: pd.read_csv(self.folder / f"{name}.csv") for name in ("likeness", "profiles", "turning")}
        about = self.lines[0]
        likeness = draw.plot_family_likeness(tables["likeness"], self.found["level"], about)
        return [likeness, draw.plot_turning_profiles(tables["profiles"], tables["turning"], about)]


def across_bases(
    candidates: Sequence[Candidate], draws: int, out: Path, tell: Callable[[str], None] = lambda says: None
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
                write_families(compare_families([one.path for one in runs], draws=draws, tell=tell), folder, True)
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
