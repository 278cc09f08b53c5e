"""Gradient norms with a known peak and norms of ΔW with a known onset, or with none: for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy.signal import lfilter

from em_interp.transition.synthetic import generator_of
from em_interp.utils.checks import check_known

HUMPS = ("gaussian", "lopsided", "pointed", "rounded", "falling_under", "after_warm_up")
NO_HUMPS = ("flat", "rising", "falling", "decaying", "step_down", "step_up", "warm_up_spike", "valley")
BENDS = ("sharp", "soft", "from_slow", "then_slowing")
NO_BENDS = ("line", "restart", "slowing", "stalling", "wandering")
TOO_GRADUAL = ("gradual",)  # growth that speeds up over the whole run


@dataclass(frozen=True)
class PlantedLog:
    """A logged gradient norm and its truth."""

    steps: Int[np.ndarray, " logged"] = field(repr=False)
    grad_norm: Float[np.ndarray, " logged"] = field(repr=False)
    peak: int | None  # the step at which it is highest without the noise; None where it has no hump
    memory: float  # lag-one correlation of the noise


@dataclass(frozen=True)
class PlantedNorm:
    """The norm of a path that begins at zero, and its truth."""

    steps: Int[np.ndarray, " step"] = field(repr=False)
    delta_norm: Float[np.ndarray, " step"] = field(repr=False)
    cumulative_lr: Float[np.ndarray, " step"] = field(repr=False)
    onset: int | None  # the middle of the bend; None where there is none


def planted_log(kind: str, seed: int | np.random.Generator) -> PlantedLog:
    """One logged gradient norm of a named kind, drawn at random.

    150 to 800 steps, every 1, 2 or 5 of them logged (80 or more). Humps of 1.6 to 3.3 times the valleys, with standard
    deviations of 5 to 15 % of the run, at 20 to 70 % of it. The noise of the logarithm has a standard deviation of 0.1
    to 0.3, lag-one correlation 0 to 0.8 (0.6 in fewer than 150 values), and is Gaussian, Student's t with 3 degrees of
    freedom, or has rare spikes.

    Args:
        kind: `gaussian`, `lopsided`, `pointed`, `rounded`, `falling_under` or `after_warm_up` (a hump); `flat`,
            `rising`, `falling`, `decaying`, `step_down`, `step_up`, `warm_up_spike` or `valley` (none).
        seed: Random seed, or a generator to draw from.

    Returns:
        The log with its truth.

    Raises:
        InputError: For another kind.
    """
    check_known("the kind", kind, HUMPS + NO_HUMPS)
    rng = generator_of(seed)
    last, every = int(rng.integers(150, 801)), int(rng.choice([1, 1, 2, 5]))
    every = every if last / every >= 80 else 1
    steps = np.arange(every, last + 1, every)
    fine = np.arange(1, last + 1) / last
    trend = _humped(kind, fine, rng) if kind in HUMPS else _humpless(kind, fine, rng)
    settled = int(0.06 * last)
    peak = settled + 1 + int(np.argmax(trend[settled:])) if kind in HUMPS else None
    memory = float(rng.choice([0, 0.3, 0.6, 0.8][: 4 if len(steps) >= 150 else 3]))
    noise = rng.uniform(0.1, 0.3) * _log_noise(len(steps), memory, rng)
    return PlantedLog(steps, np.exp(trend[steps - 1] + noise), peak, memory)


def planted_norm(kind: str, seed: int | np.random.Generator) -> PlantedNorm:
    """The norm of one path of a named kind, drawn at random: a drift and noise in 30 dimensions.

    150 to 800 steps; all saved, every 5, or 1-10 and then every 5 (from 300 steps on). The learning rate warms up over
    5 steps and is then constant or decays linearly. The speed per learning rate grows by half to five-fold at 20 to 80
    % of the cumulative learning rate. Over 10 steps the noise is 0.1 to 0.4 of the drift, white or smoothed by
    momentum.

    Args:
        kind: `sharp`, `soft`, `from_slow` or `then_slowing` (a bend); `line`, `restart`, `slowing`, `stalling`,
            `wandering` or `gradual` (none, the last because growth speeds up over the whole run).
        seed: Random seed, or a generator to draw from.

    Returns:
        The norm with its truth.

    Raises:
        InputError: For another kind.
    """
    check_known("the kind", kind, BENDS + NO_BENDS + TOO_GRADUAL)
    rng = generator_of(seed)
    last = int(rng.integers(150, 801))
    lr = _learning_rates(last, kind == "restart", rng)
    learned = np.concatenate([[0.0], np.cumsum(lr)])
    place = rng.uniform(0.2, 0.8)
    speed = _speed(kind, learned[1:] / learned[-1], place, rng)
    noise = _path_noise(last, rng) * rng.uniform(0.1, 0.4) * max(float(speed.mean()), 0.5)
    noise[:, 0] += speed
    path = np.concatenate([np.zeros((1, noise.shape[1])), np.cumsum(lr[:, None] * noise, axis=0)])
    onset = int(np.searchsorted(learned[1:], place * learned[-1])) if kind in BENDS else None
    saved = _saved(last, rng)
    return PlantedNorm(saved, np.linalg.norm(path, axis=1)[saved], learned[saved], onset)


def _humped(kind: str, u: Float[np.ndarray, " step"], rng: np.random.Generator) -> Float[np.ndarray, " step"]:
    height, width = rng.uniform(0.5, 1.2), rng.uniform(0.05, 0.15)
    away = (u - rng.uniform(0.2, 0.7)) / width
    if kind == "pointed":
        return height * np.exp(-np.abs(away))
    if kind == "rounded":
        return height * np.where(np.abs(away) < 2, 0.5 + 0.5 * np.cos(np.pi * away / 2), 0)
    if kind == "lopsided":
        away = away / np.where(away < 0, 0.6, 1.6)
    hump = height * np.exp(-0.5 * away**2)
    if kind == "falling_under":
        return hump - rng.uniform(0, 0.6) * u
    return hump + (_warm_up(u, rng) if kind == "after_warm_up" else 0)


def _humpless(kind: str, u: Float[np.ndarray, " step"], rng: np.random.Generator) -> Float[np.ndarray, " step"]:
    size, place = rng.uniform(0.3, 1.5), rng.uniform(0.2, 0.8)
    return {
        "flat": 0 * u,
        "rising": size * u,
        "falling": -size * u,
        "decaying": np.log(rng.uniform(0.1, 0.4) + np.exp(-u / rng.uniform(0.03, 0.3))),
        "step_down": -size * (u > place),
        "step_up": size * (u > place),
        "warm_up_spike": _warm_up(u, rng) - rng.uniform(0, 0.7) * u,
        "valley": size * np.abs(u - place),
    }[kind]


def _warm_up(u: Float[np.ndarray, " step"], rng: np.random.Generator) -> Float[np.ndarray, " step"]:
    """A gradient norm that begins 2 to 5 times as high and comes down within a few per cent of the run."""
    return np.log(1 + rng.uniform(1, 4) * np.exp(-u / rng.uniform(0.01, 0.03)))


def _log_noise(count: int, memory: float, rng: np.random.Generator) -> Float[np.ndarray, " logged"]:
    tail = rng.choice(["normal", "t3", "spikes"])
    drawn = rng.standard_t(3, count + 100) / np.sqrt(3) if tail == "t3" else rng.normal(size=count + 100)
    noise = np.sqrt(1 - memory**2) * lfilter([1], [1, -memory], drawn)[100:]
    return noise + (rng.random(count) < 0.01) * rng.exponential(4, count) if tail == "spikes" else noise


def _speed(
    kind: str, u: Float[np.ndarray, " step"], place: float, rng: np.random.Generator
) -> Float[np.ndarray, " step"]:
    """Drift per learning rate along the run."""
    gain, after = rng.uniform(0.5, 4), u > place
    return {
        "sharp": 1 + gain * after,
        "soft": 1 + gain * np.clip((u - place) / rng.uniform(0.05, 0.12) + 0.5, 0, 1),
        "from_slow": 0.2 + 0.8 * after,
        "then_slowing": 1 + gain * after * np.exp((place - u) / 0.4),
        "line": 1 + 0 * u,
        "restart": 1 + 0 * u,
        "slowing": np.exp(-u / rng.uniform(0.2, 1)),
        "stalling": np.where(after, rng.uniform(0, 0.3), 1),
        "wandering": 0 * u,
        "gradual": 0.2 + gain * u,
    }[kind]


def _learning_rates(last: int, restart: bool, rng: np.random.Generator) -> Float[np.ndarray, " step"]:
    step = np.arange(last)
    if restart:
        half = last // 2
        return np.where(step < half, 1 - step / half, 1 - (step - half) / (last - half))
    return np.minimum((step + 1) / 5, 1) * (1 - step / last if rng.random() < 0.5 else 1)


def _path_noise(last: int, rng: np.random.Generator) -> Float[np.ndarray, "step coordinate"]:
    """Noise of the increments whose sum over 10 steps has a mean length of 10, white or smoothed by momentum 0.9."""
    drawn = rng.normal(size=(last + 60, 30))
    noise = (lfilter([0.1], [1, -0.9], drawn, axis=0) if rng.random() < 0.5 else drawn)[60:]
    sums = noise[: last // 10 * 10].reshape(-1, 10, 30).sum(axis=1)
    return noise * 10 / np.mean(np.linalg.norm(sums, axis=1))


def _saved(last: int, rng: np.random.Generator) -> Int[np.ndarray, " step"]:
    step, how = np.arange(last + 1), rng.choice(["all", "every 5", "1-10, every 5"])
    if how == "all" or last < 300:
        return step
    return step[(step % 5 == 0) | (step == last) | ((step <= 10) & (how != "every 5"))]
