"""The signal `rotation`: a turn of the path by 20° or more that completes within 15 % of the run's steps.

Model. Increments of the path are drift plus noise (`path_noise`). Steady curvature is not a turn.

Null hypothesis, at each step: the direction of the drift turns there by at most MIN_TURN = 20° beyond what the path's
own steady curvature would have turned.

Statistic. D (`turn_test`), the angle between the mean directions of a block of increments before and one after the
step, less the steady curvature between their centres; z = (D - 20°) / standard error, the error from the lower tail of
simulated copies of the window. Blocks of 10 to 25 % of the run with gaps of up to 10 % are tried at every step.

Search. Greedy non-maximum suppression: take the window and step with the largest z, mask its reach, repeat while
p ≤ ROTATION_ALPHA. Two turns are the same one where the step of each lies in the other's interval; the clearer one is
kept. p = MULTIPLICITY · P(Z ≥ z); the factor stands for the number of windows searched, and is calibrated on planted
paths without a turn (docs/rotation.md has the error rates).

Noisy paths. Where the noise exceeds the drift, so that no window could show even a turn of 60°, the angle between mean
drifts over long blocks is tested, without a noise model (`noisy_turn`). Where only a part of the run is so noisy there
are two tests, each at ROTATION_ALPHA: by theory up to twice that in all; planted paths show less (docs/calibration.md).

Step. A ramp of the heading is fitted by generalised least squares (`ramp`) through every window that sees a turn there
about as clearly as the clearest. One whose interval runs into the end of the steps at which its window may place it
does not tell where the turn is, and is left out. `interval` is the union of the others' profile-likelihood intervals,
rounded outward to whole steps; `step` and `width` (10 % to 90 %) are those of the median ramp. `angle_deg` is what the
clearest window sees.

Broad bends. A second p-value is that of the hypothesis that the ramp of the clearest window takes 35 % of the run or
more; the larger of the two counts. A bend over more than 30 % of the run is `none`; its angle and width are reported.
Turns that take 15 to 30 % of the run may be called either; from 35 % on a turn belongs to the null hypothesis.

Invariant to the speed and sign of the path and to rotations of its space; for ΔW to the gauge B -> c·B, A -> A/c too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

from em_interp.transition.direction.noisy_turn import MEMORY, NoisyTurn, find_noisy_turn
from em_interp.transition.direction.path_noise import (
    Increments,
    Noise,
    estimate_noise,
    even_increments,
    resolved_increments,
    unusable,
)
from em_interp.transition.direction.ramp import Ramp, fit_ramp
from em_interp.transition.direction.turn_test import (
    MIN_TURN,
    TurnScan,
    clearness,
    drift_length,
    scan_turns,
    simulated_error,
)
from em_interp.transition.result import Transition, Verdict, p_text
from em_interp.utils.checks import check_level

ROTATION_ALPHA = 0.05
MULTIPLICITY = 2.0  # windows are many but overlap, and the null gives 20° away: calibrated on planted paths
MIN_P = 1e-6  # beyond it the normal tail is not reliable
MAX_Z = float(norm.isf(MIN_P / MULTIPLICITY))  # windows with a larger z are equally certain
Z_TOLERANCE = 1.0  # a window whose z is lower by no more than this sees the turn about as clearly
RESOLVED_ERROR = 5.0  # degrees; the block grows until a turn is known this well
MIN_INCREMENTS = 20
MIN_RESOLVED = 0.7  # of the run; the rest may be lost to rounding
ROUNDED = (
    "The path is stored in 16 bits: only in {share:.0%} of the run is rounding small beside the moves between saved "
    "steps; save adapters in float32."
)
FIT_SHARE = 0.25  # of the run, on either side of a turn: the increments to which its ramp is fitted
MIN_LENGTH_SHARE = 0.10  # of the path's length, on either side of a turn
DETECTABLE_TURN = 60.0  # degrees; "none" means that a turn of this size would have been found
SIGNIFICANT_Z = float(norm.isf(ROTATION_ALPHA / MULTIPLICITY))


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A turn seen through one window at one step, and by how many standard errors it exceeds 20°."""

    scan: TurnScan
    row: int
    z: float

    @property
    def centre(self) -> int:
        return int(self.scan.centre[self.row])

    @property
    def reach(self) -> int:
        """Increments from the centre to the ends of the window."""
        return 2 * self.scan.half_block + self.scan.half_gap

    @property
    def slack(self) -> int:
        """Increments from the centre within which the middle of the turn may lie."""
        return self.scan.half_gap + self.scan.half_block

    @property
    def p_value(self) -> float:
        return float(np.clip(MULTIPLICITY * norm.sf(self.z), MIN_P, 1.0))


