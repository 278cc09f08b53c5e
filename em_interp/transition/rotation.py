"""The signal `rotation`: a turn of the path by 20° or more that completes within 15 % of the run's steps.

What is tested is how far the path turns beyond its own steady curvature (`turn_scan`), against the hypothesis that this
is 20° or less. The measure does not depend on speed, on the sign of the path, on a rotation of its space, nor, for ΔW,
on the gauge b -> c·b, a -> a/c. A bend over more than 30 % of the run is none; its angle and width are still reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

from em_interp.transition.path_noise import Increments, Noise, estimate_noise, even_increments
from em_interp.transition.ramp import Ramp, fit_ramp
from em_interp.transition.result import Transition, Verdict
from em_interp.transition.turn_test import TurnScan, drift_length, scan_turns, simulated_turns

LEAST_TURN = 20.0  # degrees
FITTED = 0.25  # share of the run, either side of a turn, to which its ramp is fitted
ALPHA = 0.05
LOOKS = 2.0  # windows are many but overlap, and the hypothesis gives 20° away: calibrated on planted paths
LEAST_P = 1e-6  # a normal tail is not known further out
SURE = float(norm.isf(LEAST_P / LOOKS))  # standard errors; windows that are as sure as this are not told apart
AS_CLEAR = 1.0  # standard errors below the clearest window at which another sees the turn about as clearly
RESOLVED = 5.0  # degrees; the window grows until a turn is known this well
CLEAR = 3.0  # times the least energy of a direction; below it the rough error is used where it is the larger
FEWEST = 20  # increments
LEAST_LENGTH = 0.10  # share of the path's length on either side
SEEN = 60.0  # degrees; "none" means that a turn of this size would have been found


@dataclass(frozen=True, eq=False)
class _Sight:
    """One window at one place, and how many standard errors its turn lies above 20°."""

    scan: TurnScan
    row: int
    z: float

    @property
    def place(self) -> int:
        return int(self.scan.place[self.row])

    @property
    def reach(self) -> int:
        return 2 * self.scan.half_block + self.scan.half_gap

    @property
    def room(self) -> int:
        """How far from its place, in increments, the middle of the turn may lie."""
        return self.scan.half_gap + self.scan.half_block

    @property
    def p_value(self) -> float:
        return float(np.clip(LOOKS * norm.sf(self.z), LEAST_P, 1.0))


def locate_rotations(
    gram: Float[np.ndarray, "step step"],
    steps: Int[np.ndarray, " step"],
    cumulative_lr: Float[np.ndarray, " step"] | None = None,
    level: float = 0.95,
) -> list[Transition]:
    """The rotations of a path in the order of their steps, or the one answer that there is none or that it is open.

    `gram` holds the inner products of the path's positions. The cumulative learning rate, where it was logged, serves
    only to tell a side that is short because the schedule ran out from one on which learning was over.
    """
    increments = even_increments(gram, steps)
    if increments.count < FEWEST:
        return [_open(f"Only {increments.count} evenly spaced increments were saved; {FEWEST} are needed.")]
    if not np.trace(increments.gram) > 0:
        return [_open("The path does not move.")]
    noise = estimate_noise(increments)
    scans = list(scan_turns(increments, noise))
    sights = _sights(scans, noise)
    evidence = _profile(scans, increments)
    lr = None if cumulative_lr is None else np.interp(increments.edges, steps, cumulative_lr)
    if not sights:
        return [_open("Nowhere does the path have a direction that stands out from its noise.", evidence)]
    found = [s for s in sights if s.p_value <= ALPHA]
    ramps = [_ramps(sight, scans, increments, noise, level) for sight in found]
    located = [_located(s, seen, increments, noise, lr, evidence) for s, seen in zip(found, ramps, strict=True)]
    turned = sorted((t for t in located if t.found), key=lambda t: t.step or 0.0)
    return turned or located[:1] or [_no_turn(sights[0], increments, noise, evidence)]


def strongest(transitions: Sequence[Transition]) -> Transition:
    """The one with the smallest p-value, then the largest angle; for a list of one, that one."""
    return min(transitions, key=lambda t: (t.p_value if t.p_value is not None else 2.0, -(t.angle_deg or 0.0)))


def _open(reason: str, evidence: dict[str, np.ndarray] | None = None) -> Transition:
    return Transition("rotation", "inconclusive", reason, evidence=evidence or {})


def _sights(scans: list[TurnScan], noise: Noise) -> list[_Sight]:
    """The clearest turn, then the clearest out of its reach, and so on while they are turns; at least the first."""
    usable = _usable(scans)
    sights: list[_Sight] = []
    while True:
        peaks = []
        for scan, use in zip(scans, usable, strict=True):
            free = use & _free(scan.place, sights)
            if free.any():
                score = np.where(free, (scan.turn - LEAST_TURN) / np.maximum(scan.error, 1.0), -np.inf)
                peaks.append((float(score.max()), scan, int(score.argmax())))
        peaks.sort(key=lambda peak: -peak[0])
        looked = [_Sight(scan, row, _z(scan, row, noise)) for _, scan, row in peaks[:4]]
        best = max(looked, key=lambda sight: sight.z, default=None)
        if best is None or (sights and best.p_value > ALPHA):
            return sights
        sights.append(best)
        if best.p_value > ALPHA:
            return sights


def _usable(scans: list[TurnScan]) -> list[Bool[np.ndarray, " place"]]:
    """Where each window serves: no shorter one resolved the turn there."""
    done: dict[int, set[int]] = {}
    usable = []
    for scan in scans:
        resolved = done.setdefault(scan.half_gap, set())
        usable.append(~np.isin(scan.place, list(resolved)))
        resolved.update(scan.place[scan.error <= RESOLVED].tolist())
    return usable


def _free(place: Int[np.ndarray, " place"], taken: list[_Sight]) -> Bool[np.ndarray, " place"]:
    free = np.ones(len(place), bool)
    for sight in taken:
        free &= np.abs(place - sight.place) >= sight.reach
    return free


def _z(scan: TurnScan, row: int, noise: Noise) -> float:
    """Standard errors by which the turn exceeds 20°; the lower tail of simulated copies decides where it is longer."""
    low, lower, middle, upper = np.quantile(simulated_turns(scan, row, noise), [0.023, 0.16, 0.5, 0.84])
    error = max(middle - lower, (middle - low) / 2, (upper - lower) / 2, 0.5)
    if scan.clearness[row] < CLEAR:
        error = max(error, scan.error[row])
    return float((scan.turn[row] - LEAST_TURN) / error)


def _ramps(sight: _Sight, scans: list[TurnScan], increments: Increments, noise: Noise, level: float) -> list[Ramp]:
    """The turn at a sight, then as every other window sees it that sees a turn there about as clearly.

    On a path with one turn they agree. Where it bends more than once each window has a ramp of its own, and which of
    them is the clearest hangs on the noise.
    """
    ramps = [_ramp(sight, increments, noise, level)]
    for scan in scans:
        near = np.abs(scan.place - sight.place) <= sight.room
        if scan is sight.scan or not near.any():
            continue
        row = int(np.where(near, (scan.turn - LEAST_TURN) / np.maximum(scan.error, 1.0), -np.inf).argmax())
        other = _Sight(scan, row, _z(scan, row, noise))
        if other.z >= min(sight.z, SURE) - AS_CLEAR:
            ramps.append(_ramp(other, increments, noise, level))
    return ramps


def _ramp(sight: _Sight, increments: Increments, noise: Noise, level: float) -> Ramp:
    """The turn at a sight, fitted over a quarter of the run either side; its middle lies in the window that saw it."""
    near, far = sight.scan.half_gap, sight.reach
    before, after = slice(sight.place - far, sight.place - near), slice(sight.place + near, sight.place + far)
    reach = max(far, round(FITTED * increments.count))
    window = slice(max(sight.place - reach, 0), min(sight.place + reach, increments.count))
    first, last = sight.place - sight.room, sight.place + sight.room
    middle = float(increments.edges[first]), float(increments.edges[last])
    return fit_ramp(increments, noise, before, after, window, middle, level)


def _located(
    sight: _Sight,
    ramps: list[Ramp],
    increments: Increments,
    noise: Noise,
    cumulative_lr: np.ndarray | None,
    evidence: dict[str, np.ndarray],
) -> Transition:
    """The transition of a sight. Its step is of the clearest window's ramp; its interval covers those of all."""
    ramp = ramps[0]
    p_value, angle = max(sight.p_value, ramp.p_broad), float(sight.scan.turn[sight.row])
    if p_value > ALPHA:
        reason = "The path bends, but this may take more than 30 % of the run."
        return Transition(
            "rotation", "none", reason, p_value=p_value, width=ramp.width, angle_deg=angle, evidence=evidence
        )
    shares = _length_share(ramp, increments, noise)
    short = _negligible(ramp, shares, increments.edges, cumulative_lr)
    low, high = min(seen.interval[0] for seen in ramps), max(seen.interval[1] for seen in ramps)
    reason = "The path turns by more than 20° beyond its own curvature."
    first, last = min(seen.step for seen in ramps), max(seen.step for seen in ramps)
    if first < np.floor(ramp.interval[0]) or last > np.ceil(ramp.interval[1]):
        reason += f" It bends more than once: windows of other lengths see the turn at {first:.0f} to {last:.0f}."
    return Transition(
        "rotation",
        "inconclusive" if short else "transition",
        short or reason,
        step=ramp.step,
        interval=(float(np.floor(low)), float(np.ceil(high))),
        level=ramp.level,
        p_value=p_value,
        width=ramp.width,
        angle_deg=angle,
        length_share=shares,
        evidence={**evidence, "ramp": np.array([low, high])},
    )


