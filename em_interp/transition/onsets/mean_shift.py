"""The signal `onset` of a mean over questions whose values have no sampling noise, such as log-likelihoods.

There is no sampling noise in such values: the same checkpoint gives the same number. What varies is the question, and
the path of training. So questions are the unit: each has one curve of changes since the first step, and other questions
of the kind would have had others.

Null hypotheses. The change since the first step is as often up as down, question by question (a question's whole curve
keeps its shape and gets a random sign); with a control run read on the same questions, the same for the difference of
the two curves of each question; with a style null, the questions of both kinds are exchangeable, so that the kind under
test shifts no more than answers that differ in style alone. Where the control was read on the style null too, the
third is about what is beyond the control on either side: a control that is trained on answers of the same style shifts
as much in style, and what is left is not style. Statistic: by how much the best fitting logistic lowers the squared
error of the mean curve. The largest p-value counts. The first two are exact for changes that are symmetric about zero,
whatever the dependence between steps.

Estimate. The half-rise of a logistic with free asymptotes (`logistic`), fitted by least squares to the mean curve, with
a control to the mean of the differences: what the control shows too is no part of the rise that is dated. Its interval
is a bootstrap over questions, with autoregressive noise that would leave residuals like those of the mean curve, so
that what all questions have in common (the wiggles of training) is in it too.

Assumes that the mean rises once. Which part of a shift is misalignment and which is style the numbers cannot tell
beyond what the control and the style null show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError
from em_interp.transition.onsets.logistic import (
    MIN_STEPS,
    N_PERMUTATIONS,
    ONSET_ALPHA,
    LogisticGrid,
    Rise,
    rise_p_value,
)
from em_interp.transition.result import Transition, Verdict

if TYPE_CHECKING:
    import pandas as pd

MIN_SHIFT = 0.01  # a smaller rise of the mean is none: nats a token
MIN_QUESTIONS = 8  # of 7, the signs alone give no p-value below ONSET_ALPHA
N_REPLICATES = 400
N_MIDPOINTS, N_WIDTHS = 161, 30  # of the grid of a fit
CORRELATIONS = np.linspace(0.0, 0.9, 19)  # of neighbouring steps, of what all questions have in common


@runtime_checkable
class ShiftCurve(Protocol):
    """What `shift_onset` needs of a curve; a `PreferenceCurve` has it."""

    @property
    def scale(self) -> float | None:
        """Adapter multiplier, where the curve has just one."""

    @property
    def questions(self) -> str | None:
        """Question set, where the curve has just one."""

    @property
    def control(self) -> ShiftCurve | None:
        """The control run's curve of the same kind, where it is known."""

    @property
    def style_null(self) -> ShiftCurve | None:
        """The curve of the pairs that differ in style alone, where there are any and this is not it."""

    def values(self) -> pd.DataFrame:
        """One row a step and question: `step`, `question_id`, `value`."""

    def split(self) -> Sequence[ShiftCurve]:
        """The curves of each scale and question set; itself alone where it has one of each."""


@dataclass(frozen=True)
class QuestionCurves:
    """The value of each question at each step; questions without a value at some step are left out."""

    steps: Float[np.ndarray, " step"]
    question_ids: tuple[str, ...]
    values: Float[np.ndarray, "step question"]

    @classmethod
    def of(cls, values: pd.DataFrame) -> QuestionCurves:
        """From a table with a row a step and question: `step`, `question_id`, `value`."""
        wide = values.pivot(index="step", columns="question_id", values="value").sort_index().dropna(axis=1)
        return cls(wide.index.to_numpy(float), tuple(map(str, wide.columns)), wide.to_numpy(float))

    @property
    def change(self) -> Float[np.ndarray, "step question"]:
        """The values less those of the first step."""
        return self.values - self.values[0]

    def select(self, steps: Float[np.ndarray, " some"], questions: Sequence[str]) -> QuestionCurves:
        """The same at some of the steps and for some of the questions, in this order."""
        columns = [self.question_ids.index(question) for question in questions]
        rows = np.isin(self.steps, steps)
        return QuestionCurves(self.steps[rows], tuple(questions), self.values[rows][:, columns])

    def beyond(self, control: QuestionCurves) -> QuestionCurves:
        """The change of each question less its change in the control, at the steps and questions that both have.

        Raises InputError where they share no step or no question.
        """
        shared = [question for question in self.question_ids if question in control.question_ids]
        steps = np.intersect1d(self.steps, control.steps)
        if not shared or not len(steps):
            what = "step" if shared else "question"
            raise InputError(
                f"the curve and its control share no {what}; read both at the same steps on the same pairs"
            )
        change = self.select(steps, shared).change - control.select(steps, shared).change
        return QuestionCurves(steps, tuple(shared), change)