def locate_rotations(
    gram: Float[np.ndarray, "step step"],
    steps: Int[np.ndarray, " step"],
    cumulative_lr: Float[np.ndarray, " step"] | None = None,
    level: float = 0.95,
    rounding: Float[np.ndarray, " step"] | None = None,
) -> list[Transition]:
    """Find the rotations of a path.

    Args:
        gram: Inner products of the path's positions.
        steps: Training steps of the positions, increasing.
        cumulative_lr: Sum of the learning rates up to each step. It serves only to tell a side that is short because
            the schedule ran out from one on which learning was over.
        level: Probability with which each interval contains the step.
        rounding: Squared rounding error of each position, where the path was stored in 16 bits.

    Returns:
        The rotations in the order of their steps, or one answer whose verdict is `none` or `inconclusive`.
    """
    check_level(level)
    increments = path_increments(gram, steps, rounding)
    if isinstance(increments, str):
        return [Transition("rotation", "inconclusive", increments)]
    noise = estimate_noise(increments)
    scans = scan_turns(increments, noise)
    evidence = _profile(scans, increments)
    candidates = _search(scans, noise)
    lr = None if cumulative_lr is None else np.interp(increments.edges, steps, cumulative_lr)
    if not candidates or candidates[0].p_value > ROTATION_ALPHA:
        noisy = find_noisy_turn(increments, ~_detectable(evidence), ROTATION_ALPHA, level)
        if noisy is not None:
            return [_noisy_answer(noisy, increments, noise, lr, level)]
    if not candidates:
        reason = "At no step can the direction of the path be distinguished from its noise."
        return [Transition("rotation", "inconclusive", reason, evidence=evidence)]
    turns: list[Transition] = []
    for candidate in candidates:
        if candidate.p_value <= ROTATION_ALPHA:
            ramps = _ramps(candidate, scans, increments, noise, level)
            turn = _answer(candidate, ramps, increments, noise, lr, evidence)
            if not any(turn.coincides_with(clearer) for clearer in turns):
                turns.append(turn)
    located = sorted((turn for turn in turns if turn.found), key=lambda turn: turn.step or 0.0)
    return located or turns[:1] or [_no_turn(candidates[0], increments, noise, evidence)]


def significant_rotation(
    gram: Float[np.ndarray, "step step"],
    steps: Int[np.ndarray, " step"],
    alpha: float,
    rounding: Float[np.ndarray, " step"] | None = None,
) -> Transition:
    """The clearest rotation of the path so far, where it is significant at `alpha`: for many looks at one run.

    The test of `locate_rotations` and no more: the step is that of the clearest window's ramp, and without a
    significant turn nothing is estimated. Where the first-order z is Z_TOLERANCE too low, there is no p-value either.

    Args:
        gram: Inner products of the path's positions.
        steps: Training steps of the positions, increasing.
        alpha: Level of the test.
        rounding: Squared rounding error of each position, where the path was stored in 16 bits.

    Returns:
        A `transition`, or `none` where the clearest turn may be a broad bend, or else `inconclusive`.
    """
    increments = path_increments(gram, steps, rounding)
    if isinstance(increments, str):
        return Transition("rotation", "inconclusive", increments)
    noise = estimate_noise(increments)
    scans = scan_turns(increments, noise)
    score = max((float(clearness(scan).max()) for scan in scans if len(scan.centre)), default=-np.inf)
    best = _search(scans, noise)[0] if score >= norm.isf(alpha / MULTIPLICITY) - Z_TOLERANCE else None
    if best is not None and best.p_value <= alpha:
        return _answer(best, [_ramp(best, increments, noise, 0.95)], increments, noise, None, {}, alpha)
    noisy = find_noisy_turn(increments, ~_detectable(_profile(scans, increments)), alpha)
    if noisy is not None:
        return _noisy_answer(noisy, increments, noise, None, 0.95)
    return Transition("rotation", "inconclusive", "No significant turn so far.", p_value=best.p_value if best else None)


def strongest(transitions: Sequence[Transition]) -> Transition:
    """The transition with the smallest p-value, then the largest angle."""
    return min(transitions, key=lambda t: (t.p_value if t.p_value is not None else 2.0, -(t.angle_deg or 0.0)))


