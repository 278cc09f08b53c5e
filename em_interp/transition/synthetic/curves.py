"""Behaviour curves with a known onset, or with none, drawn as counted answers: for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError, nearest
from em_interp.transition.logistic import OutcomeCounts, climb

RISES = ("plain", "sharp", "gradual", "few_answers", "uneven_questions", "staggered", "lopsided", "dips", "controlled")
NULLS = ("zero", "flat", "uneven_flat", "falling", "glitch", "as_control", "both_flat")


@dataclass(frozen=True)
class PlantedCurve:
    """Counted answers with the truth they were drawn from; `middle` and `tenth` are None where nothing rises."""

    tally: OutcomeCounts
    control: OutcomeCounts | None
    middle: float | None
    tenth: float | None


def planted_curve(kind: str, rng: np.random.Generator) -> PlantedCurve:
    """One curve of the named kind (`RISES` or `NULLS`): 200–800 steps, asked at 15–40 of them, 50–400 answers each.

    Rises go from 0–3 % to 10–90 % within 10–150 steps (10–90 %) at 20–80 % of the run. `staggered`: each question
    has its own onset. `lopsided`: a Gompertz curve. `dips`: up to three checkpoints, a third of the plateau at
    most, fall back.
    `glitch`: one checkpoint alone stands out. `as_control`: the control rises just so. Raises InputError for another
    kind.
    """
    if kind not in RISES + NULLS:
        raise InputError(f"no planted curve {kind!r}{nearest(kind, RISES + NULLS)}; known: {', '.join(RISES + NULLS)}")
    few = kind == "few_answers"
    length = int(rng.integers(200, 801))
    steps = _asked(length, int(rng.integers(15, 21 if few else 41)), rng)
    questions = int(rng.choice([1, 4, 8, 16]))
    n = max(1, int(rng.integers(50, 101 if few else 401)) // questions)
    low, high = _asymptotes(kind, questions, rng)
    share, middle, tenth = _share(kind, steps, length, high, rng)
    mean = low + (high - low) * share
    if kind == "dips":
        plateau = np.flatnonzero(share.min(axis=1) > 0.9)
        mean[rng.permutation(plateau)[: min(rng.integers(1, 4), len(plateau) // 3)]] *= rng.uniform(0.2, 0.7)
    if kind == "glitch":
        mean[rng.integers(len(steps))] = rng.uniform(0.2, 0.8)
    control = None
    if kind in ("controlled", "as_control", "both_flat"):
        control = _drawn(steps, np.broadcast_to(low, mean.shape) if kind == "controlled" else mean, n, rng)
    return PlantedCurve(_drawn(steps, mean, n, rng), control, middle, tenth)


def _asked(length: int, count: int, rng: np.random.Generator) -> Float[np.ndarray, " step"]:
    """0, `length` and steps between: evenly spaced, anywhere, or evenly with some missing."""
    how = rng.integers(3)
    if how == 0:
        return np.concatenate([[0], np.sort(rng.choice(np.arange(1, length), count - 2, replace=False)), [length]])
    even = np.round(np.linspace(0, length, count))
    return even if how == 1 else np.delete(even, rng.choice(np.arange(1, count - 1), count // 6, replace=False))


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

    def done(at: np.ndarray) -> np.ndarray:
        if kind == "lopsided":
            return np.exp(-np.log(2) * np.exp(-np.clip((at - middle) / width * 3.08, -50, 50)))[:, None] + 0 * high
        if kind == "glitch":
            return np.zeros((len(at), len(high)))
        return climb(at, middle + shifts, width).T

    share = done(steps)
    if kind in NULLS:
        return share, None, None
    fine = np.linspace(0, length, 20001)
    pooled = done(fine) @ high / high.sum()
    half, tenth = (float(fine[np.searchsorted(pooled, part)]) for part in (0.5, 0.1))
    return share, half, tenth


def _drawn(steps: np.ndarray, mean: np.ndarray, n: int, rng: np.random.Generator) -> OutcomeCounts:
    total = rng.binomial(n, mean).astype(float)
    names = tuple(f"q{index:02}" for index in range(mean.shape[1]))
    return OutcomeCounts(steps.astype(float), names, np.full(mean.shape, float(n)), total, total)