def _length_share(ramp: Ramp, increments: Increments, noise: Noise) -> tuple[float, float]:
    travelled = np.concatenate([[0.0], np.cumsum(drift_length(increments, noise))])
    before = float(np.interp(ramp.step, increments.edges, travelled) / travelled[-1])
    return before, 1.0 - before


def _negligible(
    ramp: Ramp, shares: tuple[float, float], edges: np.ndarray, cumulative_lr: np.ndarray | None
) -> str | None:
    """Why a side is too short to call the turn a transition, or None.

    Under 10 % of the path's length, unless that side has its share of steps and moves as fast as the schedule lets it:
    under linear decay to zero the last third of a run is 11 % of its cumulative learning rate.
    """
    elapsed = float((ramp.step - edges[0]) / (edges[-1] - edges[0]))
    if cumulative_lr is not None and cumulative_lr[-1] > 0:
        scheduled = float(np.interp(ramp.step, edges, cumulative_lr) / cumulative_lr[-1])
    else:
        scheduled = 1 - (1 - elapsed) ** 2  # linear decay, the field's habit
    for share, of_steps, of_schedule, side in (
        (shares[0], elapsed, scheduled, "before"),
        (shares[1], 1 - elapsed, 1 - scheduled, "after"),
    ):
        if share < LEAST_LENGTH and not (of_steps > 0.15 and share > of_schedule / 2):
            return f"The path turns, but only {share:.1%} of its length lies {side} the turn; 10 % are needed."
    return None


