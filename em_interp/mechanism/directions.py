"""The mean-difference direction: which way misaligned answers lie from aligned ones in the residual stream.

At each layer it is the residual stream averaged over the tokens of each answer, then over the misaligned answers, minus
the same over the aligned ones (Soligo, Turner et al., arXiv 2506.11618, section 3). It holds what the answers *say* as
much as what made the model say it: two texts that differ have different residual streams in any model. That a model
acts on the direction is for an intervention to show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from em_interp.card import card
from em_interp.errors import InputError
from em_interp.mechanism.answers import LEAST, AnswerSet
from em_interp.mechanism.model import SteppedModel
from em_interp.mechanism.reading import BATCH, answer_means, chats_of

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
        from em_interp.figures.mean_difference import plot_mean_difference

        return plot_mean_difference(self.frame(), self.sentence())

    def __repr__(self) -> str:
        return f"MeanDifference({self.sentence()})"

    def _repr_html_(self) -> str:
        table = self.frame().to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0)
        return card([self.sentence()], calls=(".vector(layer)", ".plot()", ".frame()"), table=table)


def mean_difference(
    model: SteppedModel,
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


def stream_names(model: SteppedModel) -> list[str]:
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
