"""Do runs agree on a step? Steps of several runs pooled with random effects.

Each run's step is taken as Normal around its own true step, with the standard error its interval implies, and the true
steps as Normal around a common mean with standard deviation τ (what seeds do). τ is found by restricted maximum
likelihood, the interval of the mean from Student's t with runs - 1 degrees of freedom (Hartung and Knapp 2001; Sidik
and Jonkman 2002), or from the runs' own errors where that is wider (Jackson et al. 2017): five runs that happen to
agree exactly do not make an interval of no width. With two or three runs it is wide, and ought to be.

Assumes that the runs are independent (other seeds) and that their errors are about right; the interval then holds the
mean with the stated probability or a little more. It speaks of the mean, not of the next run, which lies τ from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.stats import norm, t

from em_interp.errors import InputError
from em_interp.transition.result import WORDS, Transition

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
LEAST_ERROR = 12**-0.5  # steps: a step is a whole number


class RandomEffects(NamedTuple):
    """The common mean with its interval, and how far the true values of single runs lie apart."""

    mean: float
    interval: tuple[float, float]
    between: float  # τ, the standard deviation between runs, beyond their own errors


def random_effects(
    values: Float[np.ndarray, " run"], errors: Float[np.ndarray, " run"], level: float = 0.95
) -> RandomEffects:
    """The mean of two or more estimates with standard errors: REML with a Hartung-Knapp interval.

    Raises InputError for fewer than two, and for errors that are not positive.
    """
    values, errors = np.asarray(values, float), np.asarray(errors, float)
    if len(values) < 2 or values.shape != errors.shape or not np.all(errors > 0):
        found = f"{len(values)} values and {len(errors)} errors"
        raise InputError(f"pooling needs two values or more, each with a positive error; found {found}")
    between = _between(values, errors)
    weights = 1 / (errors**2 + between**2)
    mean = float(weights @ values / weights.sum())
    spread = float(weights @ (values - mean) ** 2) / (len(values) - 1)
    widest = max(t.ppf(0.5 + level / 2, len(values) - 1) * np.sqrt(spread), norm.ppf(0.5 + level / 2))
    half = float(widest / np.sqrt(weights.sum()))
    return RandomEffects(mean, (mean - half, mean + half), between)


def _between(values: np.ndarray, errors: np.ndarray) -> float:
    """τ by restricted maximum likelihood."""

    def loss(tau: float) -> float:
        variance = errors**2 + tau**2
        weights = 1 / variance
        rest = values - weights @ values / weights.sum()
        return float(np.log(variance).sum() + np.log(weights.sum()) + weights @ rest**2)

    top = float(np.ptp(values)) + float(errors.max())
    found = minimize_scalar(loss, bounds=(0.0, top), method="bounded", options={"xatol": 1e-6 * top})
    return 0.0 if loss(0.0) <= found.fun else float(found.x)


@dataclass(frozen=True, eq=False)
class Agreement:
    """The steps of one signal in several runs, and what they have in common.

    The mean and its interval are of the runs that have a transition with an interval, so they say where it lies where
    there is one; the counts say how often there is none. A run with several transitions enters with its clearest.
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
    def counts(self) -> dict[str, int]:
        """Runs by verdict, and how many with a transition have no interval and so are not pooled."""
        verdicts = [transition.verdict for transition in self.transitions]
        counted = {name: verdicts.count(name) for name in ("transition", "none", "inconclusive")}
        return {**counted, "without_interval": sum(t.found and not _usable(t) for t in self.transitions)}

    def sentence(self) -> str:
        """In words, such as 'rotation of B: the transition is at 190 ± 12 (95 % interval) over five runs'."""
        first = self.transitions[0]
        part = "" if first.of is None else f" of {WORDS.get(first.of, first.of)}"
        questions = "" if first.questions is None else f" on {first.questions.replace('_', '-')} questions"
        return f"{first.signal.replace('_', ' ')}{part}{questions}: {self._said()}"

    def _said(self) -> str:
        used = [transition for transition in self.transitions if _usable(transition)]
        all_runs = _number(len(self.transitions))
        if self.pooled is not None:
            half = (self.pooled.interval[1] - self.pooled.interval[0]) / 2
            said = f"the transition is at {self.pooled.mean:.0f} ± {half:.0f} ({self.level:.0%} interval)"
            over = f"over {_number(len(used))}" + ("" if len(used) == len(self.transitions) else f" of {all_runs}")
            apart = f"single runs lie {self.pooled.between:.0f} steps apart (SD) beyond their own errors"
            if self.pooled.between < 0.5:
                apart = "single runs lie no further apart than their own errors"
            return f"{said} {over} runs; {apart}{self._others()}"
        if len(used) == 1:
            only = next(k for k, transition in enumerate(self.transitions) if _usable(transition))
            where = f"{self.names[only]}, at step {self.transitions[only].step:.0f}"
            said = f"one run of {all_runs} has a transition with an interval ({where}), so nothing can be pooled"
            return said + self._others()
        having = "has a transition" if not self.counts["transition"] else "has a transition with an interval"
        return f"none of {all_runs} runs {having}, so there is no step to agree on{self._others()}"

    def _others(self) -> str:
        words = {"none": "with none", "inconclusive": "inconclusive", "without_interval": "without an interval"}
        others = [f"{self.counts[name]} {word}" for name, word in words.items() if self.counts[name]]
        return f"; {', '.join(others)}" if others else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; mean, interval and the SD between runs are null where nothing could be pooled."""
        first, pooled = self.transitions[0], self.pooled
        return {
            "signal": first.signal,
            "of": first.of,
            "questions": first.questions,
            "mean": None if pooled is None else pooled.mean,
            "interval": None if pooled is None else list(pooled.interval),
            "level": self.level,
            "between_runs_sd": None if pooled is None else pooled.between,
            "pooled_runs": sum(map(_usable, self.transitions)),
            "runs": self.counts,
            "transitions": [
                {"run": name, **transition.to_dict()}
                for name, transition in zip(self.names, self.transitions, strict=True)
            ],
            "sentence": self.sentence(),
        }


def pool_steps(names: Sequence[str], transitions: Sequence[Transition], level: float = 0.95) -> Agreement:
    """How well runs agree on the step of one signal; `transitions` holds one for each of the named runs.

    Raises InputError where there are none, where names and transitions differ in number, and for mixed signals.
    """
    if not transitions or len(names) != len(transitions):
        raise InputError(f"expected one transition for each run; found {len(transitions)} for {len(names)} runs")
    if len(kinds := {(one.signal, one.of, one.questions) for one in transitions}) > 1:
        raise InputError(f"transitions of one signal were expected; found {sorted(map(str, kinds))}")
    used = [transition for transition in transitions if _usable(transition)]
    pooled = None
    if len(used) > 1:
        steps = np.array([one.step for one in used], float)
        pooled = random_effects(steps, np.array([standard_error(one) for one in used]), level)
    return Agreement(tuple(names), tuple(transitions), level, pooled)


def standard_error(transition: Transition) -> float:
    """The standard error that an interval implies: its width over that of a Normal one; at least a step's rounding."""
    assert transition.interval is not None and transition.level is not None
    width = transition.interval[1] - transition.interval[0]
    return max(float(width / (2 * norm.ppf(0.5 + transition.level / 2))), LEAST_ERROR)


def _usable(transition: Transition) -> bool:
    known = (transition.step, transition.interval, transition.level)
    return transition.found and None not in known


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)
