"""A live monitor: sequential tests for a turn of B and a hump of the gradient norm, with one error rate per run.

Tests. The run's length is known when it begins. At 17 looks, at 20 %, 25 %, … 100 % of its steps, the run so far is
tested as a finished run would be:

- `rotation`: the test of `rotation.significant_rotation`, on the path of B. A bend over 35 % or more of the path so
  far, an arc of any steady curvature, a change of speed (restart, warm-up, decay, stall) and changing noise are in its
  null hypothesis. The first part of such a path is such a path.
- `gradient_norm`: the test of `gradient_norm.significant_peak`, on the log. A trend that falls, rises, stays, or falls
  and then rises is in its null hypothesis, and stays in it when it is cut short.

Guarantee. A look raises an alarm where its p-value is at most level / (signals × looks). By the union bound the
probability that a run without a transition raises any alarm is at most `level`, however the looks, the signals and the
steps depend on each other, provided that each test is valid at that level under its own assumptions: Gaussian noise of
one shape, white or smoothed by momentum, for a turn on a path with visible drift; noise that is independent beyond 20
steps, without a noise model, on one that is mostly noise; noise of the log that is stationary with a memory of up to
1/25 of what has been logged. Where a part of the path is too noisy to show a turn of 60°, `rotation` has two tests, one
on that part alone, so that by theory its share of `level` may double. docs/monitor.md has the false-alarm rates that
were measured on every planted null.

Controls. With K control runs (same length, data without the effect) an alarm also needs a run-wise p-value below that
of each control. If run and controls are exchangeable, this alone bounds false alarms by 1 / (K + 1) for each signal,
whatever the noise; 1 / (K + 1) is the smallest p-value that K controls can give: one control 0.5, 19 controls 0.05.

Memory and time are bounded: at most 161 positions are kept (every second one is dropped when there are more), each
folded to at most 8,192 numbers by a fixed random signed sum, which is linear and keeps inner products without bias; the
log is kept as means over at most 400 equal bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int8

from em_interp.errors import InputError
from em_interp.results import Line, Mark, Result, percent, picture
from em_interp.trajectory.trajectory import rounding_error
from em_interp.transition.direction.rotation import significant_rotation
from em_interp.transition.result import Transition, p_text
from em_interp.transition.signals.gradient_norm import significant_peak
from em_interp.transition.signals.series import N_NULL_DRAWS
from em_interp.utils.checks import check_level, check_type, check_whole

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MonitorSignal = Literal["rotation", "gradient_norm"]
SIGNALS: tuple[MonitorSignal, ...] = ("rotation", "gradient_norm")
LOOKS = tuple(range(20, 101, 5))  # per cent of the run
FALSE_ALARM_RATE = 0.05  # of whole runs
MIN_PEAK_P = 1 / (1 + N_NULL_DRAWS)  # the smallest p-value that a hump of the gradient norm can have
MAX_POSITIONS = 161
MAX_COORDINATES = 8192
MAX_LOG_BINS = 400
FOLD_SEED = 0


@dataclass(frozen=True)
class Look:
    """One test of one signal during training."""

    step: int  # the training step of the look
    signal: MonitorSignal
    transition: Transition  # the result of the test on the run so far
    run_p: float  # the run-wise p-value: corrected for all looks and signals
    alarm: bool  # whether the look raised an alarm
    suspicious: bool  # whether it is significant as a single test: no claim, but a reason to save more steps


class Monitor(Result):
    """Follows a run while it trains, and raises an alarm at a transition; at most `level` of runs give a false one.

    Feed it with `update`; `em.MonitorCallback` does so from a Trainer and `em.watch` from a run directory.

    Args:
        last: The run's number of steps.
        level: Probability of any alarm in a run without a transition, over all signals and looks.
        signals: What is followed; each gets an equal share of `level`.
        controls: Monitors that have followed control runs to their end, with the same level and signals. An alarm then
            also needs a run-wise p-value below that of each of them that has looks at the signal.

    Raises:
        InputError: For a length, level, signal or control that cannot be used.
    """

    NEXT: ClassVar[tuple[str, ...]] = (".plot()", ".frame()", ".to_dict()", "em.find_transitions(run)")

    last: int  # the run's number of steps
    step: int  # the last one seen

    def __init__(
        self,
        last: int,
        level: float = FALSE_ALARM_RATE,
        signals: Sequence[MonitorSignal] = SIGNALS,
        controls: Sequence[Monitor] = (),
    ) -> None:
        check_whole("the number of steps", last, minimum=1)
        check_level(level)
        unknown = [name for name in signals if name not in SIGNALS]
        if unknown or not signals:
            raise InputError(f"signals must be among {', '.join(SIGNALS)}; found {unknown or 'none'}")
        least = MIN_PEAK_P * (len(LOOKS) * len(signals))
        if "gradient_norm" in signals and level < least:
            reason = f"the least that {N_NULL_DRAWS} draws allow the gradient norm over all looks"
            raise InputError(f"level {level:g} is below {least:g}, {reason}; raise it, or give signals=['rotation']")
        for control in controls:
            _check_control(control, last, level, signals)
        self.last, self.level, self.signals, self.controls = int(last), level, tuple(signals), tuple(controls)
        self.step = 0
        self.looks: list[Look] = []
        self._path, self._log = _Path(), _Log(self.last)
        self._next = dict.fromkeys(self.signals, 0)  # index of the next look

    @property
    def finished(self) -> bool:
        """Whether the last step has been seen."""
        return self.step >= self.last

    @property
    def alarms(self) -> list[Look]:
        """The looks that raised an alarm, one a signal at most."""
        return [look for look in self.looks if look.alarm]

    def wants(self, step: int) -> bool:
        """Whether the position at this step would be kept: the others need not be read."""
        return self._path.on_grid(step) or step >= self.last

    def update(
        self, step: int, position: Float[np.ndarray, " coordinate"] | None = None, grad_norm: float | None = None
    ) -> list[Look]:
        """Add a step to the run so far, and take the looks that are due.

        Args:
            step: The training step; steps come in increasing order.
            position: B of all sites, flattened, where it is known.
            grad_norm: The logged gradient norm before clipping, where it is known.

        Returns:
            The looks that were due, usually none.
        """
        self.step = max(self.step, int(step))
        known: list[MonitorSignal] = []
        if position is not None:
            self._path.add(int(step), np.ravel(position))
            known.append("rotation")
        if grad_norm is not None:
            self._log.add(int(step), float(grad_norm))
            known.append("gradient_norm")
        looks = [self._look(int(step), signal) for signal in known if self._due(int(step), signal)]
        self.looks += looks
        return looks

    def _due(self, step: int, signal: MonitorSignal) -> bool:
        """Whether a look at the signal is due; the looks that this one stands for are then counted as done."""
        if signal not in self._next:
            return False
        begun = self._next[signal]
        while self._next[signal] < len(LOOKS) and 100 * step >= LOOKS[self._next[signal]] * self.last:
            self._next[signal] += 1
        return self._next[signal] > begun and not any(look.signal == signal for look in self.alarms)

    def _look(self, step: int, signal: MonitorSignal) -> Look:
        tests = len(LOOKS) * len(self.signals)
        transition = self._path.test(self.level) if signal == "rotation" else self._log.test()
        p_value = 1.0 if transition.p_value is None or not transition.found else transition.p_value
        run_p = min(1.0, p_value * tests)
        alarm = run_p <= self.level and all(run_p < of_control for of_control in self._control_p(signal))
        return Look(step, signal, transition, run_p, alarm, p_value <= self.level)

    def run_p(self, signal: MonitorSignal) -> float | None:
        """The p-value, so far, of the hypothesis that the whole run has no transition of this signal or the others.

        None where there was no look at the signal.
        """
        return min((look.run_p for look in self.looks if look.signal == signal), default=None)

    def reference_p(self, signal: MonitorSignal) -> float | None:
        """The rank of this run among itself and the controls that have looks at the signal; None without such.

        With K of them it is 1 / (K + 1) at least.
        """
        controls, as_clear = self._control_p(signal), self._as_clear(signal)
        return (1 + as_clear) / (1 + len(controls)) if controls and self.run_p(signal) is not None else None

    def _control_p(self, signal: MonitorSignal) -> list[float]:
        """The run-wise p-values of the controls that have looks at the signal."""
        return [run_p for control in self.controls if (run_p := control.run_p(signal)) is not None]

    def _as_clear(self, signal: MonitorSignal) -> int:
        """In how many controls the signal is as clear as here, or clearer."""
        own = self.run_p(signal)
        return 0 if own is None else sum(run_p <= own for run_p in self._control_p(signal))

    def sentence(self) -> str:
        """How far the run was followed, and each signal's alarm or its p-value so far."""
        parts = [f"followed to step {self.step} of {self.last}", *(self._state_of(signal) for signal in self.signals)]
        if self.controls:
            smallest = 1 / (1 + len(self.controls))
            parts.append(
                f"an alarm must be clearer than in {_runs(len(self.controls))}, "
                f"which alone can give no p-value below {smallest:.2g}"
            )
        parts.append(f"at most {percent(self.level)} of runs without a transition raise an alarm")
        return "; ".join(parts)

    def _state_of(self, signal: MonitorSignal) -> str:
        """The signal's alarm or its p-value so far, and how many controls say nothing about it."""
        name, run_p = signal.replace("_", " "), self.run_p(signal)
        looks = [look for look in self.looks if look.signal == signal]
        alarm = next((look for look in looks if look.alarm), None)
        silent = len(self.controls) - len(self._control_p(signal))
        besides = f", with no look at it in {_runs(silent)}" if silent and looks else ""
        if alarm is not None:
            return f"ALARM at step {alarm.step}: {alarm.transition.sentence()}{besides}"
        if run_p is None:
            return f"{name}: no look so far"
        count = "1 look" if len(looks) == 1 else f"{len(looks)} looks"
        as_clear = f", for it is as clear in {self._as_clear(signal)} of {len(self.controls)} controls"
        because = as_clear if run_p <= self.level else ""
        return f"{name}: no alarm in {count} ({p_text(run_p)} for the run){because}{besides}"

    def frame(self) -> pd.DataFrame:
        """One row a look: its step, signal, p-values, and the step and interval of what was found."""
        import pandas as pd

        columns = ("step", "signal", "run_p", "alarm", "suspicious")
        of_transition = {"p_value": "p_value", "transition_step": "step", "verdict": "verdict"}
        rows = [
            {name: getattr(look, name) for name in columns}
            | {name: getattr(look.transition, key) for name, key in of_transition.items()}
            for look in self.looks
        ]
        return pd.DataFrame(rows, columns=[*columns, *of_transition])

    def plot(self) -> go.Figure:
        """The run-wise p-value of each look, the level, and the alarms."""
        from em_interp.figures.monitoring import monitor

        return monitor(self)

    def to_dict(self) -> dict[str, Any]:
        """The state of the run as plain values, as `em-interp watch --json` has it."""
        alarms = {look.signal: {"look_step": look.step, **look.transition.to_dict()} for look in self.alarms}
        signals = {
            signal: {
                "looks": sum(look.signal == signal for look in self.looks),
                "run_p": self.run_p(signal),
                "reference_p": self.reference_p(signal),
                "alarm": alarms.get(signal),
            }
            for signal in self.signals
        }
        return {
            "step": self.step,
            "last": self.last,
            "finished": self.finished,
            "false_alarm_rate": self.level,
            "controls": len(self.controls),
            "signals": signals,
        }

    def _picture(self) -> str:
        lines = []
        for signal in self.signals:
            looks = [look for look in self.looks if look.signal == signal]
            evidence = -np.log10([max(look.run_p, 1e-6) for look in looks]) + 0.0  # no -0
            lines.append(Line(np.array([float(look.step) for look in looks]), evidence, signal.replace("_", " ")))
        return picture(lines, "-log10 p", [Mark(float(look.step)) for look in self.alarms])


