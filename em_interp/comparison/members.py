"""The runs of a comparison of families: each opened once, with what its adapter changes on the shared texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from em_interp.behaviour.ask import Base
from em_interp.comparison.changes import Changes, changes_of, depths, own_and_random
from em_interp.comparison.family_texts import SharedTexts, shared_texts
from em_interp.comparison.matching import Source, names_of, open_source
from em_interp.errors import InputError
from em_interp.mechanism.model import SteppedModel, open_model
from em_interp.runs import Run
from em_interp.trajectory.adapter import AdapterTrajectory

DEPTHS = 8  # layers of each model that are looked at


@dataclass(frozen=True, eq=False)
class Opening:
    """A run that can be opened: its path, its directory where it has one, and its base (loaded, or a name)."""

    name: str
    path: AdapterTrajectory
    run: Run | None
    base: Base | str | None

    @property
    def family(self) -> str:
        """The name of the base."""
        given = self.base if self.base is not None else self.path.base
        return Path(str(given if isinstance(given, str) else getattr(given, "name", "unknown base"))).name

    def open(self) -> SteppedModel:
        """The base with the adapters. Raises InputError where the base is not known, or another than trained on."""
        return open_model(self.path, self.base)


@dataclass(frozen=True, eq=False)
class Member:
    """A run with what its adapter and random ones change."""

    opening: Opening
    changes: Changes
    layers: int  # of the model
    tokenizer: Any

    @property
    def name(self) -> str:
        """What the run is called here."""
        return self.opening.name


def openings(runs: Sequence[Source], bases: Sequence[Base | str | None] | None = None) -> list[Opening]:
    """The runs, opened as paths. Raises InputError for fewer than two, and for bases of another number."""
    if isinstance(runs, (str, Path, Run, AdapterTrajectory)) or len(runs) < 2:
        raise InputError("a comparison is of two runs or more; fewer were given")
    if bases is not None and len(bases) != len(runs):
        raise InputError(f"expected a base for each of {len(runs)} runs; found {len(bases)}")
    opened = [open_source(run) for run in runs]
    names = names_of([path for path, _ in opened])
    beside = [None] * len(runs) if bases is None else bases
    return [Opening(name, path, run, base) for name, (path, run), base in zip(names, opened, beside, strict=True)]


def texts_for(members: Sequence[Opening]) -> SharedTexts:
    """The runs' own answers, or those of the built-in language; see `shared_texts`."""
    return shared_texts([one.run for one in members], [one.path.base for one in members])


def gathered(
    opened: Sequence[Opening], texts: SharedTexts, draws: int, tell: Callable[[str], None] = lambda says: None
) -> Iterator[Member]:
    """What each run's adapter changes; one model is held at a time. `tell` is called with a line for each run."""
    for number, one in enumerate(opened):
        tell(f"{one.name}: its adapter and {draws} random ones read {len(texts)} texts")
        model = one.open()
        looked = depths(model.layers, min(DEPTHS, model.layers))
        changes = changes_of(model, texts, looked, own_and_random(model, draws, (number,)))
        yield Member(one, changes, model.layers, model.base.tokenizer)


def same_depths(one: Member, other: Member) -> list[tuple[int, int]]:
    """Rows of the looked-at layers of two models at the same share of depth, or the nearest, increasing."""
    mine, theirs = ((member.changes.layers + 1) / member.layers for member in (one, other))
    if len(mine) > len(theirs):
        return [(theirs_row, row) for row, theirs_row in same_depths(other, one)]
    return [(row, int(np.argmin(np.abs(theirs - depth)))) for row, depth in enumerate(mine)]


def depth_columns(one: Member, other: Member, rows: tuple[int, int]) -> dict[str, float]:
    """Which layers are compared, and how deep in the first model they lie (1: the last)."""
    layers = int(one.changes.layers[rows[0]]), int(other.changes.layers[rows[1]])
    return {"depth": (layers[0] + 1) / one.layers, "layer": layers[0], "other_layer": layers[1]}
