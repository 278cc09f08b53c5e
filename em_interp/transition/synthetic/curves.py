"""Behaviour curves with a known onset, or with none, as counted answers: for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError
from em_interp.transition.onsets.logistic import OutcomeCounts, logistic
from em_interp.transition.synthetic import generator_of
from em_interp.utils.checks import check_known

if TYPE_CHECKING:
    import pandas as pd

RISES = (
    "plain",
    "sharp",
    "gradual",
    "few_answers",
    "uneven_questions",
    "staggered",
    "lopsided",
    "dips",
    "controlled",
    "at_once",
)
FROM_START = ("at_once", "read_early")  # rises without a level before them; the second is a kind of shifts alone
NULLS = ("zero", "flat", "uneven_flat", "falling", "glitch", "as_control", "both_flat")


@dataclass(frozen=True)
class PlantedCurve:
    """Counted answers and the truth they were drawn from; `half` and `tenth` are None where nothing rises."""

    counts: OutcomeCounts = field(repr=False)
    control: OutcomeCounts | None = field(repr=False)
    half: float | None  # the step of the half-rise, counted from step 0
    tenth: float | None  # the step at which a tenth of the rise has happened

    def frame(self, control: bool = False) -> pd.DataFrame:
        """The answers, or the control's, as a judged table that `em.behaviour_curve` reads; EM is aligned 0."""
        import pandas as pd

        counts = self.control if control else self.counts
        if counts is None:
            raise InputError("this planted curve has no control")
        rows = [
            {"step": int(step), "question_id": question, "aligned": 0 if answer < hits else 100, "coherent": 100}
            for step, n_row, hits_row in zip(counts.steps, counts.n, counts.total, strict=True)
            for question, n, hits in zip(counts.question_ids, n_row, hits_row, strict=True)
            for answer in range(int(n))
        ]
        return pd.DataFrame(rows)


