"""Do the adapter and the behaviour change together? Offsets between the transitions of one run, and their order.

A transition is a ramp, so it has a midpoint and a start, the step by which a tenth of the change has happened. An order
is claimed only where the midpoints and the starts agree on it, each with its interval; that two transitions come
`together` only where both offsets may be 0 and a step placed at random in the run would seldom be as near. `_order_of`
decides this for one behavioural transition, and the headline comes from it.

The verdict on all behavioural transitions claims less where it is `together`: the offset of some midpoint may be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from em_interp.errors import InputError
from em_interp.results import Line, Mark, Result, interval_columns, interval_text, picture
from em_interp.run import Run
from em_interp.trajectory.load import TrajectorySource, as_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.family import FAMILY_LEVEL, FamilyWise, family_wise, main_onset
from em_interp.transition.find import find_transition
from em_interp.transition.onsets.onset import AnyCurve, onsets
from em_interp.transition.result import Transition
from em_interp.utils.checks import as_list, check_type, described

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

AlignmentVerdict = Literal[
    "together",
    "mechanistic_first",
    "behavioural_first",
    "only_mechanistic",
    "only_behavioural",
    "neither",
    "inconclusive",
]
OrderWord = Literal["before", "after", "together", "undecided", "no closer than chance"]
MAX_CHANCE = 0.05  # the largest `chance` with which two transitions are still called together
WORDS = {
    "together": "the midpoints of the two changes coincide, as far as the intervals can tell",
    "mechanistic_first": "every change of behaviour is later than the adapter's",
    "behavioural_first": "every change of behaviour is earlier than the adapter's",
    "only_mechanistic": "the adapter changes, the behaviour does not",
    "only_behavioural": "the behaviour changes without a transition of the adapter",
    "neither": "neither the adapter nor the behaviour changes",
    "inconclusive": "whether the two coincide cannot be decided",
}


@dataclass(frozen=True)
class Offset:
    """By how much one behavioural transition is later (positive) than the mechanistic one."""

    behavioural: int  # index of the behavioural transition
    steps: float  # behavioural minus mechanistic step, in training steps
    interval: tuple[float, float] | None  # of `steps`; None where one of the two has none
    level: float | None  # probability with which `interval` contains the offset
    cumulative_lr: float | None  # the same in cumulative learning rate; None without a log
    chance: float | None  # that a step placed uniformly in the run falls as near to the behavioural one

    @property
    def coincides(self) -> bool:
        """Whether the interval contains 0."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]

    def to_dict(self) -> dict[str, Any]:
        """The offset as plain values."""
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True)
class Order:
    """Which of two transitions came first: the mechanistic one `before` or `after` the behavioural one, or neither."""

    word: OrderWord
    reason: str