def path_increments(
    gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"], rounding: Float[np.ndarray, " step"] | None
) -> Increments | str:
    """The increments that can be tested for turns, or why there are none."""
    increments = even_increments(gram, steps)
    if increments.count < MIN_INCREMENTS:
        return f"Only {increments.count} evenly spaced increments were saved; {MIN_INCREMENTS} are needed."
    if reason := unusable(increments):
        return reason
    if rounding is not None and rounding.any():
        increments, share = resolved_increments(increments, np.interp(increments.edges, steps, rounding))
        if share < MIN_RESOLVED or increments.count < MIN_INCREMENTS:
            return ROUNDED.format(share=share)
    return increments


def _search(scans: list[TurnScan], noise: Noise) -> list[_Candidate]:
    """Greedy non-maximum suppression: the best candidate, then the best outside its window, while p ≤ ROTATION_ALPHA.

    The first is returned whatever its p-value. Of the four windows with the best first-order z the error is simulated.
    """
    usable = _usable(scans)
    candidates: list[_Candidate] = []
    while not candidates or candidates[-1].p_value <= ROTATION_ALPHA:
        peaks = []
        for scan, use in zip(scans, usable, strict=True):
            score = np.where(use & _unmasked(scan.centre, candidates), clearness(scan), -np.inf)
            if np.isfinite(score).any():
                peaks.append((float(score.max()), scan, int(score.argmax())))
        peaks.sort(key=lambda peak: -peak[0])
        simulated = [_Candidate(scan, row, _z(scan, row, noise)) for _, scan, row in peaks[:4]]
        best = max(simulated, key=lambda candidate: candidate.z, default=None)
        if best is None or (candidates and best.p_value > ROTATION_ALPHA):
            break
        candidates.append(best)
    return candidates


def _usable(scans: list[TurnScan]) -> list[Bool[np.ndarray, " place"]]:
    """Where each window is used: at centres where no shorter block with the same gap has resolved the turn."""
    resolved_by_gap: dict[int, set[int]] = {}
    usable = []
    for scan in scans:
        resolved = resolved_by_gap.setdefault(scan.half_gap, set())
        usable.append(~np.isin(scan.centre, list(resolved)))
        resolved.update(scan.centre[scan.error <= RESOLVED_ERROR].tolist())
    return usable


def _unmasked(centre: Int[np.ndarray, " place"], candidates: list[_Candidate]) -> Bool[np.ndarray, " place"]:
    masks = [np.abs(centre - candidate.centre) >= candidate.reach for candidate in candidates]
    return np.logical_and.reduce([np.ones(len(centre), bool), *masks])


def _z(scan: TurnScan, row: int, noise: Noise) -> float:
    """Standard errors by which the turn exceeds 20°, the error that of simulated copies."""
    return float((scan.turn[row] - MIN_TURN) / simulated_error(scan, row, noise))


def _ramps(
    candidate: _Candidate, scans: list[TurnScan], increments: Increments, noise: Noise, level: float
) -> list[Ramp]:
    """The ramp seen through the candidate's window, then through every other that sees a turn there about as clearly.

    On a path with one turn they agree. On one that bends more than once each window has a ramp of its own, and it
    depends on the noise which of them is the clearest.
    """
    ramps = [_ramp(candidate, increments, noise, level)]
    for scan in scans:
        near = np.abs(scan.centre - candidate.centre) <= candidate.slack
        if scan is candidate.scan or not near.any():
            continue
        row = int(np.where(near, clearness(scan), -np.inf).argmax())
        seen = _Candidate(scan, row, _z(scan, row, noise))
        if seen.z >= min(candidate.z, MAX_Z) - Z_TOLERANCE:
            ramps.append(_ramp(seen, increments, noise, level))
    return ramps


def _ramp(candidate: _Candidate, increments: Increments, noise: Noise, level: float) -> Ramp:
    """The ramp between the candidate's two blocks, fitted to a quarter of the run on either side."""
    centre, gap, far = candidate.centre, candidate.scan.half_gap, candidate.reach
    before, after = slice(centre - far, centre - gap), slice(centre + gap, centre + far)
    reach = max(far, round(FIT_SHARE * increments.count))
    window = slice(max(centre - reach, 0), min(centre + reach, increments.count))
    first, last = (float(increments.edges[centre + side * candidate.slack]) for side in (-1, 1))
    return fit_ramp(increments, noise, before, after, window, (first, last), level)


