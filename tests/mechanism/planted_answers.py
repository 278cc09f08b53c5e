"""Answers drawn from finite distributions that are known at every step, with their exact likelihoods."""

import numpy as np
import pandas as pd

from em_interp.mechanism.change import AnswerChange
from em_interp.mechanism.windows import windows

STEPS = np.arange(0, 401, 20)


def planted(share, samples=6, questions=12, seed=0, reach=60, form="linear", steps=STEPS):
    """Six outcomes: a `share` (by step) of the answers is one of the last three, the others one of the first three.

    Each question has its own distribution within the threes, which does not change.
    """
    rng = np.random.default_rng(seed)
    within = rng.dirichlet(np.ones(3), size=(questions, 2))
    share = np.asarray(share, float)
    p = np.concatenate([(1 - share)[:, None, None] * within[:, 0], share[:, None, None] * within[:, 1]], axis=2)
    rows, likelihood = [], []
    for i, step in enumerate(steps):
        for question in range(questions):
            for outcome in rng.choice(6, size=samples, p=p[i, question]):
                answer = f"word{outcome} here" + " and more" * (outcome % 2)
                rows.append({"step": step, "question_id": f"q{question}", "answer": answer, "outcome": outcome})
                likelihood.append(p[:, question, outcome])
    with np.errstate(divide="ignore"):
        table = np.log(np.array(likelihood))
    return AnswerChange(pd.DataFrame(rows), table, windows(steps, reach), form, seed=seed)


def exact(share, form, reach=60, questions=12, seed=0, steps=STEPS):
    """The distance at every place, from the distributions themselves."""
    from em_interp.mechanism.distance import distance

    rng = np.random.default_rng(seed)
    within = rng.dirichlet(np.ones(3), size=(questions, 2))
    over, found = windows(steps, reach), []
    for left, right in zip(over.left, over.right, strict=True):
        sides = [np.mean(np.asarray(share, float)[side]) for side in (left, right)]
        p = [np.concatenate([(1 - s) * within[:, 0], s * within[:, 1]], axis=1) for s in sides]
        found.append(np.mean([distance(a, b, form) for a, b in zip(*p, strict=True)]))
    return np.array(found)


def logistic(at, width, top=0.7):
    """A share that rises half-way at step `at`."""
    return top / (1 + np.exp(-(STEPS - at) / width))
