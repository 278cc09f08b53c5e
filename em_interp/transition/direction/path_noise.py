"""The noise of a path's increments, estimated from their inner products alone.

Model. increment_i = drift_i + noise_i. The drift changes slowly from one increment to the next, except at few places.
The noise is Gaussian; its covariance between coordinates is σᵢ² Σ, with one Σ of any shape throughout the run and a
size σᵢ that changes slowly except for jumps, such as where a schedule restarts or steps down; over time it is a mixture
of white noise and of white noise smoothed by Adam's first moment (β₁ = 0.9 a step). Noise that is slower than momentum
cannot be distinguished from drift.

Estimates.
- σᵢ: a running median of the energies of second differences, in which a smooth drift cancels, on each side of a jump
  separately: a median across the jump would underestimate the noise near it, and noise would pass for a turn.
- Autocovariance: the energies of contrasts (1, -2, 1) of neighbouring sums over 1 to 24 steps are fitted by
  non-negative least squares with the two kinds of noise; the largest 15 % of the contrasts, which sit at turns, are
  trimmed.
- Effective dimension (tr Σ)² / tr Σ² and the third cumulant: from inner products of second differences that are far
  enough apart to be independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import median_filter, uniform_filter1d
from scipy.optimize import nnls
from scipy.special import chdtri

from em_interp.trajectory.geometry import MIN_SQUARED_MOVE

MAX_INCREMENTS = 800  # more are pooled: the cost grows with the square, and this resolves 1/800 of a run
SLACK = 0.25  # of the spacing: how far a saved step may be from its place on the even grid
MOMENTUM = 0.9  # Adam's β₁ in every published organism
MAX_SCALE = 24  # steps; beyond it momentum has decayed (0.9²⁴ = 0.08) and drift would be included
NO_NOISE = 1e-20  # median energy of second differences where the path moves, relative to an increment's
STRAY = 10.0  # distances of a checkpoint from its place, in those that are usual
AROUND = 21  # checkpoints, from which that is taken: noise may grow along a run
MIN_MOVING = 0.2  # share of the increments: of a path that moves in fewer no noise can be estimated
ROUNDING = 1e-10  # energy of the noise then assumed, of float32 positions
MAX_ROUNDING = 0.1  # of the energy of increments, in paths that are stored in 16 bits
MIN_POOLED = 40  # increments that pooling against rounding leaves
TRIM = 0.85  # share of contrasts kept: the largest sit at turns
JUMP = 16.0  # ratio of the noise's energies on two sides of a place where its size jumps
MIN_JUMPING = 100  # second differences: of fewer a jump is not told from a steep decay
MIN_JUMP_SIDE = 7  # second differences on either side, of which a turn in the path disturbs three
MIN_ENERGY = 1e-9  # of the noise, as a share of its largest
STRADDLING = 2  # second differences on either side of a jump that hold noise of both sizes


@dataclass(frozen=True, eq=False)
class Increments:
    """Displacements of a path between saved steps: increment i leads from `edges[i]` to `edges[i + 1]`."""

    gram: Float[np.ndarray, "increment increment"]  # inner products of the increments
    edges: Int[np.ndarray, " edge"]  # steps, evenly spaced to within a quarter of the spacing
    spacing: int  # steps an increment lasts

    @property
    def count(self) -> int:
        """Number of increments."""
        return len(self.gram)

    @cached_property
    def sums(self) -> Float[np.ndarray, "edge edge"]:
        """The `prefix_sums` of the inner products."""
        return prefix_sums(self.gram)


@dataclass(frozen=True, eq=False)
class Noise:
    """The noises of increments i and j: their expected inner products, and how many dimensions they fill."""

    covariance: Float[np.ndarray, "increment increment"]  # expected inner products, that is tr Σ included
    along: Float[np.ndarray, "increment increment"]  # its covariance along increments i and j: x_iᵀ Σ x_j / tr Σ
    inverse_dimension: float  # tr Σ² / (tr Σ)²: 1 / d for isotropic noise in d dimensions
    tail_dof: float  # degrees of freedom of the χ² whose first three cumulants a squared noise vector has

    def energy_limit(self, probability: float) -> float:
        """By how much |noise|² exceeds its mean with this probability, in units of the mean (Hall-Buckley-Eagleson)."""
        excess = chdtri(self.tail_dof, probability) - self.tail_dof  # the upper quantile of χ²
        return float(excess * np.sqrt(self.inverse_dimension / self.tail_dof))


def even_increments(gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"]) -> Increments:
    """The increments of the longest evenly saved stretch of a path.

    Runs are saved at 1, 2, …, 10, then every 5, then at the end: neighbours are looked up by step, so that no increment
    mixes spacings. Of several stretches that reach about equally far the densest is taken.
    """
    rows, spacing = _longest_stretch(steps)
    pool = max(1, -(-(len(rows) - 1) // MAX_INCREMENTS))
    rows = rows[::pool]
    inner = gram[np.ix_(rows, rows)]
    moves = np.diff(np.diff(inner, axis=0), axis=1)
    still = np.abs(moves) < MIN_SQUARED_MOVE * np.abs(inner).max()
    moves[still] = 0.0  # else rounding would be the noise of a path that stops
    return Increments(moves, steps[rows], spacing * pool)


def resolved_increments(increments: Increments, rounding: Float[np.ndarray, " edge"]) -> tuple[Increments, float]:
    """The longest stretch of a path in which rounding is small compared with the increments, pooled where that helps.

    Args:
        increments: Of the whole path.
        rounding: Squared rounding error of the position at each edge.

    Returns:
        The stretch, in which rounding has at most a tenth of the increments' energy (both averaged over a tenth of the
        run), and its share of the run. Of the poolings that leave 40 increments the first that loses nothing is taken,
        or else the one that keeps most.
    """
    best, best_share = increments, -1.0
    for pool in range(1, max(1, increments.count // MIN_POOLED) + 1):
        pooled = _pooled(increments, pool)
        error = rounding[::pool][: pooled.count + 1]
        width = max(3, pooled.count // 10)
        noise = uniform_filter1d(error[1:] + error[:-1], width, mode="nearest")
        energy = uniform_filter1d(np.diag(pooled.gram), width, mode="nearest")
        first, last = _longest_run(noise <= MAX_ROUNDING * energy)
        share = (last - first) / pooled.count
        if share > best_share:
            best = Increments(pooled.gram[first:last, first:last], pooled.edges[first : last + 1], pooled.spacing)
            best_share = share
        if share == 1:
            break
    return best, best_share


def unusable(increments: Increments) -> str:
    """Why a path cannot be tested for turns, whatever its noise; "" where it can."""
    moving = float(np.mean(np.diag(increments.gram) > 0))
    if moving < MIN_MOVING:
        return f"The path moves in only {moving:.0%} of its increments; {MIN_MOVING:.0%} are needed."
    if (stray := _stray_step(increments)) is not None:
        return f"The checkpoint of step {stray} lies far off the path; is it damaged, or of another run? Leave it out."
    return ""


def _stray_step(increments: Increments) -> int | None:
    """The step of a checkpoint that lies off the path, such as one of another run; None where there is none.

    The path jumps there and back: both increments are twice as long as those beside them and go opposite ways, and the
    checkpoint is more than STRAY times as far from the middle of its neighbours as is usual around it.
    """
    energy, inner = np.diag(increments.gram), np.diag(increments.gram, 1)
    bend = energy[:-1] + energy[1:] - 2 * inner  # of each checkpoint but the first and the last
    beside = np.maximum(energy[:-3], energy[3:])
    there, back, product, bends = energy[1:-2], energy[2:-1], inner[1:-1], bend[1:-1]
    stray = (np.minimum(there, back) > 4 * beside) & (product < 0) & (4 * product**2 > there * back)
    stray &= bends > STRAY**2 * median_filter(bend, AROUND, mode="nearest")[1:-1]
    return int(increments.edges[2 + stray.argmax()]) if stray.any() else None


def _pooled(increments: Increments, pool: int) -> Increments:
    count = increments.count // pool
    gram = increments.gram[: count * pool, : count * pool].reshape(count, pool, count, pool).sum((1, 3))
    return Increments(gram, increments.edges[: count * pool + 1 : pool], increments.spacing * pool)


def _longest_run(true: Bool[np.ndarray, " n"]) -> tuple[int, int]:
    """Where the longest run of True values begins and ends; (0, 0) where there is none."""
    turns = np.flatnonzero(np.diff(np.concatenate([[0], true.astype(int), [0]])))
    return max(zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True), key=lambda r: r[1] - r[0], default=(0, 0))


def estimate_noise(increments: Increments) -> Noise:
    """The noise model of a path's increments, from their second differences."""
    gram = increments.gram
    rough = second_difference(second_difference(gram).T)
    mean_square = np.trace(gram) / len(gram)
    moved = np.diag(gram)[1:-1] > 0
    if np.median(np.diag(rough)[moved]) < NO_NOISE * mean_square:  # exactly straight: its noise is that of rounding
        gram = gram + ROUNDING * mean_square * np.eye(len(gram))
        rough = second_difference(second_difference(gram).T)
    size = _local_size(np.diag(rough))
    least = np.sqrt(MIN_ENERGY) * size.max()
    size = np.maximum(size, least)  # a path that stops moving has none
    padded = np.concatenate([size[:1], size, size[-1:]])
    lags = _autocovariance(gram / np.outer(padded, padded), increments.spacing, padded > least)
    order = np.arange(len(gram))
    scaled = rough / np.outer(size, size)
    trace = np.mean(np.diag(scaled))
    inverse_dimension, tail_dof = _dimension(scaled / trace, increments.spacing)
    to_noise = second_difference(gram).T / size  # inner products of increments with unit noise
    return Noise(
        covariance=lags[np.abs(order[:, None] - order)] * np.outer(padded, padded),
        along=to_noise @ to_noise.T / (len(gram) - 2) / trace,
        inverse_dimension=inverse_dimension,
        tail_dof=tail_dof,
    )