@dataclass(frozen=True, repr=False)
class Alignment(Result):
    """A mechanistic transition and the behavioural ones of the same run, with an offset where both were found."""

    NEXT: ClassVar[tuple[str, ...]] = (".plot()", ".frame()", ".to_dict()", "em.report(run)")

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
            "order": None if self.order is None else asdict(self.order),
            **self.family.to_dict(),
        }

    @property
    def family(self) -> FamilyWise:
        """The mechanistic transition and the main onset of EM at one family-wise level (`transition.family`)."""
        main = main_onset(self.behavioural) or next(iter(self.behavioural), None)
        return family_wise([self.mechanistic] if main is None else [self.mechanistic, main])

    @property
    def orders(self) -> tuple[Order, ...]:
        """The order of the mechanistic transition and the behavioural one, for each offset."""
        return tuple(_order_of(self.mechanistic, self.behavioural[o.behavioural], o) for o in self.offsets)

    @property
    def order(self) -> Order | None:
        """The order of the mechanistic and the declared behavioural transition; None where one was not found."""
        declared = self.family.declared[-1]
        pairs = zip(self.offsets, self.orders, strict=True)
        return next((order for offset, order in pairs if self.behavioural[offset.behavioural] is declared), None)

    @property
    def claim(self) -> str:
        """What the declared transitions alone show, without the reason."""
        family, order = self.family, self.order
        first, last = family.declared[0], family.declared[-1]
        if order is None:
            return _capital(WORDS[_verdict(first, family.declared[1:], ())])
        sentence = HEADLINES[order.word].format(first=first.name, last=last.name)
        if not all(family.holds(t) for t in family.declared):
            sentence += f", but not both are significant at a family-wise level of {FAMILY_LEVEL:.0%}"
        return _capital(sentence)

    @property
    def claim_reason(self) -> str:
        """What the claim rests on: the two offsets, or what was found of each declared transition."""
        if self.order is not None:
            return self.order.reason
        return "; ".join(f"{t.name}: {t.verdict}" for t in self.family.declared)

    def headline(self) -> str:
        """One sentence on the declared transitions alone, with what it rests on."""
        return f"{self.claim}: {self.claim_reason}."

    def frame(self) -> pd.DataFrame:
        """One row a behavioural transition, with its offset; NaN where one of the two was not found."""
        import pandas as pd

        nothing = Offset(-1, np.nan, None, None, None, None), None
        offsets = {o.behavioural: (o, order) for o, order in zip(self.offsets, self.orders, strict=True)}
        rows = []
        for index, transition in enumerate(self.behavioural):
            offset, order = offsets.get(index, nothing)
            row = {key: getattr(transition, key) for key in ("questions", "scale", "of", "verdict", "step")}
            row |= {"offset": offset.steps, **interval_columns("offset", offset.interval)}
            start = None if order is None else _start_offset(self.mechanistic, transition)
            row |= {"start_offset": start and start[0], **interval_columns("start_offset", start and start[1])}
            row |= {"cumulative_lr": offset.cumulative_lr, "chance": offset.chance}
            rows.append(row | {"order": None if order is None else order.word})
        ends = [f"{name}{end}" for name in ("offset", "start_offset") for end in ("", "_low", "_high")]
        numbers = dict.fromkeys([*ends, "cumulative_lr", "chance"], float)
        columns = ["questions", "scale", "of", "verdict", "step", *numbers, "order"]
        return pd.DataFrame(rows, columns=columns).astype(numbers)

    def plot(self) -> go.Figure:
        """All transitions on one time axis."""
        from em_interp.figures.time_axis import alignment

        return alignment(self)

    @property
    def words(self) -> str:
        """The verdict in words: of several changes, how many coincide with the adapter's, or come after or before."""
        words, count = [order.word for order in self.orders], len(self.offsets)
        coinciding = sum(offset.coincides for offset in self.offsets)
        if self.verdict == "together" and coinciding < count:
            changes = f"the midpoints of {coinciding} of {count} changes of behaviour coincide"
            return f"{changes} with the adapter's, as far as the intervals can tell"
        if self.verdict == "inconclusive" and count:
            later, earlier = words.count("before"), words.count("after")
            if not later and not earlier:
                return "no change of behaviour can be told to be earlier or later than the adapter's"
            changes = f"of {count} changes of behaviour, {later} can be told to be later than the adapter's"
            return f"{changes} and {earlier} earlier"
        return WORDS[self.verdict]

    def sentence(self) -> str:
        """The headline, then the verdict on all onsets in words, with the offsets."""
        offsets = [_offset_text(self.behavioural[offset.behavioural], offset) for offset in self.offsets]
        verdict = f"verdict on all onsets: {self.verdict.replace('_', ' ')}, {self.words}"
        return "; ".join([f"{self.headline()} {_capital(verdict)}", *offsets])

    def _lines(self) -> list[str]:
        transitions = (self.mechanistic, *self.behavioural)
        return [*super()._lines(), *(transition.sentence() for transition in transitions)]

    def _picture(self) -> str:
        """The behaviour's curves with the mechanistic step marked."""
        curves = [t for t in self.behavioural if "rate" in t.evidence and t.scale in (None, 1.0) and t.of == "em"]
        lines = [Line(t.evidence["steps"], t.evidence["rate"], (t.questions or "").replace("_", " ")) for t in curves]
        step, interval = self.mechanistic.step, self.mechanistic.interval
        return picture(lines, "EM rate", [] if step is None else [Mark(step, interval)])


