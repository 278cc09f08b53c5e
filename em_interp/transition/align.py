"""Do the adapter and the behaviour change together? Offsets between the transitions of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from em_interp.errors import InputError
from em_interp.results import Line, Mark, html_card, picture
from em_interp.transition.onset import Curve, onsets
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.trajectory.trajectory import AdapterTrajectory

AlignmentVerdict = Literal[
    "together",
    "mechanistic_first",
    "behavioural_first",
    "only_mechanistic",
    "only_behavioural",
    "neither",
    "inconclusive",
]
WORDS = {
    "together": "the behaviour changes when the adapter does, as far as the intervals can tell",
    "mechanistic_first": "the adapter changes before the behaviour",
    "behavioural_first": "the behaviour changes before the adapter",
    "only_mechanistic": "the adapter changes, the behaviour does not",
    "only_behavioural": "the behaviour changes without a transition of the adapter",
    "neither": "neither the adapter nor the behaviour changes",
    "inconclusive": "it cannot be told whether the two coincide",
}


@dataclass(frozen=True)
class Offset:
    """How much later (positive) than the mechanistic transition one behavioural transition is."""

    behavioural: int  # index of the behavioural transition
    steps: float
    interval: tuple[float, float] | None
    level: float | None
    cumulative_lr: float | None  # the same in cumulative learning rate; None without a log
    chance: float | None  # that a step placed uniformly in the run falls as near to the behavioural one

    @property
    def coincides(self) -> bool:
        """Whether the interval holds 0."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True)
class Alignment:
    """A mechanistic transition beside the behavioural ones of the same run; offsets where both were found."""

    mechanistic: Transition
    behavioural: tuple[Transition, ...]
    offsets: tuple[Offset, ...]
    verdict: AlignmentVerdict

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, in the form of `em-interp align --json`."""
        return {
            "mechanistic": self.mechanistic.to_dict(),
            "behavioural": [transition.to_dict() for transition in self.behavioural],
            "offsets": [offset.to_dict() for offset in self.offsets],
            "verdict": self.verdict,
        }

    def frame(self) -> pd.DataFrame:
        """One row a behavioural transition, with its offset; NaN where one of the two was not found."""
        import pandas as pd

        columns = ["questions", "scale", "of", "verdict", "step"]
        rows = pd.DataFrame([{key: t.to_dict()[key] for key in columns} for t in self.behavioural], columns=columns)
        of_row = {offset.behavioural: offset for offset in self.offsets}
        found = [of_row.get(index) for index in range(len(rows))]
        for key in ("steps", "cumulative_lr", "chance"):
            values = [np.nan if offset is None else getattr(offset, key) for offset in found]
            rows["offset" if key == "steps" else key] = np.array(values, float)
        for side, key in enumerate(("low", "high")):
            rows[key] = [o.interval[side] if o is not None and o.interval is not None else np.nan for o in found]
        return rows

    def plot(self) -> go.Figure:
        """All transitions on one time axis."""
        from em_interp.figures.time_axis import alignment

        return alignment(self)

    @property
    def words(self) -> str:
        """The verdict in words; `together` needs only one offset that may be 0, so it says how many may."""
        there, of = sum(offset.coincides for offset in self.offsets), len(self.offsets)
        if self.verdict == "together" and there < of:
            return f"{there} of {of} changes of behaviour coincide with the adapter's, as far as the intervals can tell"
        return WORDS[self.verdict]

    def sentence(self) -> str:
        """The verdict in words, with the offsets."""
        said = [_offset_words(self.behavioural[offset.behavioural], offset) for offset in self.offsets]
        return "; ".join([f"{self.verdict.replace('_', ' ')}: {self.words}", *said])

    def __repr__(self) -> str:
        return f"Alignment({self.sentence()})"

    def _repr_html_(self) -> str:
        others = [transition.sentence() for transition in self.behavioural]
        calls = (".plot()", ".frame()", ".to_dict()", "em.report(run)")
        return html_card([*self.sentence().split("; "), self.mechanistic.sentence(), *others], self._picture(), calls)

    def _picture(self) -> str:
        """The behaviour's curves with the mechanistic step marked."""
        curves = [t for t in self.behavioural if "rate" in t.evidence and t.scale in (None, 1.0)]
        lines = [Line(t.evidence["steps"], t.evidence["rate"], (t.questions or "").replace("_", " ")) for t in curves]
        turned = self.mechanistic
        return picture(lines, "EM rate", [] if turned.step is None else [Mark(turned.step, turned.interval)])