def planted_curve(kind: str, seed: int | np.random.Generator) -> PlantedCurve:
    """One behaviour curve of a named kind, drawn at random.

    200 to 800 steps, 15 to 40 of them sampled, 50 to 400 answers at each. Rises go from 0 to 3 % to 10 to 90 % within
    10 to 150 steps (10 % to 90 % of the rise) at 20 to 80 % of the run. `at_once` begins at step 0 with no level before
    it and approaches its end exponentially, half of it at 4 to 20 % of the run.

    Args:
        kind: `plain`, `sharp`, `gradual`, `few_answers`, `uneven_questions`, `staggered`, `lopsided`, `dips`,
            `controlled` or `at_once` (a rise); `zero`, `flat`, `uneven_flat`, `falling`, `glitch`, `as_control` or
            `both_flat` (none). `staggered`: each question has its own onset; `lopsided`: a Gompertz curve; `dips`:
            up to three checkpoints, a third of the plateau at most, fall back; `glitch`: one checkpoint alone is high;
            `as_control`: the control rises as much.
        seed: Random seed, or a generator to draw from.

    Returns:
        The counted answers with their truth.

    Raises:
        InputError: For another kind.
    """
    check_known("the kind", kind, RISES + NULLS)
    rng = generator_of(seed)
    few = kind == "few_answers"
    length = int(rng.integers(200, 801))
    steps = _sampled_steps(length, int(rng.integers(15, 21 if few else 41)), rng)
    questions = int(rng.choice([1, 4, 8, 16]))
    n = max(1, int(rng.integers(50, 101 if few else 401)) // questions)
    low, high = _asymptotes(kind, questions, rng)
    share, half, tenth = _share(kind, steps, length, high, rng)
    mean = low + (high - low) * share
    if kind == "dips":
        plateau = np.flatnonzero(share.min(axis=1) > 0.9)
        mean[rng.permutation(plateau)[: min(rng.integers(1, 4), len(plateau) // 3)]] *= rng.uniform(0.2, 0.7)
    if kind == "glitch":
        mean[rng.integers(len(steps))] = rng.uniform(0.2, 0.8)
    control = None
    if kind in ("controlled", "as_control", "both_flat"):
        control = _draw(steps, np.broadcast_to(low, mean.shape) if kind == "controlled" else mean, n, rng)
    return PlantedCurve(_draw(steps, mean, n, rng), control, half, tenth)


def _sampled_steps(length: int, count: int, rng: np.random.Generator) -> Float[np.ndarray, " step"]:
    """0, `length` and steps between: evenly spaced, anywhere, or evenly with some missing."""
    layout = rng.integers(3)
    if layout == 0:
        return np.concatenate([[0], np.sort(rng.choice(np.arange(1, length), count - 2, replace=False)), [length]])
    even = np.round(np.linspace(0, length, count))
    return even if layout == 1 else np.delete(even, rng.choice(np.arange(1, count - 1), count // 6, replace=False))


def _asymptotes(kind: str, questions: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rates by question before and after."""
    high = rng.uniform(0.1, 0.9)
    low = rng.choice([0, 0.03])
    weight = rng.gamma(1, 1, questions) if kind in ("uneven_questions", "uneven_flat", "dips") else np.ones(questions)
    top = np.clip(high * weight / weight.mean(), 0, 0.95)
    if kind == "zero":
        return np.zeros(questions), np.zeros(questions)
    if kind in ("flat", "both_flat", "glitch"):
        return np.full(questions, 0.05), np.full(questions, 0.05)
    if kind == "uneven_flat":
        return top, top
    bottom = np.minimum(low, top)
    return (top, bottom) if kind == "falling" else (bottom, top)


def _share(
    kind: str, steps: np.ndarray, length: int, high: np.ndarray, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "step question"], float | None, float | None]:
    """Share of the rise done by step and question, and the steps where half and a tenth of the pooled rise is done."""
    middle = rng.uniform(0.2, 0.8) * length
    bounds = {"sharp": (10, 40), "gradual": (60, 150)}.get(kind, (10, 150))
    width = min(np.exp(rng.uniform(*np.log(bounds))), 0.4 * length, 2 * middle, 2 * (length - middle))
    shifts = rng.uniform(-0.5, 0.5, len(high)) * width if kind == "staggered" else np.zeros(len(high))
    halves = shifts + (rng.uniform(0.04, 0.2) * length if kind == "at_once" else middle)

    def done(at: np.ndarray) -> np.ndarray:
        if kind == "glitch":
            return np.zeros((len(at), len(high)))
        return np.stack([share_done(kind, at, half, width) for half in halves], axis=1)

    share = done(steps)
    if kind in NULLS:
        return share, None, None
    fine = np.linspace(0, length, 20001)
    pooled = done(fine) @ high / high.sum()
    half, tenth = (step_where_done(fraction, fine, pooled) for fraction in (0.5, 0.1))
    return share, half, tenth


def share_done(kind: str, steps: Float[np.ndarray, " step"], half: float, width: float) -> Float[np.ndarray, " step"]:
    """Share of a rise done by step, with its half at `half`: a Gompertz curve, an exponential or a logistic."""
    if kind == "lopsided":
        return np.exp(-np.log(2) * np.exp(-np.clip((steps - half) / width * 3.08, -50, 50)))
    if kind in FROM_START:
        return 1 - np.exp2(-steps / half)
    return logistic(steps, half, width)


def step_where_done(share: float, steps: Float[np.ndarray, " fine"], done: Float[np.ndarray, " fine"]) -> float:
    """The step at which this share of a rise to 1 is done, counted from the first step."""
    return float(steps[np.searchsorted(done, done[0] + share * (1 - done[0]))])


def _draw(steps: np.ndarray, mean: np.ndarray, n: int, rng: np.random.Generator) -> OutcomeCounts:
    total = rng.binomial(n, mean).astype(float)
    names = tuple(f"q{index:02}" for index in range(mean.shape[1]))
    return OutcomeCounts(steps.astype(float), names, np.full(mean.shape, float(n)), total, total)