def align(
    mechanistic: Transition | TrajectorySource,
    behavioural: Transition | Sequence[Transition] | AnyCurve,
    run: TrajectorySource | None = None,
) -> Alignment:
    """The offsets of behavioural transitions from a mechanistic one, and whether they coincide.

    The interval of an offset b − m combines those of b and m, taken as independent, by the distances of their ends from
    the estimates: (b − b_low) and (m_high − m) below, the others above, added in quadrature (Zou and Donner 2008). It
    is about one run; across seeds see `em.compare`.

    Args:
        mechanistic: A transition of the path; a trajectory, a run or its path stand for the rotation of B.
        behavioural: One transition or several; a behaviour curve stands for the onset of EM of each of its scales and
            question sets.
        run: The trajectory (or run, or its path) that has the range of steps and the learning rates; by default
            `mechanistic` where that is one. Without it the range is that of the sampled steps.

    Returns:
        The offsets, positive where the behaviour is later. `chance` of an offset is the share of the run's steps as
        near to b as m is, to half a step. The verdict is `together` where the interval of some offset contains 0, and
        `mechanistic_first` or `behavioural_first` where the midpoints and the starts of every change agree on it.

    Raises:
        InputError: Where the levels of two intervals differ.
    """
    expected = "a trajectory, a run or its path"
    check_type("mechanistic", mechanistic, (Transition, AdapterTrajectory, Run, str, Path), f"a transition, {expected}")
    check_type("run", run, (AdapterTrajectory, Run, str, Path, type(None)), expected)
    if isinstance(mechanistic, Transition):
        path = None if run is None else as_trajectory(run)
    else:
        located = as_trajectory(mechanistic)
        mechanistic, path = find_transition(located), located if run is None else as_trajectory(run)
    others = _transitions_of(behavioural)
    both = [(index, other) for index, other in enumerate(others) if mechanistic.found and other.found]
    offsets = tuple(_offset(index, mechanistic, other, path) for index, other in both)
    return Alignment(mechanistic, others, offsets, _verdict(mechanistic, others, offsets))


def _transitions_of(behavioural: Transition | Sequence[Transition] | AnyCurve) -> tuple[Transition, ...]:
    if isinstance(behavioural, AnyCurve):
        return tuple(onsets(behavioural))
    transitions = as_list(behavioural)
    for value in transitions:
        if not isinstance(value, Transition):
            raise InputError(
                f"behavioural must be a transition, several, or a behaviour curve; found {described(value)}"
            )
    return tuple(transitions)


def _offset(index: int, mechanistic: Transition, behavioural: Transition, path: AdapterTrajectory | None) -> Offset:
    m, b = mechanistic.step, behavioural.step
    assert m is not None and b is not None  # both were found
    interval = None
    if mechanistic.interval is not None and behavioural.interval is not None:
        if mechanistic.level != behavioural.level:
            levels = f"{mechanistic.level} and {behavioural.level}"
            expected = "one level was expected: locate both transitions with the same level="
            raise InputError(f"the intervals have levels {levels}; {expected}")
        interval = _difference(b, behavioural.interval, m, mechanistic.interval)
    steps = behavioural.evidence.get("steps") if path is None else path.steps
    lr = np.nan if path is None else np.diff(np.interp([m, b], path.steps, path.cumulative_lr))[0]
    return Offset(
        index,
        b - m,
        interval,
        None if interval is None else mechanistic.level,
        float(lr) if np.isfinite(lr) else None,
        None if steps is None else chance_of(b, abs(b - m), float(steps[0]), float(steps[-1])),
    )


