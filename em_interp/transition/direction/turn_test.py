"""The statistic of the rotation test: how far a path turns at a step beyond its own steady curvature.

For blocks L and R of h increments before and after a step (a gap may lie between them)

    D = angle(L, R) - steady,

with `steady` the angle that steady curvature would have turned between the centres of L and R. The curvature is what
the halves L₁, L₂ of L and R₁, R₂ of R turn within the plane of L and R, per unit of drift length or per step, whichever
explains more; `steady` is that rate times the distance between the centres, the sum over the two sides, at least 0.

D is the angle at a corner; it is 0 on an arc of constant curvature whatever the speed, and not positive where curvature
fades, as on the way into the minimum of a quadratic bowl. All angles come from inner products of block sums less their
expected noise (`path_noise`), so D depends on the path only through its Gram matrix. D is defined where both blocks and
all four half blocks have more energy than pure noise would have with probability UNDEFINED_P.

The standard error of D is that of a parametric bootstrap (`simulated_turns`): the window's drift plus fresh noise with
the estimated covariance in time and in space. A first-order error ranks the windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.transition.direction.path_noise import Increments, Noise, between_blocks, prefix_sums

MIN_TURN = 20.0  # degrees
MIN_SNR = 3.0  # below it the first-order standard error is used where it is the larger
# Windows as shares of the run. Longer blocks serve where noise is large, gaps where the turn takes its time; longer
# gaps would take a bend over 35 % of the run for a turn.
BLOCKS = (0.10, 0.15, 0.20, 0.25)
GAPS = (0.0, 0.05, 0.10)
MAX_BLOCK_AND_GAP = 0.30
UNDEFINED_P = 2e-3  # probability that a block of pure noise is taken for drift
MIN_DRIFT = 3.0  # energy of a block's drift, in units of its noise: below it an error of the noise model counts
MIN_LEVER = 0.025  # least distance between the centres of a block's halves, as a share of that between L and R
SPEED_WINDOW = 0.03  # share of the run, on either side, over which the drift's speed is averaged
N_SIMULATED = 200


@dataclass(frozen=True, eq=False)
class TurnScan:
    """D through one window, at every place where it is defined.

    The axes of length 4 are the half blocks L₁ L₂ R₁ R₂.
    """

    half_block: int  # increments
    half_gap: int  # increments
    centre: Int[np.ndarray, " place"]  # index of the edge between increments in the middle of the window
    turn: Float[np.ndarray, " place"]  # D, degrees
    error: Float[np.ndarray, " place"]  # first-order standard error of D, degrees
    snr: Float[np.ndarray, " place"]  # energy of L or R over the smallest at which D is defined, whichever is less
    inner: Float[np.ndarray, "place 4 4"]  # inner products of the half blocks' drifts
    noise: Float[np.ndarray, "place 4 4"]  # expected inner products of their noises
    along: Float[np.ndarray, "place 4 4"]  # x_iᵀ Σ x_j / tr Σ of the half blocks' drifts
    levers: Float[np.ndarray, "place 2 2"]  # by (length, step) and side; see `_levers`


def drift_length(increments: Increments, noise: Noise) -> Float[np.ndarray, " increment"]:
    """Length of the drift in each increment, unbiased by noise, averaged over 3 % of the run on either side."""
    return _drift_length(prefix_sums(increments.gram - noise.covariance))


def _drift_length(sums: Float[np.ndarray, "n1 n1"]) -> Float[np.ndarray, " increment"]:
    n = len(sums) - 1
    reach = max(2, round(SPEED_WINDOW * n))
    start = np.clip(np.arange(n) - reach, 0, max(n - 2 * reach - 1, 0))[:, None]
    stop = np.minimum(start + 2 * reach + 1, n)
    energy = between_blocks(sums, start, stop)[:, 0, 0]
    return np.sqrt(np.maximum(energy, 0)) / (stop - start)[:, 0]


def scan_turns(increments: Increments, noise: Noise) -> list[TurnScan]:
    """D through every window that fits, shorter blocks first; all windows are computed at once."""
    n, windows = increments.count, _windows(increments.count)
    if not windows:
        return []
    reach = [2 * half_block + half_gap for half_block, half_gap in windows]
    centres = [np.arange(far, n - far + 1) for far in reach]
    window = np.repeat(np.arange(len(windows)), [len(centre) for centre in centres])
    half_block, half_gap = np.array(windows).T[:, window]
    offsets = np.stack([-2 * half_block - half_gap, -half_block - half_gap, half_gap, half_gap + half_block], 1)
    centre = np.concatenate(centres)
    fields, defined = _at_places(centre, centre[:, None] + offsets, half_block[:, None], increments, noise)
    ends = np.searchsorted(window[defined], np.arange(1, len(windows)))
    parts: dict[str, Any] = {name: np.split(values, ends) for name, values in fields.items()}
    return [TurnScan(*windows[i], **{name: part[i] for name, part in parts.items()}) for i in range(len(windows))]


def _windows(count: int) -> list[tuple[int, int]]:
    """Half blocks and half gaps of the windows that fit, in increments."""
    halves = [
        (max(1, round(block * count / 2)), round(gap * count / 2))
        for block in BLOCKS
        for gap in GAPS
        if block + gap <= MAX_BLOCK_AND_GAP
    ]
    return [(block, gap) for block, gap in dict.fromkeys(halves) if 2 * (2 * block + gap) <= count]


def clearness(scan: TurnScan) -> Float[np.ndarray, " place"]:
    """First-order z of D at every place: the standard errors by which it exceeds MIN_TURN."""
    return (scan.turn - MIN_TURN) / np.maximum(scan.error, 1.0)


def turn_of(
    inner: Float[np.ndarray, "*place 4 4"], levers: Float[np.ndarray, "*place 2 2"]
) -> Float[np.ndarray, "*place"]:
    """D in degrees, from inner products of the half blocks L₁ L₂ R₁ R₂."""
    to_sides = np.stack([inner[..., :2].sum(-1), inner[..., 2:].sum(-1)], -1)  # half block · (L, R)
    energy = np.stack([to_sides[..., :2, 0].sum(-1), to_sides[..., 2:, 1].sum(-1)])
    size = np.sqrt(np.maximum(energy, 1e-12 * np.abs(inner).max((-1, -2))))
    cosine = np.clip(to_sides[..., :2, 1].sum(-1) / size[0] / size[1], -1, 1)
    sine = np.sqrt(np.maximum(1 - cosine**2, 1e-6))
    on_left = to_sides[..., 0] / size[0][..., None]
    beyond = (to_sides[..., 1] / size[1][..., None] - cosine[..., None] * on_left) / sine[..., None]
    heading = np.degrees(np.arctan2(beyond, on_left))  # of each half block, in the plane of L and R
    bend = np.stack([heading[..., 1] - heading[..., 0], heading[..., 3] - heading[..., 2]], -1)
    bend = (bend + 180) % 360 - 180
    steady = (bend[..., None, :] * levers).sum(-1).max(-1)
    return np.degrees(np.arccos(cosine)) - np.maximum(steady, 0)


def simulated_turns(scan: TurnScan, row: int, noise: Noise) -> Float[np.ndarray, " draw"]:
    """D of simulated copies of one window: its drift plus fresh noise of the estimated kind; a fixed seed.

    The four half blocks are vectors in the span of their drifts, where the noise along them was measured, and in as
    many further dimensions as the noise's effective dimension asks for.
    """
    inner, in_time = positive(scan.inner[row]), _root(scan.noise[row])
    values, vectors = np.linalg.eigh(inner)
    kept = values > 1e-6 * values.max()
    drift = vectors[:, kept] * np.sqrt(values[kept])
    inverse = np.linalg.pinv(drift)
    within = positive(inverse @ scan.along[row] @ inverse.T)  # covariance of the noise in the span of the drifts
    within /= max(1.0, np.trace(within))
    outside = 1 - np.trace(within)
    spare = max(noise.inverse_dimension - np.sum(within**2), 1e-4)
    dimensions = int(np.clip(round(outside**2 / spare), 1, 400))
    normal, products = _normal_draws(drift.shape[1], dimensions)
    in_span = drift + in_time @ normal @ _root(within).T
    off_span = in_time @ products @ in_time.T * (max(outside, 0) / dimensions)
    draws = in_span @ np.swapaxes(in_span, -1, -2) + off_span
    return turn_of(draws - scan.noise[row], scan.levers[row])


@lru_cache(maxsize=256)
def _normal_draws(within: int, beyond: int) -> tuple[Float[np.ndarray, "draw 4 within"], Float[np.ndarray, "draw 4 4"]]:
    """Normal vectors in the first dimensions, and the inner products of their parts in those beyond.

    Always the same, and cached, so read-only.
    """
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((N_SIMULATED, 4, within))
    parts = rng.standard_normal((N_SIMULATED, 4, beyond))
    products = parts @ np.swapaxes(parts, -1, -2)
    normal.flags.writeable = products.flags.writeable = False
    return normal, products


def simulated_errors(scan: TurnScan, row: int, noise: Noise) -> tuple[float, float, float]:
    """One standard error of D in degrees, of simulated copies: from the lower tail, from both sides, from the upper.

    Of a tail, the larger of its one and half its two standard deviations.
    """
    low, lower, middle, upper, high = np.quantile(simulated_turns(scan, row, noise), [0.023, 0.16, 0.5, 0.84, 0.977])
    down, up = max(middle - lower, (middle - low) / 2), max(upper - middle, (high - middle) / 2)
    return float(down), float((upper - lower) / 2), float(up)


def simulated_error(scan: TurnScan, row: int, noise: Noise) -> float:
    """Standard error of D in degrees: that of simulated copies, from their longer tail."""
    down, both, _ = simulated_errors(scan, row, noise)
    error = max(down, both, 0.5)
    return float(error if scan.snr[row] >= MIN_SNR else max(error, scan.error[row]))


def positive(matrix: Float[np.ndarray, "*place 4 4"]) -> Float[np.ndarray, "*place 4 4"]:
    """The nearest positive semidefinite matrix: negative eigenvalues set to zero."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0)[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _at_places(
    centre: Int[np.ndarray, " place"],
    start: Int[np.ndarray, "place 4"],
    half_block: Int[np.ndarray, "place 1"],
    increments: Increments,
    noise: Noise,
) -> tuple[dict[str, Any], Bool[np.ndarray, " place"]]:
    """The fields of a TurnScan at the places where D is defined, and which places these are."""
    drift = prefix_sums(increments.gram - noise.covariance)
    tables = np.stack([drift, prefix_sums(noise.covariance), prefix_sums(noise.along)], -1)
    inner, expected, along = np.moveaxis(between_blocks(tables, start, start + half_block), -1, 0)
    energy, noise_energy = _side_energies(inner), _side_energies(expected)
    least = max(noise.energy_limit(UNDEFINED_P), MIN_DRIFT)
    margin = (energy - noise_energy * least).min(1)
    defined = (margin > 0) & (np.einsum("pii->pi", inner) > 0).all(1)
    centre, start, half_block, inner, expected, along, energy, noise_energy = (
        x[defined] for x in (centre, start, half_block, inner, expected, along, energy, noise_energy)
    )
    along = positive(along - expected * noise.inverse_dimension)  # what is expected for drift alone
    levers = _levers(start, half_block, _drift_length(drift))
    fields = {
        "centre": centre,
        "turn": turn_of(inner, levers),
        "error": _first_order_error(inner, expected, along, levers, noise),
        "snr": (energy / noise_energy).min(1) / least,
        "inner": inner,
        "noise": expected,
        "along": along,
        "levers": levers,
    }
    return fields, defined


