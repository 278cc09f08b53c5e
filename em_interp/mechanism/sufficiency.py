"""What does behaviour wait for? Which of two things, taken from the end of the run, would bring it before its time.

A map of rates over steps × steps says it. Its rows are steps of one thing (the direction), its columns steps of the
other (the size): the last column holds every direction at the final size, the last row the final direction at every
size, the diagonal the adapter as trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.behaviour.rates import rate_of

COHERENT = 0.9  # share of coherent answers without which EM does not count
DRAWS = 400

SufficientComponent = Literal["row", "column", "either", "both", "neither", "inconclusive"]


@dataclass(frozen=True)
class Counts:
    """Answers of some adapters, by question: scored ones, and those that are EM and that are coherent."""

    n: Int[np.ndarray, "*cell question"]
    em: Int[np.ndarray, "*cell question"]
    coherent: Int[np.ndarray, "*cell question"]

    def at(self, *index: Any) -> Counts:
        """Those of some of the cells."""
        return Counts(self.n[index], self.em[index], self.coherent[index])

    def redrawn(self, rng: np.random.Generator) -> Counts:
        """New answers to the same questions, at the rates seen (parametric bootstrap).

        Each question's rate is drawn towards the cell's by two answers' weight, and the cell's towards a half by one,
        so that a rate of 0 is not taken for certain.
        """
        em, coherent = (rng.binomial(self.n, _drawn(hits, self.n)) for hits in (self.em, self.coherent))
        return Counts(self.n, em, coherent)

    @property
    def rate(self) -> Float[np.ndarray, "*cell"]:
        """EM rate over the scored answers; NaN where there is none."""
        n = self.n.sum(axis=-1)
        return np.divide(self.em.sum(axis=-1), n, out=np.full(n.shape, np.nan), where=n > 0)


def _drawn(hits: np.ndarray, n: np.ndarray) -> np.ndarray:
    pooled = (hits.sum(axis=-1, keepdims=True) + 0.5) / (n.sum(axis=-1, keepdims=True) + 1)
    return (hits + 2 * pooled) / (n + 2)


def bounds(
    hits: Int[np.ndarray, "*cell question"], n: Int[np.ndarray, "*cell question"], level: float
) -> Float[np.ndarray, "*cell 2"]:
    """Both ends of the rate's interval for other answers to the same questions (Wilson; see `behaviour.rates`)."""
    flat = zip(hits.reshape(-1, hits.shape[-1]), n.reshape(-1, n.shape[-1]), strict=True)
    found = [rate_of(h.astype(float), m.astype(float), level).interval for h, m in flat]
    return np.array(found).reshape(*hits.shape[:-1], 2)


def beyond(counts: Counts, control: Counts, level: float) -> Bool[np.ndarray, "*cell"]:
    """Which cells have the lower end of their EM rate above the control's upper end."""
    return bounds(counts.em, counts.n, level)[..., 0] > bounds(control.em, control.n, level)[..., 1]


def shown(counts: Counts, control: Counts, level: float) -> Bool[np.ndarray, "*cell"]:
    """Which cells show the behaviour: those `beyond` the control at 90 % coherent or more."""
    return beyond(counts, control, level) & (counts.coherent.sum(axis=-1) >= COHERENT * counts.n.sum(axis=-1))


@dataclass(frozen=True)
class Earliest:
    """The earliest step of one line of the map that shows the behaviour; None where no step does."""

    step: int | None
    interval: tuple[float, float] | None  # None where resampled answers leave it open whether any step shows it
    sure: float  # share of the resampled lines on which some step shows it
    beyond: int | None  # the earliest step beyond the control, however coherent


def earliest(
    steps: Int[np.ndarray, " step"], line: Counts, control: Counts, level: float, rng: np.random.Generator
) -> Earliest:
    """The earliest step of `line` that shows the behaviour, with an interval from resampled answers.

    The interval reaches down to the tested step before its lower quantile, for the true step lies between the two.
    Every step is tested, so this is the first at which this many answers can tell, not the first at which the rate
    differs: with more answers it comes earlier.
    """
    first = _first(steps, shown(line, control, level))
    draws = np.array([_first(steps, shown(line.redrawn(rng), control.redrawn(rng), level)) for _ in range(DRAWS)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    interval = (float(max([0, *steps[steps < low]])), float(high)) if np.isfinite(high) else None
    above = _first(steps, beyond(line, control, level))
    found, any_coherence = (int(step) if np.isfinite(step) else None for step in (first, above))
    return Earliest(found, interval, float(np.isfinite(draws).mean()), any_coherence)


def _first(steps: np.ndarray, there: np.ndarray) -> float:
    return float(steps[np.argmax(there)]) if there.any() else np.inf


@dataclass(frozen=True)
class Supply:
    """The share of the missing behaviour that one thing, taken from the last step, supplies alone."""

    share: float
    interval: tuple[float, float]

    @property
    def enough(self) -> bool | None:
        """Whether it is more than half; None where the interval holds a half."""
        low, high = self.interval
        return None if low <= 0.5 <= high else low > 0.5


def supplies(counts: Counts, level: float, rng: np.random.Generator) -> tuple[Supply, Supply] | None:
    """What the final row thing supplies alone, and what the final column thing does.

    Missing is, at each tested step before the adapter as trained reaches half its final EM rate, what its rate lacks
    of the final one. What the last step's direction supplies is how much of it is there with that direction at the
    step's own size, summed over these steps; the size likewise. The two need not make a whole: what neither supplies
    comes only with both. None where the first tested step has half the final rate already, or the last has none.
    """
    found = _shares(counts.rate)
    if found is None:
        return None
    drawn = [_shares(counts.redrawn(rng).rate) for _ in range(DRAWS)]
    ends = np.quantile([one for one in drawn if one is not None], [(1 - level) / 2, (1 + level) / 2], axis=0).T
    row, column = (Supply(float(x), (float(low), float(high))) for x, (low, high) in zip(found, ends, strict=True))
    return row, column


def _shares(rate: Float[np.ndarray, "step step"]) -> tuple[float, float] | None:
    trained, final = np.diag(rate), rate[-1, -1]
    before = np.arange(len(rate)) < np.argmax(trained >= final / 2)
    if not before.any() or not final > 0:
        return None
    missing = (final - trained)[before].sum()
    return tuple((line - trained)[before].sum() / missing for line in (rate[-1], rate[:, -1]))


def sufficient_component(
    as_trained: Earliest, supply: tuple[Supply, Supply] | None, level: float
) -> SufficientComponent:
    """Which of the two things behaviour waits for: the one that alone would supply more than half of what is missing.

    `either` where each would, `both` where neither would; `neither` where the adapter as trained never shows the
    behaviour, so that there is nothing to wait for.
    """
    if as_trained.step is None:
        return "neither" if as_trained.sure <= 1 - level else "inconclusive"
    row, column = (None, None) if supply is None else (one.enough for one in supply)
    if row is None or column is None:
        return "inconclusive"
    if row == column:
        return "either" if row else "both"
    return "row" if row else "column"
