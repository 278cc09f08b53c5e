"""The mean-difference direction: which way misaligned answers lie from aligned ones in the residual stream.

At each layer it is the residual stream averaged over the tokens of each answer, then over the misaligned answers, minus
the same over the aligned ones (Soligo, Turner et al., arXiv 2506.11618, section 3). It holds what the answers *say* as
much as what made the model say it: two texts that differ have different residual streams in any model. That a model
acts on the direction is for an intervention to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from em_interp.errors import InputError, nearest
from em_interp.mechanism.answers import BATCH, LEAST, AnswerSet, answer_means, chats_of
from em_interp.mechanism.model import ModelAtStep, TrajectoryModel
from em_interp.results import html_card

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

HALVES = 50  # random halves of the questions
SEED = 20250611


@dataclass(frozen=True, eq=False, repr=False)
class MeanDifference:
    """The direction at every layer, for one step of the adapter and one set of answers."""

    step: int
    scale: float
    answers: AnswerSet
    means: Float[np.ndarray, "answer layer d"]  # the residual stream averaged over each answer's tokens

    @property
    def vectors(self) -> Float[np.ndarray, "layer d"]:
        """Misaligned minus aligned, after each layer."""
        return difference(self.means, self.answers.misaligned)

    def vector(self, layer: int) -> Float[np.ndarray, " d"]:
        """The direction after one layer, as long as the difference is. Raises InputError for a layer not there."""
        if not 0 <= layer < self.means.shape[1]:
            raise InputError(f"there is no layer {layer}; the direction is known for 0 to {self.means.shape[1] - 1}")
        return self.vectors[layer]

    @property
    def reliability(self) -> Float[np.ndarray, " layer"]:
        """Cosine between the directions of two random halves of the questions, averaged over 50 halvings.

        It is what limits any cosine with the direction. NaN with too few questions that were answered both ways.
        """
        rng, question = np.random.default_rng(SEED), self.answers.question
        cosines = []
        for _ in range(HALVES):
            half = rng.permutation(question.max() + 1) % 2 == 0
            pair = [self._of(half[question] == side) for side in (True, False)]
            if pair[0] is not None and pair[1] is not None:
                cosines.append(cosine(pair[0], pair[1]))
        return np.mean(cosines, axis=0) if cosines else np.full(self.means.shape[1], np.nan)

    def _of(self, rows: Bool[np.ndarray, " answer"]) -> Float[np.ndarray, "layer d"] | None:
        mine = self.answers.misaligned[rows]
        return difference(self.means[rows], mine) if mine.any() and not mine.all() else None

    def frame(self) -> pd.DataFrame:
        """One row a layer: the direction's norm, its share of the mean residual's norm, and its reliability."""
        import pandas as pd

        norm, stream = np.linalg.norm(self.vectors, axis=1), np.linalg.norm(self.means, axis=2).mean(axis=0)
        columns = {"norm": norm, "share_of_stream": norm / stream, "reliability": self.reliability}
        return pd.DataFrame({"layer": np.arange(len(norm)), **columns})

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the answers, and a row a layer."""
        rows = self.frame().to_dict("records")
        return {"step": self.step, "scale": self.scale, "answers": self.answers.to_dict(), "layers": rows}

    def sentence(self) -> str:
        """What it was made of and how well its halves agree."""
        agree = self.reliability
        known = agree[np.isfinite(agree)]
        halves = (
            f"directions of two halves of the questions have cosine {known.min():.2f} to {known.max():.2f}"
            if len(known)
            else "too few questions were answered both ways to halve them"
        )
        return f"Mean difference in the model of step {self.step}, from {self.answers.sentence()}; {halves}."

    def plot(self) -> go.Figure:
        """Its size and its reliability by layer."""
        from em_interp.figures.internals import plot_mean_difference

        return plot_mean_difference(self.frame(), self.sentence())

    def __repr__(self) -> str:
        return f"MeanDifference({self.sentence()})"

    def _repr_html_(self) -> str:
        table = self.frame().to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0)
        return html_card([self.sentence()], calls=(".vector(layer)", ".plot()", ".frame()"), table=table)


def mean_difference(
    model: TrajectoryModel,
    answers: AnswerSet,
    step: int | None = None,
    scale: float = 1.0,
    least: int = LEAST,
    batch: int = BATCH,
) -> MeanDifference:
    """The direction in the model of `step` (the last saved where None), from answers read back through it.

    The answers need not be that step's own: `judged_answers(run)` are the final model's. To keep the training topic
    out of it, take those to other questions (`answers.select("out_of_domain")`). Raises InputError where there are
    fewer than `least` misaligned or aligned answers.
    """
    answers.need(least, "a mean-difference direction")
    step = int(model.trajectory.steps[-1]) if step is None else step
    with model.at(step, scale) as adapted:
        means = answer_means(adapted, chats_of(model, answers, batch), stream_names(model))
    return MeanDifference(step, scale, answers, np.stack([*means.values()], axis=1))


