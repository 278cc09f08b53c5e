"""Does a run's path turn further than its control's does there?

A control is trained on other data with the same schedule, optimizer and chat format. A turn that both runs have comes
from what they share; it is no sign of what sets the run's data apart.

Null hypothesis: near the step where the run turns, the control turns by the same angle or more.

Statistic. The difference of D (`turn_test`) between run and control. Both are seen through the window in which the
run's turn is clearest, each at the place where its D is largest, of those at which the middle of the run's turn may
lie: both are maxima over the same places, so that taking the maximum favours neither. A control that turns by less
than its own steady curvature turns by 0. The standard error is that of independent runs, from the lower tail of
simulated copies of the run's window and the upper tail of the control's; it is at least the first-order one. The
p-value is one-sided and normal, the interval of the difference two-sided.

A turn beyond the control's passes both tests, its own and this one. Its p-value is the larger of the two, which needs
no correction. docs/calibration.md has the error rates.

A turn of a very noisy path (`noisy_turn`) has no such window, so that it cannot be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from em_interp.results import interval_text
from em_interp.transition.direction.path_noise import Increments, Noise, estimate_noise
from em_interp.transition.direction.rotation import DETECTABLE_TURN
from em_interp.transition.direction.turn_test import TurnScan, scan_turns, simulated_errors
from em_interp.transition.result import Transition, p_text

BEYOND_ALPHA = 0.05
MAX_OTHER_LENGTH = 0.5  # by which the lengths of the control's block and gap may differ from the run's, as a share
NO_WINDOW = "The turn shows only in averages over long blocks, which are not compared with a control's."
HIDDEN = "Whether its control turns there as well cannot be distinguished from the control's noise."


@dataclass(frozen=True)
class _Seen:
    """A turn through one window, and one standard error of it in either direction, in degrees."""

    step: float
    angle: float
    error_down: float
    error_up: float


def beyond_control(turn: Transition, run: Increments, control: Increments | str, level: float = 0.95) -> Transition:
    """A rotation that was found, tested against the control's path.

    Args:
        turn: The run's rotation, with its evidence.
        run: The increments in which it was found (`path_increments`).
        control: The control's, or why it has none.
        level: Probability with which the interval holds the difference of the angles.

    Returns:
        The rotation with both angles in its reason. `none` where it does not turn significantly further than the
        control, though a turn 60° further would have been seen; `inconclusive` where it would not, and where the
        control's direction is hidden by noise. `evidence["beyond_control"]` holds the control's angle, the difference,
        and the ends of the difference's interval, in degrees.
    """
    if isinstance(control, str):
        return replace(turn, verdict="inconclusive", reason=f"{turn.reason} Of its control: {control}", p_value=None)
    if "window" not in turn.evidence:
        return replace(turn, verdict="inconclusive", reason=f"{turn.reason} {NO_WINDOW}", p_value=None)
    own, other = (_largest(increments, turn.evidence["window"]) for increments in (run, control))
    if own is None or other is None:
        return replace(turn, verdict="inconclusive", reason=f"{turn.reason} {HIDDEN}", p_value=None)
    angle, of_control = own.angle, max(other.angle, 0.0)
    difference, spread = angle - of_control, float(np.hypot(own.error_down, other.error_up))
    low, high = difference + spread * norm.ppf([(1 - level) / 2, (1 + level) / 2])
    p_value = float(norm.sf(difference / spread))
    words = (
        f"Beyond steady curvature the run turns by {angle:.0f}°, its control by {of_control:.0f}° at step "
        f"{other.step:.0f}: {difference:.0f}° further ({interval_text((low, high), level)}, "
        f"{p_text(p_value)})."
    )
    turn = replace(turn, evidence={**turn.evidence, "beyond_control": np.array([of_control, difference, low, high])})
    if p_value <= BEYOND_ALPHA:
        return replace(turn, p_value=max(turn.p_value or 0.0, p_value), reason=f"{turn.reason} {words}")
    if spread * norm.isf(BEYOND_ALPHA) > DETECTABLE_TURN:
        words = f"Too noisy to tell whether it turns further than its control. {words}"
        return replace(turn, verdict="inconclusive", reason=words, p_value=p_value)
    words = f"It does not turn significantly further than its control. {words}"
    return replace(turn, verdict="none", reason=words, p_value=p_value, step=None, interval=None, level=None)


def _largest(increments: Increments, window: Float[np.ndarray, " 6"]) -> _Seen | None:
    """The largest turn of a path near the middle of a window, through the window most like it; None if undefined."""
    centre, first, last, *_, gap = window
    block, slack = (last - first - gap) / 2, (last - first + gap) / 4  # the middle of the turn lies within the slack
    noise = estimate_noise(increments)

    def other_length(scan: TurnScan) -> float:
        steps = 2 * increments.spacing
        return float(abs(scan.half_block * steps - block) + abs(scan.half_gap * steps - gap))

    for scan in sorted(scan_turns(increments, noise), key=other_length):
        near = np.abs(increments.edges[scan.centre] - centre) <= slack
        if other_length(scan) <= MAX_OTHER_LENGTH * (block + gap) and near.any():
            row = int(np.where(near, scan.turn, -np.inf).argmax())
            return _seen(scan, row, increments, noise)
    return None


def _seen(scan: TurnScan, row: int, increments: Increments, noise: Noise) -> _Seen:
    down, _, up = simulated_errors(scan, row, noise)
    first_order = float(scan.error[row])
    return _Seen(
        step=float(increments.edges[scan.centre[row]]),
        angle=float(scan.turn[row]),
        error_down=max(down, first_order),
        error_up=max(up, first_order),
    )
