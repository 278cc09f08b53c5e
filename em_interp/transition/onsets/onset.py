"""The signal `onset` of a behavioural metric: does it rise along the run, and at which step has it risen by half?

Null hypotheses. The rate of every question is the same at all steps; and, with a control run sampled at the same
questions at the same steps, the rate at every step and question is the same in both runs. Statistic: by how much the
best fitting logistic lowers the weighted squared error below a flat line's. Null distributions: permutations of the
answers over the steps, and between the runs (`logistic`), 999 each; the larger p-value counts. Both are exact for
rates, whatever the number of answers, steps and questions.

Estimate. The half-rise of a logistic with free asymptotes, with the 10 % point beside it (`logistic`).

Assumes that answers are drawn independently and that the curve rises once; a dip in the middle of the rise cannot be
distinguished from a later rise. The interval is for other answers to these questions in this run, not for other
questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from em_interp.errors import InputError
from em_interp.transition.onsets.logistic import (
    MIN_STEPS,
    N_PERMUTATIONS,
    ONSET_ALPHA,
    OutcomeCounts,
    Rise,
    fit_rise,
    matched,
    rise_p_value,
)
from em_interp.transition.onsets.mean_shift import ShiftCurve, shift_onset
from em_interp.transition.result import Transition, Verdict
from em_interp.utils.checks import as_list, check_known, check_level, check_type

if TYPE_CHECKING:
    import pandas as pd

MIN_RISE = 0.02  # a smaller rise is none: judging the same answers again flips 1 % of the labels
DETECTABLE_RISE = 0.2  # where even a rise this large would probably be missed, no rise is inconclusive
NEEDED = 3.7  # standard errors of a rise found four times in five; 3.2 if its step were known, the rest was measured
METRICS = {
    "em": "EM rate",
    "coherent": "coherent rate",
    "aligned_mean": "mean aligned score",
    "coherent_mean": "mean coherent score",
}
FALLING = ("coherent", "aligned_mean", "coherent_mean")  # metrics that go down as the behaviour appears


@runtime_checkable
class Curve(Protocol):
    """What `onset` needs of a behaviour curve; a `BehaviourCurve` has it."""

    @property
    def scale(self) -> float | None:
        """Adapter multiplier, where the curve has just one."""

    @property
    def questions(self) -> str | None:
        """Question set, where the curve has just one."""

    def outcomes(self, metric: str = "em", aligned: float = 30, coherent: float = 50) -> pd.DataFrame:
        """One row a scored answer: `step`, `question_id`, `value` in [0, 1]."""

    def split(self) -> Sequence[Curve]:
        """The curves of each scale and question set; itself alone where it has one of each."""


AnyCurve = Curve | ShiftCurve


def onset(
    curve: AnyCurve, control: AnyCurve | None = None, metric: str = "em", level: float = 0.95, seed: int = 0
) -> Transition:
    """Find the onset of `metric` along the run: the half-rise of a logistic with free asymptotes.

    Args:
        curve: A behaviour curve of one scale and question set. Of a preference curve the mean is located, by
            `mean_shift.shift_onset`, which has tests of its own.
        control: The control run's, with the same questions at the same steps.
        metric: `em`, `coherent`, `aligned_mean` or `coherent_mean`; the last three are taken to fall. A preference
            curve has just one.
        level: Probability with which the interval holds the half-rise.
        seed: Of the permutations and the bootstrap.

    Returns:
        `none` where the curve does not rise, does not rise beyond the control, or rises by less than two points;
        `inconclusive` where there is a rise but the run does not hold it (the interval reaches the last sampled step,
        or the first where that is not step 0), where it rests on one checkpoint alone, and where there are too few
        steps or answers to tell.

    Raises:
        InputError: For another metric, for a curve of several scales or question sets (use `onsets`), and where the
            control shares no step or question with the curve.
    """
    _check(curve, control, metric, level)
    _check_single(curve, control)
    if isinstance(curve, ShiftCurve):
        return shift_onset(curve, control if isinstance(control, ShiftCurve) else None, level, seed)
    control_counts = OutcomeCounts.of(control.outcomes(metric)) if isinstance(control, Curve) else None
    return _transition(OutcomeCounts.of(curve.outcomes(metric)), control_counts, metric, level, seed, curve)


def onsets(
    curve: AnyCurve, control: AnyCurve | None = None, metric: str = "em", level: float = 0.95
) -> list[Transition]:
    """The onset of each scale and question set of the curve, each against the control's of the same kind.

    Raises InputError where the control has none for one of them; see `onset` for the rest.
    """
    _check(curve, control, metric, level)
    controls = {} if control is None else {(single.scale, single.questions): single for single in control.split()}
    transitions = []
    for single in curve.split():
        kind = (single.scale, single.questions)
        if control is not None and kind not in controls:
            raise InputError(f"the control has no curve for scale and questions {kind}; it has {list(controls)}")
        transitions.append(onset(single, controls.get(kind), metric, level))
    return transitions


def onset_by_threshold(
    curve: Curve,
    control: Curve | None = None,
    aligned: Sequence[float] | float = (30, 40, 50, 60, 70),
    coherent: Sequence[float] | float = (10, 20, 30, 40, 50),
    level: float = 0.95,
) -> pd.DataFrame:
    """The onset of EM under other thresholds; one that moves with them is a property of the thresholds.

    Args:
        curve: A behaviour curve of one scale and question set.
        control: The control run's.
        aligned: EM is aligned below each of these …
        coherent: … and coherent above each of those. The usual pair is 30 and 50 (arXiv 2506.11613).
        level: Probability with which each interval holds the half-rise.

    Returns:
        One row a pair: `aligned_below`, `coherent_above` and the entries of `Transition.to_dict()`.
    """
    import pandas as pd

    _check(curve, control, "em", level)
    if isinstance(curve, ShiftCurve):
        raise InputError("thresholds are of judged answers; expected a behaviour curve, found one of a preference")
    _check_single(curve, control)
    rows, rises = [], {}
    for below in as_list(aligned):
        for above in as_list(coherent):
            outcomes = [each.outcomes("em", below, above) for each in (curve, control) if each is not None]
            counts = [OutcomeCounts.of(each) for each in outcomes]
            same = tuple(each.total.tobytes() for each in counts)  # other thresholds may count the same answers
            if same not in rises:
                of_control = None if control is None else counts[1]
                rises[same] = _transition(counts[0], of_control, "em", level, 0, curve).to_dict()
            rows.append({"aligned_below": below, "coherent_above": above, **rises[same]})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class RiseTest:
    """The tests and the fit on counted outcomes: p-values (None where undefined) and the rise (None where none)."""

    counts: OutcomeCounts
    control: OutcomeCounts | None
    p_rise: float | None
    p_control: float | None
    underpowered: bool  # a rise by DETECTABLE_RISE would probably be missed
    rise: Rise | None

    @property
    def p_value(self) -> float | None:
        """The larger of the two: the curve must rise, and rise more than its control."""
        if self.control is None or self.p_rise is None:
            return self.p_rise
        return None if self.p_control is None else max(self.p_rise, self.p_control)


def locate_rise(
    counts: OutcomeCounts, control: OutcomeCounts | None = None, level: float = 0.95, seed: int = 0
) -> RiseTest:
    """`onset` on counted outcomes: the tests, and the fit where both reject."""
    rng = np.random.default_rng(seed)
    if len(counts.steps) < MIN_STEPS:
        return RiseTest(counts, control, None, None, True, None)
    null = counts.permuted_over_steps(N_PERMUTATIONS, rng)
    p_rise = rise_p_value(counts.steps, counts.answers, counts.rate, null)
    p_control = None if control is None else _p_against(counts, control, rng)
    rejected = max(p_rise, p_control or 0.0) <= ONSET_ALPHA
    rise = fit_rise(counts, level, rng) if rejected else None
    return RiseTest(counts, control, p_rise, p_control, _underpowered(counts), rise)


def verdict_of(test: RiseTest, metric: str) -> tuple[Verdict, str]:
    """The verdict and the reason for it; `metric` is one of METRICS."""
    name, steps, rise = METRICS[metric], test.counts.steps, test.rise
    if len(steps) < MIN_STEPS:
        return "inconclusive", f"too few steps: {len(steps)} with scored answers, {MIN_STEPS} are needed"
    assert test.p_rise is not None
    if test.control is not None and test.p_control is None:
        return "inconclusive", f"the control was sampled at fewer than {MIN_STEPS} of the same steps"
    moves = "fall" if metric in FALLING else "rise"
    if rise is None and test.underpowered:
        return "inconclusive", f"too few answers: a {moves} by {100 * DETECTABLE_RISE:.0f} points could be missed"
    if test.p_rise > ONSET_ALPHA:
        return "none", f"the {name} does not {moves} beyond its value at step {steps[0]:g} (p = {test.p_rise:.2g})"
    if rise is None:
        return "none", f"the {name} does not {moves} beyond that of the control (p = {test.p_control:.2g})"
    before, after = _in_direction(rise.at(steps[[0, -1]]), metric)
    change = f"the {name} {moves}s from {_formatted(before, metric)} to {_formatted(after, metric)}"
    if abs(after - before) < MIN_RISE:
        return "none", f"{change}, less than {MIN_RISE * 100:g} points"
    if unresolved := rise.unresolved(steps, "sampled"):
        return "inconclusive", f"{change}, but {unresolved}"
    beyond = f"step {steps[0]:g} (no control was given)" if test.control is None else "its control"
    first, last = rise.tenth_interval
    return (
        "transition",
        f"{change}, beyond {beyond}; a tenth of it by step {rise.tenth:.0f} ({first:.0f} to {last:.0f})",
    )


def _check(curve: AnyCurve, control: AnyCurve | None, metric: str, level: float) -> None:
    check_type("curve", curve, (Curve, ShiftCurve), "a behaviour curve")
    check_type("control", control, (Curve, ShiftCurve, type(None)), "a behaviour curve, as em.behaviour_curve(run)")
    if control is not None and isinstance(control, ShiftCurve) != isinstance(curve, ShiftCurve):
        kinds = f"a {type(control).__name__} beside a {type(curve).__name__}"
        raise InputError(f"the control must be a curve of the same kind; found {kinds}")
    check_level(level)
    check_known("metric", metric, METRICS)


def _check_single(curve: AnyCurve, control: AnyCurve | None) -> None:
    """Raise InputError for a curve or a control of several scales or question sets."""
    for given, name in ((curve, "curve"), (control, "curve of the control")):
        if given is not None and len(parts := given.split()) != 1:
            kinds = [(part.scale, part.questions) for part in parts]
            found = f"{len(parts)}, of scale and questions {kinds}"
            raise InputError(f"one {name} was expected; found {found}: select one, such as .select{kinds[0]}")


def _transition(
    counts: OutcomeCounts, control: OutcomeCounts | None, metric: str, level: float, seed: int, curve: Curve
) -> Transition:
    if metric in FALLING:
        counts, control = counts.flipped(), None if control is None else control.flipped()
    test = locate_rise(counts, control, level, seed)
    verdict, reason = verdict_of(test, metric)
    rise = test.rise if verdict == "transition" else None
    return Transition(
        signal="onset",
        of=metric,
        verdict=verdict,
        reason=reason,
        p_value=test.p_value,
        scale=curve.scale,
        questions=curve.questions,
        evidence=_evidence(test, metric),
        **(rise.located(level) if rise else {}),
    )


def _p_against(counts: OutcomeCounts, control: OutcomeCounts, rng: np.random.Generator) -> float | None:
    own, of_control = matched(counts, control)
    if len(own.steps) < MIN_STEPS:
        return None
    precision = 1 / (1 / own.answers + 1 / of_control.answers)
    null = own.permuted_between(of_control, N_PERMUTATIONS, rng)
    return rise_p_value(own.steps, precision, own.rate - of_control.rate, null)


def _underpowered(counts: OutcomeCounts) -> bool:
    """Whether a rise by DETECTABLE_RISE in mid-run would be missed more often than one time in five."""
    n, half = counts.answers.sum(), DETECTABLE_RISE / 2
    mean, square = ((sums.sum() + 1) / (n + 2) for sums in (counts.total, counts.squares))
    variance = max(square - mean**2, square + half - (mean + half) ** 2)  # of an answer, as it is and with such a rise
    return NEEDED * np.sqrt(variance * 4 / n) > DETECTABLE_RISE


def _in_direction(rates: np.ndarray, metric: str) -> np.ndarray:
    """Rates of the flipped counts of a falling metric as rates of the metric itself."""
    return 1 - rates if metric in FALLING else rates


def _formatted(value: float, metric: str) -> str:
    value = min(max(value, 0.0), 1.0) * 100
    return f"{value:.0f}" if metric.endswith("mean") else f"{value:.1f} %"


def _evidence(test: RiseTest, metric: str) -> dict[str, Any]:
    """Arrays for the figure, in the metric's own direction."""
    counts, control, rise = test.counts, test.control, test.rise
    evidence: dict[str, Any] = {
        "steps": counts.steps,
        "rate": _in_direction(counts.rate, metric),
        "answers": counts.answers,
    }
    if control is not None:
        evidence |= {"control_steps": control.steps, "control_rate": _in_direction(control.rate, metric)}
    if rise is not None:
        fitted = rise.evidence(counts.steps)
        evidence |= fitted | {"fit_rate": _in_direction(fitted["fit_rate"], metric)}
    return evidence
