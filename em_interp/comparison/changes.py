"""What an adapter changes in the residual stream on shared texts, beside what random adapters of its norm change.

The stream after a layer is averaged over the tokens of each answer, so that texts are aligned and tokens need not be;
the change is adapted minus base. Everything that families are compared by rests on these changes alone: two adapters on
one base are alike in all that they leave alone, and so are two bases that learned the same language.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.generate import RowAdapters
from em_interp.comparison.cka import u_centred
from em_interp.comparison.family_texts import SharedTexts
from em_interp.comparison.procrustes import most_components, principal_scores
from em_interp.comparison.random_adapters import random_adapters
from em_interp.comparison.readout import read_out

if TYPE_CHECKING:
    from em_interp.mechanism.model import ModelAtStep, SteppedModel
    from em_interp.mechanism.tokens import Tokens

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
    model: SteppedModel, texts: SharedTexts, layers: Int[np.ndarray, " layer"], adapters: Iterable[RowAdapters]
) -> Changes:
    """The changes that each of these adapters makes after these layers; time is that of a pass over the texts for each.

    The last layer must be among them.
    """
    tokens = model.chats(texts.questions, texts.answers)
    write = last_adapted(model)
    wanted = np.union1d(layers, write)
    rows, most = np.searchsorted(wanted, layers), most_components(len(texts))
    with model.unadapted() as unadapted:
        base = pooled_streams(unadapted, tokens, wanted)
    means, grams, scores = [], [], []
    for held in adapters:
        with model.holding(held) as adapted:
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


def own_and_random(model: SteppedModel, draws: int, key: Sequence[int] = ()) -> Iterator[RowAdapters]:
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


def last_adapted(model: SteppedModel) -> int:
    """The last layer that holds a site of the adapter."""
    return max(int(site.split("layers.")[1].split(".")[0]) for site in model.trajectory.sites)


def depths(layers: int, count: int) -> Int[np.ndarray, " layer"]:
    """`count` layers at equal shares of a model's depth, the last among them."""
    return np.round(np.arange(1, count + 1) * layers / count).astype(int) - 1
