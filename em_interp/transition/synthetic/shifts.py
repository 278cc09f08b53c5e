"""Values of questions along a run with a known onset of their mean, or with none: for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from em_interp.transition.onsets.mean_shift import QuestionCurves
from em_interp.transition.synthetic import generator_of
from em_interp.transition.synthetic.curves import FROM_START, share_done, step_where_done
from em_interp.utils.checks import check_known

RISES = (
    "plain",
    "sharp",
    "gradual",
    "staggered",
    "few_questions",
    "wiggles",
    "lopsided",
    "beyond_control",
    "shared_style",
    "at_once",
    "read_early",
)
NULLS = ("flat", "drifts", "as_control", "as_style", "own_style", "falling", "trifle")
EARLY = (0, 0.01, 0.05, 0.09, 0.13, 0.17, 0.2, 0.26, 0.34, 0.44, 0.6, 0.8, 1)  # shares of the run


@dataclass(frozen=True)
class PlantedShift:
    """Curves of questions with the truth they were drawn from; `half` is None where the mean does not shift."""

    curves: QuestionCurves = field(repr=False)
    control: QuestionCurves | None = field(repr=False)
    style: QuestionCurves | None = field(repr=False)
    control_style: QuestionCurves | None = field(repr=False)
    half: float | None  # the step of the half-rise of the mean, counted from step 0

    @property
    def given(self) -> tuple[QuestionCurves | None, QuestionCurves | None, QuestionCurves | None]:
        """The other arguments of `locate_shift`: the control, the style null and the control's style null."""
        return self.control, self.style, self.control_style


def planted_shift(kind: str, seed: int | np.random.Generator) -> PlantedShift:
    """One set of planted curves of the named kind: 200–800 steps read at 12–40 of them, 12–144 questions.

    Each question has a height of its own around a mean of 0.03–0.2, half of it as spread, a slow random drift, and
    noise that is correlated between steps. `staggered`: each question has its own midpoint. `lopsided`: a Gompertz
    curve. `at_once`: begins at step 0, with no level before it, and approaches its end exponentially. `wiggles`: all
    questions share some noise. `read_early`: `at_once` with shared noise that is correlated by the distance in steps,
    read at 13 steps, half of them in the first fifth of the run. `drifts`: questions drift far, in either direction.
    `as_control` and `as_style`: the control or the style null shifts as much. `shared_style`: the style null shifts
    three times as much, and so does the control's; `own_style`: it shifts as much, and the control's does not.
    `trifle`: a shift too small to matter.

    Args:
        kind: `plain`, `sharp`, `gradual`, `staggered`, `few_questions`, `wiggles`, `lopsided`, `beyond_control`,
            `shared_style`, `at_once` or `read_early` (a shift); `flat`, `drifts`, `as_control`, `as_style`,
            `own_style`, `falling` or `trifle` (none).
        seed: a number or a generator; the same number gives the same curves.

    Returns:
        The curves, with the truth about them.

    Raises:
        InputError: for another kind.
    """
    check_known("the kind", kind, RISES + NULLS)
    rng = generator_of(seed)
    length = float(rng.integers(200, 801))
    even = np.linspace(0, length, int(rng.integers(12, 41)))
    steps = np.unique(np.round(length * np.array(EARLY) if kind == "read_early" else even))
    count = 12 if kind == "few_questions" else int(rng.choice([12, 24, 48, 144]))
    width = {"sharp": rng.uniform(0.02, 0.08), "gradual": rng.uniform(0.3, 0.4)}.get(kind, rng.uniform(0.05, 0.35))
    middle = rng.uniform(0.25, 0.7) * length / (4 if kind in FROM_START else 1)
    height = rng.uniform(0.03, 0.2) if kind != "trifle" else 0.003
    share = _share(kind, steps, middle, width * length, count, rng)
    own = _curves(steps, share, height, count, kind, rng)
    flat, n_style = np.zeros_like(share), int(rng.choice([12, 24, 48]))
    control = style = control_style = None
    if kind in ("beyond_control", "as_control", "shared_style", "own_style"):
        control = _curves(steps, share if kind == "as_control" else flat, height, count, kind, rng)
    if kind in ("beyond_control", "as_style", "plain", "shared_style", "own_style"):
        shifts = {"as_style": 1.0, "own_style": 1.0, "shared_style": 3.0}.get(kind, 0.0)
        style = _curves(steps, np.repeat(shifts * share[:, :1], n_style, axis=1), height, n_style, kind, rng)
    if style is not None and kind in ("shared_style", "own_style"):
        control_style = _control_style(style, kind, height, rng)
    half = _half(kind, length, middle, width * length) if kind in RISES else None
    return PlantedShift(own, control, style, control_style, half)


def _half(kind: str, length: float, middle: float, width: float) -> float:
    """The step of the half-rise of the mean over all questions of the kind, not just those that were drawn."""
    fine = np.linspace(0, length, 20001)
    spread = np.linspace(-0.5, 0.5, 41) * width if kind == "staggered" else np.zeros(1)
    done = np.mean([share_done(kind, fine, middle + each, width) for each in spread], axis=0)
    return step_where_done(0.5, fine, done)


def _control_style(style: QuestionCurves, kind: str, height: float, rng: np.random.Generator) -> QuestionCurves:
    """The control's curves of the same questions: as far in style with `shared_style`, flat with `own_style`."""
    count = len(style.question_ids)
    flat = _curves(style.steps, np.zeros((len(style.steps), count)), height, count, kind, rng)
    return flat if kind == "own_style" else QuestionCurves(flat.steps, flat.question_ids, flat.values + style.change)


def _share(
    kind: str, steps: Float[np.ndarray, " step"], middle: float, width: float, count: int, rng: np.random.Generator
) -> Float[np.ndarray, "step question"]:
    """Share of the shift done by step and question."""
    if kind in ("flat", "drifts"):
        return np.zeros((len(steps), count))
    spread = 0.5 * width if kind == "staggered" else 0.0
    halves = middle + spread * rng.uniform(-1, 1, count)
    return np.stack([share_done(kind, steps, half, width) for half in halves], axis=1)


def _curves(
    steps: Float[np.ndarray, " step"],
    share: Float[np.ndarray, "step question"],
    height: float,
    count: int,
    kind: str,
    rng: np.random.Generator,
) -> QuestionCurves:
    heights = height * (1 + 0.5 * rng.standard_normal(count)) * (-1 if kind == "falling" else 1)
    drift = np.outer(steps / steps[-1], rng.standard_normal(count)) * (0.1 if kind == "drifts" else 0.02)
    correlation = np.full(len(steps) - 1, 0.5)
    if kind == "read_early":
        correlation = 0.5 ** (24 * np.diff(steps) / steps[-1])  # as of 25 even readings
    noise = 0.01 * _correlated(correlation, count, rng)
    common = 0.05 * height * _correlated(correlation, 1, rng) if kind in ("wiggles", "read_early") else 0.0
    level = -0.4 + 0.3 * rng.standard_normal(count)
    ids = tuple(f"q{index:03}" for index in range(count))
    return QuestionCurves(steps, ids, level + heights * share + drift + noise + common)


def _correlated(
    correlation: Float[np.ndarray, " gap"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "step question"]:
    """Noise of variance 1 with these correlations between neighbouring steps."""
    noise = rng.standard_normal((len(correlation) + 1, count))
    for step, shared in enumerate(correlation, 1):
        noise[step] = shared * noise[step - 1] + np.sqrt(1 - shared**2) * noise[step]
    return noise
