"""The published heuristic, the step with the largest local cosine, and what a straight path would show.

The heuristic (arXiv 2506.11613, section 4) always names a step; it is kept as a baseline. Noise bends every path, the
more the slower it drifts: `straight_angles` gives the null distribution of turning angles for a path that goes straight
with this one's speed and noise, both estimated (`path_noise`).
"""

from __future__ import annotations

from typing import cast, get_args

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.trajectory.geometry import local_cosine
from em_interp.trajectory.load import TrajectorySource, as_trajectory
from em_interp.transition.direction.path_noise import (
    between_blocks,
    estimate_noise,
    even_increments,
    prefix_sums,
    unusable,
)
from em_interp.transition.direction.turn_test import drift_length
from em_interp.utils.checks import check_type

MIN_INCREMENTS = 20
LEVEL = 0.95  # of the null band
N_DRAWS = 400


def largest_local_cosine(
    path: TrajectorySource | Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"] | None = None, k: int = 10
) -> tuple[int | None, float]:
    """The step with the largest local cosine, the published way of naming a transition.

    It names a step whether or not the path turns, and noise raises it wherever the drift is slow.

    Args:
        path: A trajectory, a run or its path, of which B is taken; or the inner products of any positions, such as
            `path.gram("A")`.
        steps: Training steps of these positions, such as `path.steps`; a trajectory has its own.
        k: Spacing in training steps; arXiv 2506.11613 uses 5, 10 and 15.

    Returns:
        The step and its local cosine in the paper's sign, where straight is -1; None and NaN where no step has
        neighbours at that spacing.

    Raises:
        InputError: For an array that is not a square matrix of inner products with as many steps.
    """
    if steps is None:
        expected = "a trajectory, a run or its path; or a Gram matrix with its steps"
        check_type("path", path, get_args(TrajectorySource), expected)
        trajectory = as_trajectory(cast(TrajectorySource, path))
        path, steps = trajectory.gram("B"), trajectory.steps
    gram, steps = np.asarray(path), np.asarray(steps)
    if steps.ndim != 1 or gram.shape != (len(steps), len(steps)):
        raise InputError(f"expected a step × step Gram matrix and its steps; found {gram.shape} and {steps.shape}")
    cosine = local_cosine(gram, steps, k)
    if np.isnan(cosine).all():
        return None, float("nan")
    row = int(np.nanargmax(cosine))
    return int(steps[row]), float(cosine[row])


def straight_angles(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """The null band of turning angles in degrees at spacing `k`: low and high, by step.

    A straight path with this one's speed and noise has its angle inside with probability 0.95, at each step by
    itself. NaN where `k` steps before or after were not saved evenly, and where the path is too short to tell drift
    from noise. The simulation has a fixed seed.
    """
    low, high = np.full(len(steps), np.nan), np.full(len(steps), np.nan)
    increments = even_increments(gram, steps)
    reach, rest = divmod(k, increments.spacing)
    places = np.arange(reach, increments.count - reach + 1)
    if rest or reach < 1 or increments.count < MIN_INCREMENTS or unusable(increments):
        return low, high
    noise = estimate_noise(increments)
    start = np.stack([places - reach, places], axis=1)
    covariance = between_blocks(prefix_sums(noise.covariance), start, start + reach)
    travelled = np.concatenate([[0.0], np.cumsum(drift_length(increments, noise))])
    angles = _simulated_angles(travelled[start + reach] - travelled[start], covariance, noise.inverse_dimension)
    rows = np.searchsorted(steps, increments.edges[places])
    low[rows], high[rows] = np.quantile(angles, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _simulated_angles(
    drift: Float[np.ndarray, "place 2"], noise: Float[np.ndarray, "place 2 2"], inverse_dimension: float
) -> Float[np.ndarray, "draw place"]:
    """Angles in degrees between two moves along one axis, each with noise of this covariance spread over dimensions.

    Across the axis only inner products count; they have a Wishart distribution, drawn by Bartlett's decomposition.
    """
    rng = np.random.default_rng(0)
    dimensions = max(1 / inverse_dimension, 2.0)
    values, vectors = np.linalg.eigh(noise / dimensions)
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    first, second, low = np.moveaxis(rng.standard_normal((N_DRAWS, len(drift), 3)), -1, 0)
    upper = np.sqrt(rng.chisquare(dimensions - 1, (N_DRAWS, len(drift))))
    lower = np.sqrt(rng.chisquare(max(dimensions - 2, 1e-3), (N_DRAWS, len(drift))))
    one, other = (  # each move in three coordinates: along the axis, and two across it
        np.stack([drift[:, i] + a * first + b * second, a * upper + b * low, b * lower])
        for i, (a, b) in enumerate(np.moveaxis(root, 0, -1))
    )
    size = np.einsum("cdp,cdp->dp", one, one) * np.einsum("cdp,cdp->dp", other, other)
    cosine = np.einsum("cdp,cdp->dp", one, other) / np.sqrt(np.maximum(size, np.finfo(float).tiny))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
