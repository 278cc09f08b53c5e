"""Answers counted by step and question, and the two ways of reshuffling them that the tests of a rise rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Tally:
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
    def of(cls, outcomes: pd.DataFrame) -> Tally:
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

    def within(self, steps: Float[np.ndarray, " some"], questions: tuple[str, ...]) -> Tally:
        """The same at some of the steps and for some of the questions."""
        rows = np.isin(self.steps, steps)
        columns = np.isin(self.questions, questions)
        n, total, squares = (table[np.ix_(rows, columns)] for table in (self.n, self.total, self.squares))
        return Tally(self.steps[rows], tuple(np.array(self.questions)[columns].tolist()), n, total, squares)

    def flipped(self) -> Tally:
        """With every value v replaced by 1 − v, so that a fall becomes a rise."""
        total, squares = self.n - self.total, self.n - 2 * self.total + self.squares
        return Tally(self.steps, self.questions, self.n, total, squares)

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

    def relabelled(self, other: Tally, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count step"]:
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


def matched(first: Tally, second: Tally) -> tuple[Tally, Tally]:
    """Both at the steps and questions they share. Raises InputError where they share none."""
    questions = tuple(question for question in first.questions if question in second.questions)
    steps = np.intersect1d(first.steps, second.steps)
    if not questions or not len(steps):
        what = "step" if questions else "question"
        raise InputError(f"the curve and its control share no {what}; ask both at the same steps and questions")
    first, second = first.within(steps, questions), second.within(steps, questions)
    steps = steps[(first.answers > 0) & (second.answers > 0)]
    return first.within(steps, questions), second.within(steps, questions)