def _no_turn(sight: _Sight, increments: Increments, noise: Noise, evidence: dict[str, np.ndarray]) -> Transition:
    """`none`, or `inconclusive` where a turn of 60° would not have been found in most of the run."""
    seen = evidence["error_deg"] * norm.isf(ALPHA / LOOKS) <= SEEN - LEAST_TURN
    share = np.count_nonzero(seen) / increments.count
    angle, width = _bend(increments, noise, evidence)
    verdict: Verdict = "none" if seen.any() else "inconclusive"
    reason = "Too noisy: even a turn of 60° would not have been seen."
    if seen.any():
        reason = (
            f"No turn of more than 20° beyond steady curvature; one of 60° would be seen in {share:.0%} of the run."
        )
    return Transition(
        "rotation", verdict, reason, p_value=sight.p_value, angle_deg=angle, width=width, evidence=evidence
    )


def _bend(increments: Increments, noise: Noise, evidence: dict[str, np.ndarray]) -> tuple[float | None, float | None]:
    """Angle between the directions at the two ends of the defined path, and the steps from 10 % to 90 % of it."""
    places = np.flatnonzero(np.isfinite(evidence["turn_deg"]))
    block = max(2, increments.count // 10)
    if len(places) == 0:
        return None, None
    first, last = places[0], places[-1]
    before, after = slice(max(first - block, 0), first), slice(last, min(last + block, increments.count))
    if before.stop - before.start < 2 or after.stop - after.start < 2 or after.start - before.stop < 4:
        return None, None
    drift = increments.gram - noise.covariance
    size = drift[before, before].sum() * drift[after, after].sum()
    if drift[before, before].sum() <= 0 or size <= 0:
        return None, None
    angle = float(np.degrees(np.arccos(np.clip(drift[before, after].sum() / np.sqrt(size), -1, 1))))
    if angle < LEAST_TURN:
        return angle, None
    window = slice(before.start, after.stop)
    middle = float(increments.edges[before.stop]), float(increments.edges[after.start])
    return angle, fit_ramp(increments, noise, before, after, window, middle).width


def _profile(scans: list[TurnScan], increments: Increments) -> dict[str, np.ndarray]:
    """The turn at every place through the shortest window that resolves it, else the sharpest; NaN where undefined."""
    turn, error = np.full(increments.count + 1, np.nan), np.full(increments.count + 1, np.inf)
    for scan in scans:
        better = (error[scan.place] > RESOLVED) & (scan.error < error[scan.place])
        turn[scan.place[better]], error[scan.place[better]] = scan.turn[better], scan.error[better]
    return {"step": increments.edges.astype(float), "turn_deg": turn, "error_deg": error}