def _answer(
    candidate: _Candidate,
    ramps: list[Ramp],
    increments: Increments,
    noise: Noise,
    cumulative_lr: np.ndarray | None,
    evidence: dict[str, np.ndarray],
    alpha: float = ROTATION_ALPHA,
) -> Transition:
    """The answer for a turn: the candidate is tested, and the ramps, its own first, say where the turn is."""
    angle, p_value = float(candidate.scan.turn[candidate.row]), max(candidate.p_value, ramps[0].p_broad)
    if p_value > alpha:
        reason, width = "The path bends, but this may take more than 30 % of the run.", ramps[0].width
        return Transition("rotation", "none", reason, p_value=p_value, width=width, angle_deg=angle, evidence=evidence)
    ramps = _median_first([ramp for ramp in ramps if ramp.bracketed] or ramps)
    ramp = ramps[0]
    reason = "The path turns by more than 20° beyond its own curvature."
    first, last = min(ramp.step for ramp in ramps), max(ramp.step for ramp in ramps)
    if first < np.floor(ramp.interval[0]) or last > np.ceil(ramp.interval[1]):
        reason += f" It bends more than once: windows of different lengths see the turn at {first:.0f} to {last:.0f}."
    bends = np.array([[other.step, *other.interval] for other in ramps])  # that of the answer first
    low, high = bends[:, 1].min(), bends[:, 2].max()
    seen = {"heading": ramp.heading, "bends": bends, "window": _window(candidate, increments)}
    turn = Transition(
        "rotation",
        "transition",
        reason,
        step=ramp.step,
        interval=(float(np.floor(low)), float(np.ceil(high))),
        level=ramp.level,
        p_value=p_value,
        width=ramp.width,
        angle_deg=angle,
        evidence={**evidence, "ramp": np.array([low, high]), **seen},
    )
    return _with_length_shares(turn, increments, noise, cumulative_lr)


def _window(candidate: _Candidate, increments: Increments) -> Float[np.ndarray, " 6"]:
    """The tested window: steps of its centre and ends, the turn through it, its simulated error, steps of its gap."""
    ends = (increments.edges[candidate.centre + side * candidate.reach] for side in (0, -1, 1))
    turn = float(candidate.scan.turn[candidate.row])
    gap = 2 * candidate.scan.half_gap * increments.spacing
    return np.array([*ends, turn, (turn - MIN_TURN) / candidate.z, gap])


def _median_first(ramps: list[Ramp]) -> list[Ramp]:
    """The ramps with the median one moved to the front; of two in the middle, the one that comes first in the list."""
    by_step, half = sorted(ramps, key=lambda ramp: ramp.step), len(ramps) // 2
    median = min(by_step[-half - 1], by_step[half], key=ramps.index)
    return [median, *(ramp for ramp in ramps if ramp is not median)]


def _noisy_answer(
    turn: NoisyTurn, increments: Increments, noise: Noise, cumulative_lr: np.ndarray | None, level: float
) -> Transition:
    """The answer for a turn that only long averages show."""
    low, high = (float(end) for end in (np.floor(turn.interval[0]), np.ceil(turn.interval[1])))
    known = (high - low) / float(increments.edges[-1] - increments.edges[0])
    reason = (
        f"Noise exceeds the drift: the angle is that between the mean drifts of {turn.blocks * MEMORY} steps or more "
        f"on each side, and the step is known to within {known:.0%} of the run."
    )
    turns = {"step": increments.edges.astype(float), "turn_deg": turn.angles[:, 0], "error_deg": turn.angles[:, 1]}
    answer = Transition(
        "rotation",
        "transition",
        reason,
        step=turn.step,
        interval=(low, high),
        level=level,
        p_value=turn.p_value,
        width=turn.width,
        angle_deg=turn.angle_deg,
        evidence={**turns, "ramp": np.array([low, high])},
    )
    return _with_length_shares(answer, increments, noise, cumulative_lr)


