"""The step and the width of a turn: a ramp of the path's heading, fitted by generalised least squares.

Model. In the plane of the mean directions of two blocks of increments (before and after the turn), the heading runs
from one to the other as a linear ramp of a given middle and width; the speed is free. Increment i is seen across its
heading:

    y_i = speed_i · (constant + size · (share_i - 1/2) + slope · time_i) + noise_i

with y_i the component of increment i at right angles to the ramp's heading, share_i the share of the ramp that is done,
and noise of the covariance in time that `path_noise` estimates. The three corrections have Gaussian priors around 0 (a
quarter, a quarter and a half of the turn), and a model error of 1 % of the speed is added to the noise.

Estimate. The penalised squared error over a grid of middles and of widths from 0 to the whole run; the ramp is its
minimum. The interval of the middle is the profile-likelihood set, χ² with one degree of freedom, with the noise scaled
up where even the best ramp fits worse than it should. `p_broad` is the likelihood-ratio test (half a χ² with one degree
of freedom) of the hypothesis that the ramp lasts 35 % of the run or more against one of at most 30 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import uniform_filter1d
from scipy.stats import chi2

from em_interp.transition.direction.path_noise import Increments, Noise

# From the first to the last degree of the turn, as shares of the run.
SHARP_WIDTHS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.13, 0.16, 0.20, 0.25, 0.30)
BROAD_WIDTHS = (0.35, 0.40, 0.50, 0.60, 0.80, 1.00)
MAX_POINTS = 48  # increments are pooled to about this many
SUBSTEPS = 5  # at which the ramp is averaged over an increment
PRIOR_SD = (0.25, 0.25, 0.5)  # of the heading's constant, size and slope, as shares of the turn
MODEL_ERROR = 0.01  # of the speed: a ramp is not exactly what a path does


@dataclass(frozen=True, eq=False)
class Ramp:
    """A turn that runs linearly from one heading to the next."""

    step: float  # its middle
    interval: tuple[float, float]  # of the middle
    level: float  # probability that the interval holds the true middle
    width: float  # steps from 10 % to 90 % of the turn
    p_broad: float  # of the hypothesis that the turn is a bend over 35 % of the run or more
    bracketed: bool  # whether the interval ends within the steps where the middle was looked for
    plane: _Plane

    @property
    def heading(self) -> Float[np.ndarray, "3 point"]:
        """Steps, the heading seen there and the fitted ramp, in degrees from the first block's direction."""
        return _heading(self.plane, np.array([self.step]), self.width / 0.8)


@dataclass(frozen=True, eq=False)
class _Plane:
    """Increments in the plane of two directions: along their bisector, and across it, towards the later one."""

    edges: Float[np.ndarray, " edge"]  # steps
    along: Float[np.ndarray, " point"]
    across: Float[np.ndarray, " point"]
    speed: Float[np.ndarray, " point"]
    half_angle: float  # radians, between either direction and the bisector
    noise: Float[np.ndarray, "point point"]  # covariance in time of the noise along any one direction of the plane
    model_variance: Float[np.ndarray, " point"]  # by which a path may miss a ramp


def fit_ramp(
    increments: Increments,
    noise: Noise,
    before: slice,
    after: slice,
    window: slice,
    middle: tuple[float, float],
    level: float = 0.95,
) -> Ramp:
    """Fit the turn between the mean directions of two blocks of increments.

    Args:
        increments: Of the path.
        noise: Of the increments.
        before: The increments whose mean direction the ramp starts from.
        after: The increments whose mean direction it ends at.
        window: The increments it is fitted to.
        middle: Steps between which its middle lies.
        level: Probability with which the interval holds the middle.

    Returns:
        The best ramp. Widths below the spacing of the checkpoints cannot be distinguished from 0.
    """
    plane = _in_plane(increments, noise, before, after, window)
    spacing = float(plane.edges[1] - plane.edges[0])
    run = float(increments.edges[-1] - increments.edges[0])
    shares = (*SHARP_WIDTHS, *BROAD_WIDTHS)
    widths = np.array([share * run for share in shares if share == 0 or share * run >= spacing])
    steps = np.arange(middle[0], middle[1] + spacing / 4, spacing / 2)
    rough = _misfits(plane, steps, widths)
    scale = max(1.0, rough.min() / max(len(plane.along) - 5, 1))
    cut = chi2.isf(1 - level, 1) * scale
    near = steps[rough.min(1) <= rough.min() + cut + 4 * scale]
    first, last = max(near[0] - spacing / 2, middle[0]), min(near[-1] + spacing / 2, middle[1])
    fine = np.linspace(first, last, int(np.clip(10 * (last - first), 20, 120)))
    plausible = rough.min(0) <= rough.min() + cut + 4 * scale  # widths that may fit well enough on the finer grid
    misfit = _misfits(plane, fine, widths[plausible])
    row, column = np.unravel_index(np.argmin(misfit), misfit.shape)
    inside = fine[misfit.min(1) <= misfit.min() + cut]
    best = rough.min(0)
    best[plausible] = misfit.min(0)
    broad = widths >= BROAD_WIDTHS[0] * run
    ratio = (best[broad].min() - best[~broad].min()) / scale
    p_broad = chi2.sf(ratio, 1) / 2 if ratio > 0 else 1.0
    interval, width = (float(inside[0]), float(inside[-1])), float(widths[plausible][column])
    bracketed = bool(middle[0] < interval[0] and interval[1] < middle[1])
    return Ramp(float(fine[row]), interval, level, 0.8 * width, float(p_broad), bracketed, plane)


