"""Divergences between two distributions, from samples of both and the likelihood of each sample under both.

The family of arXiv 2508.20015: D = ½ Σᵢ E_{x∼Pᵢ}[g(P(i|x))], where P(i|x) = Pᵢ(x) / (P₁(x) + P₂(x)) is the probability
that x came from side i. Averaged over the even mixture of both sides it is E[h(P(1|x))] with
h(p) = p·g(p) + (1−p)·g(1−p), which needs no label of the side and varies less; both are unbiased, because the
likelihoods are exact. All forms are 0 for equal distributions and 1 for ones that share no outcome.

- `linear`, g(p) = 2p − 1: half the triangular discrimination, ½ Σ (P₁−P₂)²/(P₁+P₂) (Le Cam);
- `js`, g(p) = 1 + log₂ p: the Jensen–Shannon divergence in bits;
- `total_variation`, g(p) = |2p − 1|: ½ Σ |P₁ − P₂|.

The linear form is not the total variation, as is sometimes stated: TV² ≤ linear ≤ TV.

The two sides are the checkpoints in windows left and right of a step (`Windows`). Two nulls say how far apart such
sides are without a shift: `permutation_null` and `checkpoint_jitter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.errors import InputError
from em_interp.utils.checks import check_known

Form = Literal["linear", "js", "total_variation"]
FORMS: tuple[Form, ...] = ("linear", "js", "total_variation")
N_CHECKPOINTS = 3  # on either side, where no half-width is given
MIN_WINDOWS = 5
MAX_PERMUTATIONS = 40  # of a window's checkpoints


def check_form(form: str) -> None:
    """Raise InputError for a form that is not one of `FORMS`."""
    check_known("form", form, FORMS)


def divergence(first: Float[np.ndarray, " outcome"], second: Float[np.ndarray, " outcome"], form: Form) -> float:
    """The divergence of two distributions over the same finitely many outcomes, exactly."""
    both = np.asarray(first, float) + np.asarray(second, float)
    possible = both > 0
    posterior = np.asarray(first, float)[possible] / both[possible]
    return float((pointwise_divergence(posterior, form) * both[possible] / 2).sum())


def pointwise_divergence(posterior: Float[np.ndarray, "*shape"], form: Form) -> Float[np.ndarray, "*shape"]:
    """h(p): the part of one outcome with P(1|x) = p in the divergence, from 0 (p = ½) to 1 (p = 0 or 1)."""
    check_form(form)
    if form == "linear":
        return (2 * posterior - 1) ** 2
    if form == "total_variation":
        return np.abs(2 * posterior - 1)
    from scipy.special import xlogy

    return 1 + (xlogy(posterior, posterior) + xlogy(1 - posterior, 1 - posterior)) / np.log(2)


def influence(posterior: Float[np.ndarray, "*shape"], form: Form) -> Float[np.ndarray, "*shape"]:
    """The derivative ψ of the divergence with respect to P₁(x), with D = E₁[ψ(P(1|x))] + E₂[ψ(P(2|x))].

    To first order a change of P₁ changes the divergence by the change of E₁[ψ].
    """
    check_form(form)
    side = 2 * posterior - 1
    if form == "linear":
        return side * (2 - side) / 2
    if form == "total_variation":
        return np.sign(side) / 2
    return (1 + np.log2(np.maximum(posterior, np.finfo(float).tiny))) / 2


def posterior_left(
    left: Float[np.ndarray, "sample checkpoint"], right: Float[np.ndarray, "sample other"]
) -> Float[np.ndarray, " sample"]:
    """P(left | x) from the log-likelihoods of x under the checkpoints of each side, which are mixed evenly."""
    from scipy.special import expit, logsumexp

    sides = [logsumexp(side, axis=1) - np.log(side.shape[1]) for side in (left, right)]
    return expit(sides[0] - sides[1])


@dataclass(frozen=True)
class Windows:
    """The sampled steps within `half_width` training steps left and right of each centre, which lies between two."""

    steps: Int[np.ndarray, " step"]
    centres: Float[np.ndarray, " window"]
    left: Bool[np.ndarray, "window step"]
    right: Bool[np.ndarray, "window step"]

    @classmethod
    def of(cls, steps: Int[np.ndarray, " step"], half_width: float | None = None) -> Windows:
        """A window around every midpoint of two sampled steps that is at least `half_width` from the ends of the run.

        By default that is three times the spacing of the steps. Neighbours are looked up by step, so irregular steps do
        not change how much of the run a window covers. Raises InputError where there are fewer than five windows, or a
        side has a single checkpoint.
        """
        steps = np.asarray(steps)
        if len(steps) < 2:
            raise InputError(f"all answers are of step {steps[0]}; those of many steps are compared: ask at more steps")
        half_width = N_CHECKPOINTS * float(np.median(np.diff(steps))) if half_width is None else half_width
        centres, half = (steps[1:] + steps[:-1]) / 2, np.diff(steps) / 2
        inside = (centres - steps[0] >= half_width - half) & (steps[-1] - centres >= half_width - half)
        centres = centres[inside]
        away = steps[None, :] - centres[:, None]
        windows = cls(steps, centres, (away < 0) & (away >= -half_width), (away > 0) & (away <= half_width))
        least = min(windows.left.sum(axis=1).min(initial=99), windows.right.sum(axis=1).min(initial=99))
        if len(centres) < MIN_WINDOWS or least < 2:
            raise InputError(
                f"{len(steps)} sampled steps give {len(centres)} windows of {half_width:g} steps on either side, with "
                f"{least if len(centres) else 0} or more checkpoints on a side; {MIN_WINDOWS} windows and 2 "
                "checkpoints are needed: ask at more steps"
            )
        return windows

    @property
    def needed(self) -> Bool[np.ndarray, "step step"]:
        """Whether answers sampled at the first step need their likelihood at the second: some window holds both."""
        inside = (self.left | self.right).astype(int)
        return inside.T @ inside > 0


def posteriors(
    likelihood: Float[np.ndarray, "answer step"], at: Int[np.ndarray, " answer"], windows: Windows
) -> Float[np.ndarray, "answer window"]:
    """P(left | answer) for every window that holds the step at which the answer was sampled, else NaN.

    `at` is the index of that step.
    """
    posterior = np.full((len(at), len(windows.centres)), np.nan)
    for window, (left, right) in enumerate(zip(windows.left, windows.right, strict=True)):
        inside = (left | right)[at]
        posterior[inside, window] = posterior_left(likelihood[inside][:, left], likelihood[inside][:, right])
    return posterior


def weights(
    at: Int[np.ndarray, " answer"], question: Int[np.ndarray, " answer"], windows: Windows
) -> Float[np.ndarray, "answer window"]:
    """The weight of each answer: questions alike, both sides alike, the checkpoints of a side alike; sums to 1."""
    cell = question * len(windows.steps) + at
    per_answer = 1.0 / np.bincount(cell)[cell]
    sides = sum(side[:, at].T / side.sum(axis=1) for side in (windows.left, windows.right))
    weighted = np.asarray(sides) * per_answer[:, None]
    return weighted / weighted.sum(axis=0)


def permutation_null(
    likelihood: Float[np.ndarray, "answer step"],
    at: Int[np.ndarray, " answer"],
    weight: Float[np.ndarray, "answer window"],
    windows: Windows,
    form: Form,
    rng: np.random.Generator,
) -> list[Float[np.ndarray, " permutation"]]:
    """For each window the divergences under other labels of its checkpoints than left and right.

    They show how far apart checkpoints are in any order; left and right exceed them only where the answers move. All
    labellings, or `MAX_PERMUTATIONS` of them where there are more.
    """
    nulls = []
    for window in range(len(windows.centres)):
        members = np.flatnonzero(windows.left[window] | windows.right[window])
        inside, of_members = np.isin(at, members), likelihood[:, members]
        left = np.searchsorted(members, np.flatnonzero(windows.left[window]))
        values = []
        for side in _other_sides(len(members), left, rng):
            rest = np.setdiff1d(np.arange(len(members)), side)
            posterior = posterior_left(of_members[inside][:, side], of_members[inside][:, rest])
            weighted = weight[inside, window]
            values.append(float(weighted @ pointwise_divergence(posterior, form) / weighted.sum()))
        nulls.append(np.array(values))
    return nulls


def _other_sides(count: int, left: Int[np.ndarray, " left"], rng: np.random.Generator) -> list[np.ndarray]:
    """Sides as large as `left`, each labelling once, neither side being `left`."""
    size = len(left)
    if comb(count, size) <= 2 * MAX_PERMUTATIONS + 2:
        sides = [np.array(side) for side in combinations(range(count), size)]
    else:
        drawn = {tuple(sorted(rng.permutation(count)[:size].tolist())) for _ in range(MAX_PERMUTATIONS)}
        sides = [np.array(side) for side in sorted(drawn)]
    right = np.setdiff1d(np.arange(count), left)
    kept = [side for side in sides if not np.array_equal(side, left) and not np.array_equal(side, right)]
    return [side for side in kept if 2 * size != count or 0 in side]  # its complement is the same labelling


def checkpoint_jitter(
    likelihood: Float[np.ndarray, "answer step"],
    at: Int[np.ndarray, " answer"],
    weight: Float[np.ndarray, "answer window"],
    windows: Windows,
    form: Form,
) -> Float[np.ndarray, " window"]:
    """Standard deviation, about a smooth path, of a single checkpoint's part in the divergence of each window.

    A checkpoint of the left adds E[ψ(P(left|x))] over its own answers (`influence`), which is estimated from all
    answers of the window by importance weights. On a smooth path that is the mean of what its two neighbours on the
    same side add; the departures are jitter: the lower median of the departures in a window (so that a corner on one
    side is no jitter), then a running median over five windows. Zero where a side has two checkpoints.
    """
    from scipy.ndimage import median_filter

    jitter = np.zeros(len(windows.centres))
    for window, sides in enumerate(zip(windows.left, windows.right, strict=True)):
        inside = np.any(sides, axis=0)[at]
        in_window, weighted = likelihood[inside], weight[inside, window]
        left = posterior_left(in_window[:, sides[0]], in_window[:, sides[1]])
        departures = []
        for side, posterior in zip(sides, (left, 1 - left), strict=True):
            added = (weighted * influence(posterior, form)) @ _importance(in_window, side, sides)
            departures += np.abs(added[1:-1] - (added[2:] + added[:-2]) / 2).tolist()
        if departures:
            jitter[window] = _normal_scale(np.sort(departures)) / np.sqrt(1.5)
    return median_filter(jitter, 5, mode="nearest")


def _importance(
    likelihood: Float[np.ndarray, "answer step"], side: Bool[np.ndarray, " step"], sides: tuple[np.ndarray, np.ndarray]
) -> Float[np.ndarray, "answer member"]:
    """The probability of each answer under each checkpoint of a side, over that under the mixture of both sides."""
    from scipy.special import logsumexp

    mixed = [logsumexp(likelihood[:, members], axis=1) - np.log(2 * members.sum()) for members in sides]
    return np.exp(likelihood[:, side] - np.logaddexp(*mixed)[:, None])


def _normal_scale(ordered: Float[np.ndarray, " departure"]) -> float:
    """The standard deviation of normal departures whose lower median absolute value is that of these."""
    from scipy.special import ndtri

    count = len(ordered)
    rank = (count + 1) // 2
    return float(ordered[rank - 1] / ndtri(0.5 + (rank - 0.3) / (count + 0.4) / 2))