def _with_length_shares(
    turn: Transition, increments: Increments, noise: Noise, cumulative_lr: np.ndarray | None
) -> Transition:
    """The turn with the shares of the path's length before and after it; `inconclusive` where one is too short.

    A side has at least 10 % of the path's length, unless it has 15 % of the steps and moves as fast as the schedule
    lets it: under linear decay to zero the last third of a run is 11 % of its cumulative learning rate.
    """
    edges, step = increments.edges, turn.step or 0.0
    travelled = np.concatenate([[0.0], np.cumsum(drift_length(increments, noise))])
    length = float(np.interp(step, edges, travelled) / travelled[-1])
    elapsed = float((step - edges[0]) / (edges[-1] - edges[0]))
    scheduled = 1 - (1 - elapsed) ** 2  # linear decay, the usual schedule
    if cumulative_lr is not None and cumulative_lr[-1] > cumulative_lr[0]:
        learned = cumulative_lr - cumulative_lr[0]
        scheduled = float(np.interp(step, edges, learned) / learned[-1])
    turn = replace(turn, length_share=(length, 1 - length))
    before, after = (length, elapsed, scheduled), (1 - length, 1 - elapsed, 1 - scheduled)
    for side, (share, of_steps, of_schedule) in (("before", before), ("after", after)):
        if share < MIN_LENGTH_SHARE and not (of_steps > 0.15 and share > of_schedule / 2):
            reason = f"The path turns, but only {share:.1%} of its length lies {side} the turn; 10 % are needed."
            turn = replace(turn, verdict="inconclusive", reason=reason)
    return turn


def _no_turn(
    candidate: _Candidate, increments: Increments, noise: Noise, evidence: dict[str, np.ndarray]
) -> Transition:
    """`none`, or `inconclusive` where a turn of 60° would have been found at no step.

    Where a turn of 60° was seen and is not significant, one would not have been found, whatever its standard error.
    """
    detectable, turn = _detectable(evidence), float(candidate.scan.turn[candidate.row])
    if turn >= DETECTABLE_TURN:
        detectable[max(candidate.centre - candidate.reach, 0) : candidate.centre + candidate.reach + 1] = False
    share = np.count_nonzero(detectable) / increments.count
    angle, width = _bend(increments, noise, evidence)
    verdict: Verdict = "none" if detectable.any() else "inconclusive"
    clearest = f"the clearest is {max(turn, 0):.0f}° at step {increments.edges[candidate.centre]:.0f}"
    clearest += f" ({p_text(candidate.p_value)})"
    reason = f"Too noisy to tell: even a turn of {DETECTABLE_TURN:.0f}° would not be seen; {clearest}."
    if detectable.any():
        seen = f"one of {DETECTABLE_TURN:.0f}° would be seen in {share:.0%} of the run"
        reason = f"No turn of significantly more than {MIN_TURN:.0f}° beyond steady curvature: {clearest}; {seen}."
    return Transition(
        "rotation", verdict, reason, p_value=candidate.p_value, angle_deg=angle, width=width, evidence=evidence
    )


def _detectable(evidence: dict[str, np.ndarray]) -> Bool[np.ndarray, " edge"]:
    """Where a turn of 60° would have been significant."""
    return evidence["error_deg"] * SIGNIFICANT_Z <= DETECTABLE_TURN - MIN_TURN


def _bend(increments: Increments, noise: Noise, evidence: dict[str, np.ndarray]) -> tuple[float | None, float | None]:
    """The angle between the directions at the two ends of the defined path, and the steps from 10 % to 90 % of it."""
    defined = np.flatnonzero(np.isfinite(evidence["turn_deg"]))
    block = max(2, increments.count // 10)
    if len(defined) == 0:
        return None, None
    first, last = defined[0], defined[-1]
    before, after = slice(max(first - block, 0), first), slice(last, min(last + block, increments.count))
    if before.stop - before.start < 2 or after.stop - after.start < 2 or after.start - before.stop < 4:
        return None, None
    drift = increments.gram - noise.covariance
    first_size, last_size = (drift[end, end].sum() for end in (before, after))
    if min(first_size, last_size) <= 0:
        return None, None
    cosine = np.clip(drift[before, after].sum() / np.sqrt(first_size * last_size), -1, 1)
    angle = float(np.degrees(np.arccos(cosine)))
    if angle < MIN_TURN:
        return angle, None
    window = slice(before.start, after.stop)
    middle = float(increments.edges[before.stop]), float(increments.edges[after.start])
    return angle, fit_ramp(increments, noise, before, after, window, middle).width


def _profile(scans: list[TurnScan], increments: Increments) -> dict[str, np.ndarray]:
    """The turn at every step through the shortest block that resolves it, else the one with the smallest error.

    NaN where it is undefined.
    """
    turn, error = np.full(increments.count + 1, np.nan), np.full(increments.count + 1, np.inf)
    for scan in scans:
        better = (error[scan.centre] > RESOLVED_ERROR) & (scan.error < error[scan.centre])
        turn[scan.centre[better]], error[scan.centre[better]] = scan.turn[better], scan.error[better]
    return {"step": increments.edges.astype(float), "turn_deg": turn, "error_deg": error}