@dataclass(frozen=True)
class ShiftTest:
    """The tests on the curves and the fit: p-values (None where undefined) and the shift (None where not rejected)."""

    curves: QuestionCurves
    control: QuestionCurves | None
    beyond: QuestionCurves | None  # the curves beyond the control
    style: QuestionCurves | None  # beyond the control, where that was read on the style null too
    net_style: bool  # whether it is
    p_rise: float | None
    p_control: float | None
    p_style: float | None
    shift: Rise | None

    @property
    def p_value(self) -> float | None:
        """The largest: the curve must rise, and rise more than its control and the style null."""
        tested = [self.p_rise, *([self.p_control] if self.control else []), *([self.p_style] if self.style else [])]
        return None if None in tested else max(p for p in tested if p is not None)

    @property
    def dated(self) -> QuestionCurves:
        """The curves whose rise is dated: with a control those beyond it."""
        return self.curves if self.beyond is None else self.beyond


def shift_onset(curve: ShiftCurve, control: ShiftCurve | None = None, level: float = 0.95, seed: int = 0) -> Transition:
    """The onset of the mean of one curve: the half-rise of a logistic with free asymptotes.

    Args:
        curve: Of one scale and question set; its `style_null`, where it has one, is tested against as well.
        control: The control run's, read on the same questions at the same steps; by default the curve's own.
        level: Probability with which the interval holds the half-rise.
        seed: Of the permutations and the bootstrap.

    Returns:
        `none` where the mean does not rise, does not rise beyond the control or the style null, or rises by less than
        `MIN_SHIFT`; `inconclusive` where the run does not hold the half-rise, where it rests on one checkpoint alone,
        and where there are too few steps or questions to tell.

    Raises:
        InputError: Where the control shares no step or question with the curve.
    """
    style, control = curve.style_null, curve.control if control is None else control
    control_style = None if control is None else control.style_null
    compared = (None if each is None else QuestionCurves.of(each.values()) for each in (control, style, control_style))
    test = locate_shift(QuestionCurves.of(curve.values()), *compared, level=level, seed=seed)
    verdict, reason = verdict_of(test)
    shift = test.shift if verdict == "transition" else None
    return Transition(
        signal="onset",
        of="preference",
        verdict=verdict,
        reason=reason,
        p_value=test.p_value,
        scale=curve.scale,
        questions=curve.questions,
        evidence=_evidence(test),
        **(shift.located(level) if shift else {}),
    )


