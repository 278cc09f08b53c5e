"""Planted answer shifts: answers from finite distributions known at every step, with their exact likelihoods."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from em_interp.mechanism.answer_shift.divergence import Form, Windows, divergence
from em_interp.mechanism.answer_shift.shift import AnswerShift

STEPS = np.arange(0, 401, 20)
HALF_WIDTH = 60
N_OUTCOMES = 3  # of each half


def planted_answers(
    share: Float[np.ndarray, " step"],
    samples: int = 6,
    questions: int = 12,
    seed: int = 0,
    form: Form = "linear",
    steps: Int[np.ndarray, " step"] = STEPS,
) -> AnswerShift:
    """`samples` answers a step and question, each one of six outcomes; `share` (by step) of them of the last three.

    Each question has its own distribution within the two halves, which does not change, so that only the half an
    answer belongs to says anything about the step. Column `outcome` has the number of the outcome.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    p = _probabilities(np.asarray(share, float), questions, rng)
    rows, likelihood = [], []
    for index, step in enumerate(steps):
        for question in range(questions):
            for outcome in rng.choice(2 * N_OUTCOMES, size=samples, p=p[index, question]):
                answer = f"word{outcome} here" + " and more" * int(outcome % 2)
                about = {"step": step, "questions": "planted", "question_id": f"q{question}"}
                rows.append({**about, "answer": answer, "outcome": outcome})
                likelihood.append(p[:, question, outcome])
    with np.errstate(divide="ignore"):
        table = np.log(np.array(likelihood))
    return AnswerShift(pd.DataFrame(rows), table, Windows.of(steps, HALF_WIDTH), form, seed=seed)


def planted_divergence(
    share: Float[np.ndarray, " step"],
    form: Form,
    questions: int = 12,
    seed: int = 0,
    steps: Int[np.ndarray, " step"] = STEPS,
) -> Float[np.ndarray, " window"]:
    """The divergence in every window, from the distributions of `planted_answers` themselves."""
    p = _probabilities(np.asarray(share, float), questions, np.random.default_rng(seed))
    windows, divergences = Windows.of(steps, HALF_WIDTH), []
    for left, right in zip(windows.left, windows.right, strict=True):
        pairs = zip(p[left].mean(axis=0), p[right].mean(axis=0), strict=True)
        divergences.append(np.mean([divergence(p_left, p_right, form) for p_left, p_right in pairs]))
    return np.array(divergences)


def _probabilities(
    share: Float[np.ndarray, " step"], questions: int, rng: np.random.Generator
) -> Float[np.ndarray, "step question outcome"]:
    within = rng.dirichlet(np.ones(N_OUTCOMES), size=(questions, 2))
    share = share[:, None, None]
    return np.concatenate([(1 - share) * within[:, 0], share * within[:, 1]], axis=2)


def planted_rise(
    at: float, width: float, top: float = 0.7, steps: Int[np.ndarray, " step"] = STEPS
) -> Float[np.ndarray, " step"]:
    """A share that rises to `top`, half-way at step `at`; the logistic's scale is `width` steps."""
    return top / (1 + np.exp(-(steps - at) / width))
