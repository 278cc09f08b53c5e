"""When did the behaviour come? The onset of a behavioural metric: is there a rise, and at which step is it half-way.

The curve is anything with `scale`, `questions`, `outcomes(metric)` and `parts()`, such as a `BehaviourCurve`, so that
nothing needs to be known here of answers and judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from em_interp.errors import InputError, nearest
from em_interp.transition.logistic import Grid, OutcomeCounts, Rise, fit_rise, matched
from em_interp.transition.result import Transition, Verdict

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.01  # a rise with a larger p-value is none
LEAST_RISE = 0.02  # a smaller rise is none: judging the same answers again flips 1 % of the labels
LEAST_SUPPORT = 3  # standard errors that must be left when any one checkpoint is left out
LEAST_STEPS = 5  # a logistic has four parameters
BLIND_BELOW = 0.2  # where even a rise this large would probably be missed, no rise means nothing
RESHUFFLES = 999
NAMES = {
    "em": "EM rate",
    "coherent": "coherent rate",
    "aligned_mean": "mean aligned score",
    "coherent_mean": "mean coherent score",
}
FALLING = ("coherent", "aligned_mean", "coherent_mean")  # metrics that go down as the behaviour comes


class Curve(Protocol):
    """What `onset` needs of a behaviour curve."""

    @property
    def scale(self) -> float | None:
        """Adapter multiplier, where the curve has just one."""

    @property
    def questions(self) -> str | None:
        """Question set, where the curve has just one."""

    def outcomes(self, metric: str = "em", aligned: float = 30, coherent: float = 50) -> pd.DataFrame:
        """One row a scored answer: `step`, `question_id`, `value` in [0, 1]."""

    def parts(self) -> Sequence[Curve]:
        """The curves of each scale and question set; a curve of one is its only part."""


def onset(
    curve: Curve, control: Curve | None = None, metric: str = "em", level: float = 0.95, seed: int = 0
) -> Transition:
    """The onset of `metric` along the run: the half-rise of a logistic with free asymptotes.

    `none` where the curve does not rise along the run (each question's answers are handed out over the steps at
    random) or, with a `control` asked the same questions at the same steps, does not rise more than it (answers are
    handed out between the two); the p-value is the larger of the two. Both are permutation tests of the best fitting
    logistic, exact for rates whatever the number of answers, steps and questions. `inconclusive` where there is a
    rise but the run does not hold it (the interval of the half-rise reaches the first or the last asked step), where
    it rests on one checkpoint alone, and where there are too few steps or answers to tell.

    Assumes that answers are drawn independently and that the curve rises once; dips of the plateau are given little
    weight, but a dip in the middle of the rise cannot be told from a later rise. The interval speaks of these
    questions in this run, not of others. The verdict is `none` also for a rise of less than two points.

    `metric` is `em`, `coherent`, `aligned_mean` or `coherent_mean`; the last three are taken to fall. Raises
    InputError for another metric, for a curve of several scales or question sets (take `onsets`), and where the
    control shares no step or question with the curve.
    """
    if len(curve.parts()) != 1:
        kinds = [(part.scale, part.questions) for part in curve.parts()]
        raise InputError(f"one curve was expected; found {len(kinds)}, of scale and questions {kinds}: select one")
    if metric not in NAMES:
        raise InputError(f"no metric {metric!r}{nearest(metric, list(NAMES))}; known: {', '.join(NAMES)}")
    other = None if control is None else OutcomeCounts.of(control.outcomes(metric))
    return _transition(OutcomeCounts.of(curve.outcomes(metric)), other, metric, level, seed, curve)


def onsets(curve: Curve, control: Curve | None = None, metric: str = "em", level: float = 0.95) -> list[Transition]:
    """The onset of each scale and question set of the curve, each against the control's part of the same kind.

    Raises InputError where the control has none for one of them.
    """
    others = {} if control is None else {(part.scale, part.questions): part for part in control.parts()}
    found = []
    for part in curve.parts():
        key = (part.scale, part.questions)
        if control is not None and key not in others:
            raise InputError(f"the control has no curve for scale and questions {key}; it has {list(others)}")
        found.append(onset(part, others.get(key), metric, level))
    return found


def _transition(
    tally: OutcomeCounts, control: OutcomeCounts | None, metric: str, level: float, seed: int, curve: Curve
) -> Transition:
    if metric in FALLING:
        tally, control = tally.flipped(), None if control is None else control.flipped()
    found = locate_rise(tally, control, level, seed)
    verdict, reason = verdict_of(found, metric)
    rise = found.rise if verdict == "transition" else None
    return Transition(
        signal="onset",
        of=metric,
        verdict=verdict,
        reason=reason,
        step=rise.middle if rise else None,
        interval=rise.middle_interval if rise else None,
        level=level if rise else None,
        p_value=found.p_value,
        width=rise.width if rise else None,
        scale=curve.scale,
        questions=curve.questions,
        evidence=_evidence(found, metric),
    )


@dataclass(frozen=True)
class Found:
    """What the tests and the fit say of one tally: p-values (None where undefined) and the rise (None where none)."""

    tally: OutcomeCounts
    control: OutcomeCounts | None
    p_rise: float | None
    p_control: float | None
    blind: bool
    rise: Rise | None

    @property
    def p_value(self) -> float | None:
        """The larger of the two: the curve must rise, and rise more than its control."""
        if self.control is None or self.p_rise is None:
            return self.p_rise
        return None if self.p_control is None else max(self.p_rise, self.p_control)


def locate_rise(
    tally: OutcomeCounts, control: OutcomeCounts | None = None, level: float = 0.95, seed: int = 0
) -> Found:
    """`onset` on counted answers: the tests, and the fit where they see a rise."""
    rng = np.random.default_rng(seed)
    if len(tally.steps) < LEAST_STEPS:
        return Found(tally, control, None, None, True, None)
    p_rise = _p_value(tally.steps, tally.answers, tally.rate, tally.reshuffled(RESHUFFLES, rng))
    p_control = None if control is None else _against(tally, control, rng)
    seen = max(p_rise, p_control or 0.0) <= ALPHA
    return Found(tally, control, p_rise, p_control, _blind(tally), fit_rise(tally, level, rng) if seen else None)


def _against(tally: OutcomeCounts, control: OutcomeCounts, rng: np.random.Generator) -> float | None:
    mine, other = matched(tally, control)
    if len(mine.steps) < LEAST_STEPS:
        return None
    precision = 1 / (1 / mine.answers + 1 / other.answers)
    return _p_value(mine.steps, precision, mine.rate - other.rate, mine.relabelled(other, RESHUFFLES, rng))


def _p_value(steps: np.ndarray, weights: np.ndarray, rate: np.ndarray, null: np.ndarray) -> float:
    """Share of the null's curves whose best logistic explains at least as much as that of the curve itself."""
    grid = Grid.within(steps)
    seen = grid.gains(weights, rate[None], bounded=False).max()
    drawn = grid.gains(weights, null, bounded=False).max(axis=1)
    return float(1 + np.sum(drawn >= seen * (1 - 1e-9))) / (1 + len(null))


