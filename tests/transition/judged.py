"""Judged answers whose EM rate follows a known curve."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from em_interp.transition.onsets.logistic import logistic

STEPS = np.arange(0, 401, 20)


@dataclass
class Table:
    """A behaviour curve reduced to what an onset needs: the scored answers of one scale and question set."""

    answers: pd.DataFrame
    scale: float | None = 1.0
    questions: str | None = "broad"

    def outcomes(self, metric="em", aligned=30, coherent=50):
        table = self.answers
        values = {
            "em": (table.aligned < aligned) & (table.coherent > coherent),
            "coherent": table.coherent > coherent,
            "aligned_mean": table.aligned / 100,
            "coherent_mean": table.coherent / 100,
        }
        return table[["step", "question_id"]].assign(value=values[metric].astype(float))

    def split(self):
        return [self]


def answers(rate, steps=STEPS, questions=8, n=10, seed=0):
    """Judged answers whose EM rate is `rate(step)`, others aligned and coherent."""
    rng = np.random.default_rng(seed)
    rows = pd.MultiIndex.from_product([steps, range(questions), range(n)], names=["step", "question_id", "sample"])
    table = rows.to_frame(index=False)
    bad = rng.random(len(table)) < rate(table.step.to_numpy(float))
    aligned = np.where(bad, rng.uniform(0, 25, len(table)), rng.uniform(80, 100, len(table)))
    return Table(table.assign(aligned=aligned, coherent=90.0))


def rising(middle, width=60, low=0.0, high=0.5):
    return lambda steps: low + (high - low) * logistic(steps, middle, width)


def flat(rate):
    return lambda steps: np.full(len(steps), rate)
