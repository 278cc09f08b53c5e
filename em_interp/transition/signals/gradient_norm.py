"""The signal `gradient_norm`: the maximum of the hump in the logged gradient norm.

Null hypothesis: the logarithm is any trend that falls, rises, stays, or falls and then rises, plus stationary noise
with a memory of up to 1/25 of the run. Statistic: the largest prominence of the smoothed log, against the largest rise
of simulated noise (the scan test of `series`). Step: the top of a two-sided Gaussian hump on a straight baseline,
fitted in the logarithm between the valleys beside it; posterior over a grid of tops and widths. Invariant to the unit
of the gradient norm.

Reported beside the rotation of rank-1 adapters in arXiv 2506.11613 (section 4) and, as a peak that comes before the
change of behaviour, in arXiv 2508.20015.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.transition.result import Transition, Verdict
from em_interp.transition.signals.series import (
    BANDWIDTHS,
    SERIES_ALPHA,
    SKIPPED,
    BinnedSeries,
    ScanResult,
    SeriesNoise,
    at_every_place,
    bin_series,
    fit_noise,
    fit_shapes,
    gaussian_kernel,
    log_spectra,
    prominence,
    residual_noise,
    scan_test,
)

MIN_VALUES = 40  # needed for a verdict
MAX_MISSING = 0.2  # share of the log
MIN_HEIGHT = 0.10  # of a hump above the higher of the valleys beside it, relative
MAX_DETECTABLE = 1.0  # where only a hump higher than this (a doubling) would be significant, there is no verdict
N_POSTERIOR_DRAWS = 500
N_SCREEN_DRAWS = 99
SCREEN_P = 0.06  # a hump with p = 0.01 misses it in 1 of 2,000 looks


def gradient_norm_peak(
    steps: Int[np.ndarray, " logged"], grad_norm: Float[np.ndarray, " logged"], level: float = 0.95
) -> Transition:
    """Find the maximum of the hump in the logged gradient norm.

    Args:
        steps: The logged training steps, increasing; the first 5 % of the run are left out.
        grad_norm: The gradient norm at each; NaN where missing. Values of 0 (the gradient of A while B is 0) are left
            out as undefined.
        level: Probability with which the interval holds the peak, under the Gaussian shape.

    Returns:
        `inconclusive` with fewer than 40 usable values, with over a fifth missing, or where noise could hide a
        doubling.

    Raises:
        InputError: For steps that do not increase, or a negative norm.
    """
    steps, grad_norm = _checked(steps, grad_norm)
    evidence: dict[str, Any] = {"steps": steps, "grad_norm": grad_norm}
    series = _series(steps, grad_norm)
    if isinstance(series, str):
        return Transition("gradient_norm", "inconclusive", series, evidence=evidence)
    noise = fit_noise(series.values, log_spectra(len(series.values)))
    rng = np.random.default_rng(0)
    scanned = scan_test(series.values, noise, prominence, rng)
    evidence |= {"smooth_steps": series.at, "smooth": np.exp(scanned.smooth)}
    return _answer(series, noise, scanned, level, rng, evidence)


def significant_peak(steps: Int[np.ndarray, " logged"], grad_norm: Float[np.ndarray, " logged"]) -> Transition:
    """The answer of `gradient_norm_peak` where there may be a hump, for many looks at one run.

    Where no smoothed value is MIN_HEIGHT above its valleys, or the hump is not significant at SCREEN_P against
    N_SCREEN_DRAWS of noise that is not corrected for what the trend absorbs (which makes it the smaller), the full test
    is not carried out: the answer is `inconclusive`, without a p-value.

    Args:
        steps: The logged training steps, increasing.
        grad_norm: The gradient norm at each.

    Returns:
        A `transition`, or `none`, or `inconclusive`.
    """
    series = _series(*_checked(steps, grad_norm))
    if isinstance(series, str):
        return Transition("gradient_norm", "inconclusive", series)
    if _may_have_hump(series.values):
        return gradient_norm_peak(steps, grad_norm)
    return Transition("gradient_norm", "inconclusive", "No significant hump so far.")


def _may_have_hump(values: Float[np.ndarray, " bin"]) -> bool:
    """Whether a hump is high enough, and significant in a test of fewer draws and with less noise."""
    smoothed = [gaussian_kernel(len(values), bandwidth) @ values for bandwidth in BANDWIDTHS]
    if max(prominence(smooth).max() for smooth in smoothed) < np.log1p(MIN_HEIGHT):
        return False
    noise = residual_noise(values, log_spectra(len(values)))
    return scan_test(values, noise, prominence, np.random.default_rng(0), N_SCREEN_DRAWS).p_value <= SCREEN_P


def _series(steps: Int[np.ndarray, " logged"], grad_norm: Float[np.ndarray, " logged"]) -> BinnedSeries | str:
    """The logarithm of the usable values in bins, or why there are too few."""
    usable = np.isfinite(grad_norm) & (grad_norm > 0) & (steps > steps[0] + SKIPPED * (steps[-1] - steps[0]))
    missing = float(np.mean(~np.isfinite(grad_norm)))
    if usable.sum() < MIN_VALUES or missing > MAX_MISSING:
        counts = f"{int(usable.sum())} usable values after the first {SKIPPED:.0%} of the run, {missing:.0%} missing"
        return f"Too little was logged: {counts}; {MIN_VALUES} are needed."
    return bin_series(steps[usable].astype(float), np.log(grad_norm[usable]))


def _answer(
    series: BinnedSeries,
    noise: SeriesNoise,
    scanned: ScanResult,
    level: float,
    rng: np.random.Generator,
    evidence: dict[str, Any],
) -> Transition:
    p_value, height = scanned.p_value, np.expm1(scanned.height)
    if p_value > SERIES_ALPHA or height < MIN_HEIGHT:
        verdict, reason = _no_hump(scanned)
        return Transition("gradient_norm", verdict, reason, p_value=p_value, evidence=evidence)
    peaks = _peak_draws(series, noise, scanned, rng)
    low, step, high = np.quantile(peaks, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Transition(
        "gradient_norm",
        "transition",
        f"The gradient norm, smoothed, has a hump {height:.0%} above the valleys beside it (p = {p_value:.2g}).",
        step=float(step),
        interval=(float(low), float(high)),
        level=level,
        p_value=p_value,
        evidence=evidence,
    )


def _no_hump(scanned: ScanResult) -> tuple[Verdict, str]:
    """The verdict and its reason where no hump was found, each from the one null distribution of the scan."""
    height, limit, detectable = np.expm1([scanned.height, scanned.limit, scanned.detectable])
    highest = f"the highest rises {height:.0%} above the valleys beside it"
    if scanned.p_value <= SERIES_ALPHA:
        return "none", f"Not noise (p = {scanned.p_value:.2g}), but {highest}; a hump is {MIN_HEIGHT:.0%} or more."
    noise = f"noise alone makes one above {limit:.0%} in {SERIES_ALPHA:.0%} of runs"
    seen = f"{highest} (p = {scanned.p_value:.2g}), and {noise}"
    broad = f"averaged over a fifth of the run, only one above {detectable:.0%} would be significant"
    if detectable > MAX_DETECTABLE:
        return "inconclusive", f"Too noisy to tell: {seen}; even {broad}, and a narrow one must be higher."
    return "none", f"No hump beyond noise: {seen}; {broad}, a narrow one must be higher."


def _peak_draws(
    series: BinnedSeries, noise: SeriesNoise, scanned: ScanResult, rng: np.random.Generator
) -> Float[np.ndarray, " draw"]:
    """Steps of the top, drawn from its posterior given the values between the valleys."""
    top = scanned.bin
    first, last = int(np.argmin(scanned.smooth[: top + 1])), top + int(np.argmin(scanned.smooth[top:]))
    values, place = series.values[first : last + 1], np.arange(last + 1.0 - first)
    baseline = np.stack([np.ones_like(place), place], axis=1)
    humps, shapes = _hump_grid(place, _half_width(scanned.smooth, top, first, last))
    fit = fit_shapes(values, noise.covariance(len(place)), baseline, shapes)
    drawn = fit.draws(N_POSTERIOR_DRAWS, rng)
    fine = np.linspace(place[0], place[-1], 4 * len(place))[1:-1]
    curves = fit.amplitude[drawn, None] * _hump(fine, *humps[drawn].T[:, :, None])
    curves += fit.coefficients[1, drawn, None] * fine
    tops = fine[np.argmax(curves, axis=1)] + rng.uniform(-0.5, 0.5, size=N_POSTERIOR_DRAWS)  # tops are a bin apart
    return series.position(first + tops)


def _half_width(smooth: Float[np.ndarray, " bin"], top: int, first: int, last: int) -> float:
    """Bins from side to side of the hump at half its height."""
    half = (smooth[top] + max(smooth[first], smooth[last])) / 2
    below = np.flatnonzero(smooth[first : last + 1] < half) + first
    left, right = below[below < top], below[below > top]
    return float(max((right[0] if len(right) else last) - (left[-1] if len(left) else first), 4))


def _hump_grid(
    place: Float[np.ndarray, " bin"], width: float
) -> tuple[Float[np.ndarray, "shape 3"], Float[np.ndarray, "shape bin"]]:
    """Tops at every bin with left and right widths from a fifth to three times that of a hump of this width."""
    sides = width / 2.355 * 2.0 ** np.arange(-2.4, 1.7, 0.5)
    humps = np.stack(np.meshgrid(place[1:-1], sides, sides, indexing="ij"), axis=-1).reshape(-1, 3)
    left, right = (side[..., None] for side in np.ix_(sides, sides))
    return humps, at_every_place(_hump(np.arange(1.0 - len(place), len(place)), 0.0, left, right))


def _hump(
    place: Float[np.ndarray, " bin"],
    top: Float[np.ndarray, "*shape 1"] | float,
    left: Float[np.ndarray, "*shape 1"],
    right: Float[np.ndarray, "*shape 1"],
) -> Float[np.ndarray, "*shape bin"]:
    """A Gaussian hump of unit height with a separate standard deviation on each side."""
    away = place - top
    return np.exp(-0.5 * (away / np.where(away < 0, left, right)) ** 2)


def _checked(steps: np.ndarray, grad_norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps, grad_norm = np.asarray(steps), np.asarray(grad_norm, dtype=float)
    if steps.ndim != 1 or steps.shape != grad_norm.shape or not len(steps):
        raise InputError(f"expected one gradient norm a step, one or more; found {grad_norm.shape} for {steps.shape}")
    if np.any(np.diff(steps) <= 0):
        raise InputError("the steps of the gradient norm must be increasing; is the log of two runs in one file?")
    if np.any(grad_norm < 0):
        raise InputError(f"a gradient norm cannot be negative; found {np.nanmin(grad_norm):g}")
    return steps, grad_norm
