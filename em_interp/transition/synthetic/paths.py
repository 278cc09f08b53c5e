"""Paths with a planted turn, or with none: what the error rates of the rotation test are measured on.

A path is drift plus noise. The drift has a direction, which may turn, and a speed, which follows the learning rate
(five steps of warm-up, then linear decay) times a growth of its own. The noise is white or momentum-smoothed, isotropic
or with a decaying spectrum, and its size follows the learning rate or something else; its 10-step standard deviation,
after any smoothing, is 0.1 to 0.4 of the 10-step drift, both over the whole run. Instead of drawn noise a path may have
that of a trained run: its residual increments (`residual_increments`), resampled in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.ndimage import uniform_filter1d
from scipy.signal import savgol_filter

from em_interp.errors import InputError
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.utils.checks import check_known, check_type, check_whole, described

Storage = Literal["float32", "bfloat16", "float16"]
TURNING = ("abrupt", "gradual", "at_growth", "on_curve")
NOT_TURNING = ("straight", "random_walk", "saturating", "arc", "arc_growth", "bend", "growth", "stall", "restart")
STEPPED = ("stepped",)  # straight as well; apart, so that rows of all NOT_TURNING in turn keep their paths
SEVERAL = ("abrupt", "gradual", "on_curve")  # kinds of which a path can have several turns

WARMUP = 5
MOMENTUM = 0.9
RESIDUAL_WINDOW = 41  # steps: what is slower than this counts as drift
RESIDUAL_BLOCK = 20  # steps that are resampled together, so that momentum stays in the noise


@dataclass(frozen=True)
class PlantedTurn:
    """The truth of a path that turns."""

    step: float  # middle of the turn
    angle_deg: float
    width: float  # steps from 10 % to 90 % of the turn; 0 for a corner


@dataclass(frozen=True, eq=False)
class PlantedPath:
    """A path at its saved steps, and its truth."""

    kind: str
    steps: Int[np.ndarray, " step"] = field(repr=False)
    vectors: Float32[np.ndarray, "step d"] = field(repr=False)
    turns: tuple[PlantedTurn, ...]  # in the order of their steps; empty for kinds that do not turn
    learning_rate: Float[np.ndarray, " training_step"] | None = field(repr=False)  # of each step; None without a log
    settings: dict[str, Any]  # the parameters drawn

    @property
    def turn(self) -> PlantedTurn | None:
        """The first turn; None where the path does not turn."""
        return self.turns[0] if self.turns else None

    @property
    def gram(self) -> Float[np.ndarray, "step step"]:
        """Inner products of the positions."""
        vectors = self.vectors.astype(np.float64)
        return vectors @ vectors.T

    @property
    def cumulative_lr(self) -> Float[np.ndarray, " step"] | None:
        """Sum of the learning rates up to each saved step, where they were logged."""
        if self.learning_rate is None:
            return None
        return np.concatenate([[0.0], np.cumsum(self.learning_rate)])[self.steps]

    def trajectory(self) -> AdapterTrajectory:
        """The path as B of a rank-1 adapter whose A never moves."""
        import pandas as pd

        log = pd.DataFrame()
        if self.learning_rate is not None:
            logged = {"learning_rate": self.learning_rate, "cumulative_lr": np.cumsum(self.learning_rate)}
            log = pd.DataFrame(logged, index=pd.Index(np.arange(1, len(self.learning_rate) + 1), name="step"))
        A = np.tile(np.array([[[0.6, 0.8]]], np.float32), (len(self.steps), 1, 1))
        site = "layers.0.mlp.down_proj"
        return AdapterTrajectory(
            steps=self.steps,
            A={site: A},
            B={site: self.vectors[:, :, None]},
            scale={site: 1.0},
            metrics=log,
            source=f"planted {self.kind}",
        )


def planted_path(
    kind: str,
    seed: int,
    last: int | None = None,
    noise_ratio: float | None = None,
    storage: Storage = "float32",
    turns: int = 1,
    residuals: Float[np.ndarray, "increment d"] | None = None,
    noise_seed: int | None = None,
) -> PlantedPath:
    """One path of a named kind, drawn at random; the same arguments give the same path.

    Args:
        kind: `abrupt`, `gradual`, `at_growth` or `on_curve` (a turn by 60° to 120° in the middle 60 % of the run);
            `straight`, `random_walk`, `saturating`, `arc`, `arc_growth`, `bend`, `growth`, `stall` or `restart` (no
            turn); or `stepped`, straight, with a learning rate that is constant and falls to a tenth or a third of
            that at 30 to 70 %.
        seed: Random seed.
        last: The last step; drawn from 150 to 800 by default.
        noise_ratio: Noise over drift, both over 10 steps; drawn from 0.1 to 0.4 by default. With a given
            ratio the noise fills 256 to 2048 dimensions, because on real paths large noise is in many dimensions.
        storage: Number type of the saved positions, whose largest coordinate is then 0.003 as that of a real B.
        turns: How many turns a path that is `abrupt`, `gradual` or `on_curve` has, at about even distances.
        residuals: Noise of a trained run, from `residual_increments`, which is resampled in blocks of 20 steps; the
            path then has as many dimensions as that. Drawn noise by default.
        noise_seed: Random seed of the noise alone: paths that differ in it are runs with the same drift.

    Returns:
        The path with its truth; `trajectory()` makes an `AdapterTrajectory` of it.

    Raises:
        InputError: For another kind, and for several turns of a kind that has one.
    """
    check_known("the kind", kind, TURNING + NOT_TURNING + STEPPED)
    check_whole("seed", seed)
    if storage not in get_args(Storage):
        raise InputError(f"storage must be one of {', '.join(get_args(Storage))}; it is {described(storage)}")
    if last is not None:
        check_whole("last", last, minimum=20)
    if noise_ratio is not None:
        check_type("noise_ratio", noise_ratio, Real, "a number")
    check_whole("turns", turns, minimum=1)
    if turns > 1 and kind not in SEVERAL:
        raise InputError(f"a path of kind {kind!r} has no {turns} turns; those that can: {', '.join(SEVERAL)}")
    if residuals is not None:
        _check_residuals(residuals)
    rng = np.random.default_rng([seed, (TURNING + NOT_TURNING + STEPPED).index(kind)])
    last = last or int(rng.integers(150, 801))
    settings = _draw_settings(rng, last)
    if noise_ratio is not None:
        settings |= {"noise_ratio": noise_ratio, "dimensions": 8 * settings["dimensions"]}
    if residuals is not None:
        settings |= {"dimensions": residuals.shape[1], "noise_in_time": "resampled", "noise_spectrum": None}
    time = np.arange(last) + 0.5
    rate = _learning_rate(kind, last, rng)
    planted, drift = _drift(kind, rng, time, rate, settings, turns)
    if noise_seed is not None:
        check_whole("noise_seed", noise_seed)
        rng = np.random.default_rng([seed, noise_seed])
    noise = _noise(rng, time, rate, settings, residuals)
    reference = _ten_step_size(drift) if kind != "random_walk" else 1.0
    noise *= settings["noise_ratio"] * reference / _ten_step_size(noise)
    positions = np.concatenate([np.zeros((1, settings["dimensions"])), _running_sum(drift + noise)])
    steps = _saved_steps(settings["saved"], last)
    vectors = _stored(positions[steps].astype(np.float32), storage)
    return PlantedPath(kind, steps, vectors, planted, rate if settings["logged"] else None, settings)


def _check_residuals(residuals: Float[np.ndarray, "increment d"]) -> None:
    if not isinstance(residuals, np.ndarray) or residuals.ndim != 2 or len(residuals) < RESIDUAL_BLOCK:
        raise InputError(
            f"residuals must be an array (increment, d) of {RESIDUAL_BLOCK} rows or more, as residual_increments gives "
            f"them; they are {described(residuals)}"
        )


def residual_increments(vectors: Float[np.ndarray, "step d"]) -> Float[np.ndarray, "increment d"]:
    """The noise of a trained run's path, for `planted_path`: its increments less their drift, of even size.

    The drift is a line fitted to 41 steps around each increment; noise slower than that is lost with it. Each residual
    is divided by the root mean square length of those in 41 steps around it.

    Args:
        vectors: Positions at every step, such as `path.vectors("B")` of a run that saved every step.

    Raises:
        InputError: For fewer than 42 positions.
    """
    if len(vectors) <= RESIDUAL_WINDOW:
        raise InputError(f"residuals need {RESIDUAL_WINDOW + 1} positions at successive steps; found {len(vectors)}")
    increments = np.diff(np.asarray(vectors, float), axis=0)
    residuals = increments - savgol_filter(increments, RESIDUAL_WINDOW, 1, axis=0)
    size = uniform_filter1d(np.sum(residuals**2, axis=1), RESIDUAL_WINDOW, mode="nearest")
    return residuals / np.sqrt(np.maximum(size, np.finfo(float).tiny))[:, None]


def _stored(vectors: Float32[np.ndarray, "step d"], storage: Storage) -> Float32[np.ndarray, "step d"]:
    """The numbers that a type keeps, rounded to the nearest, ties to even."""
    if storage == "float32":
        return vectors
    scaled = vectors * np.float32(3e-3 / np.abs(vectors).max())
    if storage == "float16":
        return scaled.astype(np.float16).astype(np.float32)
    bits = scaled.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def _draw_settings(rng: np.random.Generator, last: int) -> dict[str, Any]:
    return {
        "last": last,
        "dimensions": int(rng.choice([32, 64, 128, 256])),
        "drift": str(rng.choice(["spread", "few coordinates"])),
        "saved": str(rng.choice(["every step", "every 5", "1-10, every 5"])),
        "ramp": str(rng.choice(["linear", "smooth", "logistic"])),
        "logged": bool(rng.integers(2)),
        "noise_in_time": str(rng.choice(["white", "momentum"])),
        "noise_spectrum": float(rng.choice([0.0, 0.5, 1.0])),  # amplitude of the k-th direction is k^-this
        "noise_follows": str(rng.choice(["learning rate", "root of it", "a hump", "nothing"])),
        "noise_ratio": float(rng.uniform(0.1, 0.4)),
    }


def _learning_rate(kind: str, last: int, rng: np.random.Generator) -> Float[np.ndarray, " training_step"]:
    """Warm-up, then linear decay to zero; twice, where the schedule restarts, and constant, where it is stepped."""
    if kind == "restart":
        first = int(last * rng.uniform(0.3, 0.7))
        return np.concatenate([_decay(first), _decay(last - first)])
    if kind == "stepped":
        until = int(last * rng.uniform(0.3, 0.7))
        return np.repeat([1.0, float(rng.choice([0.1, 0.3]))], [until, last - until])
    return _decay(last)


def _decay(last: int) -> Float[np.ndarray, " training_step"]:
    step = np.arange(last)
    return np.minimum((step + 1) / WARMUP, 1.0) * (last - step) / last


def _growth(time: np.ndarray, middle: float, width: float) -> np.ndarray:
    """Speed of logistic growth whose 10 % to 90 % take `width` steps; 1 at its fastest."""
    return 1 / np.cosh((time - middle) * np.log(9) / width) ** 2


def _ramp(time: np.ndarray, turn: PlantedTurn, shape: str) -> np.ndarray:
    """Share of the turn that is done: 0 before, 1 after, 10 % to 90 % over `width` steps."""
    if turn.width == 0:
        return (time > turn.step).astype(float)
    through = (time - turn.step) / turn.width
    if shape == "logistic":
        return 1 / (1 + np.exp(-2 * np.log(9) * through))
    if shape == "linear":
        return np.clip(0.8 * through + 0.5, 0, 1)
    through = np.clip(0.60846 * through + 0.5, 0, 1)
    return through**2 * (3 - 2 * through)


def _drift(
    kind: str, rng: np.random.Generator, time: np.ndarray, rate: np.ndarray, settings: dict[str, Any], count: int
) -> tuple[tuple[PlantedTurn, ...], Float[np.ndarray, "training_step d"]]:
    last = settings["last"]
    axes = _axes(rng, settings)
    if kind == "random_walk":
        return (), np.zeros((last, settings["dimensions"]))
    if kind == "saturating":
        return (), _bowl(rng, rate, settings)
    turn = PlantedTurn(float(round(last * rng.uniform(0.2, 0.8))), float(rng.uniform(60, 120)), 0.0)
    speed, heading, side = rate.copy(), np.zeros(last), np.zeros(last)
    if kind == "gradual":
        turn = PlantedTurn(turn.step, turn.angle_deg, 0.8 * float(rng.uniform(20, 40)))
    elif kind == "at_growth":
        speed *= _growth(time, turn.step, last * rng.uniform(0.25, 0.6)) + 0.02
    elif kind == "on_curve":
        turn = PlantedTurn(turn.step, turn.angle_deg, 0.8 * float(rng.choice([0.0, 20.0])))
        curve = np.radians(rng.uniform(20, 60)) * np.cumsum(rate) / rate.sum() * rng.choice([-1, 1])
        heading, side = (curve, side) if rng.integers(2) else (heading, curve)
    elif kind in ("growth", "arc_growth"):
        speed *= _growth(time, last * rng.uniform(0.3, 0.7), last * rng.uniform(0.15, 0.6)) + 0.01 * (kind != "growth")
    elif kind == "stall":
        speed /= 1 + np.exp((time - last * rng.uniform(0.3, 0.7)) / (last * rng.uniform(0.005, 0.05)))
    if kind in ("arc", "arc_growth"):
        heading = np.radians(rng.uniform(60, 180)) * np.cumsum(speed) / speed.sum()
    if kind == "bend":  # over 35 % of the run and more, from its first to its last degree
        whole = last * rng.uniform(0.35, 0.8)
        share = {"linear": 0.8, "smooth": 0.60846, "logistic": 1.0}[settings["ramp"]]
        turn = PlantedTurn(float(last * rng.uniform(0.4, 0.6)), turn.angle_deg, share * whole)
    turns = (turn,) if count == 1 else _several(rng, turn.width, last, count)
    if kind in TURNING or kind == "bend":
        heading = heading + sum(np.radians(each.angle_deg) * _ramp(time, each, settings["ramp"]) for each in turns)
    in_plane = np.cos(heading)[:, None] * axes[:, 0] + np.sin(heading)[:, None] * axes[:, 1]
    direction = np.cos(side)[:, None] * in_plane + np.sin(side)[:, None] * axes[:, 2]
    return turns if kind in TURNING else (), speed[:, None] * direction


def _several(rng: np.random.Generator, width: float, last: int, count: int) -> tuple[PlantedTurn, ...]:
    """Turns in the middle 70 % of the run, each in the middle half of its share of that."""
    share = 0.7 / count
    steps = last * (0.15 + share * (np.arange(count) + rng.uniform(0.25, 0.75, count)))
    return tuple(PlantedTurn(float(round(step)), float(rng.uniform(60, 120)), width) for step in steps)


def _axes(rng: np.random.Generator, settings: dict[str, Any]) -> Float[np.ndarray, "d 3"]:
    """Three orthonormal directions, in all coordinates or in a handful."""
    d = settings["dimensions"]
    used = rng.permutation(d)[: d if settings["drift"] == "spread" else int(rng.integers(3, 7))]
    axes = np.zeros((d, 3))
    axes[used] = np.linalg.qr(rng.standard_normal((len(used), 3)))[0]
    return axes


def _bowl(rng: np.random.Generator, rate: np.ndarray, settings: dict[str, Any]) -> Float[np.ndarray, "training_step d"]:
    """The approach to the bottom of a quadratic bowl, curvatures spread over a factor of 5 to 50."""
    d = settings["dimensions"]
    kept = int(rng.integers(4, d + 1))
    curvature = np.logspace(0, -rng.uniform(0.7, 1.7), kept) * rng.uniform(2, 8) / rate.sum()
    spread = settings["drift"] == "spread"
    axes = np.linalg.qr(rng.standard_normal((d, kept)))[0] if spread else np.eye(d)[:, rng.permutation(d)[:kept]]
    done = 1 - np.exp(-np.outer(np.concatenate([[0.0], np.cumsum(rate)]), curvature))
    return np.diff(done * rng.standard_normal(kept), axis=0) @ axes.T


def _noise(
    rng: np.random.Generator,
    time: np.ndarray,
    rate: np.ndarray,
    settings: dict[str, Any],
    residuals: Float[np.ndarray, "increment d"] | None,
) -> Float[np.ndarray, "training_step d"]:
    last = settings["last"]
    noise = _drawn_noise(rng, settings) if residuals is None else _resampled(rng, residuals, last)
    hump = 1 + 2 * np.exp(-0.5 * ((time / last - rng.uniform(0.2, 0.8)) / 0.1) ** 2)
    size = {"learning rate": rate, "root of it": np.sqrt(rate), "a hump": rate * hump, "nothing": np.ones(last)}
    return noise * size[settings["noise_follows"]][:, None]


def _resampled(
    rng: np.random.Generator, residuals: Float[np.ndarray, "increment d"], last: int
) -> Float[np.ndarray, "training_step d"]:
    """Blocks of successive residuals from anywhere in the run, one after the other."""
    starts = rng.integers(len(residuals) - RESIDUAL_BLOCK + 1, size=-(-last // RESIDUAL_BLOCK))
    return residuals[(starts[:, None] + np.arange(RESIDUAL_BLOCK)).ravel()[:last]]


def _drawn_noise(rng: np.random.Generator, settings: dict[str, Any]) -> Float[np.ndarray, "training_step d"]:
    last, d = settings["last"], settings["dimensions"]
    spectrum = rng.permutation(np.arange(1.0, d + 1) ** -settings["noise_spectrum"])
    warm = 60  # steps that momentum forgets
    noise = rng.standard_normal((last + warm, d)) * spectrum
    if settings["noise_in_time"] == "momentum":
        noise = _running_sum((1 - MOMENTUM) * noise, MOMENTUM)
    return noise[warm:]


def _running_sum(rows: Float[np.ndarray, "row d"], kept: float = 1.0) -> Float[np.ndarray, "row d"]:
    """Each row plus `kept` times what the sum was before it; `np.cumsum` goes column by column, ten times as slowly."""
    total = rows.copy()
    for before, row in pairwise(total):
        row += kept * before
    return total


def _ten_step_size(increments: np.ndarray) -> float:
    """Root mean square length of ten-step displacements."""
    path = _running_sum(increments)
    return float(np.sqrt(np.mean(np.sum((path[10:] - path[:-10]) ** 2, axis=1))))


def _saved_steps(saved: str, last: int) -> Int[np.ndarray, " step"]:
    if saved == "every step":
        return np.arange(last + 1)
    first = range(11) if saved == "1-10, every 5" else ()
    return np.unique([*first, *range(0, last + 1, 5), last])
