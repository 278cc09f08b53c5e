"""Paths by their moves."""

import numpy as np

from em_interp.transition.direction.path_noise import even_increments


def increments_of(increments, spacing=1):
    """The increments of the path with these moves, saved every `spacing` steps."""
    path = np.concatenate([np.zeros((1, increments.shape[1])), np.cumsum(increments, axis=0)])[::spacing]
    return even_increments(path @ path.T, spacing * np.arange(len(path)))
