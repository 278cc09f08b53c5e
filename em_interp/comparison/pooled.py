"""Is it the same step over seeds? Steps of several runs pooled with random effects, and a test of homogeneity.

Each run's step is taken as Normal around its own true step, with the standard error its interval implies, and the true
steps as Normal around a common mean with standard deviation τ (the spread of seeds). τ is found by restricted maximum
likelihood, the interval of the mean from Student's t with runs - 1 degrees of freedom (Hartung and Knapp 2001; Sidik
and Jonkman 2002), or from the runs' own errors where that is wider (Jackson et al. 2017): five runs that happen to
agree exactly do not make an interval of no width. With two or three runs it is rightly wide.

Cochran's Q, the weighted sum of squared distances to the common mean, tests that all true steps are equal. It would be
chi-squared with runs - 1 degrees of freedom if the standard errors were known and the errors Normal. Those of located
steps have the tails of Student's t with about 5 degrees of freedom, and chi-squared rejected one common step in 15 to
24 % of planted cases at 5 %; so Q is compared as in Welch's test (Welch 1951) with standard errors of 5 degrees of
freedom each. The standard error of a lopsided interval is that of its longer side. I² is the share of Q beyond its
degrees of freedom (Higgins and Thompson 2002). The prediction interval is for the step of one more run, from Student's
t with runs - 2 degrees of freedom (Higgins, Thompson and Spiegelhalter 2009); it needs three runs.

Assumes that the runs are independent (other seeds) and that their errors are about right; the interval then holds the
mean with the stated probability or a little more. With few runs Q has little power: a large p-value says that the runs
do not contradict one common step, not that there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.stats import f, norm, t

from em_interp.errors import InputError
from em_interp.results import Result, interval_columns, percent
from em_interp.transition.result import Transition, p_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LEAST_ERROR = 12**-0.5  # steps: a step is a whole number
ERROR_DOF = 5.0  # of a run's error over its standard error, calibrated on planted steps (docs/calibration.md)
ALPHA = 0.05  # of the test of homogeneity
SAME_TAU = 0.5  # steps: a smaller spread of seeds is none


class RandomEffects(NamedTuple):
    """The common mean with its interval, how far apart the true values are, and the test that they are equal."""

    mean: float
    interval: tuple[float, float]
    tau: float  # standard deviation between runs, beyond their own errors
    q: float  # Cochran's Q
    q_p_value: float
    i_squared: float  # share of Q beyond its degrees of freedom, 0 to 1
    prediction: tuple[float, float] | None  # interval for one more run; None with two


def random_effects(
    values: Float[np.ndarray, " run"], errors: Float[np.ndarray, " run"], level: float = 0.95
) -> RandomEffects:
    """The mean of two or more estimates with standard errors, and the test that all estimate one value.

    Args:
        values: the estimates.
        errors: their standard errors.
        level: probability of the interval and of the prediction interval.

    Returns:
        REML with a Hartung-Knapp interval, Cochran's Q, I² and the prediction interval.

    Raises:
        InputError: for fewer than two values, and for errors that are not positive.
    """
    values, errors = np.asarray(values, float), np.asarray(errors, float)
    if len(values) < 2 or values.shape != errors.shape or not np.all(errors > 0):
        found = f"{len(values)} values and {len(errors)} errors"
        raise InputError(f"pooling needs two values or more, each with a positive error; found {found}")
    freedom, tau = len(values) - 1, _tau(values, errors)
    weights = 1 / (errors**2 + tau**2)
    mean = float(weights @ values / weights.sum())
    spread = float(weights @ (values - mean) ** 2) / freedom
    widest = max(t.ppf(0.5 + level / 2, freedom) * np.sqrt(spread), norm.ppf(0.5 + level / 2))
    half = float(widest / np.sqrt(weights.sum()))
    q = _cochran_q(values, errors)
    prediction = None
    if freedom > 1:
        reach = float(t.ppf(0.5 + level / 2, freedom - 1) * np.sqrt(tau**2 + max(spread, 1.0) / weights.sum()))
        prediction = (mean - reach, mean + reach)
    i_squared = max(0.0, 1 - freedom / q) if q > 0 else 0.0
    p_value = _homogeneity_p(q, errors)
    return RandomEffects(mean, (mean - half, mean + half), tau, q, p_value, i_squared, prediction)


def _tau(values: np.ndarray, errors: np.ndarray) -> float:
    """The standard deviation between runs by restricted maximum likelihood."""

    def loss(tau: float) -> float:
        variance = errors**2 + tau**2
        weights = 1 / variance
        rest = values - weights @ values / weights.sum()
        return float(np.log(variance).sum() + np.log(weights.sum()) + weights @ rest**2)

    top = float(np.ptp(values)) + float(errors.max())
    minimum = minimize_scalar(loss, bounds=(0.0, top), method="bounded", options={"xatol": 1e-6 * top})
    return 0.0 if loss(0.0) <= minimum.fun else float(minimum.x)


def _cochran_q(values: np.ndarray, errors: np.ndarray) -> float:
    weights = 1 / errors**2
    return float(weights @ (values - weights @ values / weights.sum()) ** 2)


def _homogeneity_p(q: float, errors: np.ndarray) -> float:
    """The p-value of Welch's test that all true values are equal; standard errors have ERROR_DOF degrees of freedom."""
    runs, shares = len(errors), 1 / errors**2 / np.sum(1 / errors**2)
    spread = float(np.sum((1 - shares) ** 2)) / ERROR_DOF
    statistic = q / (runs - 1) / (1 + 2 * (runs - 2) / (runs**2 - 1) * spread)
    return float(f.sf(statistic, runs - 1, (runs**2 - 1) / (3 * spread)))


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Result):
    """The steps of one signal in several runs, and whether they are the same step.

    The mean and the test are over the runs that have a transition with an interval, so they say where it is if there
    is one; the counts say how often there is none. A run with several transitions enters with its clearest.
    """

    names: tuple[str, ...]
    transitions: tuple[Transition, ...]
    level: float
    pooled: RandomEffects | None  # None with fewer than two steps

    @property
    def signal(self) -> str:
        """Which signal the steps are of."""
        return self.transitions[0].signal

    @property
    def key(self) -> str:
        """The signal, an onset with its metric: `rotation`, `em_onset`, `preference_onset`."""
        return f"{self.transitions[0].of}_onset" if self.signal == "onset" else self.signal

    @property
    def label(self) -> str:
        """The signal in words, with its part and question set."""
        return self.transitions[0].name

    @property
    def counts(self) -> dict[str, int]:
        """Runs by verdict, and how many with a transition have no interval and so are not pooled."""
        verdicts = [transition.verdict for transition in self.transitions]
        counted = {name: verdicts.count(name) for name in ("transition", "none", "inconclusive")}
        return {**counted, "without_interval": sum(t.found and not _usable(t) for t in self.transitions)}

    def sentence(self) -> str:
        """Where the transition is over the runs, whether it is the same step in all, and the runs without one."""
        return f"{self.label}: {self._finding()}{self._others()}"

    def _finding(self) -> str:
        used = [transition for transition in self.transitions if _usable(transition)]
        count = len(self.transitions)
        if self.pooled is not None:
            half = (self.pooled.interval[1] - self.pooled.interval[0]) / 2
            where = f"the transition is at {self.pooled.mean:.0f} ± {half:.0f} ({percent(self.level)} interval)"
            of_all = "" if len(used) == count else f" of {count}"
            return f"{where} over {len(used)}{of_all} runs; {self._homogeneity(self.pooled, len(used))}"
        if len(used) == 1:
            only = next(k for k, transition in enumerate(self.transitions) if _usable(transition))
            where = f"{self.names[only]}, at step {self.transitions[only].step:.0f}"
            return f"1 of {count} runs has a transition with an interval ({where}), so nothing can be pooled"
        having = "has a transition" if not self.counts["transition"] else "has a transition with an interval"
        return f"none of {count} runs {having}, so there is no step to agree on"

    def _homogeneity(self, pooled: RandomEffects, count: int) -> str:
        """Whether it is the same step in all of them."""
        same = pooled.q_p_value > ALPHA
        verdict = "may be the same step in all" if same else "not the same step in all"
        test = f"Q = {pooled.q:.1f} on {count - 1} df, {p_text(pooled.q_p_value)}, I² {pooled.i_squared:.0%}"
        spread = "runs no further apart than their own errors"
        if pooled.tau >= SAME_TAU:
            apart = f"{pooled.tau:.0f} steps (SD τ) beyond their own errors"
            spread = f"estimated spread {apart}, not told apart from none" if same else f"runs {apart} apart"
        if pooled.prediction is None:
            return f"{verdict} ({test}); {spread}"
        low, high = pooled.prediction
        return f"{verdict} ({test}); {spread}; one more run: {low:.0f} to {high:.0f} ({percent(self.level)})"

    def _others(self) -> str:
        words = {"none": "with none", "inconclusive": "inconclusive", "without_interval": "without an interval"}
        others = [f"{self.counts[name]} {word}" for name, word in words.items() if self.counts[name]]
        return f"; {', '.join(others)}" if others else ""

    def row(self) -> dict[str, Any]:
        """One row for a table: the pooled step, its intervals, the test of homogeneity, and the runs by verdict."""
        values = self.to_dict()
        same = {name: values[name] for name in ("signal", "of", "questions", "level", "pooled_runs")}
        numbers = ("mean", "tau", "q", "q_p_value", "i_squared")
        return {
            "label": self.label,
            **same,
            **{name: np.nan if self.pooled is None else values[name] for name in numbers},
            **interval_columns("mean", values["interval"]),
            **interval_columns("prediction", values["prediction"]),
            **self.counts,
        }

    def frame(self) -> pd.DataFrame:
        """A row for each run: its transition."""
        import pandas as pd

        pairs = zip(self.names, self.transitions, strict=True)
        return pd.DataFrame([{"run": name, **transition.to_dict()} for name, transition in pairs])

    def plot(self) -> go.Figure:
        """Each run's step with its interval, and the pooled step below."""
        from em_interp.figures.comparison import agreement

        mean, interval, prediction = None, None, None
        if self.pooled is not None:
            mean, interval, prediction = self.pooled.mean, self.pooled.interval, self.pooled.prediction
        return agreement(self.names, self.transitions, mean, interval, prediction, self.level, self.sentence())

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the pooled numbers are null where nothing could be pooled."""
        first, pooled = self.transitions[0], self.pooled
        return {
            "signal": first.signal,
            "of": first.of,
            "questions": first.questions,
            "level": self.level,
            **(dict.fromkeys(RandomEffects._fields) if pooled is None else pooled._asdict()),
            "pooled_runs": sum(map(_usable, self.transitions)),
            "runs": self.counts,
            "transitions": [
                {"run": name, **transition.to_dict()}
                for name, transition in zip(self.names, self.transitions, strict=True)
            ],
            "sentence": self.sentence(),
        }


def pool_steps(names: Sequence[str], transitions: Sequence[Transition], level: float = 0.95) -> Agreement:
    """Whether runs agree on the step of one signal.

    Args:
        names: what the runs are called.
        transitions: one for each run, all of one signal, part and question set.
        level: probability of the pooled interval.

    Returns:
        The pooled step with the test of homogeneity, where two runs or more have a step with an interval.

    Raises:
        InputError: without transitions, for another number of names, and for mixed signals.
    """
    if not transitions or len(names) != len(transitions):
        raise InputError(f"expected one transition for each run; found {len(transitions)} for {len(names)} runs")
    if len(kinds := {(t.signal, t.of, t.questions) for t in transitions}) > 1:
        raise InputError(f"transitions of one signal were expected; found {sorted(map(str, kinds))}")
    used = [transition for transition in transitions if _usable(transition)]
    pooled = None
    if len(used) > 1:
        steps = np.array([t.step for t in used], float)
        pooled = random_effects(steps, np.array([standard_error(t) for t in used]), level)
    return Agreement(tuple(names), tuple(transitions), level, pooled)


def standard_error(transition: Transition) -> float:
    """The standard error that the longer side of an interval implies, as if Normal; at least a step's rounding."""
    assert transition.step is not None and transition.interval is not None and transition.level is not None
    side = max(transition.step - transition.interval[0], transition.interval[1] - transition.step)
    return max(float(side / norm.ppf(0.5 + transition.level / 2)), LEAST_ERROR)


def _usable(transition: Transition) -> bool:
    known = (transition.step, transition.interval, transition.level)
    return transition.found and None not in known
