"""When a path turns from one direction to another: a ramp of its heading, fitted by generalised least squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2

from em_interp.transition.path_noise import Increments, Noise

# From the first to the last degree of the turn, as shares of the run. What lies between may be called either.
SHARP = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.13, 0.16, 0.20, 0.25, 0.30)
BROAD = (0.35, 0.40, 0.50, 0.60, 0.80, 1.00)
POINTS = 48  # increments are pooled to about this many
SUBSTEPS = 5  # at which the ramp is averaged over an increment
ROOM = (0.25, 0.25, 0.5)  # standard deviations of the heading's constant, size and slope, as shares of the turn
MODEL_ERROR = 0.01  # of the speed: a ramp is not exactly what a path does


@dataclass(frozen=True)
class Ramp:
    """A turn that runs linearly from one heading to the next; `step` is its middle."""

    step: float
    interval: tuple[float, float]
    level: float  # probability that the interval holds the true step
    width: float  # steps from 10 % to 90 % of the turn
    p_broad: float  # of the hypothesis that the turn is a bend over 35 % of the run or more


@dataclass(frozen=True, eq=False)
class _Plane:
    """Increments in the plane of two directions: along their bisector, and across it, towards the later one."""

    edges: Float[np.ndarray, " edge"]  # steps
    along: Float[np.ndarray, " point"]
    across: Float[np.ndarray, " point"]
    speed: Float[np.ndarray, " point"]
    half_angle: float  # radians, between either direction and the bisector
    noise: Float[np.ndarray, "point point"]  # covariance in time of the noise along any one direction of the plane
    slack: Float[np.ndarray, " point"]  # variance by which a path may miss a ramp


def fit_ramp(
    increments: Increments,
    noise: Noise,
    before: slice,
    after: slice,
    window: slice,
    middle: tuple[float, float],
    level: float = 0.95,
) -> Ramp:
    """The turn between the mean directions of two blocks of increments, fitted to all increments in `window`.

    Heading = ramp + constant + slope, the increments' deviations from it weighted by the inverse of the noise's
    covariance; the ramp's middle lies between the two steps of `middle`. Only headings count, so the speed may vary as
    it likes. The interval holds every step whose best ramp fits nearly as well as the best of all (profile likelihood,
    χ² with one degree of freedom), the noise being scaled up where even the best fits worse than it should. Widths
    below the spacing of the checkpoints cannot be told from 0.
    """
    plane = _in_plane(increments, noise, before, after, window)
    spacing = float(plane.edges[1] - plane.edges[0])
    run = float(increments.edges[-1] - increments.edges[0])
    widths = np.array([share * run for share in (*SHARP, *BROAD) if share == 0 or share * run >= spacing])
    rough = _misfits(plane, steps := np.arange(middle[0], middle[1] + spacing / 4, spacing / 2), widths)
    scale = max(1.0, rough.min() / max(len(plane.along) - 5, 1))
    within = chi2.isf(1 - level, 1) * scale
    near = steps[rough.min(1) <= rough.min() + within + 4 * scale]
    first, last = max(near[0] - spacing / 2, middle[0]), min(near[-1] + spacing / 2, middle[1])
    fine = np.linspace(first, last, int(np.clip(10 * (last - first), 20, 120)))
    fits = rough.min(0) <= rough.min() + within + 4 * scale  # of the widths, those that may fit well enough
    misfit = _misfits(plane, fine, widths[fits])
    row, column = np.unravel_index(np.argmin(misfit), misfit.shape)
    inside = fine[misfit.min(1) <= misfit.min() + within]
    best = rough.min(0)
    best[fits] = misfit.min(0)
    broad = widths >= BROAD[0] * run
    gap = (best[broad].min() - best[~broad].min()) / scale
    p_broad = chi2.sf(gap, 1) / 2 if gap > 0 else 1.0
    interval = float(inside[0]), float(inside[-1])
    return Ramp(float(fine[row]), interval, level, float(0.8 * widths[fits][column]), float(p_broad))


def _in_plane(increments: Increments, noise: Noise, before: slice, after: slice, window: slice) -> _Plane:
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
    pool = max(1, (window.stop - window.start) // POINTS)
    count = (window.stop - window.start) // pool
    chosen = slice(window.stop - count * pool, window.stop)
    along, across = (
        part[chosen].reshape(count, pool).sum(1)
        for part in ((onto[0] + onto[1]) / sums, (onto[1] - onto[0]) / differences)
    )
    half_angle = np.arccos(cosine) / 2
    edges = increments.edges[chosen.start : chosen.stop + 1 : pool].astype(float)
    later = edges[:-1] + edges[1:] > increments.edges[before.stop] + increments.edges[after.start]
    speed = along * np.cos(half_angle) + np.where(later, across, -across) * np.sin(half_angle)
    speed = np.convolve(np.pad(speed, 2, mode="edge"), np.full(5, 0.2), "valid")
    speed = np.maximum(speed, 0.05 * speed.max())
    in_time = noise.covariance[chosen, chosen].reshape(count, pool, count, pool).sum((1, 3)) * max(variance, 1e-6)
    slack = (MODEL_ERROR * speed) ** 2 + 1e-9 * np.trace(in_time) + tiny
    return _Plane(edges, along, across, speed, half_angle, in_time, slack)


def _misfits(plane: _Plane, steps: np.ndarray, widths: np.ndarray) -> Float[np.ndarray, "step width"]:
    return np.stack([_misfit(plane, steps, width) for width in widths], 1)


def _misfit(plane: _Plane, steps: Float[np.ndarray, " step"], width: float) -> Float[np.ndarray, " step"]:
    """Squared deviations of the headings from ramps with middles at `steps`, in units of their noise.

    The heading's constant, size and slope are fitted to first order about the blocks' directions, each held near 0.
    """
    edges, half = plane.edges, plane.half_angle
    if width == 0:
        share = np.clip((edges[1:, None] - steps) / np.diff(edges)[:, None], 0, 1)
        heading = np.arctan2(np.sin(half) * (2 * share - 1), np.cos(half))
    else:
        inside = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(SUBSTEPS) + 0.5) / SUBSTEPS
        ramp = np.clip((inside[..., None] - steps) / width + 0.5, 0, 1)
        share = ramp.mean(1)
        heading = np.arctan2(np.sin(half * (2 * ramp - 1)).mean(1), np.cos(half * (2 * ramp - 1)).mean(1))
    middle = (edges[1:] + edges[:-1]) / 2
    slope = (middle[:, None] - steps) / (edges[-1] - edges[0])
    off = plane.across[:, None] * np.cos(heading) - plane.along[:, None] * np.sin(heading)
    columns = np.stack([np.ones_like(share), share - 0.5, slope]) * plane.speed[:, None]
    design = np.concatenate([off[None], columns]).transpose(2, 1, 0)
    # noise is seen across the heading of its increment: between headings ψ and φ it shares cos(ψ - φ)
    cosine, sine = np.cos(heading).T, np.sin(heading).T
    seen = cosine[:, :, None] * cosine[:, None, :] + sine[:, :, None] * sine[:, None, :]
    seen *= plane.noise
    seen[:, range(len(plane.along)), range(len(plane.along))] += plane.slack
    inner = np.swapaxes(design, 1, 2) @ np.linalg.solve(seen, design)
    moment, normal = inner[:, 1:, 0], inner[:, 1:, 1:]
    prior = np.diag(1 / (2 * half * np.array(ROOM)) ** 2)
    fitted = np.linalg.solve(normal + prior, moment[..., None])[..., 0]
    return inner[:, 0, 0] - (moment * fitted).sum(1)
