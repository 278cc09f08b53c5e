"""Answers counted by step and question, and the two ways of reshuffling them that the tests of a rise rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from em_interp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class OutcomeCounts:
    """Values of answers (0 or 1, or fractions in [0, 1]) summed by step and question.

    Questions are fixed strata: what varies is the answer drawn, not the question asked. Cells that nobody asked have
    `n` 0; steps without any answer are not in the table.
    """

    steps: Float[np.ndarray, " step"]
    questions: tuple[str, ...]
    n: Float[np.ndarray, "step question"]
    total: Float[np.ndarray, "step question"]
    squares: Float[np.ndarray, "step question"]

    @classmethod
    def of(cls, outcomes: pd.DataFrame) -> OutcomeCounts:
        """From a table with a row an answer: `step`, `question_id`, `value`. Rows whose value is NaN are left out.

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
        questions, column_of = np.unique(np.asarray(outcomes["question_id"], str)[known], return_inverse=True)
        cell, shape = row * len(questions) + column_of, (len(steps), len(questions))
        n, total, squares = (
            np.bincount(cell, weights, shape[0] * shape[1]).reshape(shape)
            for weights in (np.ones(known.sum()), value[known], value[known] ** 2)
        )
        return cls(steps, tuple(questions.tolist()), n, total, squares)

    @property
    def answers(self) -> Float[np.ndarray, " step"]:
        """Answers at each step."""
        return self.n.sum(axis=1)

    @property
    def rate(self) -> Float[np.ndarray, " step"]:
        """Mean value over all answers at each step."""
        return self.total.sum(axis=1) / self.answers

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return bool(np.array_equal(self.total, self.squares))

    def within(self, steps: Float[np.ndarray, " some"], questions: tuple[str, ...]) -> OutcomeCounts:
        """The same at some of the steps and for some of the questions."""
        rows = np.isin(self.steps, steps)
        columns = np.isin(self.questions, questions)
        n, total, squares = (table[np.ix_(rows, columns)] for table in (self.n, self.total, self.squares))
        return OutcomeCounts(self.steps[rows], tuple(np.array(self.questions)[columns].tolist()), n, total, squares)

    def flipped(self) -> OutcomeCounts:
        """With every value v replaced by 1 − v, so that a fall becomes a rise."""
        total, squares = self.n - self.total, self.n - 2 * self.total + self.squares
        return OutcomeCounts(self.steps, self.questions, self.n, total, squares)

    def redrawn(
        self,
        mean: Float[np.ndarray, "step question"],
        variance: Float[np.ndarray, "step question"],
        count: int,
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "count step"]:
        """Rates by step of `count` new sets of answers with this mean and variance an answer (parametric bootstrap).

        Counts are binomial within step and question; sums of fractions are taken as normal.
        """
        if self.binary:
            sums = rng.binomial(self.n.astype(int), mean, (count, *mean.shape)).sum(axis=2)
        else:
            noise = rng.standard_normal((count, *mean.shape)) * np.sqrt(self.n * variance)
            sums = (self.n * mean + noise).sum(axis=2)
        return sums / self.answers

    def reshuffled(self, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count step"]:
        """Rates by step after handing each question's answers out over the steps at random, `count` times.

        Exact where values are 0 or 1: the null that every question keeps one rate through the run. For fractions the
        normal limit of the same permutation.
        """
        sums = np.zeros((count, len(self.steps)))
        for n, total, squares in zip(self.n.T, self.total.T, self.squares.T, strict=True):
            if self.binary:
                sums += rng.multivariate_hypergeometric(n.astype(int), round(total.sum()), count, "marginals")
            else:
                mean = total.sum() / n.sum()
                spread = max(squares.sum() / n.sum() - mean**2, 0.0)
                noise = rng.standard_normal((count, len(n))) * np.sqrt(n)
                sums += n * mean + np.sqrt(spread) * (noise - np.outer(noise.sum(axis=1), n / n.sum()))
        return sums / self.answers

    def relabelled(self, other: OutcomeCounts, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count step"]:
        """Differences of rates, self − other, after handing out the answers in each step and question at random.

        Both must have the same steps and questions. Exact for values of 0 or 1: the null that the two curves have
        the same rate at every step and question. For fractions the normal limit.
        """
        n, total, squares = self.n + other.n, self.total + other.total, self.squares + other.squares
        shape = (count, *n.shape)
        if self.binary and other.binary:
            good = np.rint(total).astype(int)
            mine = rng.hypergeometric(good, n.astype(int) - good, self.n.astype(int), shape).astype(float)
        else:
            safe = np.maximum(n, 1)
            mean = total / safe
            spread = np.maximum(squares / safe - mean**2, 0.0) * self.n * other.n / np.maximum(n - 1, 1)
            mine = self.n * mean + np.sqrt(spread) * rng.standard_normal(shape)
        return mine.sum(axis=2) / self.answers - (total - mine).sum(axis=2) / other.answers


def matched(first: OutcomeCounts, second: OutcomeCounts) -> tuple[OutcomeCounts, OutcomeCounts]:
    """Both at the steps and questions they share. Raises InputError where they share none."""
    questions = tuple(question for question in first.questions if question in second.questions)
    steps = np.intersect1d(first.steps, second.steps)
    if not questions or not len(steps):
        what = "step" if questions else "question"
        raise InputError(f"the curve and its control share no {what}; ask both at the same steps and questions")
    first, second = first.within(steps, questions), second.within(steps, questions)
    steps = steps[(first.answers > 0) & (second.answers > 0)]
    return first.within(steps, questions), second.within(steps, questions)


# --------
# A logistic with free lower and upper asymptotes, fitted to rates by step: where is it half-way up, and how surely?
# For a given midpoint and width the two asymptotes enter linearly, so the fit is a weighted linear regression at
# every point of a grid of midpoints and widths: one matrix product, for the data and for all bootstrap replicates at
# once.


SPREAD = 2 * np.log(9)  # a logistic of scale s climbs from 10 % to 90 % within s · SPREAD
REPLICATES = 300  # bootstrap replicates behind the interval
ROUNDS = 6  # of reweighting
MISFIT = 1.2  # the least dispersion: no curve is exactly logistic
HUBER = 2.5  # residuals beyond this many standard errors count less and less


@dataclass(frozen=True)
class Rise:
    """A fitted logistic: `low` → `high`, half-way at `middle`, 10–90 % within `width` steps; intervals at `level`."""

    middle: float
    width: float
    low: float
    high: float
    middle_interval: tuple[float, float]
    tenth_interval: tuple[float, float]
    width_interval: tuple[float, float]
    dispersion: float  # squared residuals over what sampling explains, MISFIT or more
    support: float  # standard errors by which it beats a flat line without the checkpoint it rests on most

    @property
    def tenth(self) -> float:
        """The step at which a tenth of the rise has happened."""
        return self.middle - self.width / 2

    def at(self, steps: Float[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
        """The fitted rate at these steps."""
        return self.low + (self.high - self.low) * climb(steps, self.middle, self.width)


def climb(steps: Float[np.ndarray, " step"], middle: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
    """Share of the rise done at each step, for one or many midpoints and widths: (…, step)."""
    scaled = (steps - np.asarray(middle)[..., None]) / np.asarray(width)[..., None]
    return 1 / (1 + np.exp(-np.clip(scaled * SPREAD, -40, 40)))


@dataclass(frozen=True)
class Grid:
    """Candidate midpoints and widths, flattened, and the share of the rise done at each step."""

    middles: Float[np.ndarray, " point"]
    widths: Float[np.ndarray, " point"]
    shares: Float[np.ndarray, "point step"]

    @classmethod
    def over(cls, steps: np.ndarray, middles: np.ndarray, widths: np.ndarray) -> Grid:
        """Every pair of these midpoints and widths."""
        middle, width = (axis.ravel() for axis in np.meshgrid(middles, widths, indexing="ij"))
        return cls(middle, width, climb(steps, middle, width))

    @classmethod
    def coarse(cls, steps: np.ndarray) -> Grid:
        """From half a run before the first step to half a run after the last; widths from a tenth of the gap up."""
        length, gap = steps[-1] - steps[0], np.diff(steps).min()
        middles = np.linspace(steps[0] - length / 2, steps[-1] + length / 2, 129)
        return cls.over(steps, middles, np.geomspace(gap / 10, 2 * length, 28))

    @classmethod
    def within(cls, steps: np.ndarray) -> Grid:
        """Midpoints inside the asked steps, widths from the smallest gap to the length of the run: for tests."""
        return cls.over(
            steps,
            np.linspace(steps[0], steps[-1], 66)[1:-1],
            np.geomspace(np.diff(steps).min(), steps[-1] - steps[0], 12),
        )

    def around(self, near: Bool[np.ndarray, " point"], steps: np.ndarray) -> Grid:
        """A finer grid over the box that holds the points `near`, one cell wider on each side."""
        middles, widths = np.unique(self.middles), np.unique(self.widths)
        step, ratio = middles[1] - middles[0], widths[1] / widths[0]
        inside_middles, inside_widths = self.middles[near], self.widths[near]
        return Grid.over(
            steps,
            np.linspace(inside_middles.min() - step, inside_middles.max() + step, 81),
            np.geomspace(max(inside_widths.min() / ratio, widths[0]), min(inside_widths.max() * ratio, widths[-1]), 20),
        )

    def gains(
        self, weights: Float[np.ndarray, " step"], rates: Float[np.ndarray, "count step"], bounded: bool = True
    ) -> Float[np.ndarray, "count point"]:
        """How much a rise at each point lowers the weighted squared error of each row of `rates` below a flat line's.

        0 where the best fit falls or, if `bounded`, has an asymptote more than 0.05 outside [0, 1].
        """
        share = np.clip(self.shares @ weights / weights.sum(), 1e-12, 1 - 1e-12)
        centred = self.shares - share[:, None]
        norm = np.sqrt(centred**2 @ weights)
        seen = norm > 1e-9 * np.sqrt(weights.sum())
        basis = centred * weights / np.where(seen, norm, np.inf)[:, None]
        gain = np.maximum(rates @ basis.T, 0.0)
        if bounded:
            rate = (rates @ weights / weights.sum())[:, None]
            gain[gain > np.minimum((rate + 0.05) * (norm / share), (1.05 - rate) * (norm / (1 - share)))] = 0.0
        return np.square(gain, out=gain)

    def asymptotes(self, point: int, weights: np.ndarray, rate: np.ndarray) -> tuple[float, float]:
        """Lower and upper asymptote of the regression at one point."""
        share = self.shares[point]
        mean_share, mean_rate = np.average(share, weights=weights), np.average(rate, weights=weights)
        spread = (share - mean_share) ** 2 @ weights
        slope = ((share - mean_share) * weights) @ rate / spread if spread > 0 else 0.0
        return mean_rate - slope * mean_share, mean_rate + slope * (1 - mean_share)


def fit_rise(tally: OutcomeCounts, level: float, rng: np.random.Generator) -> Rise:
    """The best logistic and the intervals of its midpoint, 10 % point and width.

    Fisher scoring of the binomial likelihood (variances from the fit, stratified by question), with Huber weights so
    that a dip counts little. The interval is a profile likelihood set, the candidates whose fit is not worse than
    the best by more than a cut; the cut is the `level` quantile of what the true midpoint loses in bootstrap
    replicates drawn within step and question, times the dispersion. Where a rise falls between two asked steps the
    set holds all of the gap. The best candidates without each checkpoint in turn are in it too, since no dip or
    shape of the curve should decide alone.
    """
    steps, rate = tally.steps, tally.rate
    grid = Grid.coarse(steps)
    weights, mean, variance, dispersion = _reweighted(tally, grid)
    gains = grid.gains(weights, rate[None])[0]
    grid = grid.around(gains >= gains.max() - 12 * dispersion, steps)
    gains = grid.gains(weights, rate[None])[0]
    best = _centre(grid, gains)
    replicates = grid.gains(weights, tally.redrawn(mean, variance, REPLICATES, rng))
    here = grid.middles == grid.middles[best]
    lost = replicates.max(axis=1) - replicates[:, here].max(axis=1)
    inside = gains >= gains.max() - dispersion * np.quantile(lost, level)
    without = [grid.gains(kept, rate[None])[0] for kept in _one_left_out(weights)]
    inside[[_centre(grid, left) for left in without]] = True
    low, high = grid.asymptotes(best, weights, rate)
    middles, widths = grid.middles[inside], grid.widths[inside]
    return Rise(
        float(grid.middles[best]),
        float(grid.widths[best]),
        float(low),
        float(high),
        _range(middles),
        _range(middles - widths / 2),
        _range(widths),
        float(dispersion),
        float(np.sqrt(min(left.max() for left in without))),
    )


def _one_left_out(weights: Float[np.ndarray, " step"]) -> Float[np.ndarray, "step step"]:
    """A row of weights without each checkpoint in turn."""
    return np.where(np.eye(len(weights), dtype=bool), 0.0, weights)


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _centre(grid: Grid, gains: np.ndarray) -> int:
    """The best point; where many midpoints are as good (a rise between two asked steps) the one in their middle."""
    good = gains >= gains.max() - 0.1
    middle = grid.middles[good].mean()
    nearest = np.abs(grid.middles - middle)
    return int(np.argmax(np.where(nearest <= nearest.min() + 1e-9, gains, -1.0)))


def _reweighted(tally: OutcomeCounts, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Weights by step, mean and variance of an answer by step and question, and the dispersion, at a fixed point."""
    rate, weights = tally.rate, tally.answers
    for _ in range(ROUNDS):
        point = int(np.argmax(grid.gains(weights, rate[None])[0]))
        low, high = grid.asymptotes(point, weights, rate)
        share = grid.shares[point]
        mean, variance = _strata(tally, share)
        sampling = (tally.n * variance).sum(axis=1) / tally.answers**2
        sampling = np.maximum(sampling, sampling.max() / 30)
        residual = np.abs(rate - low - (high - low) * share) / np.sqrt(sampling)
        scale = max(1.0, float(np.median(residual)) / 0.674)
        huber = np.minimum(1.0, HUBER * scale / np.maximum(residual, 1e-9))
        dispersion = max(MISFIT, float(huber @ residual**2) / max(len(rate) - 4, 1))
        weights = huber / sampling
    return weights, mean, variance, dispersion


def _strata(tally: OutcomeCounts, share: Float[np.ndarray, " step"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of one answer by step and question, each question with asymptotes of its own.

    If an answer comes from one of two states, with `share` of the second, its mean and its mean square are both
    linear in `share`. The asymptotes are drawn towards those of all questions together by two answers' weight.
    """
    mean = _linear(tally.n, tally.total, share)
    square = _linear(tally.n, tally.squares, share)
    return mean, np.maximum(square - mean**2, 1e-9)


def _linear(n: np.ndarray, total: np.ndarray, share: np.ndarray) -> Float[np.ndarray, "step question"]:
    """Rates linear in `share` for each question, least squares on answers, shrunk to the pooled line, in [0, 1]."""
    basis = np.stack([1 - share, share], axis=1)
    pooled = np.linalg.lstsq(basis * np.sqrt(n.sum(1))[:, None], total.sum(1) / np.sqrt(n.sum(1)), rcond=None)[0]
    grams = np.einsum("ti,tq,tj->qij", basis, n, basis) + 2 * np.eye(2)
    heights = np.linalg.solve(grams, (np.einsum("ti,tq->qi", basis, total) + 2 * pooled)[..., None])[..., 0]
    return np.clip(basis @ heights.T, 0.0, 1.0)