def _check_control(control: Monitor, last: int, level: float, signals: Sequence[MonitorSignal]) -> None:
    """Raise InputError for a control that this run cannot be compared with."""
    check_type("a control", control, Monitor, "a Monitor that has followed a control run")
    if not control.finished:
        raise InputError(f"a control must have been followed to its end; it is at step {control.step}")
    if control.last != last:
        raise InputError(f"a control must have the run's {last} steps; it has {control.last}")
    if control.level != level or {*control.signals} != {*signals}:
        found = f"level={control.level:g} and signals={[*control.signals]}"
        raise InputError(f"a control must be followed with level={level:g} and signals={[*signals]}; it has {found}")


def _runs(count: int) -> str:
    return "1 control run" if count == 1 else f"{count} control runs"


class _Path:
    """Positions of B at evenly thinned steps, with their inner products."""

    def __init__(self) -> None:
        self.every = 1  # steps after the first that are not a multiple of it are not kept
        self.steps: list[int] = []
        self.rounding: list[float] = []
        self.full_precision = False  # a position was seen that is not one of 16-bit numbers
        self.vectors = np.zeros((0, 0))  # as many rows as there may be positions; so has the Gram matrix
        self.gram = np.zeros((MAX_POSITIONS + 1, MAX_POSITIONS + 1))

    def on_grid(self, step: int) -> bool:
        """Whether the position at this step would stay."""
        return not self.steps or (step - self.steps[0]) % self.every == 0

    def add(self, step: int, position: Float[np.ndarray, " coordinate"]) -> None:
        """Keep one more position; where there are too many, every second one is dropped."""
        if self.steps and step <= self.steps[-1]:
            raise InputError(f"steps must increase; after {self.steps[-1]} came {step}")
        if self.steps and not self.on_grid(self.steps[-1]):  # it was kept for one look only
            self._keep([*range(len(self.steps) - 1)])
        vector, row = _folded(position), len(self.steps)
        if row == 0:
            self.vectors = np.zeros((MAX_POSITIONS + 1, len(vector)))
        elif len(vector) != self.vectors.shape[1]:
            raise InputError(f"the position at step {step} has another size than those before; is this one run?")
        self.vectors[row] = vector
        self.gram[row, : row + 1] = self.gram[: row + 1, row] = self.vectors[: row + 1] @ vector
        self.steps.append(step)
        self.rounding.append(0.0 if self.full_precision else _rounding(position))
        self.full_precision = self.full_precision or (self.rounding[-1] == 0 and bool(position.any()))
        while len(self.steps) > MAX_POSITIONS:
            self.every *= 2
            self._keep([row for row, kept in enumerate(self.steps) if self.on_grid(kept) or kept == step])

    def test(self, alpha: float) -> Transition:
        """The clearest rotation so far, if it is significant at `alpha` as a single test."""
        count, rounding = len(self.steps), np.array(self.rounding) if any(self.rounding) else None
        rotation = significant_rotation(self.gram[:count, :count], np.array(self.steps), alpha, rounding)
        return replace(rotation, of="B")

    def _keep(self, rows: list[int]) -> None:
        self.steps, self.rounding = [self.steps[row] for row in rows], [self.rounding[row] for row in rows]
        self.vectors[: len(rows)] = self.vectors[rows]
        self.gram[: len(rows), : len(rows)] = self.gram[np.ix_(rows, rows)]


