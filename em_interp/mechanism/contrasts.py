"""A direction to intervene with: what is contrasted, and where it comes from.

Two contrasts, both averaged over the tokens of each answer, then over answers, after every layer:

- `answers`: misaligned minus aligned answers, both read by the adapted model. It is the mean difference of Soligo,
  Turner et al. (arXiv 2506.11618, section 3), and holds what the answers *say* as much as what made the model say it.
- `models`: misaligned answers as the adapted model reads them, minus aligned answers as the base does. It holds what
  the adapter puts into the stream besides, without which the base would have answered the other way.

Neither says that the model acts on it; ablation and steering do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError, nearest
from em_interp.mechanism.answers import LEAST, AnswerSet
from em_interp.mechanism.directions import cosine, stream_names
from em_interp.mechanism.model import ModelAtStep, SteppedModel
from em_interp.mechanism.reading import BATCH, answer_means, chats_of

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

    def check(self, model: SteppedModel, layers: Sequence[int]) -> None:
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
    model: SteppedModel,
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
        with model.unadapted() as base:
            aligned = _means(base, answers, batch)
    mis = answers.misaligned
    vectors = means[mis].mean(axis=0) - aligned[~mis].mean(axis=0)
    source = Path(model.trajectory.source or "memory").name
    return Direction(contrast, vectors, model.base.identity, source, step, answers.to_dict())


def _means(model: ModelAtStep, answers: AnswerSet, batch: int) -> Float[np.ndarray, "answer layer d"]:
    found = answer_means(model, chats_of(model.model, answers, batch), stream_names(model.model))
    return np.stack([*found.values()], axis=1)