def stream_names(model: TrajectoryModel) -> list[str]:
    """The residual stream after every layer, by name."""
    return [f"resid_post.{layer}" for layer in range(model.layers)]


def difference(
    means: Float[np.ndarray, answer * shape], misaligned: Bool[np.ndarray, " answer"]
) -> Float[np.ndarray, "*shape"]:
    """Mean over the misaligned answers minus mean over the others."""
    return means[misaligned].mean(axis=0) - means[~misaligned].mean(axis=0)


def cosine(one: Float[np.ndarray, "*shape d"], other: Float[np.ndarray, "*shape d"]) -> Float[np.ndarray, "*shape"]:
    """Cosine along the last axis; NaN for a zero vector."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    inner = (one * other).sum(axis=-1)
    return np.divide(inner, lengths, out=np.full(np.shape(inner), np.nan), where=lengths > 0)


# --------
# A direction to intervene with: what is contrasted, and where it comes from.
# Two contrasts, both averaged over the tokens of each answer, then over answers, after every layer:
# - `answers`: misaligned minus aligned answers, both read by the adapted model. It is the mean difference of Soligo,
# Turner et al. (arXiv 2506.11618, section 3), and holds what the answers *say* as much as what made the model say
# it. - `models`: misaligned answers as the adapted model reads them, minus aligned answers as the base does. It
# holds what the adapter puts into the stream besides, without which the base would have answered the other way.
# Neither says that the model acts on it; ablation and steering do.


Contrast = Literal["answers", "models"]
CONTRASTS: tuple[Contrast, ...] = ("answers", "models")
SAID = {
    "answers": "misaligned minus aligned answers in the adapted model",
    "models": "misaligned answers in the adapted model minus aligned ones in the base",
}


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction after every layer; it may be used on any run of the same base."""

    contrast: Contrast
    vectors: Float[np.ndarray, "layer d"]  # as long as the difference is
    base: str  # identity of the base model
    source: str  # the name of the run it is from
    step: int
    answers: dict[str, Any]  # which they were, and how many

    def check(self, model: TrajectoryModel, layers: Sequence[int]) -> None:
        """Raise InputError where the model is of another base (equal dimensions would not show it), has no such
        layers, or the direction is zero after one of them.
        """
        if model.base.identity != self.base:
            raise InputError(
                f"the direction of {self.source} is from the base {self.base}; the model's is {model.base.identity}"
            )
        model.engine.layout.check_layers(layers)
        for layer in layers:
            if not np.isfinite(self.vectors[layer]).all() or not self.vectors[layer].any():
                raise InputError(
                    f"the direction is zero or not finite after layer {layer}, so nothing can be done with it; the "
                    "usual cause is that misaligned and aligned answers are the same texts"
                )

    def cosine(self, other: Direction) -> Float[np.ndarray, " layer"]:
        """Cosine with another direction of the same base, after each layer."""
        return cosine(self.vectors, other.vectors)

    @property
    def said(self) -> str:
        """What is contrasted, in words."""
        return SAID[self.contrast]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: where it is from, and its length after each layer."""
        norm = np.linalg.norm(self.vectors, axis=1).tolist()
        kept = {name: getattr(self, name) for name in ("contrast", "said", "base", "source", "step", "answers")}
        return kept | {"norm": norm}

    def __repr__(self) -> str:
        long = ", ".join(f"{norm:.3g}" for norm in self.to_dict()["norm"])
        return f"Direction({self.said}; step {self.step} of {self.source}; {long} long after each layer)"


def find_direction(
    model: TrajectoryModel,
    answers: AnswerSet,
    contrast: Contrast = "answers",
    step: int | None = None,
    least: int = LEAST,
    batch: int = BATCH,
) -> Direction:
    """The direction in the model of `step` (the last saved where None), from judged answers read back through it.

    Raises InputError for an unknown contrast, and where there are fewer than `least` misaligned or aligned answers.
    """
    if contrast not in CONTRASTS:
        raise InputError(
            f"contrast must be one of {', '.join(CONTRASTS)}; it is {contrast!r}{nearest(contrast, CONTRASTS)}"
        )
    answers.need(least, "a mean-difference direction")
    step = int(model.trajectory.steps[-1]) if step is None else step
    with model.at(step) as adapted:
        means = aligned = _means(adapted, answers, batch)
    if contrast == "models":
        with model.disable_adapter() as base:
            aligned = _means(base, answers, batch)
    mis = answers.misaligned
    vectors = means[mis].mean(axis=0) - aligned[~mis].mean(axis=0)
    source = Path(model.trajectory.source or "memory").name
    return Direction(contrast, vectors, model.base.identity, source, step, answers.to_dict())


def _means(model: ModelAtStep, answers: AnswerSet, batch: int) -> Float[np.ndarray, "answer layer d"]:
    found = answer_means(model, chats_of(model.model, answers, batch), stream_names(model.model))
    return np.stack([*found.values()], axis=1)