def align(
    mechanistic: Transition | AdapterTrajectory,
    behavioural: Transition | Sequence[Transition] | Curve,
    run: AdapterTrajectory | None = None,
) -> Alignment:
    """The offsets of behavioural transitions from a mechanistic one, and whether they coincide.

    A trajectory stands for its rotation, a curve for the onset of EM of each of its scales and question sets. `run`
    (by default `mechanistic`, if that is a trajectory) tells the range of steps and the learning rates; without one
    the range is that of the steps asked.

    The interval of an offset b − m combines those of b and m, taken as independent, by the distances of their ends
    from the estimates: (b − b_low) and (m_high − m) below, the others above, added in quadrature (Zou and Donner
    2008). `chance` is the share of the run's steps as near to b as m is, to half a step: what an offset of this size
    is worth if the mechanistic step were anywhere. The verdict is `together` where the interval of some offset holds
    0. All of it speaks of one run; across seeds is another question. Raises InputError where levels differ.
    """
    located = _mechanistic(mechanistic)
    run = mechanistic if run is None and not isinstance(mechanistic, Transition) else run
    others = _behavioural(behavioural)
    pairs = [(i, other) for i, other in enumerate(others) if located.found and other.found]
    offsets = tuple(_offset(index, located, other, run) for index, other in pairs)
    return Alignment(located, others, offsets, _verdict(located, others, offsets))


def _mechanistic(value: Transition | AdapterTrajectory) -> Transition:
    if isinstance(value, Transition):
        return value
    from em_interp.transition.find import find_transition

    return find_transition(value)


def _behavioural(value: Transition | Sequence[Transition] | Curve) -> tuple[Transition, ...]:
    if isinstance(value, Transition):
        return (value,)
    if not isinstance(value, Sequence) and not hasattr(value, "parts"):
        raise InputError(f"the behaviour is a transition, several, or a curve; found {type(value).__name__}")
    return tuple(value) if isinstance(value, Sequence) else tuple(onsets(value))


def _offset(index: int, mechanistic: Transition, behavioural: Transition, run: AdapterTrajectory | None) -> Offset:
    m, b = mechanistic.step, behavioural.step
    assert m is not None and b is not None  # both were found
    interval = None
    if mechanistic.interval is not None and behavioural.interval is not None:
        if mechanistic.level != behavioural.level:
            levels = f"{mechanistic.level} and {behavioural.level}"
            raise InputError(f"intervals must have one level to be combined; they have {levels}")
        interval = _difference(b, behavioural.interval, m, mechanistic.interval)
    steps = behavioural.evidence.get("steps") if run is None else run.steps
    return Offset(
        index,
        b - m,
        interval,
        None if interval is None else mechanistic.level,
        None if run is None else _none(np.diff(np.interp([m, b], run.steps, run.cumulative_lr))[0]),
        None if steps is None else _chance(b, abs(b - m), float(steps[0]), float(steps[-1])),
    )


def _difference(
    later: float, later_interval: tuple[float, float], first: float, first_interval: tuple[float, float]
) -> tuple[float, float]:
    below = np.hypot(later - later_interval[0], first_interval[1] - first)
    above = np.hypot(later_interval[1] - later, first - first_interval[0])
    return float(later - first - below), float(later - first + above)


def _chance(step: float, distance: float, first: float, last: float) -> float:
    """Share of the whole steps first … last within `distance`, and half a step, of `step`."""
    steps = np.arange(first, last + 1)
    return float(np.mean(np.abs(steps - step) <= distance + 0.5))


def _none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _verdict(
    mechanistic: Transition, behavioural: tuple[Transition, ...], offsets: tuple[Offset, ...]
) -> AlignmentVerdict:
    if offsets:
        return _order(offsets)
    words = {transition.verdict for transition in behavioural}
    if mechanistic.verdict == "none" and "transition" in words:
        return "only_behavioural"
    if mechanistic.verdict == "inconclusive" or words != {"none"}:
        return "inconclusive"
    return "only_mechanistic" if mechanistic.found else "neither"


def _order(offsets: tuple[Offset, ...]) -> AlignmentVerdict:
    """Which came first, where both were found; offsets without an interval decide nothing."""
    intervals = [offset.interval for offset in offsets if offset.interval is not None]
    if any(offset.coincides for offset in offsets):
        return "together"
    if intervals and all(low > 0 for low, _ in intervals):
        return "mechanistic_first"
    if intervals and all(high < 0 for _, high in intervals):
        return "behavioural_first"
    return "inconclusive"


def _offset_words(behavioural: Transition, offset: Offset) -> str:
    what = " ".join(part for part in (behavioural.questions, behavioural.of) if part).replace("_", " ")
    if behavioural.scale not in (None, 1.0):
        what += f" ×{behavioural.scale:g}"
    said = f"{what} {abs(offset.steps):.0f} steps {'later' if offset.steps >= 0 else 'earlier'}"
    if offset.interval is not None and offset.level is not None:
        said += f" ({offset.level:.0%} interval {offset.interval[0]:.0f} to {offset.interval[1]:.0f})"
    return said if offset.chance is None else f"{said}, chance of being as near {offset.chance:.2g}"
