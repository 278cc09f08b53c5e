"""What an adapter changes in the residual stream on shared texts, and what random adapters of its norm change.

The stream after a layer is averaged over the tokens of each answer, so that texts are aligned and tokens need not be;
the difference is adapted minus base. Bases are compared by these differences alone, because two adapters on one base
agree in everything that they do not change, and so do two bases that learned the same language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.sampling.checkpoint_models import Base
from em_interp.behaviour.sampling.frozen_layers import FrozenLayerCache, frozen_layer_cache
from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.comparison.cross_base.alignment_map import max_components, principal_scores
from em_interp.comparison.cross_base.cka import u_centred
from em_interp.comparison.cross_base.texts import SharedTexts, shared_texts
from em_interp.comparison.matching import Sources, open_all
from em_interp.errors import InputError
from em_interp.mechanism.answers import BATCH, answer_means
from em_interp.mechanism.logit_lens import unembed
from em_interp.mechanism.model import TrajectoryModel, open_model
from em_interp.mechanism.random_adapters import random_adapters
from em_interp.run import Run
from em_interp.trajectory.composition import layer_of
from em_interp.trajectory.trajectory import AdapterTrajectory

if TYPE_CHECKING:
    from em_interp.behaviour.sampling.chat import Tokens
    from em_interp.mechanism.model import ModelAtStep

N_DEPTHS = 8  # layers of each model that are compared


@dataclass(frozen=True, eq=False)
class ActivationDiff:
    """Differences of the residual stream after some layers. Case 0 is the run's own adapter, the others are random."""

    layers: Int[np.ndarray, " layer"]  # increasing, the model's last among them
    base: Float[np.ndarray, "layer text d"]  # the base model's stream itself
    mean: Float[np.ndarray, "case layer d"]  # over the texts
    grams: Float[np.ndarray, "case layer entry"]  # U-centred and of length 1: inner products are CKAs
    scores: tuple[tuple[np.ndarray, ...], ...]  # by case and layer: principal scores, for Procrustes
    write_logits: Float[np.ndarray, "case token"]  # logit lens of the mean difference after the last adapted layer
    final_logits: Float[np.ndarray, "case token"]  # logit lens of the mean difference after the last layer
    answer_tokens: Int[np.ndarray, " id"]  # that occur in the answers

    def only(self, cases: Sequence[int]) -> ActivationDiff:
        """Those of some cases, in this order: the first stands for the run's own."""
        rows = list(cases)
        parts = {name: getattr(self, name)[rows] for name in ("mean", "grams", "write_logits", "final_logits")}
        return replace(self, **parts, scores=tuple(self.scores[row] for row in rows))


def activation_diff(
    model: TrajectoryModel, texts: SharedTexts, layers: Int[np.ndarray, " layer"], adapters: Iterable[RowAdapters]
) -> ActivationDiff:
    """What each of these adapters changes after these layers, the model's last among them.

    The time is that of a pass over the texts for each adapter; on a CPU the layers below the adapters, which change
    nothing there, are passed once.
    """
    tokens = model.chats(texts.questions, texts.answers)
    write = max(map(layer_of, model.trajectory.sites))
    wanted = np.union1d(layers, write)
    rows, components = np.searchsorted(wanted, layers), max_components(len(texts))
    with model.disable_adapter() as base_model:
        base = pooled_streams(base_model, tokens, wanted)
        frozen = frozen_layer_cache(model.base.model, model.trajectory.sites, int(tokens.mask.sum()))
        start = base if frozen is None else pooled_streams(base_model, tokens, wanted, frozen)
    means, grams, scores = [], [], []
    for adapter in adapters:
        with model.with_adapter(adapter) as adapted:
            difference = pooled_streams(adapted, tokens, wanted, frozen) - start
        means.append(difference.mean(axis=1))
        grams.append(u_centred(difference[rows]))
        scores.append(tuple(principal_scores(difference[row], components) for row in rows))
    mean, inner = np.stack(means), model.base.model
    return ActivationDiff(
        layers=layers,
        base=base[rows],
        mean=mean[:, rows],
        grams=np.stack(grams),
        scores=tuple(scores),
        write_logits=unembed(inner, mean[:, np.searchsorted(wanted, write)]),
        final_logits=unembed(inner, mean[:, -1]),
        answer_tokens=np.unique(tokens.ids[tokens.answer].cpu().numpy()),
    )


