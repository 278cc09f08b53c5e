"""Rates and means of judged answers with their intervals.

Questions are fixed strata: `interval` is for other answers to the same questions. `between` is for other questions of
the kind, which are then clusters drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
NAN_INTERVAL = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Rate:
    """A share of scored answers, NaN where there is none."""

    rate: float
    interval: tuple[float, float]  # for other answers to the same questions
    between: tuple[float, float]  # for other questions of the kind; never narrower
    level: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Rate and interval, in the form of `em-interp score --json`."""
        return {"rate": self.rate, "interval": list(self.interval) if self.n else None, "level": self.level}


@dataclass(frozen=True)
class Mean:
    """A mean over scored answers and its interval for other answers to the same questions; NaN where undefined."""

    mean: float
    interval: tuple[float, float]


def mean_of(values: Float[np.ndarray, " answer"], questions: Int[np.ndarray, " answer"], level: float = LEVEL) -> Mean:
    """The mean of scores with Student's interval from their variance within questions; one answer has no interval."""
    from scipy.special import stdtrit

    if not len(values):
        return Mean(float("nan"), NAN_INTERVAL)
    _, group = np.unique(questions, return_inverse=True)
    n = np.bincount(group)
    centred = values - (np.bincount(group, values) / n)[group]
    freedom, mean = len(values) - len(n), float(values.mean())
    if not freedom:  # one answer a question
        centred, freedom = values - mean, len(values) - 1
    error = np.sqrt((centred**2).sum() / freedom / len(values)) if freedom else float("nan")
    reach = float(stdtrit(max(freedom, 1), (1 + level) / 2) * error)
    return Mean(mean, (mean - reach, mean + reach))


def rate_of(hits: Float[np.ndarray, " question"], n: Float[np.ndarray, " question"], level: float = LEVEL) -> Rate:
    """The pooled rate from hits and answers by question, with both intervals.

    `interval` is Wilson's with the effective sample size of a stratified sample: the variance is that of a sum of
    binomials within questions, each question's rate shrunk towards the pooled one by two answers' weight, so that no
    hits or a single question fall back to Wilson's own. `between` is that of a ratio of sums over clusters (Student's
    t), widened to contain `interval`; with one question it is undefined. Sources: Wilson 1927; Dean and Pagano 2015 for
    the effective sample size; Cochran 1977 for the ratio.
    """
    from scipy.special import ndtri, stdtrit

    answered = n > 0
    hits, n = hits[answered], n[answered]
    total = float(n.sum())
    if not total:
        return Rate(float("nan"), NAN_INTERVAL, NAN_INTERVAL, level, 0)
    rate = float(hits.sum() / total)
    share = (hits + 2 * rate) / (n + 2)
    within = float((n * share * (1 - share)).sum() / total**2)
    effective = rate * (1 - rate) / within if within > 0 else total
    interval = _wilson(rate, max(effective, total), float(ndtri((1 + level) / 2)))
    if len(n) < 2:
        return Rate(rate, interval, NAN_INTERVAL, level, int(total))
    spread = np.sqrt(len(n) / (len(n) - 1) * ((hits - rate * n) ** 2).sum()) / total
    reach = float(stdtrit(len(n) - 1, (1 + level) / 2)) * spread
    between = (max(0.0, min(interval[0], rate - reach)), min(1.0, max(interval[1], rate + reach)))
    return Rate(rate, interval, between, level, int(total))


def cluster_bootstrap(
    clusters: Int[np.ndarray, " answer"], n_draws: int, seed: int
) -> Float[np.ndarray, "draw answer"]:
    """How often each answer counts when its clusters (questions, numbered from 0) are drawn again with replacement."""
    count = int(clusters.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n_draws)
    return draws[:, clusters].astype(float)


def _wilson(rate: float, n: float, z: float) -> tuple[float, float]:
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(centre - half) if rate > 0 else 0.0, float(centre + half) if rate < 1 else 1.0
