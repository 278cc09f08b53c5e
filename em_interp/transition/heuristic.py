"""The published way of naming a step: where the local cosine is largest. It always answers; kept as a baseline."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from em_interp.trajectory.geometry import local_cosine


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