def own_and_random(model: TrajectoryModel, draws: int, key: Sequence[int] = ()) -> Iterator[RowAdapters]:
    """The run's own last adapter, then random ones of its norm, one at a time: all of them may not fit in memory.

    Raises InputError where the adapter is zero.
    """
    path = model.trajectory
    yield RowAdapters.of(path, [int(path.steps[-1])], [1.0], model.device)
    for draw in range(draws):
        yield RowAdapters.of(random_adapters(path, [draw], key), [draw], [1.0], model.device)


def pooled_streams(
    model: ModelAtStep, tokens: Tokens, layers: Int[np.ndarray, " layer"], frozen: FrozenLayerCache | None = None
) -> Float[np.ndarray, "layer text d"]:
    """The residual stream after these layers, averaged over the tokens of each answer; 0 after those in `frozen`."""
    lowest = 0 if frozen is None else len(frozen.frozen)
    names = [f"resid_post.{layer}" for layer in layers if layer >= lowest]
    means = np.stack(list(answer_means(model, list(tokens.batches(BATCH)), names, frozen).values()))
    return np.pad(means, ((len(layers) - len(means), 0), (0, 0), (0, 0)))


def depths(layers: int, count: int) -> Int[np.ndarray, " layer"]:
    """`count` layers at equal shares of a model's depth, the last among them."""
    return np.round(np.arange(1, count + 1) * layers / count).astype(int) - 1


@dataclass(frozen=True, eq=False)
class RunOnBase:
    """A run and its base, not loaded yet."""

    name: str
    path: AdapterTrajectory
    run: Run | None
    base: Base | str | None  # loaded, or a name; None: the one that the path names

    @property
    def base_name(self) -> str:
        """The name of the base."""
        given = self.base if self.base is not None else self.path.base
        return Path(str(given if isinstance(given, str) else getattr(given, "name", "unknown base"))).name

    def open(self) -> TrajectoryModel:
        """The base with the adapters. Raises InputError where the base is unknown, or another than trained on."""
        return open_model(self.path, self.base)


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """A run with what its adapter and random ones change."""

    source: RunOnBase
    diff: ActivationDiff
    n_layers: int  # of the model
    tokenizer: Any

    @property
    def name(self) -> str:
        """The name of the run in the comparison."""
        return self.source.name


def runs_on_bases(runs: Sources, bases: Sequence[Base | str | None] | None = None) -> list[RunOnBase]:
    """The runs with their paths loaded. Raises InputError for fewer than two, and for another number of bases."""
    paths, folders, names = open_all(runs)
    if bases is not None and len(bases) != len(paths):
        raise InputError(f"expected a base for each of {len(paths)} runs; found {len(bases)}")
    given = [None] * len(paths) if bases is None else bases
    return [RunOnBase(*parts) for parts in zip(names, paths, folders, given, strict=True)]


def texts_for(runs: Sequence[RunOnBase]) -> SharedTexts:
    """The runs' own answers, or those of the built-in language; see `shared_texts`."""
    return shared_texts([source.run for source in runs], [source.path.base for source in runs])


def measured_runs(
    runs: Sequence[RunOnBase], texts: SharedTexts, draws: int, log: Callable[[str], None] = lambda says: None
) -> Iterator[MeasuredRun]:
    """What each run's adapter changes; one model is in memory at a time. `log` is called with a line for each run."""
    for number, source in enumerate(runs):
        log(f"{source.name}: its adapter and {draws} random ones read {len(texts)} texts")
        model = source.open()
        layers = depths(model.layers, min(N_DEPTHS, model.layers))
        diff = activation_diff(model, texts, layers, own_and_random(model, draws, (number,)))
        yield MeasuredRun(source, diff, model.layers, model.base.tokenizer)


def same_depths(first: MeasuredRun, second: MeasuredRun) -> list[tuple[int, int]]:
    """Rows of the compared layers of two models at the same share of depth, or the nearest, increasing."""
    depths, second_depths = ((run.diff.layers + 1) / run.n_layers for run in (first, second))
    if len(depths) > len(second_depths):
        return [(row, second_row) for second_row, row in same_depths(second, first)]
    return [(row, int(np.argmin(np.abs(second_depths - depth)))) for row, depth in enumerate(depths)]


def depth_columns(first: MeasuredRun, second: MeasuredRun, rows: tuple[int, int]) -> dict[str, float]:
    """Which layers are compared, and how deep in the first model they are (1: the last)."""
    layers = int(first.diff.layers[rows[0]]), int(second.diff.layers[rows[1]])
    return {"depth": (layers[0] + 1) / first.n_layers, "layer": layers[0], "other_layer": layers[1]}