def _side_energies(inner: Float[np.ndarray, "place 4 4"]) -> Float[np.ndarray, "place 2"]:
    """|L|² and |R|² from inner products of the half blocks."""
    return np.stack([inner[:, :2, :2].sum((1, 2)), inner[:, 2:, 2:].sum((1, 2))], 1)


def _levers(
    start: Int[np.ndarray, "place 4"], half_block: Int[np.ndarray, "place 1"], length: Float[np.ndarray, " increment"]
) -> Float[np.ndarray, "place 2 2"]:
    """Half the distance between the centres of L and R, over that between the centres of each one's halves.

    In drift length and in steps; centres are weighted by drift, so that a block's slow part counts little.
    """
    travelled, middle = np.cumsum(length) - length / 2, np.arange(len(length)) + 0.5
    first, last = start[:, [0, 2]], start[:, [1, 3]] + half_block
    levers = []
    for coordinate in (travelled, middle):
        halves = _weighted_centre(start, start + half_block, length, coordinate)
        sides = _weighted_centre(first, last, length, coordinate)
        apart = np.stack([halves[:, 1] - halves[:, 0], halves[:, 3] - halves[:, 2]], 1)
        whole = (sides[:, 1] - sides[:, 0])[:, None]
        levers.append(0.5 * whole / np.maximum(apart, MIN_LEVER * whole))
    return np.stack(levers, 1)


