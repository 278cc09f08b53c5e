"""The curve of a null hypothesis that lies nearest to what was seen, for drawing beside it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from em_interp.figures.template import VERMILLION

NULL_LINE = {"color": VERMILLION, "width": 1.5, "dash": "dot"}


def falling(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The nearest curve (least squares) that never rises."""
    return np.asarray(isotonic_regression(values, increasing=False).x)


def valley(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """The nearest curve (least squares) without a hump: it falls up to somewhere, and rises from there."""
    turned = [np.concatenate([falling(values[:low]), -falling(-values[low:])]) for low in range(1, len(values))]
    monotone = [falling(values), -falling(-values)]
    return min([*monotone, *turned], key=lambda curve: float(np.sum((curve - values) ** 2)))