def _order_of(mechanistic: Transition, behavioural: Transition, offset: Offset) -> Order:
    """The order that midpoints and starts agree on; by the midpoints alone where a start is not known."""
    middle, start = offset.interval, _start_offset(mechanistic, behavioural)
    near = "" if offset.chance is None else f"; a step placed at random is as near in {offset.chance:.0%} of cases"
    if middle is None:
        return Order("undecided", "one of the two steps has no interval")
    between = f"the midpoints are {_apart(offset.steps, middle)} apart"
    between += ", the starts are not known" if start is None else f", the starts {_apart(*start)}"
    signs = {_sign(middle)} if start is None else {_sign(middle), _sign(start[1])}
    if signs == {1}:
        return Order("before", between + near)
    if signs == {-1}:
        return Order("after", between + near)
    if signs != {0}:
        return Order("undecided", f"{between}, which do not agree on an order")
    if offset.chance is None:
        return Order("undecided", f"{between}; with run=… it would be known how near a random step would be")
    return Order("together" if offset.chance <= MAX_CHANCE else "no closer than chance", between + near)


ORDERED: dict[OrderWord, AlignmentVerdict] = {"before": "mechanistic_first", "after": "behavioural_first"}
HEADLINES = {
    "before": "{first} comes before {last}",
    "after": "{first} comes after {last}",
    "together": "{first} and {last} cannot be told apart in time",
    "undecided": "which of {first} and {last} comes first cannot be told",
    "no closer than chance": "{first} and {last} are no closer in time than chance would have them",
}


def _start_offset(mechanistic: Transition, behavioural: Transition) -> tuple[float, tuple[float, float]] | None:
    """By how much a tenth of the behavioural change is later than a tenth of the mechanistic one, with its interval."""
    tenth, interval = (behavioural.evidence.get(key) for key in ("tenth", "tenth_interval"))
    if tenth is None or interval is None or mechanistic.step is None or mechanistic.interval is None:
        return None
    ramp = (mechanistic.width or 0.0) / 2  # half of the steps from 10 % to 90 %
    low, high = (end - ramp for end in mechanistic.interval)
    start = mechanistic.step - ramp
    return tenth - start, _difference(tenth, interval, start, (low, high))


def _sign(interval: tuple[float, float]) -> int:
    return 1 if interval[0] > 0 else -1 if interval[1] < 0 else 0


def _apart(steps: float, interval: tuple[float, float]) -> str:
    return f"{steps:+.0f} steps ({interval[0]:+.0f} to {interval[1]:+.0f})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _difference(
    later: float, later_interval: tuple[float, float], first: float, first_interval: tuple[float, float]
) -> tuple[float, float]:
    below = np.hypot(later - later_interval[0], first_interval[1] - first)
    above = np.hypot(later_interval[1] - later, first - first_interval[0])
    return float(later - first - below), float(later - first + above)


def chance_of(step: float, distance: float, first: float, last: float) -> float:
    """Share of the whole steps first … last within `distance`, and half a step, of `step`."""
    steps = np.arange(first, last + 1)
    return float(np.mean(np.abs(steps - step) <= distance + 0.5))


def _verdict(
    mechanistic: Transition, behavioural: tuple[Transition, ...], offsets: tuple[Offset, ...]
) -> AlignmentVerdict:
    if any(offset.coincides for offset in offsets):
        return "together"
    if offsets:
        words = {_order_of(mechanistic, behavioural[offset.behavioural], offset).word for offset in offsets}
        return ORDERED.get(words.pop(), "inconclusive") if len(words) == 1 else "inconclusive"
    verdicts = {transition.verdict for transition in behavioural}
    if mechanistic.verdict == "none" and "transition" in verdicts:
        return "only_behavioural"
    if mechanistic.verdict == "inconclusive" or verdicts != {"none"}:
        return "inconclusive"
    return "only_mechanistic" if mechanistic.found else "neither"


def _offset_text(behavioural: Transition, offset: Offset) -> str:
    text = f"{behavioural.name} {abs(offset.steps):.0f} steps {'later' if offset.steps >= 0 else 'earlier'}"
    if offset.interval is not None and offset.level is not None:
        text += f" ({interval_text(offset.interval, offset.level)})"
    return text if offset.chance is None else f"{text}, chance of being as near {offset.chance:.2g}"
