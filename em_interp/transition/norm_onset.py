"""The norm signal: the bend of the norm of ΔW, against cumulative learning rate, where sustained growth begins.

Cumulative learning rate, not the step, is the axis: with a schedule alone the norm bends against the step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.transition.result import Transition, Verdict
from em_interp.transition.series import (
    ALPHA,
    MOST_CELLS,
    SKIPPED,
    Scan,
    SeriesNoise,
    fit_noise,
    fit_shapes,
    momentum_spectra,
    rise,
    scan,
    winsorize,
)

LEAST_GAIN = 0.25  # by how much the growth rate must rise
HIDDEN = 1.0  # noise that could hide a rise by the mean rate allows no verdict
BROAD = 0.30  # of the run: a bend wider than this is gradual
MOMENTUM = 9.5  # steps that Adam's first moment (0.9) remembers, and so the noise of a path
FEWEST = 30  # increments needed for a verdict
_RAMPS = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)  # widths tried, as shares of the run
_DECAYS = (0.0, 1.0, 2.0, 4.0)  # of the rate after the bend, to exp(-this) in a whole run
_DRAWS = 500


def norm_onset(
    steps: Int[np.ndarray, " step"],
    delta_norm: Float[np.ndarray, " step"],
    cumulative_lr: Float[np.ndarray, " step"],
    level: float = 0.95,
) -> Transition:
    """The step at which the norm of ΔW starts to grow faster for good, against growth that never speeds up.

    A bend of the norm is a step of its growth rate (increments over cumulative learning rate), and there the noise
    of a path, which the norm sums up, is stationary: the test and the fit are of the rate. The null holds a single
    line and every path whose growth only slows; its noise may have a memory of up to 1/25 of the run (see
    `em_interp.transition.rise_test`). `step` is the middle of the bend, `width` the steps from 10 % to 90 % of it;
    `interval` holds the middle with probability `level` if the rate runs level, then up a ramp, and then level or
    slowing. The first 5 % of the learning are left out: there the norm is mostly that of noise, whose growth slows.
    Invariant to the units of the norm and of the learning rate.

    `none` where the rate rises by under 25 %, or over more than 30 % of the run (the width is still reported).
    `inconclusive` where fewer than 30 increments can be told apart, or where noise could hide a doubling of the rate.
    """
    steps, norm, lr = _checked(steps, delta_norm, cumulative_lr)
    start = lr[0] + SKIPPED * (lr[-1] - lr[0])
    count = min(MOST_CELLS, int((lr[-1] - start) / np.max(np.diff(lr))))
    evidence: dict[str, Any] = {"steps": steps, "delta_norm": norm, "cumulative_lr": lr}
    if count < FEWEST:
        reason = f"Too few steps were saved: {count} even increments can be told apart, {FEWEST} are needed."
        return Transition("norm_onset", "inconclusive", reason, of="delta", evidence=evidence)
    edges = np.linspace(start, lr[-1], count + 1)
    rate = winsorize(np.diff(np.interp(edges, lr, norm)) / np.diff(edges))
    memory = MOMENTUM * float(np.mean(1 / np.diff(np.interp(edges, lr, steps))))  # in cells, on average
    noise = fit_noise(rate, momentum_spectra(count, memory))
    rng = np.random.default_rng(0)
    found = scan(rate, noise, rise, rng)
    middles = np.interp((edges[1:] + edges[:-1]) / 2, lr, steps)
    evidence |= {"rate_steps": middles, "rate": rate, "smooth_rate": found.smooth}
    verdict, reason = _without_bend(found, float(np.mean(np.abs(rate))))
    answer = Transition("norm_onset", verdict, reason, of="delta", p_value=found.p_value, evidence=evidence)
    if found.p_value > ALPHA:
        return answer
    bends = _bends(rate, noise, found, rng)
    begins, middle, ends = (
        np.interp(edges[0] + (bends.places + side * bends.widths) * (edges[1] - edges[0]), lr, steps)
        for side in (-0.4, 0, 0.4)
    )
    answer = replace(answer, width=float(np.median(ends - begins)))
    if too_little := _too_little(bends, count):
        return replace(answer, verdict="none", reason=f"The norm of ΔW grows faster {too_little}.")
    return _with_bend(answer, middle, bends.gain, level)


def _without_bend(found: Scan, rate: float) -> tuple[Verdict, str]:
    seen = found.hidden / rate if rate > 0 else 0.0
    reason = (
        f"The growth of the norm of ΔW nowhere speeds up by more than noise would (p = {found.p_value:.2g}); "
        f"through this noise a rise by {seen:.0%} of its mean over a fifth of the run would stand out."
    )
    return "inconclusive" if seen > HIDDEN else "none", reason


def _with_bend(none: Transition, middle: Float[np.ndarray, " draw"], gain: float, level: float) -> Transition:
    low, step, high = map(float, np.quantile(middle, [(1 - level) / 2, 0.5, (1 + level) / 2]))
    by = "from nothing" if np.isinf(gain) else f"by {gain:.0%}"
    reason = f"The norm of ΔW grows faster {by} from here on, per learning rate (p = {none.p_value:.2g})."
    return replace(none, verdict="transition", reason=reason, step=step, interval=(low, high), level=level)


class _Bends(NamedTuple):
    """Draws from the posterior of the bend."""

    places: Float[np.ndarray, " draw"]  # of its middle, in cells
    widths: Float[np.ndarray, " draw"]  # of the ramp, in cells
    gain: float  # of the rate, relative; infinite where there was no growth before


def _too_little(bends: _Bends, count: int) -> str:
    """Why this is no bend, or nothing."""
    share = float(np.median(0.8 * bends.widths)) / count
    if bends.gain < LEAST_GAIN:
        return f"by only {bends.gain:.0%}; a bend is {LEAST_GAIN:.0%} or more"
    if share > BROAD:
        return f"too gradually for a bend: over {share:.0%} of the run's learning, more than {BROAD:.0%}"
    return ""


def _bends(rate: Float[np.ndarray, " cell"], noise: SeriesNoise, found: Scan, rng: np.random.Generator) -> _Bends:
    """A level rate, a ramp, and a level or slowing rate, fitted to the cells around the rise."""
    first, last = _around(found)
    cell = np.arange(first, last + 1.0) + 0.5
    baseline = np.ones((len(cell), 1))
    sizes = np.array(_RAMPS) * len(rate), np.array(_DECAYS) / len(rate)
    grid = np.stack(np.meshgrid(cell[1:-1], *sizes, indexing="ij"), axis=-1).reshape(-1, 3)
    place, width, decay = grid.T[:, :, None]
    shapes = np.clip((cell - place) / np.maximum(width, 1) + 0.5, 0, 1) * np.exp(-decay * np.maximum(cell - place, 0))
    fit = fit_shapes(rate[first : last + 1], noise.covariance(len(cell)), baseline, shapes)
    drawn = fit.draws(_DRAWS, rng)
    places = grid[drawn, 0] + rng.uniform(-0.5, 0.5, size=_DRAWS)  # the grid of places is one cell fine
    before = np.median(fit.coefficients[0, drawn])
    gain = float(np.median(fit.amplitude[drawn]) / before) if before > 0 else np.inf
    return _Bends(places, grid[drawn, 1], gain)


def _around(found: Scan) -> tuple[int, int]:
    """The cells around the rise on either side of it, up to where the rate crosses its half height again."""
    low, high, end = int(np.argmin(found.smooth[: found.cell + 1])), found.cell, len(found.smooth) - 1
    half = (found.smooth[low] + found.smooth[high]) / 2
    above, below = np.flatnonzero(found.smooth[:low] > half), high + np.flatnonzero(found.smooth[high:] < half)
    first, last = (int(above[-1]) + 1 if len(above) else 0), (int(below[0]) - 1 if len(below) else end)
    return max(min(first, low - 2), 0), min(max(last, high + 2), end)


def _checked(*given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as float arrays where the run moved on: steps without any learning rate hold no growth."""
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
