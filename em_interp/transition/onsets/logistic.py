"""Counts of judged answers along a run, the permutations of a null hypothesis, and a logistic fitted to their rates.

Counts. Questions are fixed strata: what varies is the answer drawn, not the question asked.

Null distributions. Two permutations, both exact for outcomes of 0 or 1 (multivariate hypergeometric), the normal limit
of the same permutation for fractions: each question's answers are permuted over the steps (the rate does not depend on
the step), or, within each step and question, between a run and its control (the rates do not depend on the run).

Fit. rate(t) = low + (high - low) / (1 + exp(-2 ln 9 (t - midpoint) / width)), `width` being the steps from 10 % to 90
%. For a given midpoint and width the two asymptotes enter linearly, so the fit is a weighted linear regression at every
point of a grid: one matrix product for the data and for all bootstrap replicates. Weights come from Fisher scoring of
the binomial likelihood, stratified by question, with Huber weights so that a single low checkpoint counts little, and a
dispersion of at least MIN_DISPERSION. The interval is a profile-likelihood set whose cut is calibrated by a parametric
bootstrap.

Half-rise. Nothing has changed at step 0, so of a curve that begins there the rise is counted from the fitted value at
step 0: a rise that sets in at once and flattens out (its midpoint may lie before step 0) has its half-rise after it.
Where a level comes before the rise this is the midpoint. Of a curve that begins later it is always the midpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from em_interp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

ONSET_ALPHA = 0.01  # a rise with a larger p-value is none
MIN_STEPS = 5  # a logistic has four parameters
MIN_SUPPORT = 3  # standard errors that must be left when any one checkpoint is left out
N_PERMUTATIONS = 999
STEEPNESS = 2 * np.log(9)  # a logistic of scale s rises from 10 % to 90 % within s · STEEPNESS
N_REPLICATES = 300  # of the bootstrap behind the interval
N_SCORING_ROUNDS = 6
MIN_DISPERSION = 1.2  # no curve is exactly logistic
HUBER = 2.5  # standard errors; residuals beyond count less and less


@dataclass(frozen=True)
class OutcomeCounts:
    """Outcomes of answers (0 or 1, or fractions in [0, 1]) summed by step and question.

    `n` is 0 where a question was not asked; steps without any answer are left out.
    """

    steps: Float[np.ndarray, " step"]
    question_ids: tuple[str, ...]
    n: Float[np.ndarray, "step question"]
    total: Float[np.ndarray, "step question"]
    squares: Float[np.ndarray, "step question"]

    @classmethod
    def of(cls, outcomes: pd.DataFrame) -> OutcomeCounts:
        """Count a table with a row an answer: `step`, `question_id`, `value`. Rows whose value is NaN are left out.

        Raises InputError where a column is missing or a value lies outside [0, 1].
        """
        for column in ("step", "question_id", "value"):
            if column not in outcomes:
                raise InputError(f"outcomes must have the columns step, question_id, value; found {list(outcomes)}")
        value = np.asarray(outcomes["value"], float)
        known = np.isfinite(value)
        if known.any() and not (value[known].min() >= 0 and value[known].max() <= 1):
            raise InputError(f"values must lie in [0, 1]; they run from {np.nanmin(value):g} to {np.nanmax(value):g}")
        steps, row = np.unique(np.asarray(outcomes["step"], float)[known], return_inverse=True)
        question_ids, column_of = np.unique(np.asarray(outcomes["question_id"], str)[known], return_inverse=True)
        stratum, shape = row * len(question_ids) + column_of, (len(steps), len(question_ids))
        n, total, squares = (
            np.bincount(stratum, weights, shape[0] * shape[1]).reshape(shape)
            for weights in (np.ones(known.sum()), value[known], value[known] ** 2)
        )
        return cls(steps, tuple(question_ids.tolist()), n, total, squares)

    @property
    def answers(self) -> Float[np.ndarray, " step"]:
        """Number of answers at each step."""
        return self.n.sum(axis=1)

    @property
    def rate(self) -> Float[np.ndarray, " step"]:
        """Mean outcome over all answers at each step."""
        return self.total.sum(axis=1) / self.answers

    @property
    def binary(self) -> bool:
        """Whether every outcome is 0 or 1."""
        return bool(np.array_equal(self.total, self.squares))

    def select(self, steps: Float[np.ndarray, " some"], question_ids: tuple[str, ...]) -> OutcomeCounts:
        """The counts of some of the steps and questions."""
        rows = np.isin(self.steps, steps)
        columns = np.isin(self.question_ids, question_ids)
        n, total, squares = (table[np.ix_(rows, columns)] for table in (self.n, self.total, self.squares))
        selected = tuple(np.array(self.question_ids)[columns].tolist())
        return OutcomeCounts(self.steps[rows], selected, n, total, squares)

    def flipped(self) -> OutcomeCounts:
        """The counts of 1 − outcome, so that a fall becomes a rise."""
        total, squares = self.n - self.total, self.n - 2 * self.total + self.squares
        return OutcomeCounts(self.steps, self.question_ids, self.n, total, squares)

    def bootstrap(
        self,
        mean: Float[np.ndarray, "step question"],
        variance: Float[np.ndarray, "step question"],
        count: int,
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "count step"]:
        """Rates by step of `count` parametric bootstrap replicates with this mean and variance of an answer.

        Counts are binomial within step and question; sums of fractions are taken as normal.
        """
        if self.binary:
            sums = rng.binomial(self.n.astype(int), mean, (count, *mean.shape)).sum(axis=2)
        else:
            noise = rng.standard_normal((count, *mean.shape)) * np.sqrt(self.n * variance)
            sums = (self.n * mean + noise).sum(axis=2)
        return sums / self.answers

    def permuted_over_steps(self, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count step"]:
        """Rates by step after `count` random permutations of each question's answers over the steps."""
        sums = np.zeros((count, len(self.steps)))
        for n, total, squares in zip(self.n.T, self.total.T, self.squares.T, strict=True):
            if self.binary:
                sums += rng.multivariate_hypergeometric(n.astype(int), round(total.sum()), count, "marginals")
            else:
                mean = total.sum() / n.sum()
                spread = max(squares.sum() - n.sum() * mean**2, 0.0) / max(n.sum() - 1, 1)
                noise = rng.standard_normal((count, len(n))) * np.sqrt(n)
                sums += n * mean + np.sqrt(spread) * (noise - np.outer(noise.sum(axis=1), n / n.sum()))
        return sums / self.answers

    def permuted_between(
        self, control: OutcomeCounts, count: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "count step"]:
        """Differences of rates, self − control, after `count` permutations of the answers within step and question.

        Both must have the same steps and questions.
        """
        n, total, squares = self.n + control.n, self.total + control.total, self.squares + control.squares
        shape = (count, *n.shape)
        if self.binary and control.binary:
            hits = np.rint(total).astype(int)
            own = rng.hypergeometric(hits, n.astype(int) - hits, self.n.astype(int), shape).astype(float)
        else:
            safe = np.maximum(n, 1)
            mean = total / safe
            spread = np.maximum(squares / safe - mean**2, 0.0) * self.n * control.n / np.maximum(n - 1, 1)
            own = self.n * mean + np.sqrt(spread) * rng.standard_normal(shape)
        return own.sum(axis=2) / self.answers - (total - own).sum(axis=2) / control.answers