def _in_plane(increments: Increments, noise: Noise, before: slice, after: slice, window: slice) -> _Plane:
    """The increments of the window, pooled, in the plane of the two blocks' directions."""
    drift = increments.gram - noise.covariance
    tiny = np.finfo(float).tiny
    size = [np.sqrt(max(drift[block, block].sum(), tiny)) for block in (before, after)]
    onto = [drift[:, block].sum(1) / length for block, length in zip((before, after), size, strict=True)]
    cosine = np.clip(drift[before, after].sum() / size[0] / size[1], -0.999, 0.999)
    sums, differences = np.sqrt(2 + 2 * cosine), np.sqrt(2 - 2 * cosine)
    spread = [noise.along[a, b].sum() for a, b in ((before, before), (after, after), (before, after))]
    spread = [spread[0] / size[0] ** 2, spread[1] / size[1] ** 2, spread[2] / size[0] / size[1]]
    variance = sum(
        max(spread[0] + spread[1] + sign * 2 * spread[2], 0) / scale**2 / 2
        for sign, scale in ((1, sums), (-1, differences))
    )
    pool = max(1, (window.stop - window.start) // MAX_POINTS)
    count = (window.stop - window.start) // pool
    chosen = slice(window.stop - count * pool, window.stop)
    along, across = (
        component[chosen].reshape(count, pool).sum(1)
        for component in ((onto[0] + onto[1]) / sums, (onto[1] - onto[0]) / differences)
    )
    half_angle = np.arccos(cosine) / 2
    edges = increments.edges[chosen.start : chosen.stop + 1 : pool].astype(float)
    later = edges[:-1] + edges[1:] > increments.edges[before.stop] + increments.edges[after.start]
    speed = along * np.cos(half_angle) + np.where(later, across, -across) * np.sin(half_angle)
    speed = uniform_filter1d(speed, 5, mode="nearest")
    speed = np.maximum(speed, 0.05 * speed.max())
    in_time = noise.covariance[chosen, chosen].reshape(count, pool, count, pool).sum((1, 3)) * max(variance, 1e-6)
    model_variance = (MODEL_ERROR * speed) ** 2 + 1e-9 * np.trace(in_time) + tiny
    return _Plane(edges, along, across, speed, half_angle, in_time, model_variance)


def _misfits(plane: _Plane, steps: np.ndarray, widths: np.ndarray) -> Float[np.ndarray, "step width"]:
    """Penalised squared error of ramps of all middles and widths, in units of the noise."""
    ramps = [share_and_heading(plane.edges, steps, width, plane.half_angle) for width in widths]
    share, angle = (np.concatenate(part, 1) for part in zip(*ramps, strict=True))
    misfit, _ = _fit(plane, share, angle, np.tile(steps, len(widths)))
    return misfit.reshape(len(widths), -1).T


def _heading(plane: _Plane, step: Float[np.ndarray, " 1"], width: float) -> Float[np.ndarray, "3 point"]:
    """The heading that is seen, averaged over five points, and the fitted ramp; from the first block's direction."""
    across, along = (uniform_filter1d(x, 5, mode="nearest") for x in (plane.across, plane.along))
    ramp = share_and_heading(plane.edges, step, width, plane.half_angle)
    seen, fitted = np.arctan2(across, along), _fit(plane, *ramp, step)[1][:, 0]
    middle = (plane.edges[1:] + plane.edges[:-1]) / 2
    return np.stack([middle, *(np.degrees(angle + plane.half_angle) for angle in (seen, fitted))])


def share_and_heading(
    edges: Float[np.ndarray, " edge"], middles: Float[np.ndarray, " ramp"], width: float, half: float
) -> tuple[Float[np.ndarray, "point ramp"], Float[np.ndarray, "point ramp"]]:
    """The mean share that is done and the mean heading between edges, of ramps of one width from -half to half."""
    if width == 0:
        share = np.clip((edges[1:, None] - middles) / np.diff(edges)[:, None], 0, 1)
        return share, np.arctan2(np.sin(half) * (2 * share - 1), np.cos(half))
    inside = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(SUBSTEPS) + 0.5) / SUBSTEPS
    ramp = np.clip((inside[..., None] - middles) / width + 0.5, 0, 1)
    angle = half * (2 * ramp - 1)
    return ramp.mean(1), np.arctan2(np.sin(angle).mean(1), np.cos(angle).mean(1))


