"""The gradient-norm signal: the top of the hump that the logged gradient norm goes through.

Reported beside the rotation of rank-1 adapters in 2506.11613 (section 4) and, as a peak that comes before the change
of behaviour, in 2508.20015.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.transition.result import Transition, Verdict
from em_interp.transition.series import (
    ALPHA,
    SKIPPED,
    Cells,
    Scan,
    SeriesNoise,
    cells,
    fit_noise,
    fit_shapes,
    log_spectra,
    prominence,
    scan,
)

FEWEST = 40  # values needed for a verdict
LEAST_HEIGHT = 0.10  # how far a hump must stand above the higher of the valleys beside it
HIDDEN = 1.0  # noise that could hide a hump this high, a doubling, allows no verdict
_MISSING = 0.2
_DRAWS = 500


def gradient_norm_peak(
    steps: Int[np.ndarray, " logged"], grad_norm: Float[np.ndarray, " logged"], level: float = 0.95
) -> Transition:
    """The maximum of the hump in the logged gradient norm, against any trend without a hump.

    The null holds every trend that falls, rises, stays, or falls and then rises, under stationary noise of the
    logarithm with a memory of up to 1/25 of the run; see `em_interp.transition.rise_test`. The first 5 % of the
    steps are left out. The peak is the top of a two-sided Gaussian hump on a straight baseline, in the logarithm,
    between the valleys beside it; `interval` holds it with probability `level` under that shape. Invariant to the
    unit of the gradient norm.

    `inconclusive` with fewer than 40 usable values, with over a fifth missing, or where noise could hide a doubling.
    Values of 0 (the gradient of A while B is 0) are left out as undefined.
    """
    steps, grad_norm = _checked(steps, grad_norm)
    usable = np.isfinite(grad_norm) & (grad_norm > 0) & (steps > steps[0] + SKIPPED * (steps[-1] - steps[0]))
    evidence: dict[str, Any] = {"steps": steps, "grad_norm": grad_norm}
    missing = float(np.mean(~np.isfinite(grad_norm)))
    if usable.sum() < FEWEST or missing > _MISSING:
        why = f"{int(usable.sum())} usable values after the first {SKIPPED:.0%} of the run, {missing:.0%} missing"
        return Transition(
            "gradient_norm", "inconclusive", f"Too little was logged: {why}; {FEWEST} are needed.", evidence=evidence
        )
    series = cells(steps[usable].astype(float), np.log(grad_norm[usable]))
    noise = fit_noise(series.values, log_spectra(len(series.values)))
    rng = np.random.default_rng(0)
    found = scan(series.values, noise, prominence, rng)
    evidence |= {"smooth_steps": series.at, "smooth": np.exp(found.smooth)}
    return _judged(series, noise, found, level, rng, evidence)


def _judged(
    series: Cells, noise: SeriesNoise, found: Scan, level: float, rng: np.random.Generator, evidence: dict[str, Any]
) -> Transition:
    height, seen = np.expm1(found.height), np.expm1(found.hidden)
    if found.p_value > ALPHA or height < LEAST_HEIGHT:
        reason = (
            f"No hump stands out: the highest is {height:.0%} above its valleys (p = {found.p_value:.2g}); "
            f"through this noise one of {seen:.0%} over a fifth of the run would."
        )
        verdict: Verdict = "inconclusive" if found.p_value > ALPHA and seen > HIDDEN else "none"
        return Transition("gradient_norm", verdict, reason, p_value=found.p_value, evidence=evidence)
    peaks = _peaks(series, noise, found, rng)
    low, step, high = np.quantile(peaks, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Transition(
        "gradient_norm",
        "transition",
        f"The gradient norm, smoothed, has a hump {height:.0%} above the valleys beside it (p = {found.p_value:.2g}).",
        step=float(step),
        interval=(float(low), float(high)),
        level=level,
        p_value=found.p_value,
        evidence=evidence,
    )


def _peaks(series: Cells, noise: SeriesNoise, found: Scan, rng: np.random.Generator) -> Float[np.ndarray, " draw"]:
    """Steps of the top, drawn from its posterior given the values between the valleys."""
    top = found.cell
    first, last = int(np.argmin(found.smooth[: top + 1])), top + int(np.argmin(found.smooth[top:]))
    values, place = series.values[first : last + 1], np.arange(last + 1.0 - first)
    baseline = np.stack([np.ones_like(place), place], axis=1)
    humps, shapes = _humps(place, _half_width(found.smooth, top, first, last))
    fit = fit_shapes(values, noise.covariance(len(place)), baseline, shapes)
    drawn = fit.draws(_DRAWS, rng)
    fine = np.linspace(place[0], place[-1], 4 * len(place))[1:-1]
    curves = fit.amplitude[drawn, None] * _hump(fine, *humps[drawn].T[:, :, None])
    curves += fit.coefficients[1, drawn, None] * fine
    tops = fine[np.argmax(curves, axis=1)] + rng.uniform(-0.5, 0.5, size=_DRAWS)  # the grid of tops is one cell fine
    return series.position(first + tops)


def _half_width(smooth: Float[np.ndarray, " cell"], top: int, first: int, last: int) -> float:
    """Cells from side to side of the hump at half its height."""
    half = (smooth[top] + max(smooth[first], smooth[last])) / 2
    below = np.flatnonzero(smooth[first : last + 1] < half) + first
    left, right = below[below < top], below[below > top]
    return float(max((right[0] if len(right) else last) - (left[-1] if len(left) else first), 4))


def _humps(
    place: Float[np.ndarray, " cell"], width: float
) -> tuple[Float[np.ndarray, "shape 3"], Float[np.ndarray, "shape cell"]]:
    """Tops at every cell with left and right widths from a fifth to three times that of a hump of this width."""
    sides = width / 2.355 * 2.0 ** np.arange(-2.4, 1.7, 0.5)
    humps = np.stack(np.meshgrid(place[1:-1], sides, sides, indexing="ij"), axis=-1).reshape(-1, 3)
    return humps, _hump(place, *humps.T[:, :, None])


def _hump(
    place: Float[np.ndarray, " cell"],
    top: Float[np.ndarray, "shape 1"],
    left: Float[np.ndarray, "shape 1"],
    right: Float[np.ndarray, "shape 1"],
) -> Float[np.ndarray, "shape cell"]:
    """A Gaussian hump of unit height with its own standard deviation on either side."""
    away = place - top
    return np.exp(-0.5 * (away / np.where(away < 0, left, right)) ** 2)


def _checked(steps: np.ndarray, grad_norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps, grad_norm = np.asarray(steps), np.asarray(grad_norm, dtype=float)
    if steps.ndim != 1 or steps.shape != grad_norm.shape or len(steps) < 2:
        raise InputError(f"expected one gradient norm a step, two or more; found {grad_norm.shape} for {steps.shape}")
    if np.any(np.diff(steps) <= 0):
        raise InputError("the steps of the gradient norm must be increasing; is the log of two runs in one file?")
    if np.any(grad_norm < 0):
        raise InputError(f"a gradient norm cannot be negative; found {np.nanmin(grad_norm):g}")
    return steps, grad_norm
