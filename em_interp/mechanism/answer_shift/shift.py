"""Where the answers change, without a judge: the distance between what checkpoints left and right of a step say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.rates import LEVEL
from em_interp.mechanism.answer_shift.divergence import (
    Form,
    Windows,
    jackknife,
    permutation_null,
    posteriors,
    told_apart,
    weights,
)
from em_interp.results import Line, Mark, html_card, picture
from em_interp.transition.result import Transition, Verdict
from em_interp.transition.series import prominence

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ALPHA = 0.01  # a peak with a larger p-value is none
LEAST_HEIGHT = 0.10  # how far a peak must stand above the higher of the valleys beside it, of its own height
LEAST_DISTANCE = {"linear": 0.01, "js": 0.01, "total_variation": 0.02}  # what a rise of something from 0 to 2 % makes
DRAWS = 500
UNITS = {"linear": "Le Cam distance", "js": "Jensen–Shannon divergence (bits)", "total_variation": "total variation"}


@dataclass(frozen=True, eq=False, repr=False)
class AnswerShift:
    """The distance between the answers left and right of every place of a run, its peak, and what it consists of.

    `answers` has a row an answer: step, question_id, answer, and scores where there are some. `likelihood` is its
    log-likelihood at every asked step of a shared window, else NaN.
    """

    answers: pd.DataFrame
    likelihood: Float[np.ndarray, "answer step"]
    over: Windows
    form: Form = "linear"
    questions: str | None = None
    level: float = LEVEL
    seed: int = 0

    @cached_property
    def _at(self) -> Int[np.ndarray, " answer"]:
        return np.searchsorted(self.over.steps, self.answers["step"].to_numpy())

    @cached_property
    def _question(self) -> Int[np.ndarray, " answer"]:
        return np.unique(self.answers["question_id"].to_numpy(str), return_inverse=True)[1]

    @cached_property
    def weight(self) -> Float[np.ndarray, "answer place"]:
        """How much each answer counts at each place; sums to 1."""
        return weights(self._at, self._question, self.over)

    @cached_property
    def posterior(self) -> Float[np.ndarray, "answer place"]:
        """P(left | answer) at each place; NaN for answers of steps outside its windows."""
        return posteriors(self.likelihood, self._at, self.over)

    @cached_property
    def _told(self) -> Float[np.ndarray, "answer place"]:
        return np.nan_to_num(told_apart(self.posterior, self.form))

    @cached_property
    def distance(self) -> Float[np.ndarray, " place"]:
        """The distance at each place, 0 to 1, averaged over questions; unbiased."""
        return (self.weight * self._told).sum(axis=0)

    @cached_property
    def draws(self) -> Float[np.ndarray, "draw place"]:
        """The distance with answers drawn again within each question and step (bootstrap)."""
        many = self.resampled(DRAWS)
        return (many @ (self.weight * self._told)) / (many @ self.weight)

    def resampled(self, count: int) -> Float[np.ndarray, "draw answer"]:
        """How often each answer is drawn when those of a question and step are drawn again with replacement."""
        rng = np.random.default_rng(self.seed)
        cell = self._question * len(self.over.steps) + self._at
        many = np.zeros((count, len(cell)))
        for one in np.unique(cell):
            members = np.flatnonzero(cell == one)
            many[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), count)
        return many

    @cached_property
    def dealt(self) -> list[Float[np.ndarray, " split"]]:
        """Distances at each place when its checkpoints are dealt to the sides otherwise than by their order."""
        rng = np.random.default_rng(self.seed)
        return permutation_null(self.likelihood, self._at, self.weight, self.over, self.form, rng)

    @cached_property
    def peak(self) -> Transition:
        """The place where the answers change most, if it stands out.

        `none` where the distance is nowhere what a rise of something from 0 to 2 % of the answers makes of it, where
        nowhere the left differs from the right by more than any other dealing of the same checkpoints, and where no
        peak stands above both valleys beside it beyond what other answers, and checkpoints that jitter without going
        anywhere, would make of a flat profile (p ≤ 0.01, and a tenth of its height). A steady drift is flat.
        `inconclusive` where the distance is largest at the last place, so that the run may end before the peak.
        The interval is for other answers to the same questions and other jitter of the checkpoints, and half the
        spacing of places wider on either side.
        """
        height = prominence(self.distance)
        top = int(np.argmax(height))
        null = prominence(self._around.T).max(axis=0)
        p_value = float((1 + np.sum(null >= height[top])) / (1 + DRAWS))
        evidence = {"steps": self.over.at, "distance": self.distance, "p_prominence": p_value}
        verdict, reason = self._verdict(top, float(height[top]), p_value)
        common: dict[str, Any] = {"p_value": p_value, "questions": self.questions, "evidence": evidence}
        if verdict != "transition":
            return Transition("answer_change", verdict, reason, **common)
        low, step, high = self._where(top)
        return Transition("answer_change", verdict, reason, step=step, interval=(low, high), level=self.level, **common)

    @cached_property
    def jitter(self) -> Float[np.ndarray, " place"]:
        """How much the distance would vary if one checkpoint of a side were drawn again; see `jitters`."""
        return jackknife(self.likelihood, self._at, self.weight, self.over, self.form)

    @cached_property
    def _around(self) -> Float[np.ndarray, "draw place"]:
        """Deviations from the profile of a smooth path: of other answers, and of checkpoints that jitter about it."""
        rng = np.random.default_rng(self.seed + 1)
        left, right = (side.T / side.sum(axis=1) for side in (self.over.left, self.over.right))
        moved = rng.normal(size=(DRAWS, len(self.over.steps))) @ (left - right)
        return moved * self.jitter + self.draws - self.draws.mean(axis=0)

    def _verdict(self, top: int, height: float, p_value: float) -> tuple[Verdict, str]:
        most, last = int(np.argmax(self.distance)), len(self.distance) - 1
        if self.distance[most] < LEAST_DISTANCE[self.form]:
            return "none", f"the answers hardly change: the {UNITS[self.form]} is {self.distance[most]:.1g} at most"
        if not any(self.ordered):
            return "none", "nowhere do the answers left and right differ by more than those of checkpoints in any order"
        if p_value <= ALPHA and height >= LEAST_HEIGHT * self.distance[top] and self.ordered[top]:
            value, valleys = self.distance[top], self.distance[top] - height
            return (
                "transition",
                f"the {UNITS[self.form]} rises to {value:.2f}, from {valleys:.2f} or less on both sides",
            )
        if most == last:
            return "inconclusive", "the answers change most at the end of what the windows reach: a peak may lie beyond"
        where = "most at the beginning" if most == 0 else "along the run"
        return "none", f"the answers change {where}, but no step stands out (p = {p_value:.2g})"

    @property
    def ordered(self) -> list[bool]:
        """Where left and right differ by more than any other dealing of the same checkpoints."""
        return [bool(d > other.max(initial=-1)) for d, other in zip(self.distance, self.dealt, strict=True)]

    def _where(self, top: int) -> tuple[float, float, float]:
        """The top between its valleys, by a parabola through it and its neighbours; and its interval."""
        first = int(np.argmin(self.distance[: top + 1]))
        last = top + int(np.argmin(self.distance[top:]))
        at, drawn = self.over.at[first : last + 1], self.distance + self._around
        tops = np.array([_vertex(at, draw) for draw in drawn[:, first : last + 1]])
        reach = float(np.median(np.diff(self.over.at))) / 2
        low, high = np.quantile(tops, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low) - reach, _vertex(at, self.distance[first : last + 1]), float(high) + reach

    def order_parameters(
        self, properties: Mapping[str, Callable[[pd.DataFrame], pd.Series]] | None = None, at: float | None = None
    ) -> pd.DataFrame:
        """How much of the distance each property of the answers accounts for; see `order_parameters.order_parameters`.

        At the place nearest to step `at`: by default the peak or, where there is none, the largest distance.
        """
        from em_interp.mechanism.answer_shift.divergence import order_parameters

        step = at if at is not None else self.peak.step
        step = float(self.over.at[np.argmax(self.distance)]) if step is None else step
        place = int(np.argmin(np.abs(self.over.at - step)))
        rng = np.random.default_rng(self.seed)
        table = order_parameters(
            self.answers,
            self.posterior[:, place],
            self.weight[:, place],
            self.form,
            self.resampled(200),
            properties,
            self.level,
            rng,
        )
        table.insert(0, "step", self.over.at[place])
        return table

    def frame(self) -> pd.DataFrame:
        """A row a place: step, distance with `_low` and `_high`, and mean and largest distance of other dealings."""
        import pandas as pd

        low, high = np.quantile(self.draws, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        columns = {"step": self.over.at, "distance": self.distance, "distance_low": low, "distance_high": high}
        columns |= {
            "dealt_mean": [one.mean() if len(one) else np.nan for one in self.dealt],
            "dealt_max": [one.max() if len(one) else np.nan for one in self.dealt],
            "checkpoints": (self.over.left | self.over.right).sum(axis=1),
            "answers": (self.weight > 0).sum(axis=0),
        }
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the peak, the profile and the order parameters."""
        return {
            "form": self.form,
            "questions": self.questions,
            "peak": self.peak.to_dict(),
            "sentence": self.sentence(),
            "profile": self.frame().to_dict("records"),
            "order_parameters": self.order_parameters().to_dict("records"),
        }

    def plot(self) -> go.Figure:
        """The distance along the run with its null, and the shares of the properties at its peak."""
        from em_interp.figures.internals import plot_answer_shift

        return plot_answer_shift(self.frame(), self.peak, self.order_parameters(), UNITS[self.form], self.level)

    def sentence(self) -> str:
        """The peak in words, and the property that accounts for most of it."""
        said = [f"{self.peak.sentence()}: {self.peak.reason}"]
        shares = self.order_parameters().sort_values("share", ascending=False)
        if len(shares) and shares["total"].iloc[0] >= LEAST_DISTANCE[self.form]:
            one = shares.iloc[0]
            said.append(
                f"at step {one['step']:.0f} {one['property']} accounts for {one['share']:.0%} of the distance "
                f"({one['share_low']:.0%} to {one['share_high']:.0%}; by chance {one['chance']:.0%})"
            )
        return "; ".join(said)

    def __repr__(self) -> str:
        return f"AnswerShift({len(self.answers)} answers at {len(self.over.steps)} steps: {self.peak.sentence()})"

    def _repr_html_(self) -> str:
        marks = [] if self.peak.step is None else [Mark(self.peak.step, self.peak.interval)]
        drawn = picture([Line(self.over.at, self.distance)], "distance", marks)
        return html_card(self.sentence().split("; "), drawn, (".plot()", ".frame()", ".order_parameters()", ".peak"))


def _vertex(at: Float[np.ndarray, " place"], values: Float[np.ndarray, " place"]) -> float:
    """Where a parabola through the largest value and its neighbours is highest; at an end, the end."""
    top = int(np.argmax(values))
    if top in (0, len(at) - 1):
        return float(at[top])
    a, b, _ = np.polyfit(at[top - 1 : top + 2] - at[top], values[top - 1 : top + 2], 2)
    return float(at[top] + (-b / (2 * a) if a < 0 else 0.0))