def _fit(
    plane: _Plane,
    share: Float[np.ndarray, "point ramp"],
    heading: Float[np.ndarray, "point ramp"],
    steps: Float[np.ndarray, " ramp"],
) -> tuple[Float[np.ndarray, " ramp"], Float[np.ndarray, "point ramp"]]:
    """Penalised squared error of ramps in units of the noise, and the fitted headings.

    The heading's constant, size and slope are fitted to first order about the blocks' directions.
    """
    middle = (plane.edges[1:] + plane.edges[:-1]) / 2
    slope = (middle[:, None] - steps) / (plane.edges[-1] - plane.edges[0])
    bend = np.stack([np.ones_like(share), share - 0.5, slope], 1)  # point, correction, ramp
    unit = np.stack([np.cos(heading), np.sin(heading)], 1)  # point, coordinate, ramp
    off = plane.across[:, None] * unit[:, 0] - plane.along[:, None] * unit[:, 1]
    seen = np.concatenate([off[:, None], bend * plane.speed[:, None, None]], 1)
    inner = np.moveaxis(_weighted_products(plane, unit, seen), -1, 0)
    moment, normal = inner[:, 1:, 0], inner[:, 1:, 1:]
    prior = np.diag(1 / (2 * plane.half_angle * np.array(PRIOR_SD)) ** 2)
    fitted = np.linalg.solve(normal + prior, moment[..., None])[..., 0]
    return inner[:, 0, 0] - (moment * fitted).sum(1), heading + np.einsum("pcr,rc->pr", bend, fitted)


def _weighted_products(
    plane: _Plane, unit: Float[np.ndarray, "point 2 ramp"], seen: Float[np.ndarray, "point column ramp"]
) -> Float[np.ndarray, "column column ramp"]:
    """seenᵀ C⁻¹ seen for every ramp, C the covariance of the noise that is seen across the ramp's headings.

    C_ij = N_ij cos(ψ_i - ψ_j) + model variance on the diagonal, N the noise along one direction. Of white and
    momentum-smoothed noise N_ij for i < j is N_{i,i+1} times a decay for each point in between, so that the Cholesky
    factor needs a memory of two coordinates, those of the plane, and all ramps are eliminated point by point at once.
    """
    next_to, after_next = np.diag(plane.noise, 1), np.diag(plane.noise, 2)
    shared = np.append(next_to, 0.0)  # with the next point
    decay = np.pad(np.divide(after_next, next_to[:-1], out=np.zeros_like(after_next), where=next_to[:-1] != 0), 1)
    diagonal = np.diag(plane.noise) + plane.model_variance
    columns, ramps = seen.shape[1:]
    spread, expected = np.zeros((2, 2, ramps)), np.zeros((2, columns, ramps))
    inner = np.zeros((columns, columns, ramps))
    for point, direction in enumerate(unit):
        known = (spread * direction).sum(1)
        variance = diagonal[point] - (direction * known).sum(0)
        gain = (shared[point] * direction - decay[point] * known) / variance
        error = seen[point] - (direction[:, None] * expected).sum(0)
        inner += error[:, None] * (error / variance)
        expected = decay[point] * expected + gain[:, None] * error
        spread = decay[point] ** 2 * spread + gain[:, None] * gain * variance
    return inner