def matched(first: OutcomeCounts, second: OutcomeCounts) -> tuple[OutcomeCounts, OutcomeCounts]:
    """Both at the steps and questions they share. Raises InputError where they share none."""
    shared = tuple(question for question in first.question_ids if question in second.question_ids)
    steps = np.intersect1d(first.steps, second.steps)
    if not shared or not len(steps):
        what = "step" if shared else "question"
        raise InputError(f"the curve and its control share no {what}; ask both at the same steps and questions")
    first, second = first.select(steps, shared), second.select(steps, shared)
    steps = steps[(first.answers > 0) & (second.answers > 0)]
    return first.select(steps, shared), second.select(steps, shared)


def step_of_share(share: float, midpoint: Any, width: Any, from_zero: bool) -> Any:
    """The step at which this share of a logistic is done: of all of it, or (`from_zero`) of what is left at step 0."""
    if not from_zero:
        return midpoint + width / STEEPNESS * np.log(share / (1 - share))
    return width / STEEPNESS * (np.logaddexp(0, np.log(share) + STEEPNESS * midpoint / width) - np.log(1 - share))


@dataclass(frozen=True)
class Rise:
    """A fitted logistic, with intervals at the level it was fitted with."""

    midpoint: float  # of the logistic, which may lie before the first step
    logistic_width: float  # its steps from 10 % to 90 %
    low: float
    high: float
    from_zero: bool  # whether the rise is counted from step 0
    half_interval: tuple[float, float]
    tenth_interval: tuple[float, float]
    support: float  # standard errors by which it beats a flat line without the checkpoint it rests on most

    @property
    def half(self) -> float:
        """The step of the half-rise."""
        return self._step_of(0.5)

    @property
    def tenth(self) -> float:
        """The step at which a tenth of the rise has happened."""
        return self._step_of(0.1)

    @property
    def width(self) -> float:
        """Steps from 10 % to 90 % of the rise."""
        return self._step_of(0.9) - self.tenth

    @property
    def height(self) -> float:
        """By how much it rises."""
        return self.high - (float(self.at(np.zeros(1))[0]) if self.from_zero else self.low)

    def _step_of(self, share: float) -> float:
        return float(step_of_share(share, self.midpoint, self.logistic_width, self.from_zero))

    def at(self, steps: Float[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
        """The fitted values at these steps."""
        return self.low + (self.high - self.low) * logistic(steps, self.midpoint, self.logistic_width)

    def unresolved(self, steps: Float[np.ndarray, " step"], read: str) -> str:
        """Why its step cannot be determined from values `read` at these steps; "" where it can."""
        low, high = self.half_interval
        if low <= steps[0] and not self.from_zero:
            return f"the half-rise may lie before the first step that was {read}, {steps[0]:g}"
        if high >= steps[-1]:
            return f"the half-rise may lie after the last step that was {read}, {steps[-1]:g}"
        return "it rests on one checkpoint alone" if self.support < MIN_SUPPORT else ""

    def located(self, level: float) -> dict[str, Any]:
        """What a transition says of where it is."""
        return {"step": self.half, "interval": self.half_interval, "level": level, "width": self.width}

    def evidence(self, steps: Float[np.ndarray, " step"]) -> dict[str, Any]:
        """Arrays for the figure, over the range of the steps."""
        fine = np.linspace(steps[0], steps[-1], 400)
        return {
            "fit_steps": fine,
            "fit_rate": self.at(fine),
            "tenth": self.tenth,
            "tenth_interval": self.tenth_interval,
        }


def logistic(steps: Float[np.ndarray, " step"], midpoint: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
    """Share of the rise done at each step, for one or many midpoints and widths: (…, step)."""
    scaled = (steps - np.asarray(midpoint)[..., None]) / np.asarray(width)[..., None]
    return 1 / (1 + np.exp(-np.clip(scaled * STEEPNESS, -40, 40)))


@dataclass(frozen=True)
class LogisticGrid:
    """Candidate midpoints and widths, flattened, and the share of the rise done at each step."""

    midpoints: Float[np.ndarray, " point"]
    widths: Float[np.ndarray, " point"]
    shares: Float[np.ndarray, "point step"]
    from_zero: bool  # whether rises are counted from step 0, which is where the curve begins

    @classmethod
    def over(cls, steps: np.ndarray, midpoints: np.ndarray, widths: np.ndarray) -> LogisticGrid:
        """Every pair of these midpoints and widths."""
        midpoint, width = (axis.ravel() for axis in np.meshgrid(midpoints, widths, indexing="ij"))
        return cls(midpoint, width, logistic(steps, midpoint, width), bool(steps[0] == 0))

    @classmethod
    def coarse(cls, steps: np.ndarray) -> LogisticGrid:
        """From half a run before the first step to half a run after the last; widths from a tenth of the gap up."""
        length, gap = steps[-1] - steps[0], np.diff(steps).min()
        midpoints = np.linspace(steps[0] - length / 2, steps[-1] + length / 2, 129)
        return cls.over(steps, midpoints, np.geomspace(gap / 10, 2 * length, 28))

    @classmethod
    def inside(cls, steps: np.ndarray) -> LogisticGrid:
        """Midpoints inside the sampled steps, widths from the smallest gap to the length of the run: for tests."""
        return cls.over(
            steps,
            np.linspace(steps[0], steps[-1], 66)[1:-1],
            np.geomspace(np.diff(steps).min(), steps[-1] - steps[0], 12),
        )

    def around(self, near: Bool[np.ndarray, " point"], steps: np.ndarray) -> LogisticGrid:
        """A finer grid over the box that holds the points `near`, one grid step wider on each side."""
        midpoints, widths = np.unique(self.midpoints), np.unique(self.widths)
        step, ratio = midpoints[1] - midpoints[0], widths[1] / widths[0]
        near_midpoints, near_widths = self.midpoints[near], self.widths[near]
        return LogisticGrid.over(
            steps,
            np.linspace(near_midpoints.min() - step, near_midpoints.max() + step, 81),
            np.geomspace(max(near_widths.min() / ratio, widths[0]), min(near_widths.max() * ratio, widths[-1]), 20),
        )

    def step_of(self, share: float) -> Float[np.ndarray, " point"]:
        """The step at which this share of the rise is done, of each point."""
        return step_of_share(share, self.midpoints, self.widths, self.from_zero)

    def gains(
        self, weights: Float[np.ndarray, " step"], rates: Float[np.ndarray, "count step"], bounded: bool = True
    ) -> Float[np.ndarray, "count point"]:
        """By how much a rise at each point lowers the weighted squared error of each row of `rates` from a flat one's.

        0 where the best fit falls or, if `bounded`, the rise begins or ends more than 0.05 outside [0, 1].
        """
        share = np.clip(self.shares @ weights / weights.sum(), 1e-12, 1 - 1e-12)
        centred = self.shares - share[:, None]
        norm = np.sqrt(centred**2 @ weights)
        defined = norm > 1e-9 * np.sqrt(weights.sum())
        basis = centred * weights / np.where(defined, norm, np.inf)[:, None]
        gain = rates @ basis.T
        np.maximum(gain, 0.0, out=gain)
        if bounded:
            begun = self.shares[:, 0] if self.from_zero else 0.0
            above, below = norm / np.maximum(share - begun, 1e-12), norm / (1 - share)
            for row, rate in zip(gain, rates @ weights / weights.sum(), strict=True):  # a row stays in the cache
                row[row > np.minimum((rate + 0.05) * above, (1.05 - rate) * below)] = 0.0
        return np.square(gain, out=gain)

    def asymptotes(self, point: int, weights: np.ndarray, rate: np.ndarray) -> tuple[float, float]:
        """Lower and upper asymptote of the regression at one point."""
        share = self.shares[point]
        mean_share, mean_rate = np.average(share, weights=weights), np.average(rate, weights=weights)
        spread = (share - mean_share) ** 2 @ weights
        slope = ((share - mean_share) * weights) @ rate / spread if spread > 0 else 0.0
        return mean_rate - slope * mean_share, mean_rate + slope * (1 - mean_share)


def rise_p_value(
    steps: Float[np.ndarray, " step"],
    weights: Float[np.ndarray, " step"],
    values: Float[np.ndarray, " step"],
    null: Float[np.ndarray, "draw step"],
) -> float:
    """Share of the null's curves whose best logistic explains at least as much as that of the curve itself."""
    grid = LogisticGrid.inside(steps)
    observed = grid.gains(weights, values[None], bounded=False).max()
    drawn = grid.gains(weights, null, bounded=False).max(axis=1)
    return float(1 + np.sum(drawn >= observed * (1 - 1e-9))) / (1 + len(null))


def fit_rise(counts: OutcomeCounts, level: float, rng: np.random.Generator) -> Rise:
    """The best logistic and the intervals of its half-rise and 10 % point.

    The interval holds the candidates whose fit is not worse than the best by more than a cut: the `level` quantile of
    what the true half-rise loses in bootstrap replicates, times the dispersion. Where a rise falls between two sampled
    steps the interval holds all of the gap. The best candidates without each checkpoint in turn are in it too, so that
    no single checkpoint decides.
    """
    steps, rate = counts.steps, counts.rate
    grid = LogisticGrid.coarse(steps)
    weights, mean, variance, dispersion = _reweighted(counts, grid)
    gains = grid.gains(weights, rate[None])[0]
    grid = grid.around(gains >= gains.max() - 12 * dispersion, steps)
    gains = grid.gains(weights, rate[None])[0]
    best = _centre(grid, gains)
    replicates = grid.gains(weights, counts.bootstrap(mean, variance, N_REPLICATES, rng))
    tenth, half = grid.step_of(0.1), grid.step_of(0.5)
    at_best = np.abs(half - half[best]) <= np.diff(np.unique(grid.midpoints))[0] / 2
    lost = replicates.max(axis=1) - replicates[:, at_best].max(axis=1)
    inside = gains >= gains.max() - dispersion * np.quantile(lost, level)
    without_one = [grid.gains(kept, rate[None])[0] for kept in _one_left_out(weights)]
    inside[[_centre(grid, left) for left in without_one]] = True
    low, high = grid.asymptotes(best, weights, rate)
    return Rise(
        float(grid.midpoints[best]),
        float(grid.widths[best]),
        float(low),
        float(high),
        grid.from_zero,
        _range(half[inside]),
        _range(tenth[inside]),
        float(np.sqrt(min(left.max() for left in without_one))),
    )


def _one_left_out(weights: Float[np.ndarray, " step"]) -> Float[np.ndarray, "step step"]:
    """Leave-one-out weights: a row for each checkpoint that is left out."""
    return np.where(np.eye(len(weights), dtype=bool), 0.0, weights)


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _centre(grid: LogisticGrid, gains: np.ndarray) -> int:
    """The best point; where many midpoints are as good (a rise between two sampled steps) the one in their middle."""
    good = gains >= gains.max() - 0.1
    middle = grid.midpoints[good].mean()
    distance = np.abs(grid.midpoints - middle)
    return int(np.argmax(np.where(distance <= distance.min() + 1e-9, gains, -1.0)))


def _reweighted(counts: OutcomeCounts, grid: LogisticGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Weights by step, mean and variance of an answer by step and question, and the dispersion, at a fixed point."""
    rate, weights = counts.rate, counts.answers
    for _ in range(N_SCORING_ROUNDS):
        point = int(np.argmax(grid.gains(weights, rate[None])[0]))
        low, high = grid.asymptotes(point, weights, rate)
        share = grid.shares[point]
        mean, variance = _strata(counts, share)
        sampling = (counts.n * variance).sum(axis=1) / counts.answers**2
        sampling = np.maximum(sampling, sampling.max() / 30)
        residual = np.abs(rate - low - (high - low) * share) / np.sqrt(sampling)
        scale = max(1.0, float(np.median(residual)) / 0.674)
        huber = np.minimum(1.0, HUBER * scale / np.maximum(residual, 1e-9))
        dispersion = max(MIN_DISPERSION, float(huber @ residual**2) / max(len(rate) - 4, 1))
        weights = huber / sampling
    return weights, mean, variance, dispersion


def _strata(counts: OutcomeCounts, share: Float[np.ndarray, " step"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of one answer by step and question, with separate asymptotes per question.

    If an answer comes from one of two states, with `share` of the second, its mean and its mean square are both
    linear in `share`. The asymptotes are shrunk towards those of all questions together by two answers' weight.
    """
    mean = _linear(counts.n, counts.total, share)
    square = _linear(counts.n, counts.squares, share)
    return mean, np.maximum(square - mean**2, 1e-9)


def _linear(n: np.ndarray, total: np.ndarray, share: np.ndarray) -> Float[np.ndarray, "step question"]:
    """Rates linear in `share` for each question, least squares on answers, shrunk to the pooled line, in [0, 1]."""
    basis = np.stack([1 - share, share], axis=1)
    pooled = np.linalg.lstsq(basis * np.sqrt(n.sum(1))[:, None], total.sum(1) / np.sqrt(n.sum(1)), rcond=None)[0]
    grams = np.einsum("ti,tq,tj->qij", basis, n, basis) + 2 * np.eye(2)
    heights = np.linalg.solve(grams, (np.einsum("ti,tq->qi", basis, total) + 2 * pooled)[..., None])[..., 0]
    return np.clip(basis @ heights.T, 0.0, 1.0)
