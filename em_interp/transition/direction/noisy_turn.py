"""Turns of paths whose noise exceeds their drift: a test of the angle between mean drifts, without a noise model.

On a real path the noise of one increment may be many times its drift. The windows of `turn_test` then have no clear
direction, although the drift is clear once many increments are averaged in thousands of coordinates. The test uses only
that the noise of increments far apart in time is independent, whatever its size, spectrum and short memory:

1. The path is cut into blocks of at least 20 steps (Adam's momentum of 0.9 is down to 0.12), counted outward from a
   candidate step t. Only the directions of the blocks' displacements count: C[i, j] is the cosine between two of them.
   Speed, noise level, learning rate and restarts drop out.
2. In a window of h blocks L before t and h blocks R after it, over pairs of blocks that do not adjoin,

       e_L = mean of C within L,   e_R = mean of C within R,   c = mean of C between L and R

   are unbiased for the inner products of the mean drifts, in units of the noise (a U-statistic), and
   cos(turn) = c / √(e_L e_R).
3. The null hypothesis is that there is no drift before (e_L = 0) or after (e_R = 0), or a turn of at most 20°, that is
   T = c - cos(20°) √(e_L e_R) ≥ 0. Each of the three over its jackknife standard error (blocks left out one at a time)
   is compared with Student's t with h - 1 degrees of freedom, and the largest p-value counts (an intersection-union
   test), times the number of windows that do not overlap (Bonferroni).
4. The headings of the blocks in the plane of the two mean drifts (each block is projected on means that leave out the
   block and its neighbours) are fitted with a ramp as in `ramp`. The second null hypothesis is a bend over 35 % of the
   run or more, in steps or in the length of the drift; it is tested by the F ratio of the two best fits.

Assumes that noise is independent beyond 20 steps, or negatively correlated. Data served again in the same order make
the noise of two epochs alike: c grows, and a turn is harder to find, not easier.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import uniform_filter1d
from scipy.special import stdtr
from scipy.stats import f as f_distribution

from em_interp.trajectory.geometry import evenly_spaced
from em_interp.transition.direction.path_noise import Increments
from em_interp.transition.direction.ramp import BROAD_WIDTHS, SHARP_WIDTHS, share_and_heading

MEMORY = 20  # steps after which the noise of Adam with momentum 0.9 counts as independent
WINDOWS = (0.10, 0.15, 0.20, 0.25, 0.33)  # blocks on each side of a turn, as shares of all blocks
MIN_BLOCKS = 5  # on each side
MIN_COSINE = float(np.cos(np.radians(20.0)))  # of a turn that the null hypothesis allows
FIT_REACH = 0.25  # share of the run on each side to which the ramp is fitted
BROAD = (*BROAD_WIDTHS, 1.50)  # widths of the ramp, as shares of the run
STEADY = (0.70, 1.00, 1.50)  # of the length of the drift that is fitted: curvature that is constant along the path
PRIOR = (0.25, 0.25, 0.5, 0.5)  # standard deviations of the constant, the size and the slopes on each side, in turns
MODEL_ERROR = 0.02  # of the drift: no path follows a ramp exactly
PARAMETERS = 6  # of the fit: middle, width, constant, size, slope on each side
MAX_FITS = 8  # ramps fitted about the candidate steps that are about as clear as the clearest
AS_CLEAR = 1e-6  # windows with p-values below this are not told apart


@dataclass(frozen=True)
class NoisyTurn:
    """A turn between two mean drifts."""

    step: float
    interval: tuple[float, float]
    width: float  # steps from 10 % to 90 % of the turn
    angle_deg: float
    p_value: float
    blocks: int  # on each side of the turn
    angles: Float[np.ndarray, "edge 2"]  # angle between the two mean drifts at each edge of the increments, and its
    # standard error, in degrees; NaN where a side has no drift


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The path in blocks of equal duration, counted outward from a candidate step."""

    cosine: Float[np.ndarray, "block block"]  # between the blocks' displacements
    length: Float[np.ndarray, " block"]  # of the displacements
    edges: Float[np.ndarray, " edge"]  # steps
    left: int  # blocks before the candidate step


@dataclass(frozen=True)
class _Window:
    """The test of one window."""

    place: int  # edge of the grid of increments
    blocks: int  # on each side
    cosine: float  # of the turn
    error: float  # standard error of the cosine
    p_value: float  # of no drift on a side or a turn of at most 20°, for this window alone