def locate_shift(
    curves: QuestionCurves,
    control: QuestionCurves | None = None,
    style: QuestionCurves | None = None,
    control_style: QuestionCurves | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> ShiftTest:
    """`shift_onset` on the values themselves: the tests, and the fit where all of them reject."""
    rng = np.random.default_rng(seed)
    beyond = None if control is None else curves.beyond(control)
    net_style = False
    if style is not None and control_style is not None and beyond is not None:
        style, net_style = style.beyond(control_style), True
    if not _enough(curves):
        return ShiftTest(curves, control, beyond, style, net_style, None, None, None, None)
    p_rise = _p_of_signs(curves, rng)
    p_control = None if beyond is None or not _enough(beyond) else _p_of_signs(beyond, rng)
    compared = beyond if net_style else curves
    p_style = None if style is None or compared is None else _p_beyond_style(compared, style, rng)
    test = ShiftTest(curves, control, beyond, style, net_style, p_rise, p_control, p_style, None)
    if test.p_value is None or test.p_value > ONSET_ALPHA:
        return test
    return replace(test, shift=fit_shift(test.dated, level, rng))


def _enough(curves: QuestionCurves) -> bool:
    return len(curves.steps) >= MIN_STEPS and len(curves.question_ids) >= MIN_QUESTIONS


def _p_of_signs(curves: QuestionCurves, rng: np.random.Generator) -> float:
    """The p-value of a rise of the mean, from random signs of the questions' curves."""
    change = curves.change
    signs = rng.choice([-1.0, 1.0], (N_PERMUTATIONS, change.shape[1]))
    return rise_p_value(
        curves.steps, np.ones(len(curves.steps)), change.mean(axis=1), signs @ change.T / change.shape[1]
    )


def _p_beyond_style(curves: QuestionCurves, style: QuestionCurves, rng: np.random.Generator) -> float | None:
    """The p-value of a larger rise than that of the style null, from permutations of the questions between the two."""
    steps = np.intersect1d(curves.steps, style.steps)
    if len(steps) < MIN_STEPS or len(style.question_ids) < MIN_QUESTIONS:
        return None
    own = curves.select(steps, curves.question_ids).change
    both = np.hstack([own, style.select(steps, style.question_ids).change])
    count, total = own.shape[1], both.shape[1]
    weights = np.where(np.arange(total) < count, 1 / count, -1 / (total - count))
    drawn = rng.permuted(np.tile(weights, (N_PERMUTATIONS, 1)), axis=1)
    return rise_p_value(steps, np.ones(len(steps)), both @ weights, drawn @ both.T)


def fit_shift(curves: QuestionCurves, level: float, rng: np.random.Generator) -> Rise:
    """The best logistic of the mean curve, and the intervals of its half-rise and 10 % point.

    The estimates without each checkpoint in turn are within the intervals, so that no single checkpoint decides, and
    so are all points that fit as well as the best, such as those between two steps that a sharp rise lies between.
    """
    steps, change = curves.steps, curves.change
    mean, weights = change.mean(axis=1), np.ones(len(steps))
    grid = _grid_for(steps, mean)
    residual, tangent = _residual(grid, mean)
    replicates = _replicates(change, residual, tangent, rng)
    grid = _grid_for(steps, replicates)
    gains = grid.gains(weights, mean[None], bounded=False)[0]
    as_good = np.flatnonzero(gains >= gains.max() * (1 - 1e-6))
    best = int(as_good[len(as_good) // 2])
    low, high = grid.asymptotes(best, weights, mean)
    drawn = grid.gains(weights, replicates, bounded=False).argmax(axis=1)
    without_one = [grid.gains(kept, mean[None], bounded=False)[0] for kept in 1.0 - np.eye(len(steps))]
    always = np.append(as_good, [left.argmax() for left in without_one])
    noise = np.sqrt(np.sum(residual**2) / max(len(steps) - 4, 1))
    few = _few_questions(change.shape[1], level)

    def interval(of: Float[np.ndarray, " point"]) -> tuple[float, float]:
        ends = of[best] + few * (np.quantile(of[drawn], [(1 - level) / 2, (1 + level) / 2]) - of[best])
        low, high = min(ends[0], of[always].min()), max(ends[1], of[always].max())
        return float(max(low, 0.0) if grid.from_zero else low), float(high)

    return Rise(
        float(grid.midpoints[best]),
        float(grid.widths[best]),
        float(low),
        float(high),
        grid.from_zero,
        interval(grid.step_of(0.5)),
        interval(grid.step_of(0.1)),
        float(np.sqrt(min(left.max() for left in without_one)) / max(noise, 1e-12)),
    )


def _few_questions(count: int, level: float) -> float:
    """By how much a bootstrap over this many questions is too narrow: Student's t and the variance of a sample."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(count - 1, (1 + level) / 2) / ndtri((1 + level) / 2) * np.sqrt(count / (count - 1)))


def _grid_for(steps: Float[np.ndarray, " step"], means: Float[np.ndarray, "*curves step"]) -> LogisticGrid:
    """A grid as fine as the best points of one or many curves lie close, without the outermost of many."""
    coarse = LogisticGrid.coarse(steps)
    best = coarse.gains(np.ones(len(steps)), np.atleast_2d(means), bounded=False).argmax(axis=1)
    middle, width = (np.quantile(of[best], [0.005, 0.995]) for of in (coarse.midpoints, coarse.widths))
    step, ratio = np.diff(np.unique(coarse.midpoints))[0], 1.5
    return LogisticGrid.over(
        steps,
        np.linspace(middle[0] - step, middle[1] + step, N_MIDPOINTS),
        np.geomspace(width[0] / ratio, width[1] * ratio, N_WIDTHS),
    )


def _residual(
    grid: LogisticGrid, mean: Float[np.ndarray, " step"]
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, "step direction"]]:
    """What the best logistic of the grid leaves of a mean curve, and an orthonormal basis of what it can take of it."""
    weights = np.ones(len(mean))
    best = int(grid.gains(weights, mean[None], bounded=False).argmax())
    low, high = grid.asymptotes(best, weights, mean)
    share = grid.shares[best]
    by_midpoint = share * (1 - share)  # up to its sign and size, as the derivative by the width
    by_width = by_midpoint * np.log(np.maximum(share, 1e-300) / np.maximum(1 - share, 1e-300))
    directions = np.stack([weights, share, by_midpoint, by_width], axis=1)
    sizes = np.maximum(np.linalg.norm(directions, axis=0), 1e-12)
    basis, singular, _ = np.linalg.svd(directions / sizes, full_matrices=False)
    return mean - low - (high - low) * share, basis[:, singular > 1e-3 * singular[0]]


def _replicates(
    change: Float[np.ndarray, "step question"],
    residual: Float[np.ndarray, " step"],
    tangent: Float[np.ndarray, "step direction"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "replicate step"]:
    """Mean curves of resampled questions, plus the noise around the fit that all questions share.

    That noise is autoregressive like the residuals; its variance is drawn for each replicate from its posterior given
    the residuals (scaled inverse χ²).
    """
    count, (steps, taken) = change.shape[1], tangent.shape
    chosen = rng.multinomial(count, np.full(count, 1 / count), N_REPLICATES) / count
    spread, correlation = _common_noise(residual, tangent)
    noise = rng.standard_normal((N_REPLICATES, steps))
    for step in range(1, steps):
        noise[:, step] = correlation * noise[:, step - 1] + np.sqrt(1 - correlation**2) * noise[:, step]
    freedom = max(steps - taken, 1)
    noise *= spread * np.sqrt(freedom / rng.chisquare(freedom, (N_REPLICATES, 1)))
    return chosen @ change.T - residual + noise


def _common_noise(
    residual: Float[np.ndarray, " step"], tangent: Float[np.ndarray, "step direction"]
) -> tuple[float, float]:
    """Standard deviation and correlation of neighbours of autoregressive noise that would leave residuals like these.

    A fit takes up the slow part of noise, so that residuals are smaller and less correlated. What it leaves of noise
    of each correlation is computed, and the noise chosen of which it leaves the energy and correlation that are seen.
    """
    steps = len(residual)
    left = np.eye(steps) - tangent @ tangent.T
    lags = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps))).ravel()
    powers = CORRELATIONS[:, None] ** np.arange(steps)
    energies = powers @ np.bincount(lags, left.ravel())
    products = powers @ np.bincount(lags, (left[:-1].T @ left[1:]).ravel())
    energy = float(residual @ residual)
    lag_one = residual[1:] @ residual[:-1] / max(energy, 1e-300)
    correlation = float(np.interp(lag_one, np.maximum.accumulate(products / energies), CORRELATIONS))
    return float(np.sqrt(energy / np.interp(correlation, CORRELATIONS, energies))), correlation


def verdict_of(test: ShiftTest) -> tuple[Verdict, str]:
    """The verdict and the reason for it."""
    curves, shift = test.curves, test.shift
    steps, compared = curves.steps, {"control": test.control, "style null": test.style}
    p_values = {"control": test.p_control, "style null": test.p_style}
    if test.p_rise is None:
        found_there = f"{len(steps)} steps and {len(curves.question_ids)} questions"
        return "inconclusive", f"too little to tell: {found_there}, {MIN_STEPS} and {MIN_QUESTIONS} are needed"
    for name, comparison in compared.items():
        if comparison is not None and p_values[name] is None:
            return "inconclusive", f"the {name} shares too few steps or questions with the curve"
    if test.p_rise > ONSET_ALPHA:
        return "none", f"the mean does not rise beyond its value at step {steps[0]:g} (p = {test.p_rise:.2g})"
    for name, p_value in p_values.items():
        if p_value is not None and p_value > ONSET_ALPHA:
            net = "beyond the control, " if name == "style null" and test.net_style else ""
            return "none", f"{net}the mean does not rise beyond that of the {name} (p = {p_value:.2g})"
    assert shift is not None
    change = f"the mean changes by {curves.change[-1].mean():+.3f} from step {steps[0]:g} to {steps[-1]:g}"
    if (rise := shift.height) < MIN_SHIFT:
        return "none", f"{change}; the fitted rise of {rise:.3f} is less than {MIN_SHIFT:g}"
    if unresolved := shift.unresolved(test.dated.steps, "read"):
        return "inconclusive", f"{change}, but {unresolved}"
    parts = [] if test.beyond is None else [f"by {test.beyond.change[-1].mean():+.3f} beyond the control"]
    parts += ["beyond the style null"] if test.style is not None else []
    beyond = " and ".join(parts) or "no control was given"
    first, last = (max(step, steps[0]) for step in shift.tenth_interval)
    return "transition", f"{change}, {beyond}; a tenth of it by step {shift.tenth:.0f} ({first:.0f} to {last:.0f})"


def _evidence(test: ShiftTest) -> dict[str, Any]:
    """Arrays for the figure: mean changes since the first step, `rate` that of the curve whose rise is dated."""
    dated, shift = test.dated, test.shift
    evidence: dict[str, Any] = {
        "steps": dated.steps,
        "rate": dated.change.mean(axis=1),
        "answers": np.full(len(dated.steps), len(dated.question_ids)),
        "net_style": test.net_style,
    }
    for name, other in (("run", test.curves), ("control", test.control), ("style", test.style)):
        if other is not None:
            evidence |= {f"{name}_steps": other.steps, f"{name}_rate": other.change.mean(axis=1)}
    return evidence | (shift.evidence(dated.steps) if shift is not None else {})