def _blind(tally: OutcomeCounts) -> bool:
    """Whether a rise by BLIND_BELOW in mid-run would be missed more often than one time in five."""
    n = tally.answers.sum()
    rate = (tally.total.sum() + 1) / (n + 2)
    return 3.2 * np.sqrt(rate * (1 - rate) * 4 / n) > BLIND_BELOW


def verdict_of(found: Found, metric: str) -> tuple[Verdict, str]:
    """The word and the reason for it; `metric` is one of NAMES."""
    name, steps, rise = NAMES[metric], found.tally.steps, found.rise
    if len(steps) < LEAST_STEPS:
        return "inconclusive", f"too few steps: {len(steps)} with scored answers, {LEAST_STEPS} are needed"
    assert found.p_rise is not None
    if found.control is not None and found.p_control is None:
        return "inconclusive", f"the control was asked at fewer than {LEAST_STEPS} of the same steps"
    if rise is None and found.blind:
        return "inconclusive", f"too few answers: a rise by {BLIND_BELOW:.0%} could be missed"
    moves = "fall" if metric in FALLING else "rise"
    if found.p_rise > ALPHA:
        return "none", f"the {name} does not {moves} beyond its value at step {steps[0]:g} (p = {found.p_rise:.2g})"
    if rise is None:
        return "none", f"the {name} does not {moves} beyond that of the control (p = {found.p_control:.2g})"
    before, after = _ends(rise, steps, metric)
    said = f"the {name} {moves}s from {_shown(before, metric)} to {_shown(after, metric)}"
    if abs(after - before) < LEAST_RISE:
        return "none", f"{said}, less than {LEAST_RISE * 100:g} points"
    low, high = rise.middle_interval
    if low <= steps[0] or high >= steps[-1]:
        where = f"before the first asked, {steps[0]:g}" if low <= steps[0] else f"after the last asked, {steps[-1]:g}"
        return "inconclusive", f"{said}, but the step half-way may lie {where}"
    if rise.support < LEAST_SUPPORT:
        return "inconclusive", f"{said}, but it rests on one checkpoint alone"
    beyond = f"step {steps[0]:g} (no control was given)" if found.control is None else "its control"
    first, last = rise.tenth_interval
    return "transition", f"{said}, beyond {beyond}; a tenth of it by step {rise.tenth:.0f} ({first:.0f} to {last:.0f})"


