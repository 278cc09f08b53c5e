"""The answer shift: the divergence between the answers of checkpoints left and right of a step, and its peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.rates import LEVEL
from em_interp.behaviour.tables.judged import question_numbers
from em_interp.mechanism.answer_shift.divergence import (
    Form,
    Windows,
    checkpoint_jitter,
    permutation_null,
    pointwise_divergence,
    posteriors,
    weights,
)
from em_interp.mechanism.answer_shift.order_parameters import order_parameters
from em_interp.results import Line, Mark, Result, picture
from em_interp.transition.family import empirical_p
from em_interp.transition.result import Transition, Verdict
from em_interp.transition.signals.series import prominence

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ALPHA = 0.01  # a peak with a larger p-value is none
MIN_PROMINENCE = 0.10  # of a peak over the higher of the valleys beside it, as a share of its height
MIN_DIVERGENCE = {"linear": 0.01, "js": 0.01, "total_variation": 0.02}  # when an outcome rises from 0 to 2 % of answers
JITTER_DOF = 12  # degrees of freedom of the estimated jitter, which comes from few departures: calibrated
N_BOOTSTRAP = 500
N_BOOTSTRAP_SHARES = 200  # for the order parameters
UNITS = {"linear": "Le Cam distance", "js": "Jensen–Shannon divergence (bits)", "total_variation": "total variation"}


@dataclass(frozen=True, eq=False, repr=False)
class AnswerShift(Result):
    """The divergence between the answers left and right of every point of a run, its peak, and what accounts for it.

    Attributes:
        answers: one row for each answer: step, questions (the set), question_id, answer, and scores where it has them.
        likelihood: log-likelihood of each answer, in nats, at every sampled step that shares a window with the
            answer's own step, else NaN.
        windows: the checkpoints left and right of each centre.
        form: which divergence: `linear`, `js` or `total_variation`.
        question_set: the question set of the answers; None where there are several.
        level: confidence level of the intervals.
        seed: random seed of the bootstrap and the nulls.
    """

    NEXT: ClassVar = (".plot()", ".frame()", ".order_parameters()", ".peak")

    answers: pd.DataFrame
    likelihood: Float[np.ndarray, "answer step"]
    windows: Windows
    form: Form = "linear"
    question_set: str | None = None
    level: float = LEVEL
    seed: int = 0

    @cached_property
    def _at(self) -> Int[np.ndarray, " answer"]:
        return np.searchsorted(self.windows.steps, self.answers["step"].to_numpy())

    @cached_property
    def _question(self) -> Int[np.ndarray, " answer"]:
        return question_numbers(self.answers)

    @cached_property
    def weight(self) -> Float[np.ndarray, "answer window"]:
        """The weight of each answer in each window; sums to 1."""
        return weights(self._at, self._question, self.windows)

    @cached_property
    def posterior(self) -> Float[np.ndarray, "answer window"]:
        """P(left | answer) in each window; NaN for answers of steps outside it."""
        return posteriors(self.likelihood, self._at, self.windows)

    @cached_property
    def _pointwise(self) -> Float[np.ndarray, "answer window"]:
        return np.nan_to_num(pointwise_divergence(self.posterior, self.form))

    @cached_property
    def divergence(self) -> Float[np.ndarray, " window"]:
        """The divergence in each window, 0 to 1, averaged over questions; unbiased."""
        return (self.weight * self._pointwise).sum(axis=0)

    @cached_property
    def bootstrap(self) -> Float[np.ndarray, "draw window"]:
        """The divergence with the answers to each question at each step resampled."""
        counts = self.resampled(N_BOOTSTRAP)
        return (counts @ (self.weight * self._pointwise)) / (counts @ self.weight)

    def resampled(self, n_draws: int) -> Float[np.ndarray, "draw answer"]:
        """How often each answer counts when those to a question at a step are drawn again with replacement."""
        rng = np.random.default_rng(self.seed)
        cell = self._question * len(self.windows.steps) + self._at
        counts = np.zeros((n_draws, len(cell)))
        for number in np.unique(cell):
            members = np.flatnonzero(cell == number)
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), n_draws)
        return counts

    @cached_property
    def permuted(self) -> list[Float[np.ndarray, " permutation"]]:
        """Divergences in each window with its checkpoints labelled left and right in other ways."""
        rng = np.random.default_rng(self.seed)
        return permutation_null(self.likelihood, self._at, self.weight, self.windows, self.form, rng)

    @property
    def exceeds_permuted(self) -> list[bool]:
        """In which windows left and right differ by more than any other labelling of the same checkpoints."""
        return [bool(d > null.max(initial=-1)) for d, null in zip(self.divergence, self.permuted, strict=True)]

    @cached_property
    def peak(self) -> Transition:
        """The step at which the answers change most, if the divergence has a peak there.

        `none` where the divergence is nowhere that of an outcome that rises from 0 to 2 % of the answers, where nowhere
        left and right differ by more than any other labelling of the same checkpoints, and where no peak stands above
        both valleys beside it by more than it would in a flat profile with other answers and with checkpoints that
        jitter about a smooth path (p ≤ 0.01, and a tenth of its height). A steady drift is flat. `inconclusive` where
        the divergence is largest in the last window, so that the run may end before the peak. The interval is for
        other answers to the same questions and other jitter of the checkpoints, and half the spacing of the windows
        wider on either side.
        """
        height = prominence(self.divergence)
        top = int(np.argmax(height))
        null = prominence(self._null_deviations.T).max(axis=0)
        p_value = empirical_p(null, height[top])
        evidence = {"steps": self.windows.centres, "divergence": self.divergence, "p_prominence": p_value}
        verdict, reason = self._verdict(top, float(height[top]), p_value)
        values: dict[str, Any] = {"p_value": p_value, "questions": self.question_set, "evidence": evidence}
        if verdict == "transition":
            low, step, high = self._step_of(top)
            values |= {"step": step, "interval": (low, high), "level": self.level}
        return Transition("answer_shift", verdict, reason, **values)

    @cached_property
    def jitter(self) -> Float[np.ndarray, " window"]:
        """How much the divergence would vary if one checkpoint of a side were another (`checkpoint_jitter`)."""
        return checkpoint_jitter(self.likelihood, self._at, self.weight, self.windows, self.form)

    @cached_property
    def _null_deviations(self) -> Float[np.ndarray, "draw window"]:
        """Deviations from the profile of a smooth path: of other answers, and of checkpoints that jitter about it.

        The jitter is itself an estimate, so its size differs from draw to draw, as that of Student's t.
        """
        rng = np.random.default_rng(self.seed + 1)
        left, right = (side.T / side.sum(axis=1) for side in (self.windows.left, self.windows.right))
        displaced = rng.normal(size=(N_BOOTSTRAP, len(self.windows.steps))) @ (left - right)
        size = np.sqrt(JITTER_DOF / rng.chisquare(JITTER_DOF, (N_BOOTSTRAP, 1)))
        return size * displaced * self.jitter + self.bootstrap - self.bootstrap.mean(axis=0)

    def _verdict(self, top: int, height: float, p_value: float) -> tuple[Verdict, str]:
        most, last = int(np.argmax(self.divergence)), len(self.divergence) - 1
        if self.divergence[most] < MIN_DIVERGENCE[self.form]:
            return "none", f"the answers hardly change: the {UNITS[self.form]} is {self.divergence[most]:.1g} at most"
        if not any(self.exceeds_permuted):
            return "none", "nowhere do the answers left and right differ by more than those of permuted checkpoints"
        if p_value <= ALPHA and height >= MIN_PROMINENCE * self.divergence[top] and self.exceeds_permuted[top]:
            value, valleys = self.divergence[top], self.divergence[top] - height
            words = f"the {UNITS[self.form]} rises to {value:.2f}, from {valleys:.2f} or less on both sides"
            return "transition", words
        if most == last:
            return "inconclusive", "the answers change most in the last window: a peak may lie beyond it"
        where = "most at the beginning" if most == 0 else "along the run"
        return "none", f"the answers change {where}, but there is no significant peak (p = {p_value:.2g})"

    def _step_of(self, top: int) -> tuple[float, float, float]:
        """Low, step and high: the peak between its valleys by a parabola through its neighbours, and its interval."""
        first = int(np.argmin(self.divergence[: top + 1]))
        last = top + int(np.argmin(self.divergence[top:]))
        centres, drawn = self.windows.centres[first : last + 1], self.divergence + self._null_deviations
        peaks = np.array([parabola_peak(centres, draw) for draw in drawn[:, first : last + 1]])
        half_spacing = float(np.median(np.diff(self.windows.centres))) / 2
        low, high = np.quantile(peaks, [(1 - self.level) / 2, (1 + self.level) / 2])
        step = parabola_peak(centres, self.divergence[first : last + 1])
        return float(low) - half_spacing, step, float(high) + half_spacing

    def order_parameters(
        self, properties: Mapping[str, Callable[[pd.DataFrame], pd.Series]] | None = None, at: float | None = None
    ) -> pd.DataFrame:
        """How much of the divergence each property of the answers accounts for (see that module).

        In the window nearest to step `at`: by default the peak or, where there is none, the largest divergence.
        """
        step = at if at is not None else self.peak.step
        step = float(self.windows.centres[np.argmax(self.divergence)]) if step is None else step
        window = int(np.argmin(np.abs(self.windows.centres - step)))
        table = order_parameters(
            self.answers,
            self.posterior[:, window],
            self.weight[:, window],
            self.form,
            self.resampled(N_BOOTSTRAP_SHARES),
            properties,
            self.level,
            np.random.default_rng(self.seed),
        )
        table.insert(0, "step", self.windows.centres[window])
        return table

    def frame(self) -> pd.DataFrame:
        """A row a window: step, divergence with its interval, its mean and largest under other labels, and counts."""
        import pandas as pd

        low, high = np.quantile(self.bootstrap, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        columns = {
            "step": self.windows.centres,
            "divergence": self.divergence,
            "divergence_low": low,
            "divergence_high": high,
            "permuted_mean": [null.mean() if len(null) else np.nan for null in self.permuted],
            "permuted_max": [null.max() if len(null) else np.nan for null in self.permuted],
            "checkpoints": (self.windows.left | self.windows.right).sum(axis=1),
            "answers": (self.weight > 0).sum(axis=0),
        }
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the peak, the profile and the order parameters."""
        return {
            "form": self.form,
            "question_set": self.question_set,
            "peak": self.peak.to_dict(),
            "sentence": self.sentence(),
            "profile": self.frame().to_dict("records"),
            "order_parameters": self.order_parameters().to_dict("records"),
        }

    def plot(self) -> go.Figure:
        """The divergence along the run with its null, and the shares of the properties at its peak."""
        from em_interp.figures.mechanism.answer_shift import plot_answer_shift

        return plot_answer_shift(self.frame(), self.peak, self.order_parameters(), UNITS[self.form], self.level)

    def sentence(self) -> str:
        """The peak in words, and the property that accounts for most of it."""
        parts = [f"{self.peak.sentence()}: {self.peak.reason}"]
        shares = self.order_parameters().sort_values("share", ascending=False)
        if len(shares) and shares["total"].iloc[0] >= MIN_DIVERGENCE[self.form]:
            first = shares.iloc[0]
            parts.append(
                f"at step {first['step']:.0f} {first['property']} accounts for {first['share']:.0%} of the divergence "
                f"({first['share_low']:.0%} to {first['share_high']:.0%}; permuted {first['null']:.0%})"
            )
        return "; ".join(parts)

    def __repr__(self) -> str:
        return f"AnswerShift({len(self.answers)} answers at {len(self.windows.steps)} steps: {self.peak.sentence()})"

    def _picture(self) -> str:
        marks = [] if self.peak.step is None else [Mark(self.peak.step, self.peak.interval)]
        return picture([Line(self.windows.centres, self.divergence)], "divergence", marks)


def parabola_peak(at: Float[np.ndarray, " point"], values: Float[np.ndarray, " point"]) -> float:
    """Where a parabola through the largest value and its neighbours is highest; at an end, the end."""
    top = int(np.argmax(values))
    if top in (0, len(at) - 1):
        return float(at[top])
    a, b, _ = np.polyfit(at[top - 1 : top + 2] - at[top], values[top - 1 : top + 2], 2)
    return float(at[top] + (-b / (2 * a) if a < 0 else 0.0))