class _Log:
    """Logged gradient norms as geometric means over equal bins of steps."""

    def __init__(self, last: int) -> None:
        self.width = -(-last // MAX_LOG_BINS)
        bins = -(-last // self.width) + 1
        self.count, self.steps, self.logs = np.zeros(bins), np.zeros(bins), np.zeros(bins)

    def add(self, step: int, grad_norm: float) -> None:
        """Add a value; one that is not positive and finite is left out."""
        place = step // self.width
        if np.isfinite(grad_norm) and grad_norm > 0 and place < len(self.count):
            self.count[place] += 1
            self.steps[place] += step
            self.logs[place] += np.log(grad_norm)

    def test(self) -> Transition:
        """The hump so far."""
        bins = self.count > 0
        steps, logs = (total[bins] / self.count[bins] for total in (self.steps, self.logs))
        if len(steps) < 2:
            return Transition("gradient_norm", "inconclusive", "Nothing was logged so far.")
        return significant_peak(steps, np.exp(logs))


def _folded(position: Float[np.ndarray, " coordinate"]) -> Float[np.ndarray, " kept"]:
    """The position itself, or signed sums of its coordinates where there are more than MAX_COORDINATES."""
    if len(position) <= MAX_COORDINATES:
        return position.astype(np.float64)
    folded = np.zeros(MAX_COORDINATES)
    for place, start in enumerate(range(0, len(position), MAX_COORDINATES)):
        part = position[start : start + MAX_COORDINATES]
        folded[: len(part)] += part * _signs(place, len(part))
    return folded


@lru_cache(maxsize=64)
def _signs(place: int, count: int) -> Int8[np.ndarray, " coordinate"]:
    """Random signs of a part of the coordinates, always the same; cached, so read-only."""
    signs = (np.random.default_rng([FOLD_SEED, place]).integers(0, 2, count) * 2 - 1).astype(np.int8)
    signs.flags.writeable = False
    return signs


def _rounding(position: Float[np.ndarray, " coordinate"]) -> float:
    """Squared rounding error of the position, where its values are numbers of a 16-bit type."""
    row = position.astype(np.float32)[None, None, :]
    first = row[..., :MAX_COORDINATES]  # they tell, in a fraction of the time, unless all are zero
    if first.any() and not rounding_error(first).any():
        return 0.0
    return float(rounding_error(row).sum())