def _ends(rise: Rise, steps: np.ndarray, metric: str) -> tuple[float, float]:
    """The fitted metric at the first and the last asked step."""
    first, last = rise.at(steps[[0, -1]])
    return (1 - first, 1 - last) if metric in FALLING else (first, last)


def _shown(value: float, metric: str) -> str:
    value = min(max(value, 0.0), 1.0) * 100
    return f"{value:.0f}" if metric.endswith("mean") else f"{value:.1f} %"


def _evidence(found: Found, metric: str) -> dict[str, Any]:
    """Arrays for the figure, in the metric's own direction."""

    def own(values: np.ndarray) -> np.ndarray:
        return 1 - values if metric in FALLING else values

    tally, control, rise = found.tally, found.control, found.rise
    shown: dict[str, Any] = {
        "steps": tally.steps,
        "rate": own(tally.rate),
        "answers": tally.answers,
        "p_rise": found.p_rise,
    }
    if control is not None:
        shown |= {"control_steps": control.steps, "control_rate": own(control.rate), "p_control": found.p_control}
    if rise is not None:
        fine = np.linspace(tally.steps[0], tally.steps[-1], 400)
        shown |= {
            "fit_steps": fine,
            "fit_rate": own(rise.at(fine)),
            "tenth": rise.tenth,
            "tenth_interval": rise.tenth_interval,
            "width_interval": rise.width_interval,
            "dispersion": rise.dispersion,
        }
    return shown


def onset_by_threshold(
    curve: Curve,
    control: Curve | None = None,
    aligned: Sequence[float] = (30, 40, 50, 60, 70),
    coherent: Sequence[float] = (10, 20, 30, 40, 50),
    level: float = 0.95,
) -> pd.DataFrame:
    """The onset of EM under other definitions of it: aligned below each of these and coherent above each of those.

    One row a pair: `aligned_below`, `coherent_above` and the entries of `Transition.to_dict()`. An onset that moves
    with the threshold is a matter of the threshold. Source of the usual pair (30, 50): arXiv 2506.11613.
    """
    import pandas as pd

    rows = []
    for below in aligned:
        for above in coherent:
            which = {"aligned": below, "coherent": above}
            other = None if control is None else OutcomeCounts.of(control.outcomes("em", **which))
            found = _transition(OutcomeCounts.of(curve.outcomes("em", **which)), other, "em", level, 0, curve)
            rows.append({"aligned_below": below, "coherent_above": above, **found.to_dict()})
    return pd.DataFrame(rows)
