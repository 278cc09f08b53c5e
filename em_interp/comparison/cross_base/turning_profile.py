"""Turning profiles: the angle of a path to its final direction, on a time axis that runs of different bases share.

The profile of a run is the angle in degrees between its direction at time u and its final direction, 0 at the end. Time
is from 0 to 1: the cumulative learning rate as a share of the run's (how far it could have gone), or the norm as a
share of its largest, where it first reaches that value (how far it went). Both come from inner products within one run,
so bases of any dimensions can be compared, with the trajectories alone. The first 5 % of time is left out: while the
path is short its direction is noise.

The distance of two profiles is the root mean square of their difference over time, in degrees. Its null is the spread
of seeds: whether runs of two bases are further apart than runs of one is tested by permuting the labels (a permutation
test of mean distance between minus mean distance within; Anderson 2001 in spirit), which needs two runs or more of a
base and cannot give a smaller p-value than so few allow: p is at least 0.1 with three and three.

It shows that runs on two bases turn by the same amounts at the same share of training. It does not show that they turn
towards the same direction: a profile is relative to its own run's final direction. Nor is it a test for a turn: noise
bends every path (`em_interp.transition.direction.rotation` tests that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.trajectory import geometry
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.utils.checks import check_known

Clock = Literal["cumulative_lr", "norm"]
CLOCKS: tuple[str, ...] = get_args(Clock)
SKIPPED = 0.05  # share of time at the start
N_TIMES = 96
MAX_RELABELLINGS = 9999  # more are drawn at random
RELABELLING_SEED = 20250611


@dataclass(frozen=True, eq=False)
class TurningProfile:
    """The angle of a run's direction to its final one, at equally spaced times."""

    clock: Clock
    time: Float[np.ndarray, " time"]  # 0.05 to 1
    degrees: Float[np.ndarray, " time"]


def turning_profile(path: AdapterTrajectory, clock: Clock = "cumulative_lr") -> TurningProfile:
    """The profile of a path's ΔW, pooled over its sites.

    Raises InputError where the clock is not known, the run has no log of learning rates (use the norm), or the path
    never leaves zero.
    """
    check_known("time", clock, CLOCKS)
    gram = path.gram("delta")
    cosine = geometry.cosine_to_step(gram, path.steps, int(path.steps[-1]))
    angle = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    elapsed = _elapsed(path, clock, gram)
    known = np.isfinite(angle) & np.isfinite(elapsed)
    if known.sum() < 2:
        raise InputError(f"{path.source or 'the path'} has no direction at two steps or more, so it has no profile")
    grid = np.linspace(SKIPPED, 1.0, N_TIMES)
    return TurningProfile(clock, grid, np.interp(grid, elapsed[known], angle[known]))


def _elapsed(path: AdapterTrajectory, clock: Clock, gram: Float[np.ndarray, "step step"]) -> Float[np.ndarray, " step"]:
    """Time at each step as a share of the run's; the norm counts only where it is larger than ever before."""
    if clock == "norm":
        norm = geometry.norms(gram)
        largest = np.maximum.accumulate(norm)
        grown = np.concatenate([[True], norm[1:] > largest[:-1]])
        grown[-1] = True  # the final direction is that of the end, whatever the norm did
        return np.where(grown, largest / max(float(largest[-1]), np.finfo(float).tiny), np.nan)
    rates = path.cumulative_lr
    if not np.isfinite(rates[-1]) or rates[-1] <= 0:
        missing = f"{path.source or 'the path'} has no log of learning rates up to its last step"
        raise InputError(f"{missing}; compare turning profiles by the norm (clock='norm')")
    return np.asarray(rates / rates[-1])


def profile_distance(first: TurningProfile, second: TurningProfile) -> float:
    """Root mean square difference over time, in degrees; 0 for equal profiles."""
    if first.clock != second.clock:
        raise InputError(f"profiles by {first.clock} and by {second.clock} cannot be compared")
    return float(np.sqrt(np.mean((first.degrees - second.degrees) ** 2)))


@dataclass(frozen=True)
class ProfileTest:
    """Mean distances of two bases' profiles, and whether those between are larger than those within."""

    between: float  # degrees
    within: float  # degrees; NaN where no base has two runs
    p_value: float  # NaN where it cannot be tested
    least_p: float  # the smallest p-value that so few runs can give; NaN with it
    reason: str  # why it could not be tested, or ""


def profile_test(first: Sequence[TurningProfile], second: Sequence[TurningProfile]) -> ProfileTest:
    """Compare two bases by the profiles of their runs (seeds); exact up to 9,999 relabellings, drawn beyond."""
    from scipy.stats import permutation_test

    runs, n_first = [*first, *second], len(first)
    distances = np.array([[profile_distance(a, b) for b in runs] for a in runs])
    between = float(distances[:n_first, n_first:].mean())
    within = [distances[i, j] for i, j in combinations(range(len(runs)), 2) if (i < n_first) == (j < n_first)]
    if min(n_first, len(second)) < 2:
        reason = f"{n_first} and {len(second)} runs: two or more of each base are needed for a null"
        return ProfileTest(between, float(np.mean(within)) if within else np.nan, np.nan, np.nan, reason)

    def contrast(chosen: Int[np.ndarray, " run"], rest: Int[np.ndarray, " run"]) -> float:
        """Mean distance between two groups of runs minus that within; rounded, so that equal splits are ties."""
        within = [distances[pair] for group in (chosen, rest) for pair in combinations(group, 2)]
        return round(float(distances[np.ix_(chosen, rest)].mean() - np.mean(within)), 9)

    test = permutation_test(
        (np.arange(n_first), np.arange(n_first, len(runs))),
        contrast,
        permutation_type="independent",
        vectorized=False,
        n_resamples=MAX_RELABELLINGS,
        alternative="greater",
        random_state=RELABELLING_SEED,
    )
    least = (2 if 2 * n_first == len(runs) else 1) / len(test.null_distribution)
    return ProfileTest(between, float(np.mean(within)), float(test.pvalue), least, "")
