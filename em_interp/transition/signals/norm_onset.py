"""The signal `norm_onset`: the bend of the norm of ΔW, against cumulative learning rate, where faster growth begins.

Cumulative learning rate, not the step, is the axis: a schedule alone bends the norm against the step. A bend of the
norm is a step of its growth rate (increments over cumulative learning rate), and the noise of a path, which the norm
accumulates, is stationary there: the test and the fit are of the rate.

Null hypothesis: the rate never increases (a single line, or growth that slows), plus stationary noise with the memory
of Adam's momentum or more, up to 1/25 of the run. Statistic: the largest rise of the smoothed rate, against simulated
noise (the scan test of `series`). Step: the rate is level, then a ramp, then level or decaying; `step` is the ramp's
middle and `width` the steps from 10 % to 90 % of it, both from the posterior over a grid of places, widths and decays.
Invariant to the units of the norm and of the learning rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.transition.result import Transition, Verdict
from em_interp.transition.signals.series import (
    MAX_BINS,
    SERIES_ALPHA,
    SKIPPED,
    ScanResult,
    SeriesNoise,
    at_every_place,
    fit_noise,
    fit_shapes,
    momentum_spectra,
    rise,
    scan_test,
    winsorize,
)

MIN_GAIN = 0.25  # by which the growth rate must rise, relative
MAX_DETECTABLE = 1.0  # where only a rise larger than the mean rate would be significant, there is no verdict
MAX_WIDTH = 0.30  # of the run; a bend wider than this is gradual
MOMENTUM_STEPS = 9.5  # that Adam's first moment (0.9) remembers, and so the noise of a path
MIN_INCREMENTS = 30  # needed for a verdict
N_POSTERIOR_DRAWS = 500
_RAMPS = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)  # widths tried, as shares of the run
_DECAYS = (0.0, 1.0, 2.0, 4.0)  # of the rate after the bend, to exp(-this) in a whole run


def norm_onset(
    steps: Int[np.ndarray, " step"],
    delta_norm: Float[np.ndarray, " step"],
    cumulative_lr: Float[np.ndarray, " step"],
    level: float = 0.95,
) -> Transition:
    """Find the step at which the norm of ΔW starts to grow faster per learning rate.

    The first 5 % of the cumulative learning rate are left out: there the norm is mostly that of noise, whose growth
    slows.

    Args:
        steps: The saved training steps, increasing.
        delta_norm: ‖ΔW‖ at each.
        cumulative_lr: Sum of the learning rates up to each.
        level: Probability with which the interval holds the middle of the bend, under the shape above.

    Returns:
        `none` also where the rate rises by under 25 %, or over more than 30 % of the run (the width is still reported);
        `inconclusive` where fewer than 30 increments can be resolved, or where noise could hide a doubling of the
        rate.

    Raises:
        InputError: For arrays of different lengths, values that are not finite, and steps that do not increase.
    """
    steps, norm, lr = _checked(steps, delta_norm, cumulative_lr)
    start = lr[0] + SKIPPED * (lr[-1] - lr[0])
    count = min(MAX_BINS, int((lr[-1] - start) / np.max(np.diff(lr))))
    evidence: dict[str, Any] = {"steps": steps, "delta_norm": norm, "cumulative_lr": lr}
    if count < MIN_INCREMENTS:
        increments = f"{count} increments of equal learning rate can be resolved"
        reason = f"Too few steps were saved: {increments}, {MIN_INCREMENTS} are needed."
        return Transition("norm_onset", "inconclusive", reason, of="delta", evidence=evidence)
    edges = np.linspace(start, lr[-1], count + 1)
    rate = winsorize(np.diff(np.interp(edges, lr, norm)) / np.diff(edges))
    memory = MOMENTUM_STEPS * float(np.mean(1 / np.diff(np.interp(edges, lr, steps))))  # in bins, on average
    noise = fit_noise(rate, momentum_spectra(count, memory))
    rng = np.random.default_rng(0)
    scanned = scan_test(rate, noise, rise, rng)
    middles = np.interp((edges[1:] + edges[:-1]) / 2, lr, steps)
    evidence |= {"rate_steps": middles, "rate": rate, "smooth_rate": scanned.smooth}
    verdict, reason = _without_bend(scanned, float(np.mean(np.abs(rate))))
    answer = Transition("norm_onset", verdict, reason, of="delta", p_value=scanned.p_value, evidence=evidence)
    if scanned.p_value > SERIES_ALPHA:
        return answer
    bends = _bend_draws(rate, noise, scanned, rng)
    begins, middle, ends = (
        np.interp(edges[0] + (bends.places + side * bends.widths) * (edges[1] - edges[0]), lr, steps)
        for side in (-0.4, 0, 0.4)
    )
    answer = replace(answer, width=float(np.median(ends - begins)))
    if too_little := _too_little(bends, count):
        return replace(answer, verdict="none", reason=f"The norm of ΔW grows faster {too_little}.")
    return _with_bend(answer, middle, bends.gain, level)


def _without_bend(scanned: ScanResult, rate: float) -> tuple[Verdict, str]:
    detectable = scanned.detectable / rate if rate > 0 else 0.0
    nowhere = f"The growth of the norm of ΔW nowhere speeds up by more than noise would (p = {scanned.p_value:.2g})"
    broad = f"averaged over a fifth of the run, a rise by {detectable:.0%} of its mean"
    if detectable > MAX_DETECTABLE:
        too_noisy = f"but too noisy to tell: {broad} is the least that would be significant"
        return "inconclusive", f"{nowhere}, {too_noisy}."
    return "none", f"{nowhere}; {broad} would be significant."


def _with_bend(without: Transition, middle: Float[np.ndarray, " draw"], gain: float, level: float) -> Transition:
    low, step, high = map(float, np.quantile(middle, [(1 - level) / 2, 0.5, (1 + level) / 2]))
    by = "from nothing" if np.isinf(gain) else f"by {gain:.0%}"
    reason = f"The norm of ΔW grows faster {by} from here on, per learning rate (p = {without.p_value:.2g})."
    return replace(without, verdict="transition", reason=reason, step=step, interval=(low, high), level=level)


class _Bends(NamedTuple):
    """Draws from the posterior of the bend."""

    places: Float[np.ndarray, " draw"]  # of its middle, in bins
    widths: Float[np.ndarray, " draw"]  # of the ramp, in bins
    gain: float  # of the rate, relative; infinite where there was no growth before


def _too_little(bends: _Bends, count: int) -> str:
    """Why this is not a bend, or an empty text."""
    share = float(np.median(0.8 * bends.widths)) / count
    if bends.gain < MIN_GAIN:
        return f"by only {bends.gain:.0%}; a bend is {MIN_GAIN:.0%} or more"
    if share > MAX_WIDTH:
        return f"too gradually for a bend: over {share:.0%} of the run's learning, more than {MAX_WIDTH:.0%}"
    return ""


def _bend_draws(
    rate: Float[np.ndarray, " bin"], noise: SeriesNoise, scanned: ScanResult, rng: np.random.Generator
) -> _Bends:
    """A level rate, a ramp, and a level or decaying rate, fitted to the bins around the rise."""
    first, last = _around_rise(scanned)
    place = np.arange(first, last + 1.0) + 0.5
    baseline = np.ones((len(place), 1))
    sizes = np.array(_RAMPS) * len(rate), np.array(_DECAYS) / len(rate)
    grid = np.stack(np.meshgrid(place[1:-1], *sizes, indexing="ij"), axis=-1).reshape(-1, 3)
    away, (width, decay) = np.arange(1.0 - len(place), len(place)), np.ix_(*sizes)
    ramps = np.clip(away / np.maximum(width, 1)[..., None] + 0.5, 0, 1)
    shapes = at_every_place(ramps * np.exp(-decay[..., None] * np.maximum(away, 0)))
    fit = fit_shapes(rate[first : last + 1], noise.covariance(len(place)), baseline, shapes)
    drawn = fit.draws(N_POSTERIOR_DRAWS, rng)
    places = grid[drawn, 0] + rng.uniform(-0.5, 0.5, size=N_POSTERIOR_DRAWS)  # the grid's middles are a bin apart
    before = np.median(fit.coefficients[0, drawn])
    gain = float(np.median(fit.amplitude[drawn]) / before) if before > 0 else np.inf
    return _Bends(places, grid[drawn, 1], gain)


def _around_rise(scanned: ScanResult) -> tuple[int, int]:
    """The first and last bin of the rise and what surrounds it, up to where the rate crosses its half height again."""
    smooth, high = scanned.smooth, scanned.bin
    low, end = int(np.argmin(smooth[: high + 1])), len(smooth) - 1
    half = (smooth[low] + smooth[high]) / 2
    above, below = np.flatnonzero(smooth[:low] > half), high + np.flatnonzero(smooth[high:] < half)
    first, last = (int(above[-1]) + 1 if len(above) else 0), (int(below[0]) - 1 if len(below) else end)
    return max(min(first, low - 2), 0), min(max(last, high + 2), end)


def _checked(*given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as float arrays where the learning rate moved on: steps without any hold no growth."""
    steps, norm, lr = (np.asarray(values, dtype=float) for values in given)
    if steps.ndim != 1 or not steps.shape == norm.shape == lr.shape or len(steps) < 2:
        raise InputError(
            "expected steps, norms and cumulative learning rates of one length, two or more; "
            f"found {steps.shape}, {norm.shape} and {lr.shape}"
        )
    if not np.isfinite(norm).all() or not np.isfinite(lr).all():
        raise InputError(
            "norms and cumulative learning rates must be finite; does the run's log lack the learning rate?"
        )
    if np.any(np.diff(steps) <= 0) or np.any(np.diff(lr) < 0) or lr[-1] <= lr[0]:
        raise InputError("steps must increase and the cumulative learning rate must grow; found ones that do not")
    moved = np.concatenate([[True], np.diff(lr) > 0])
    return steps[moved], norm[moved], lr[moved]
