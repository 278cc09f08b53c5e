"""The mean-difference direction: from aligned to misaligned answers in the residual stream.

The residual stream is averaged over the tokens of each answer, then over the misaligned answers, minus the same over
the aligned ones, after every layer. There are two contrasts:

- `answers`: both are read by the adapted model. This is the mean difference of Soligo, Turner et al. (arXiv
  2506.11618, section 3). It holds what the answers *say* as much as what made the model say it: two texts that differ
  have different residual streams in any model.
- `models`: misaligned answers are read by the adapted model, aligned ones by the base. It also holds what the adapter
  adds to the stream, without which the base would have answered the other way.

Neither shows that the model acts on the direction; ablation and steering do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float

from em_interp.errors import InputError
from em_interp.mechanism.answers import BATCH, MIN_ANSWERS, AnswerSet, answer_means, tokenized_answers
from em_interp.mechanism.model import ModelAtStep, TrajectoryModel, as_model
from em_interp.results import Result
from em_interp.trajectory.geometry import ratio
from em_interp.trajectory.load import TrajectorySource, same_weights
from em_interp.utils.checks import check_known, checked

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

N_HALVINGS = 50  # random halves of the questions
DIRECTION_SEED = 20250611

Contrast = Literal["answers", "models"]
CONTRASTS: dict[Contrast, str] = {
    "answers": "misaligned minus aligned answers in the adapted model",
    "models": "misaligned answers in the adapted model minus aligned ones in the base",
}


@dataclass(frozen=True, eq=False, repr=False)
class Direction(Result):
    """A direction after every layer; it may be used on any run of the same base.

    Attributes:
        contrast: what is compared, see `CONTRASTS`.
        vectors: mean over misaligned answers minus mean over aligned ones after each layer, not normalised.
        base: the identity of the base model.
        source: the name of the run that it was computed in.
        step: training step of the adapter.
        scale: adapter scale; 1 is the adapter as trained.
        answers: the answers from which it was computed; None for a direction from elsewhere.
        means: the residual stream averaged over each of these answers' tokens, in the model that read it.
    """

    NEXT: ClassVar = (".vector(layer)", ".plot()", ".frame()")

    contrast: Contrast
    vectors: Float[np.ndarray, "layer d"]
    base: str
    source: str
    step: int
    scale: float = 1.0
    answers: AnswerSet | None = None
    means: Float[np.ndarray, "answer layer d"] | None = None

    @property
    def contrast_in_words(self) -> str:
        """What is compared, in words."""
        return CONTRASTS[self.contrast]

    def vector(self, layer: int) -> Float[np.ndarray, " d"]:
        """The direction after one layer. Raises InputError for a layer that the model does not have."""
        if not 0 <= layer < len(self.vectors):
            raise InputError(f"there is no layer {layer}; the direction is known for 0 to {len(self.vectors) - 1}")
        return self.vectors[layer]

    @cached_property
    def reliability(self) -> Float[np.ndarray, " layer"]:
        """Cosine between the directions of two random halves of the questions, averaged over 50 halvings.

        It limits any cosine with the direction. NaN with too few questions that have answers of both kinds.
        """
        cosines = []
        if self.answers is not None:
            rng, question = np.random.default_rng(DIRECTION_SEED), self.answers.question
            for _ in range(N_HALVINGS):
                half = rng.permutation(question.max() + 1) % 2 == 0
                first, second = (self._of(half[question] == side) for side in (True, False))
                if first is not None and second is not None:
                    cosines.append(cosine(first, second))
        return np.mean(cosines, axis=0) if cosines else np.full(len(self.vectors), np.nan)

    def _of(self, rows: Bool[np.ndarray, " answer"]) -> Float[np.ndarray, "layer d"] | None:
        """The direction of some of the answers; None where they are all of one kind."""
        if self.answers is None or self.means is None:
            return None
        misaligned = self.answers.misaligned[rows]
        some_of_both = misaligned.any() and not misaligned.all()
        return difference_of_means(self.means[rows], misaligned) if some_of_both else None

    def check(self, model: TrajectoryModel, layers: Sequence[int]) -> None:
        """Raise InputError where the direction cannot be used in the model after these layers.

        That is where the model is of another base (equal dimensions would not show it) or has no such layer, and where
        the direction is zero.
        """
        if not same_weights(model.base.identity, self.base):
            raise InputError(
                f"the direction of {self.source} is from the base {self.base}; the model's is {model.base.identity}"
            )
        model.engine.hook_points.check_layers(layers)
        for layer in layers:
            if not np.isfinite(self.vectors[layer]).all() or not self.vectors[layer].any():
                raise InputError(
                    f"the direction is zero or not finite after layer {layer}, so it cannot be used there; the usual "
                    "cause is that misaligned and aligned answers are the same texts"
                )

    def cosine(self, other: Direction) -> Float[np.ndarray, " layer"]:
        """Cosine with another direction of the same base, after each layer."""
        return cosine(self.vectors, other.vectors)

    def frame(self) -> pd.DataFrame:
        """A row a layer: the direction's norm, its share of the mean residual stream's norm, and its reliability."""
        import pandas as pd

        norm, stream = np.linalg.norm(self.vectors, axis=1), np.full(len(self.vectors), np.nan)
        if self.means is not None:
            stream = np.linalg.norm(self.means, axis=2).mean(axis=0)
        columns = {"norm": norm, "share_of_stream": norm / stream, "reliability": self.reliability}
        return pd.DataFrame({"layer": np.arange(len(norm)), **columns})

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what it was made of, and a row a layer."""
        names = ("contrast", "contrast_in_words", "base", "source", "step", "scale")
        answers = None if self.answers is None else self.answers.to_dict()
        rows = self.frame().to_dict("records")
        return {**{name: getattr(self, name) for name in names}, "answers": answers, "layers": rows}

    def sentence(self) -> str:
        """What it was made of, and how well two halves of the questions agree."""
        first = f"Direction of {self.contrast_in_words}, from step {self.step} of {self.source}"
        if self.answers is None:
            return f"{first}."
        known = self.reliability[np.isfinite(self.reliability)]
        halves = (
            f"directions of two halves of the questions have cosine {known.min():.2f} to {known.max():.2f}"
            if len(known)
            else "too few questions have answers of both kinds to halve them"
        )
        return f"{first}: {self.answers.sentence()}; {halves}."

    def plot(self) -> go.Figure:
        """Its size and its reliability by layer."""
        from em_interp.figures.mechanism.directions import plot_mean_difference

        return plot_mean_difference(self.frame(), self.sentence())

    def _table(self) -> pd.DataFrame:
        return self.frame()