def _weighted_centre(start: np.ndarray, stop: np.ndarray, weight: np.ndarray, coordinate: np.ndarray) -> np.ndarray:
    total, moment = (np.concatenate([[0.0], np.cumsum(x)]) for x in (weight, weight * coordinate))
    return (moment[stop] - moment[start]) / np.maximum(total[stop] - total[start], np.finfo(float).tiny)


def _first_order_error(
    inner: np.ndarray, expected: np.ndarray, along: np.ndarray, levers: np.ndarray, noise: Noise
) -> Float[np.ndarray, " place"]:
    """Standard error of D in degrees to first order, from the noise across the path in the plane of the turn."""
    side = np.kron(np.eye(2), np.ones((1, 2)))
    inner_s, noise_s, along_s = (np.einsum("ai,pij,bj->pab", side, m, side) for m in (inner, expected, along))
    energy, noise_energy = (np.einsum("pii->pi", m) for m in (inner_s, noise_s))
    cosine = np.clip(inner_s[:, 0, 1] / np.sqrt(energy.prod(1)), -1, 1)
    across = along_s[:, 1, 1] / energy[:, 1] + cosine**2 * along_s[:, 0, 0] / energy[:, 0]
    across -= 2 * cosine * along_s[:, 0, 1] / np.sqrt(energy.prod(1))
    across = np.clip(across / np.maximum(1 - cosine**2, 0.01), 0, 1)
    across += noise_energy.max(1) / energy.min(1) * noise.inverse_dimension
    halves = np.einsum("pii->pi", expected) / np.einsum("pii->pi", inner)
    variance = (noise_energy / energy).sum(1) + (levers[:, 0] ** 2 * halves.reshape(-1, 2, 2).sum(2)).sum(1)
    return np.degrees(np.sqrt(np.minimum(across * variance, 1e6)))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))
