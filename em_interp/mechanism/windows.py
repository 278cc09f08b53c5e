"""Left and right of a step: which checkpoints stand on each side, and how far apart the answers of the sides are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.errors import InputError
from em_interp.mechanism.distance import Form, influence, posterior_of, told_apart

FEWEST = 5  # places
SPLITS = 40  # ways of dealing a window's checkpoints to two sides that are looked at


@dataclass(frozen=True)
class Windows:
    """Places between asked steps, and the asked steps within `reach` training steps on either side of each."""

    steps: Int[np.ndarray, " step"]
    at: Float[np.ndarray, " place"]
    left: Bool[np.ndarray, "place step"]
    right: Bool[np.ndarray, "place step"]

    @property
    def needed(self) -> Bool[np.ndarray, "step step"]:
        """Whether answers sampled at the first step need their likelihood at the second: some window holds both."""
        inside = (self.left | self.right).astype(int)
        return inside.T @ inside > 0


def windows(steps: Int[np.ndarray, " step"], reach: float) -> Windows:
    """The windows of every place half-way between two asked steps that lies `reach` or more inside the run.

    Neighbours are looked up by step, so irregular steps do not change how much of the run a window covers. Raises
    InputError where fewer than five places are left, or a side holds a single checkpoint.
    """
    steps = np.asarray(steps)
    at = (steps[1:] + steps[:-1]) / 2
    half = np.diff(steps) / 2
    at = at[(at - steps[0] >= reach - half) & (steps[-1] - at >= reach - half)]
    away = steps[None, :] - at[:, None]
    found = Windows(steps, at, (away < 0) & (away >= -reach), (away > 0) & (away <= reach))
    least = min(found.left.sum(axis=1).min(initial=99), found.right.sum(axis=1).min(initial=99))
    if len(at) < FEWEST or least < 2:
        raise InputError(
            f"a window of {reach:g} steps leaves {len(at)} places with {least if len(at) else 0} or more checkpoints "
            f"on a side, of {len(steps)} asked steps; {FEWEST} places and 2 checkpoints are needed: ask at more steps"
        )
    return found


def posteriors(
    likelihood: Float[np.ndarray, "answer step"], at: Int[np.ndarray, " answer"], over: Windows
) -> Float[np.ndarray, "answer place"]:
    """P(left | answer) for every place whose windows hold the step at which the answer was sampled, else NaN.

    `at` is the index of that step.
    """
    found = np.full((len(at), len(over.at)), np.nan)
    for place, (left, right) in enumerate(zip(over.left, over.right, strict=True)):
        inside = (left | right)[at]
        found[inside, place] = posterior_of(likelihood[inside][:, left], likelihood[inside][:, right])
    return found


def weights(
    at: Int[np.ndarray, " answer"], question: Int[np.ndarray, " answer"], over: Windows
) -> Float[np.ndarray, "answer place"]:
    """How much each answer counts: questions alike, both sides alike, the checkpoints of a side alike; sums to 1."""
    cell = question * len(over.steps) + at
    alone = 1.0 / np.bincount(cell)[cell]
    sides = sum(side[:, at].T / side.sum(axis=1) for side in (over.left, over.right))
    counted = np.asarray(sides) * alone[:, None]
    return counted / counted.sum(axis=0)


def dealt(
    likelihood: Float[np.ndarray, "answer step"],
    at: Int[np.ndarray, " answer"],
    weight: Float[np.ndarray, "answer place"],
    over: Windows,
    form: Form,
    rng: np.random.Generator,
) -> list[Float[np.ndarray, " split"]]:
    """For each place, the distances when its checkpoints are dealt to two sides in other ways than left and right.

    What they show is how far apart checkpoints are whatever their order; left and right stand out from it only where
    the answers go somewhere. All ways, or `SPLITS` of them where there are more.
    """
    found = []
    for place in range(len(over.at)):
        members = np.flatnonzero(over.left[place] | over.right[place])
        inside, here = np.isin(at, members), likelihood[:, members]
        left = np.searchsorted(members, np.flatnonzero(over.left[place]))
        values = []
        for side in _other_sides(len(members), left, rng):
            rest = np.setdiff1d(np.arange(len(members)), side)
            posterior = posterior_of(here[inside][:, side], here[inside][:, rest])
            counted = weight[inside, place]
            values.append(float(counted @ told_apart(posterior, form) / counted.sum()))
        found.append(np.array(values))
    return found


def _other_sides(count: int, left: Int[np.ndarray, " left"], rng: np.random.Generator) -> list[np.ndarray]:
    """Sides as large as `left`, each way of dealing once, neither side being `left`."""
    size = len(left)
    if comb(count, size) <= 2 * SPLITS + 2:
        ways = [np.array(way) for way in combinations(range(count), size)]
    else:
        drawn = {tuple(sorted(rng.permutation(count)[:size].tolist())) for _ in range(SPLITS)}
        ways = [np.array(way) for way in sorted(drawn)]
    right = np.setdiff1d(np.arange(count), left)
    kept = [way for way in ways if not np.array_equal(way, left) and not np.array_equal(way, right)]
    return [way for way in kept if 2 * size != count or 0 in way]  # its complement is the same way


def jitters(
    likelihood: Float[np.ndarray, "answer step"],
    at: Int[np.ndarray, " answer"],
    weight: Float[np.ndarray, "answer place"],
    over: Windows,
    form: Form,
) -> Float[np.ndarray, " place"]:
    """Standard deviation, about a smooth path, of what a single checkpoint adds to the distance at each place.

    A checkpoint of the left adds E[ψ(P(left|x))] over its own answers (`distance.influence`), which is read off all
    answers of the window by importance weights. On a smooth path that is the mean of what its two neighbours on the
    same side add; the departures are jitter. Of the departures at a place the lower middle one is taken, so that a
    corner on one side is no jitter, and of five places the median. NaN-free: zero where a side has two checkpoints.
    """
    from scipy.ndimage import median_filter

    found = np.zeros(len(over.at))
    for place, sides in enumerate(zip(over.left, over.right, strict=True)):
        inside = np.any(sides, axis=0)[at]
        here, counted = likelihood[inside], weight[inside, place]
        left = posterior_of(here[:, sides[0]], here[:, sides[1]])
        departures = []
        for side, posterior in zip(sides, (left, 1 - left), strict=True):
            ratio = _over_mixture(here, side, sides)
            added = (counted * influence(posterior, form)) @ ratio
            departures += np.abs(added[1:-1] - (added[2:] + added[:-2]) / 2).tolist()
        if departures:
            found[place] = _of_normals(np.sort(departures)) / np.sqrt(1.5)
    return median_filter(found, 5, mode="nearest")


def _over_mixture(
    likelihood: Float[np.ndarray, "answer step"], side: Bool[np.ndarray, " step"], sides: tuple[np.ndarray, np.ndarray]
) -> Float[np.ndarray, "answer member"]:
    """The probability of each answer under each checkpoint of a side, over that under the mixture of both sides."""
    from scipy.special import logsumexp

    mixed = [logsumexp(likelihood[:, one], axis=1) - np.log(2 * one.sum()) for one in sides]
    return np.exp(likelihood[:, side] - np.logaddexp(*mixed)[:, None])


def _of_normals(ordered: Float[np.ndarray, " departure"]) -> float:
    """The standard deviation of which the lower middle one of these absolute departures speaks."""
    from scipy.special import ndtri

    count = len(ordered)
    rank = (count + 1) // 2
    return float(ordered[rank - 1] / ndtri(0.5 + (rank - 0.3) / (count + 0.4) / 2))