@checked
def mean_difference(
    model: TrajectoryModel | TrajectorySource,
    answers: AnswerSet,
    contrast: Contrast = "answers",
    step: int | None = None,
    scale: float = 1.0,
    batch: int = BATCH,
) -> Direction:
    """The mean-difference direction after every layer of one step's model, from judged answers that the model reads.

    Args:
        model: the model of a run, or what `open_model` opens.
        answers: misaligned and aligned answers, not necessarily of that step. To keep the training topic out of the
            direction, take answers to other questions (`answers.select("out_of_domain")`).
        contrast: `answers` (both kinds read by the adapted model) or `models` (aligned ones read by the base).
        step: a saved step; by default the last.
        scale: adapter scale; 1 is the adapter as trained.
        batch: answers that are read at a time.

    Returns:
        A vector of the residual stream for each layer, with the answers that it comes from.

    Raises:
        InputError: for an unknown contrast, and where there are too few misaligned or aligned answers.
    """
    check_known("contrast", contrast, CONTRASTS)
    answers.require(MIN_ANSWERS, "a mean-difference direction")
    model = as_model(model)
    step, tokens = model.last_step if step is None else step, tokenized_answers(model, answers, batch)
    with model.at(step, scale) as adapted:
        means = _stream_means(adapted, tokens)
    if contrast == "models":
        with model.disable_adapter() as base:
            means = np.where(answers.misaligned[:, None, None], means, _stream_means(base, tokens))
    vectors = difference_of_means(means, answers.misaligned)
    source = Path(model.trajectory.source or "memory").name
    return Direction(contrast, vectors, model.base.identity, source, step, scale, answers, means)


def _stream_means(model: ModelAtStep, tokens: Sequence[Any]) -> Float[np.ndarray, "answer layer d"]:
    return np.stack([*answer_means(model, tokens, stream_names(model.model)).values()], axis=1)


def stream_names(model: TrajectoryModel) -> list[str]:
    """The names of the residual stream after every layer."""
    return [f"resid_post.{layer}" for layer in range(model.layers)]


def difference_of_means(
    means: Float[np.ndarray, answer * shape], misaligned: Bool[np.ndarray, " answer"]
) -> Float[np.ndarray, "*shape"]:
    """Mean over the misaligned answers minus mean over the others."""
    return means[misaligned].mean(axis=0) - means[~misaligned].mean(axis=0)


def cosine(a: Float[np.ndarray, "*shape d"], b: Float[np.ndarray, "*shape d"]) -> Float[np.ndarray, "*shape"]:
    """Cosine along the last axis; NaN for a zero vector."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return ratio(np.asarray((a * b).sum(axis=-1)), lengths)
