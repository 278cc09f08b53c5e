"""The published way of naming a step: where the local cosine is largest. It always answers; kept as a baseline."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from em_interp.trajectory.geometry import local_cosine
from em_interp.transition.path_noise import between_blocks, estimate_noise, even_increments, prefix_sums
from em_interp.transition.turn_test import drift_length


def largest_local_cosine(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int = 10
) -> tuple[int | None, float]:
    """The step with the largest local cosine at spacing `k` training steps (2506.11613, section 4), and that cosine.

    In the paper's sign, where straight is -1. It names a step whether or not there is a turn, and noise raises it
    wherever the drift is slow; None and NaN where no step has neighbours at that spacing.
    """
    cosine = local_cosine(gram, steps, k, "paper")
    if np.isnan(cosine).all():
        return None, float("nan")
    row = int(np.nanargmax(cosine))
    return int(steps[row]), float(cosine[row])


# --------
# What turning angles a path shows that nowhere turns: noise bends every path, the more the slower it drifts.


DRAWS = 400


def straight_angles(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], k: int, level: float = 0.95
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """Between which turning angles (degrees) at spacing `k` a straight path would lie at each step, with this chance.

    The path has this one's speed and noise, both estimated, and goes straight on everywhere. The band is pointwise:
    one angle in twenty lies outside it by chance. NaN where `k` steps before or after were not saved evenly, and where
    the path is too short to tell drift from noise. The draws have a fixed seed.
    """
    low, high = np.full(len(steps), np.nan), np.full(len(steps), np.nan)
    increments = even_increments(gram, steps)
    reach, rest = divmod(k, increments.spacing)
    places = np.arange(reach, increments.count - reach + 1)
    if rest or reach < 1 or increments.count < 20 or not np.trace(increments.gram) > 0:
        return low, high
    noise = estimate_noise(increments)
    start = np.stack([places - reach, places], axis=1)
    noisy = between_blocks(prefix_sums(noise.covariance), start, start + reach)
    travelled = np.concatenate([[0.0], np.cumsum(drift_length(increments, noise))])
    angles = _drawn_angles(travelled[start + reach] - travelled[start], noisy, noise.inverse_dimension)
    rows = np.searchsorted(steps, increments.edges[places])
    low[rows], high[rows] = np.quantile(angles, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _drawn_angles(
    drift: Float[np.ndarray, "place 2"], noise: Float[np.ndarray, "place 2 2"], inverse_dimension: float
) -> Float[np.ndarray, "draw place"]:
    """Angles in degrees between two moves along one axis, each with noise of this covariance spread over dimensions.

    Across the axis only inner products count; they have a Wishart distribution, drawn by Bartlett's decomposition.
    """
    rng = np.random.default_rng(0)
    dimensions = max(1 / inverse_dimension, 2.0)
    values, vectors = np.linalg.eigh(noise / dimensions)
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    normal = rng.standard_normal((DRAWS, len(drift), 3))
    along = drift + np.einsum("pij,dpj->dpi", root, normal[..., :2])
    triangle = np.zeros((DRAWS, len(drift), 2, 2))
    triangle[..., 0, 0] = np.sqrt(rng.chisquare(dimensions - 1, (DRAWS, len(drift))))
    triangle[..., 1, 1] = np.sqrt(rng.chisquare(max(dimensions - 2, 1e-3), (DRAWS, len(drift))))
    triangle[..., 1, 0] = normal[..., 2]
    across = root @ triangle
    inner = along[..., :, None] * along[..., None, :] + across @ np.swapaxes(across, -1, -2)
    cosine = inner[..., 0, 1] / np.sqrt(np.maximum(inner[..., 0, 0] * inner[..., 1, 1], np.finfo(float).tiny))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
