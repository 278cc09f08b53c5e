"""The noise of a series and the test for a rise, against slow and exact ways."""

import numpy as np
import pytest
from scipy.linalg import toeplitz

from em_interp.transition.signals.series import (
    bin_series,
    fit_noise,
    fit_shapes,
    gaussian_kernel,
    log_spectra,
    momentum_spectra,
    monotone_trend,
    prominence,
    rise,
    scan_test,
    winsorize,
)


def autoregressive(count, memory, seed):
    rng = np.random.default_rng(seed)
    values = np.zeros(count + 100)
    for i in range(1, count + 100):
        values[i] = memory * values[i - 1] + np.sqrt(1 - memory**2) * rng.normal()
    return values[100:]


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.8])
def test_the_covariance_of_the_noise_is_that_of_the_process(memory):
    fitted = [
        fit_noise(x, log_spectra(200)).covariance(6)[0] for x in (autoregressive(200, memory, s) for s in range(60))
    ]
    np.testing.assert_allclose(np.median(fitted, axis=0), memory ** np.arange(6.0), atol=0.12)


def test_drawn_noise_has_the_covariance_it_says():
    noise = fit_noise(autoregressive(200, 0.6, seed=1), log_spectra(200))
    drawn = noise.draws(4000, np.random.default_rng(0))[100:106]
    np.testing.assert_allclose(np.cov(drawn), noise.covariance(6), rtol=0.15, atol=0.05)


@pytest.mark.parametrize("spectra", [log_spectra(150), momentum_spectra(150, 9.5)])
@pytest.mark.parametrize("memory", [0.0, 0.7])
def test_noise_without_a_trend_rises_as_rarely_as_its_p_value_says(spectra, memory):
    ps = []
    for seed in range(100):
        values = autoregressive(150, memory, seed)
        ps.append(scan_test(values, fit_noise(values, spectra), rise, np.random.default_rng(0), n_draws=199).p_value)
    assert np.mean(np.array(ps) <= 0.1) <= 0.16  # 0.1 and two standard errors
    assert np.mean(np.array(ps) <= 0.01) <= 0.03


def test_a_falling_trend_only_raises_the_p_value():
    noise = autoregressive(150, 0.3, seed=2)
    fitted = fit_noise(noise, log_spectra(150))
    ps = [
        scan_test(noise - slope * np.arange(150), fitted, rise, np.random.default_rng(0)).p_value
        for slope in (0, 0.01, 0.1)
    ]
    assert ps == sorted(ps)


def test_rise_and_prominence_are_those_of_the_slow_way():
    values = np.random.default_rng(0).normal(size=30)
    left = np.array([values[i] - values[: i + 1].min() for i in range(30)])
    right = np.array([values[i] - values[i:].min() for i in range(30)])
    np.testing.assert_allclose(rise(values), left)
    np.testing.assert_allclose(prominence(values), np.minimum(left, right))


def test_bins_are_means_and_empty_ones_are_interpolated():
    at = np.r_[np.arange(100.0), np.arange(150.0, 250)]
    series = bin_series(at, 2 * at)
    assert len(series.values) == 200
    np.testing.assert_allclose(series.values, 2 * series.at, atol=2.5)
    assert series.position(np.array([0.0, 199.0])) == pytest.approx([series.at[0], series.at[-1]])


def test_outliers_are_pulled_in_and_nothing_else_is_changed():
    values = np.sin(np.arange(100) / 50) + 0.1 * np.random.default_rng(0).normal(size=100)
    spiked = values.copy()
    spiked[50] += 20
    changed = np.flatnonzero(winsorize(spiked) != spiked)
    assert 50 in changed
    assert abs(winsorize(spiked)[50] - values[50]) < 1
    assert len(changed) <= 3


def test_a_shape_is_fitted_as_generalised_least_squares_does():
    rng = np.random.default_rng(0)
    covariance = toeplitz(0.5 ** np.arange(12.0))
    baseline = np.stack([np.ones(12), np.arange(12.0)], axis=1)
    shapes = np.exp(-0.5 * ((np.arange(12) - np.array([[3.0], [8.0]])) / 1.5) ** 2)
    values = 2 + 3 * shapes[1] + rng.multivariate_normal(np.zeros(12), covariance)
    fit = fit_shapes(values, covariance, baseline, shapes)
    inverse = np.linalg.inv(covariance)
    for j, shape in enumerate(shapes):
        design = np.column_stack([baseline, shape])
        slow = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ values)
        np.testing.assert_allclose([*fit.coefficients[:, j], fit.amplitude[j]], slow)
    assert fit.weights[1] > 0.95


def test_a_shape_that_only_fits_upside_down_is_not_preferred():
    place = np.arange(20.0)
    shapes = np.exp(-0.5 * ((place - np.array([[6.0], [12.0]])) / 2) ** 2)
    fit = fit_shapes(-shapes[0], np.eye(20), np.ones((20, 1)), shapes)
    assert fit.weights[0] == 0


@pytest.mark.parametrize("bandwidth", [0.02, 0.08])
def test_smoothing_makes_no_hump_of_its_own(bandwidth):
    falling_then_rising = np.abs(np.arange(100) - 37.0) ** 0.3
    for series in (np.arange(100.0) > 30, -np.log1p(np.arange(100.0)), falling_then_rising):
        assert prominence(gaussian_kernel(100, bandwidth) @ series).max() < 1e-9


def test_the_monotone_trend_of_a_hump_without_noise_is_the_hump_itself():
    place = np.arange(150.0)
    hump = np.exp(-0.5 * ((place - 60) / 15) ** 2) - 0.002 * place
    np.testing.assert_allclose(monotone_trend(hump), hump, atol=0.01)


def test_a_steep_trend_or_a_hump_is_not_taken_for_noise():
    place = np.arange(200.0)
    hump = 2 * np.exp(-0.5 * ((place - 60) / 12) ** 2) + 3 * np.exp(-place / 10)
    alone, on_trend = [], []
    for seed in range(20):
        noise = 0.2 * autoregressive(200, 0.0, seed)
        alone.append(fit_noise(noise, log_spectra(200)).mean[0])
        on_trend.append(fit_noise(noise + hump, log_spectra(200)).mean[0])
    assert np.median(on_trend) < 1.5 * np.median(alone)