def second_difference(rows: np.ndarray) -> np.ndarray:
    """x[i-1] - 2 x[i] + x[i+1] along the first axis."""
    return rows[2:] - 2 * rows[1:-1] + rows[:-2]


def prefix_sums(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n1 n1"]:
    """Sums of all leading rectangles, from which the sum over any rectangle takes four look-ups."""
    sums = np.zeros((len(matrix) + 1, len(matrix) + 1))
    sums[1:, 1:] = matrix.cumsum(0).cumsum(1)
    return sums


def between_blocks(sums: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Float[np.ndarray, "place block block"]:
    """Sums over the rectangles between blocks `start` to `stop` (place, block), which need not adjoin."""
    a, b, c, d = start[:, :, None], stop[:, :, None], start[:, None, :], stop[:, None, :]
    return sums[b, d] - sums[a, d] - sums[b, c] + sums[a, c]


def _longest_stretch(steps: Int[np.ndarray, " step"]) -> tuple[list[int], int]:
    """Rows and spacing of the stretch that spans most of the run: the densest within a tenth of the longest span."""
    stretches = [(_stretch(steps, int(spacing)), int(spacing)) for spacing in np.unique(np.diff(steps))]
    spans = [steps[rows[-1]] - steps[rows[0]] for rows, _ in stretches]
    wide = [stretch for stretch, span in zip(stretches, spans, strict=True) if span >= 0.9 * max(spans)]
    return max(wide, key=lambda stretch: len(stretch[0]), default=([0], 1))


def _stretch(steps: Int[np.ndarray, " step"], spacing: int) -> list[int]:
    """Rows of the longest stretch saved every `spacing` steps."""
    following = _following(steps, spacing)
    best: list[int] = []
    left = set(range(len(steps)))
    for start in range(len(steps)):
        if start in left:
            rows = [start]
            while (row := following[rows[-1]]) >= 0:
                rows.append(row)
            left.difference_update(rows)
            best = max(best, rows, key=len)
    return best


def _following(steps: Int[np.ndarray, " step"], spacing: int) -> list[int]:
    """For each row the one saved nearest to `spacing` steps later, or -1 where that misses by more than SLACK of it."""
    wanted = steps + spacing
    after = np.searchsorted(steps, wanted)
    rows = np.stack([after - 1, np.minimum(after, len(steps) - 1)])
    miss = np.abs(steps[rows] - wanted)
    nearest = miss.argmin(0)
    row, miss = (np.take_along_axis(each, nearest[None], 0)[0] for each in (rows, miss))
    return np.where(miss <= SLACK * spacing, row, -1).tolist()


def _local_size(energy: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Size of the noise from the energies of second differences: slowly varying, but for places where it jumps."""
    at = _jump(energy)
    if at is None:
        return _slow_size(energy)
    before, after = _local_size(energy[: at - STRADDLING]), _local_size(energy[at + STRADDLING :])
    return np.concatenate([before, np.repeat([before[-1], after[0]], STRADDLING), after])


def _jump(energy: Float[np.ndarray, " n"]) -> int | None:
    """Where the noise's size jumps most, such as at a restart or a drop of the schedule; None where it does not.

    It does where the median energies on two sides differ by JUMP, over a tenth of the run and over a fortieth, in which
    no smooth schedule goes as far.
    """
    n = len(energy)
    if n < MIN_JUMPING:
        return None
    long, short = n // 10, max(MIN_JUMP_SIDE, n // 40)
    level = np.log(np.maximum(energy, MIN_ENERGY * max(energy.max(), np.finfo(float).tiny)))
    place, rises = np.arange(long, n - long + 1), []
    for width in (long, short):
        median = np.median(np.lib.stride_tricks.sliding_window_view(level, width), axis=1)
        rises.append(median[place] - median[place - width])
    sudden = np.where(rises[0] * rises[1] > 0, np.abs(rises).min(0), 0.0)
    if sudden.max() < np.log(JUMP):
        return None
    first = int(place[sudden.argmax()]) - short
    near, left = level[first : first + 2 * short], np.arange(short - short // 2, short + short // 2 + 1)
    between = (near.cumsum()[left - 1] - left * near.mean()) ** 2 / (left * (2 * short - left))
    return first + int(left[between.argmax()])  # medians know it to within half their width, the best split exactly


def _slow_size(energy: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """A running median of the energies, since turns are outliers, and its square root."""
    fifth, tenth = (max(5, len(energy) // share) | 1 for share in (5, 10))
    slow = median_filter(np.maximum(energy, 0), size=fifth, mode="nearest")
    slow = np.log(np.maximum(slow, MIN_ENERGY * max(slow.max(), np.finfo(float).tiny)))
    return np.exp(uniform_filter1d(slow, tenth, mode="nearest") / 2)


def _autocovariance(
    gram: Float[np.ndarray, "n n"], spacing: int, moving: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Autocovariance by lag of increments of even noise size: a mixture of white and momentum-smoothed noise.

    Fitted to the energies of contrasts (1, -2, 1) of neighbouring sums at several scales: one increment shows the white
    noise, 24 steps the slow part as well, and no scale sees drift that changes linearly. Where the path does not move
    there is no noise to be seen.
    """
    n = len(gram)
    kinds = np.stack([spacing * (np.arange(n) == 0.0), _momentum_lags(n, spacing)])
    longest = max(2, min(round(MAX_SCALE / spacing), n // 8))
    sums = prefix_sums(gram)
    rows, energies, weights = [], [], []
    for scale in (s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24) if s <= longest):
        energy = np.sort(_contrast_energies(sums, scale, moving))
        if not len(energy):
            continue
        energies.append(energy[: int(np.ceil(TRIM * len(energy)))].mean())
        shape = np.repeat([1.0, -2.0, 1.0], scale)
        overlap = np.correlate(shape, shape, "full")[len(shape) - 1 :]
        rows.append(kinds[:, 0] * overlap[0] + 2 * kinds[:, 1 : len(shape)] @ overlap[1:])
        weights.append(1 / (max(energies[-1], np.finfo(float).tiny) * np.sqrt(scale)))
    shares, _ = nnls(np.array(rows) * np.array(weights)[:, None], np.array(energies) * np.array(weights))
    return shares @ kinds


def _momentum_lags(count: int, spacing: int) -> Float[np.ndarray, " count"]:
    """Autocovariance by lag of sums over `spacing` steps of momentum-smoothed noise, of long-run variance 1 a step."""
    lag = np.abs(np.arange(-spacing + 1, spacing) + spacing * np.arange(count)[:, None])
    step_lags = MOMENTUM**lag * (1 - MOMENTUM) / (1 + MOMENTUM)
    return step_lags @ (spacing - np.abs(np.arange(-spacing + 1, spacing)))


def _contrast_energies(
    sums: Float[np.ndarray, "n1 n1"], scale: int, moving: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " place"]:
    """|S₁ - 2 S₂ + S₃|² of three neighbouring sums of `scale` increments, wherever all of them move."""
    still = np.concatenate([[0], np.cumsum(~moving)])
    start = np.flatnonzero(still[3 * scale :] == still[: -3 * scale])[:, None] + scale * np.arange(4)
    inner = between_blocks(sums, start[:, :-1], start[:, 1:])
    weight = np.array([1.0, -2.0, 1.0])
    return np.einsum("i,...ij,j->...", weight, inner, weight)


def _dimension(rough: Float[np.ndarray, "n n"], spacing: int) -> tuple[float, float]:
    """tr Σ² / (tr Σ)² and tr(Σ²)³ / tr(Σ³)² from inner products of noise far apart, where it is independent."""
    order = np.arange(len(rough))
    far = np.abs(order[:, None] - order) >= max(4, int(np.ceil(10 / spacing)))
    if not far.any():
        return 1.0, 1.0
    apart = np.where(far, rough, 0.0)
    second = np.clip(np.sum(apart**2) / far.sum(), 1e-9, 1.0)
    triples = np.sum((far.astype(float) @ far) * far)
    third = np.sum((apart @ apart) * apart) / triples if triples else second**1.5
    third = np.clip(third, second**2, second**1.5)  # the bounds that any Σ obeys
    return float(second), float(second**3 / third**2)