def find_noisy_turn(
    increments: Increments, candidate: Bool[np.ndarray, " edge"], alpha: float, level: float = 0.95
) -> NoisyTurn | None:
    """The clearest turn of a path that is mostly noise.

    Args:
        increments: The path's increments between evenly spaced steps.
        candidate: Edges of the increments at which a turn may be looked for.
        alpha: Level of the test, all windows together.
        level: Probability that the interval holds the true step.

    Returns:
        The turn, or None where no turn of more than 20° within 30 % of the run is significant.
    """
    size = -(-MEMORY // increments.spacing)
    windows, tests = _scan(increments, candidate, size)
    if not windows:
        return None
    best = min(windows, key=lambda window: window.p_value)
    if best.p_value * tests > alpha:
        return None
    clear = [w for w in windows if w.p_value <= max(AS_CLEAR, best.p_value * np.e)]
    clear = [clear[row] for row in evenly_spaced(np.array([window.place for window in clear]), MAX_FITS)]
    fit, *others = (_fit(increments, window, size, level) for window in (best, *clear))
    p_value = max(min(1.0, best.p_value * tests), fit.p_broad)
    if p_value > alpha:
        return None
    low, high = min(f.interval[0] for f in (fit, *others)), max(f.interval[1] for f in (fit, *others))
    angles = np.full((increments.count + 1, 2), np.nan)
    for window in windows:
        if window.blocks == best.blocks:
            angles[window.place] = _angle(window)
    return NoisyTurn(fit.step, (low, high), fit.width, _angle(best)[0], p_value, best.blocks, angles)


def _angle(window: _Window) -> tuple[float, float]:
    """Degrees, with the standard error to first order."""
    cosine = float(np.clip(window.cosine, -1, 1))
    return float(np.degrees(np.arccos(cosine))), float(np.degrees(window.error / max(np.sqrt(1 - cosine**2), 0.1)))


def _blocks(increments: Increments, place: int, size: int) -> _Blocks:
    left, right = place // size, (increments.count - place) // size
    edges = np.arange(place - left * size, place + right * size + 1, size)
    sums = np.diff(np.diff(increments.sums[np.ix_(edges, edges)], axis=0), axis=1)
    length = np.sqrt(np.maximum(np.diag(sums), np.finfo(float).tiny))
    return _Blocks(sums / np.outer(length, length), length, increments.edges[edges].astype(float), left)


def _scan(increments: Increments, candidate: np.ndarray, size: int) -> tuple[list[_Window], float]:
    """Every window with a drift on both sides, and how many windows do not overlap."""
    total = increments.count // size
    widths = sorted({max(MIN_BLOCKS, round(share * total)) for share in WINDOWS})
    windows: list[_Window] = []
    for place in np.flatnonzero(candidate)[:: max(1, size // 2)].tolist():
        if min(place, increments.count - place) < widths[0] * size:
            continue
        blocks = _blocks(increments, place, size)
        for width in widths:
            if min(blocks.left, len(blocks.cosine) - blocks.left) >= width:
                window = _test(blocks, place, width)
                windows += [window] if window else []
    return windows, sum(total / (2 * width) for width in widths)


def _test(blocks: _Blocks, place: int, width: int) -> _Window | None:
    """The test of the turn between `width` blocks on each side; None where a side has no drift at all."""
    inside = slice(blocks.left - width, blocks.left + width)
    estimate, left_out = _drift_products(blocks.cosine[inside, inside], width)
    count = len(left_out)
    error = np.sqrt((count - 1) / count * ((left_out - left_out.mean(0)) ** 2).sum(0))
    if (estimate[:2] <= 0).any():
        return None
    excess, excess_left_out = _excess(estimate), _excess(left_out)
    spread = np.sqrt((count - 1) / count * ((excess_left_out - excess_left_out.mean()) ** 2).sum())
    z = [*(estimate[:2] / error[:2]), -excess / spread]
    p_value = float(stdtr(width - 1, -min(z)))
    size = float(np.sqrt(estimate[0] * estimate[1]))
    return _Window(place, width, float(estimate[2] / size), float(spread / size), p_value)


def _excess(products: Float[np.ndarray, "*draw 3"]) -> Float[np.ndarray, "*draw"]:
    """T = c - cos(20°) √(e_L e_R): negative for turns of more than 20°."""
    energy = np.maximum(products[..., :2], 0.0)
    return products[..., 2] - MIN_COSINE * np.sqrt(energy[..., 0] * energy[..., 1])


def _drift_products(
    cosine: Float[np.ndarray, "block block"], width: int
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "block 3"]]:
    """(e_L, e_R, c), and the same with each block left out."""
    used, count, count_without = _pairs(width)
    products = np.where(used, cosine, 0.0)
    total = products.reshape(3, -1).sum(1)
    without = total[:, None] - products.sum(1) - products.sum(2)
    return total / count, (without / count_without).T


@lru_cache(maxsize=64)
def _pairs(width: int) -> tuple[Bool[np.ndarray, "3 block block"], Int[np.ndarray, " 3"], Int[np.ndarray, "3 block"]]:
    """The pairs of blocks that do not adjoin, within L, within R and between them; how many they are, and how many
    are left without each block. Cached, so read-only.
    """
    right = np.arange(2 * width) >= width
    sides = ((~right, ~right), (right, right), (~right, right))
    used = np.stack([np.outer(first, second) & _apart(2 * width) for first, second in sides])
    count = used.sum((1, 2))
    pairs = used, count, count[:, None] - used.sum(1) - used.sum(2)
    for each in pairs:
        each.flags.writeable = False
    return pairs


def _apart(count: int) -> Bool[np.ndarray, "block block"]:
    """Pairs of blocks that do not adjoin: their noise is independent."""
    index = np.arange(count)
    return np.abs(index[:, None] - index) >= 2


@dataclass(frozen=True)
class _Fit:
    """The ramp of the heading at one place."""

    step: float
    interval: tuple[float, float]
    width: float
    p_broad: float


@dataclass(frozen=True, eq=False)
class _Plane:
    """Blocks near the turn, by their inner products with the two mean drifts of unit length."""

    points: Float[np.ndarray, "block 2"]  # whitened: noise has unit covariance
    whiten: Float[np.ndarray, "block 2 2"]
    half_angle: float  # radians, between either mean drift and their bisector
    drift: Float[np.ndarray, " block"]  # size of the drift in a block
    steps: Float[np.ndarray, " edge"]
    travelled: Float[np.ndarray, " edge"]  # length of the drift, in units of all of it


def _fit(increments: Increments, window: _Window, size: int, level: float) -> _Fit:
    """The ramp of the heading near a window's place, refitted once about the middle that is found first."""
    place, reach = window.place, window.blocks * size
    for _ in range(2):
        fit = _fit_ramp(_plane(_blocks(increments, place, size), window.blocks), increments, level)
        nearest = int(np.argmin(np.abs(increments.edges - fit.step)))
        place = int(np.clip(nearest, reach, increments.count - reach))
    return fit


def _plane(blocks: _Blocks, width: int) -> _Plane:
    """The blocks near the turn, each projected on mean drifts that leave out the block and its neighbours."""
    count, left = len(blocks.cosine), blocks.left
    apart = _apart(count)
    index = np.arange(count)
    sides = [(index >= left - width) & (index < left), (index >= left) & (index < left + width)]
    energy = [max(float(blocks.cosine[np.outer(side, side) & apart].mean()), 1e-6) for side in sides]
    between = float(blocks.cosine[np.outer(*sides) & apart].mean())
    angle = float(np.arccos(np.clip(between / np.sqrt(energy[0] * energy[1]), -0.87, 0.98)))
    reach = max(width, round(FIT_REACH * count))
    near = slice(max(left - reach, 0), min(left + reach, count))
    onto = []
    for side, size in zip(sides, energy, strict=True):
        used = apart[near] & side
        onto.append((blocks.cosine[near] * used).sum(1) / used.sum(1) / np.sqrt(size))
    points, later = np.stack(onto, 1), index[near] >= left
    drift = np.where(later, points[:, 1], points[:, 0])
    drift = np.maximum(uniform_filter1d(drift, 5, mode="nearest"), 1e-3)
    whiten = np.empty((len(points), 2, 2))
    for side in (later, ~later):
        covariance = _difference_covariance(points[side])
        covariance = covariance + ((MODEL_ERROR * drift[side]) ** 2)[:, None, None] * np.eye(2)
        whiten[side] = np.linalg.inv(np.linalg.cholesky(covariance))
    travelled = np.concatenate([[0.0], np.cumsum(drift * blocks.length[near])])
    edges = blocks.edges[near.start : near.stop + 1]
    points = np.einsum("bij,bj->bi", whiten, points)
    return _Plane(points, whiten, angle / 2, drift, edges, travelled / travelled[-1])


def _difference_covariance(points: Float[np.ndarray, "block 2"]) -> Float[np.ndarray, "2 2"]:
    """Covariance of white noise from differences of neighbours, the largest tenth left out: a turn is among them."""
    moves = np.diff(points, axis=0)
    size = (moves**2 / np.maximum((moves**2).mean(0), np.finfo(float).tiny)).sum(1)
    kept = moves[size <= np.quantile(size, 0.9)]
    covariance = kept.T @ kept / len(kept) / 2 / 0.74  # a normal vector in the plane keeps 0.74 of its energy
    return covariance + 1e-7 * np.eye(2)


def _fit_ramp(plane: _Plane, increments: Increments, level: float) -> _Fit:
    spacing, run = plane.steps[1] - plane.steps[0], float(increments.edges[-1] - increments.edges[0])
    middles = np.arange(plane.steps[0] + 2 * spacing, plane.steps[-1] - 2 * spacing + 1, spacing / 4)
    share = run / (plane.steps[-1] - plane.steps[0])  # of the run, in units of the fitted window
    time = (plane.steps - plane.steps[0]) / (plane.steps[-1] - plane.steps[0])
    at = np.interp(middles, plane.steps, time)
    sharp = _misfits(plane, time, at, share * np.array(SHARP_WIDTHS))
    broad = _misfits(plane, time, at, share * np.array(BROAD)).min()
    steady = _misfits(plane, plane.travelled, np.interp(at, time, plane.travelled), np.array(STEADY)).min()
    row, column = np.unravel_index(np.argmin(sharp), sharp.shape)
    freedom = max(len(plane.points) - PARAMETERS, 3)
    scale = max(1.0, sharp[row, column] / freedom)
    gap = (min(broad, steady) - sharp[row, column]) / scale
    inside = middles[sharp.min(1) <= sharp[row, column] + scale * f_distribution.isf(1 - level, 1, freedom)]
    return _Fit(
        step=float(middles[row]),
        interval=(float(inside[0] - spacing / 4), float(inside[-1] + spacing / 4)),
        width=float(0.8 * SHARP_WIDTHS[column] * run),
        # one-sided, that is sf / 2, for each of the two broad families, of which the better is taken: twice that
        p_broad=float(f_distribution.sf(gap, 1, freedom)) if gap > 0 else 1.0,
    )


def _misfits(
    plane: _Plane, clock: Float[np.ndarray, " edge"], middles: Float[np.ndarray, " middle"], widths: np.ndarray
) -> Float[np.ndarray, "middle width"]:
    """Squared deviations of the blocks' headings from ramps along `clock`, in units of their noise.

    The heading's constant, size and slope are fitted to first order about the two mean drifts, each with a prior.
    """
    half = plane.half_angle
    centres = (clock[1:] + clock[:-1]) / 2
    prior = np.diag(1 / (2 * half * np.array(PRIOR)) ** 2)
    misfits = []
    for width in widths:
        done, heading = (of_ramp.T for of_ramp in share_and_heading(clock, middles, width, half))
        toward = _whitened(plane, np.cos(heading + half), np.cos(heading - half))
        turned = _whitened(plane, -np.sin(heading + half), -np.sin(heading - half))
        length = np.maximum(np.hypot(*toward), np.finfo(float).tiny)
        x, y = plane.points.T
        off = (y * toward[0] - x * toward[1]) / length
        against = np.minimum((x * toward[0] + y * toward[1]) / length, 0.0)  # drift the other way
        away = centres - middles[:, None]
        columns = np.stack([np.ones_like(done), done - 0.5, np.minimum(away, 0), np.maximum(away, 0)], -1)
        design = columns * (plane.drift * (turned[1] * toward[0] - turned[0] * toward[1]) / length)[..., None]
        normal = np.swapaxes(design, 1, 2) @ design + prior
        moment = (design * off[..., None]).sum(1)
        fitted = np.linalg.solve(normal, moment[..., None])[..., 0]
        misfits.append((off**2 + against**2).sum(1) - (moment * fitted).sum(1))
    return np.stack(misfits, 1)


def _whitened(plane: _Plane, first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, "2 middle block"]:
    """Expected inner products with the two mean drifts, whitened as the points are."""
    return np.einsum("bij,jmb->imb", plane.whiten, np.stack([first, second]))
