"""What an adapter changes in the residual stream on shared texts, beside what random adapters of its norm change.

The stream after a layer is averaged over the tokens of each answer, so that texts are aligned and tokens need not be;
the change is adapted minus base. Everything that families are compared by rests on these changes alone: two adapters on
one base are alike in all that they leave alone, and so are two bases that learned the same language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.ask import Base
from em_interp.behaviour.generate import RowAdapters
from em_interp.comparison.cross_base.alignment_map import most_components, principal_scores
from em_interp.comparison.cross_base.similarity import read_out, u_centred
from em_interp.comparison.cross_base.texts import SharedTexts, shared_texts
from em_interp.comparison.matching import Source, names_of, open_source
from em_interp.errors import InputError
from em_interp.mechanism.model import TrajectoryModel, open_model
from em_interp.mechanism.random_adapters import random_adapters
from em_interp.run import Run
from em_interp.trajectory.trajectory import AdapterTrajectory

if TYPE_CHECKING:
    from em_interp.behaviour.chat import Tokens
    from em_interp.mechanism.model import ModelAtStep, TrajectoryModel

TOKENS = 8192  # of a batch, padding included


@dataclass(frozen=True, eq=False)
class Changes:
    """Changes of the residual stream after some layers. Case 0 is the run's own adapter, the others are random ones."""

    layers: Int[np.ndarray, " layer"]  # increasing, the model's last among them
    base: Float[np.ndarray, "layer text d"]  # the base model's stream itself
    mean: Float[np.ndarray, "case layer d"]  # over the texts
    grams: Float[np.ndarray, "case layer entry"]  # U-centred and of length 1: inner products are CKAs
    scores: tuple[tuple[np.ndarray, ...], ...]  # by case and layer: principal scores, for Procrustes
    write_tokens: Float[np.ndarray, "case token"]  # read-out of the mean change after the last adapted layer
    final_tokens: Float[np.ndarray, "case token"]  # read-out of the mean change after the last layer
    said: Int[np.ndarray, " number"]  # tokens that occur in the answers

    def only(self, cases: Sequence[int]) -> Changes:
        """Those of some cases, in this order: the first stands as the run's own."""
        rows = list(cases)
        parts = {name: getattr(self, name)[rows] for name in ("mean", "grams", "write_tokens", "final_tokens")}
        return replace(self, **parts, scores=tuple(self.scores[row] for row in rows))


def changes_of(
    model: TrajectoryModel, texts: SharedTexts, layers: Int[np.ndarray, " layer"], adapters: Iterable[RowAdapters]
) -> Changes:
    """The changes that each of these adapters makes after these layers; time is that of a pass over the texts for each.

    The last layer must be among them.
    """
    tokens = model.chats(texts.questions, texts.answers)
    write = last_adapted(model)
    wanted = np.union1d(layers, write)
    rows, most = np.searchsorted(wanted, layers), most_components(len(texts))
    with model.disable_adapter() as disable_adapter:
        base = pooled_streams(disable_adapter, tokens, wanted)
    means, grams, scores = [], [], []
    for held in adapters:
        with model.with_adapter(held) as adapted:
            change = pooled_streams(adapted, tokens, wanted) - base
        means.append(change.mean(axis=1))
        grams.append(u_centred(change[rows]))
        scores.append(tuple(principal_scores(change[row], most) for row in rows))
    mean = np.stack(means)
    inner = model.base.model
    return Changes(
        layers=layers,
        base=base[rows],
        mean=mean[:, rows],
        grams=np.stack(grams),
        scores=tuple(scores),
        write_tokens=read_out(inner, mean[:, np.searchsorted(wanted, write)]),
        final_tokens=read_out(inner, mean[:, -1]),
        said=np.unique(tokens.ids[tokens.answer].cpu().numpy()),
    )


def own_and_random(model: TrajectoryModel, draws: int, key: Sequence[int] = ()) -> Iterator[RowAdapters]:
    """The run's own last adapter, then random ones of its norm, one at a time: all of them may not fit.

    Raises InputError where the adapter is zero.
    """
    path = model.trajectory
    yield RowAdapters.of(path, [int(path.steps[-1])], [1.0], model.device)
    for draw in range(draws):
        yield RowAdapters.of(random_adapters(path, [draw], key), [draw], [1.0], model.device)


def pooled_streams(
    model: ModelAtStep, tokens: Tokens, layers: Int[np.ndarray, " layer"]
) -> Float[np.ndarray, "layer text d"]:
    """The residual stream after these layers, averaged over the tokens of each answer."""
    names = [f"resid_post.{layer}" for layer in layers]
    parts = []
    for batch in tokens.batches(max(1, TOKENS // tokens.ids.shape[1])):
        seen = model.run(batch, names)
        weights = batch.answer.float() / batch.answer.sum(dim=1, keepdim=True)
        pooled = [(seen[name].float() * weights[:, :, None]).sum(dim=1).cpu().numpy() for name in names]
        parts.append(np.stack(pooled).astype(np.float64))
    return np.concatenate(parts, axis=1)


def last_adapted(model: TrajectoryModel) -> int:
    """The last layer that holds a site of the adapter."""
    return max(int(site.split("layers.")[1].split(".")[0]) for site in model.trajectory.sites)


def depths(layers: int, count: int) -> Int[np.ndarray, " layer"]:
    """`count` layers at equal shares of a model's depth, the last among them."""
    return np.round(np.arange(1, count + 1) * layers / count).astype(int) - 1


# --------
# The runs of a comparison of families: each opened once, with what its adapter changes on the shared texts.


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

    def open(self) -> TrajectoryModel:
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
    opened: Sequence[Opening], texts: SharedTexts, draws: int, log: Callable[[str], None] = lambda says: None
) -> Iterator[Member]:
    """What each run's adapter changes; one model is held at a time. `tell` is called with a line for each run."""
    for number, one in enumerate(opened):
        log(f"{one.name}: its adapter and {draws} random ones read {len(texts)} texts")
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
