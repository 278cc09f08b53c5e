"""Where a shape lies in a noisy series: the posterior over a grid of shapes, linear terms integrated out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cholesky, solve_triangular


class ShapeFit(NamedTuple):
    """Posterior of `values = coefficients @ baseline + amplitude * shape + noise`, shape by shape."""

    weights: Float[np.ndarray, " shape"]
    amplitude: Float[np.ndarray, " shape"]
    coefficients: Float[np.ndarray, "term shape"]

    def draws(self, count: int, rng: np.random.Generator) -> Int[np.ndarray, " draw"]:
        """Shapes drawn from the posterior."""
        return rng.choice(len(self.weights), size=count, p=self.weights)


def fit_shapes(
    values: Float[np.ndarray, " cell"],
    covariance: Float[np.ndarray, "cell cell"],
    baseline: Float[np.ndarray, "cell term"],
    shapes: Float[np.ndarray, "shape cell"],
) -> ShapeFit:
    """Every shape fitted with a positive amplitude by generalised least squares.

    Assumes Gaussian noise of the given covariance, a flat prior over the shapes given and over the linear terms.
    """
    root = cholesky(covariance, lower=True)
    white, terms, columns = (solve_triangular(root, a, lower=True) for a in (values, baseline, shapes.T))
    basis, triangle = np.linalg.qr(terms)
    inside = basis.T @ columns
    whole = (columns**2).sum(axis=0)
    size = np.maximum(whole - (inside**2).sum(axis=0), 1e-9 * whole)
    rest = white - basis @ (basis.T @ white)
    amplitude = (columns.T @ rest) / size
    told_apart = (amplitude > 0) & (size > 1e-6 * whole)  # from the baseline
    loglik = np.where(told_apart, 0.5 * amplitude**2 * size - 0.5 * np.log(size), -np.inf)
    if not np.isfinite(loglik.max()):  # no shape fits with a positive amplitude: none is preferred
        loglik = np.zeros(len(shapes))
    weights = np.exp(loglik - loglik.max())
    coefficients = solve_triangular(triangle, (basis.T @ white)[:, None] - inside * amplitude)
    return ShapeFit(weights / weights.sum(), amplitude, coefficients)
