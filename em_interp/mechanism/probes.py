"""Probes: how well an answer's scalars tell whether it is misaligned, on questions that the probe has not seen.

A logistic regression on each answer's mean and largest scalars, standardised, classes weighted alike; answers to one
question are all in one fold, or the probe would know the question and not the answer. The area under the ROC curve
(AUC) is that of the held-out scores of all folds together; its interval is for other questions of the kind: questions
are drawn again with the probes as they are. (Soligo, Turner et al., arXiv 2506.11618, report AUC 0.66–0.75 for probes
on nine scalars, without saying how answers were split.)

Beside it stands what needs no model: the same probe on the answer's length alone. And at step 0 the scalars are those
of a random A, which is the baseline for what training did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.behaviour.rates import cluster_bootstrap
from em_interp.errors import InputError
from em_interp.mechanism.answers import LEAST
from em_interp.mechanism.scalars import How, Scalars
from em_interp.results import Line, html_card, picture

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

QUESTIONS = 4  # with answers of either kind
DRAWS = 1000
SEED = 20250611


@dataclass(frozen=True, eq=False, repr=False)
class Probes:
    """The AUC of the probe at every step."""

    rows: pd.DataFrame  # step, auc, auc_low, auc_high
    length_auc: float  # of the answer's length alone
    length_interval: tuple[float, float]
    about: str
    folds: int
    questions: int
    level: float

    def frame(self) -> pd.DataFrame:
        """One row a step: auc, auc_low and auc_high; and length_auc, the same at every step."""
        return self.rows.assign(length_auc=self.length_auc)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        said = {"about": self.about, "folds": self.folds, "questions": self.questions, "level": self.level}
        length = {"length_auc": self.length_auc, "length_interval": list(self.length_interval)}
        return said | length | {"rows": self.rows.to_dict("records")}

    def sentence(self) -> str:
        """The last step's AUC, the first one's and that of the length beside it."""
        first, last = self.rows.iloc[0], self.rows.iloc[-1]
        before = f", at step {first.step:.0f} {first.auc:.2f}" if len(self.rows) > 1 else ""
        return (
            f"A probe on the scalars of step {last.step:.0f} tells misaligned from aligned answers to new questions "
            f"with AUC {last.auc:.2f} ({self.level:.0%} interval {last.auc_low:.2f} to {last.auc_high:.2f}){before}; "
            f"on the answer's length alone {self.length_auc:.2f}. {self.about}; {self.questions} questions in "
            f"{self.folds} folds."
        )

    def plot(self) -> go.Figure:
        """AUC by step with its interval, chance and the length's beside it."""
        from em_interp.figures.internals import plot_probes

        return plot_probes(self.frame(), self.level, self.sentence())

    def __repr__(self) -> str:
        return f"Probes({self.sentence()})"

    def _repr_html_(self) -> str:
        line = Line(self.rows["step"].to_numpy(), self.rows["auc"].to_numpy())
        return html_card([self.sentence()], picture([line], "AUC of the probe"), (".plot()", ".frame()"))


def probe(
    scalars: Scalars,
    features: Sequence[How] = ("mean", "max"),
    folds: int = 5,
    level: float = 0.95,
    seed: int = SEED,
) -> Probes:
    """Probe the scalars of every step. Raises InputError where there are fewer than 10 answers of a kind, or fewer than
    4 questions with answers of either kind.
    """
    import pandas as pd

    answers = scalars.answers
    answers.need(LEAST, "a probe")
    y, question = answers.misaligned, answers.question
    both = min(len(np.unique(question[y])), len(np.unique(question[~y])))
    if both < QUESTIONS:
        raise InputError(
            f"a probe needs misaligned answers to {QUESTIONS} questions and aligned ones to as many, to be tried on "
            f"others than it learned from; found {both} ({answers.source})"
        )
    folds, drawn = min(folds, both), cluster_bootstrap(question, DRAWS, seed)
    rows = []
    for step in scalars.steps.tolist():
        x = np.concatenate([scalars.per_answer(step, how) for how in features], axis=1)
        found = _auc(held_out_scores(x, y, question, folds, seed), y, drawn, level)
        rows.append({"step": step, **dict(zip(("auc", "auc_low", "auc_high"), found, strict=True))})
    length = scalars.lengths[:, None].astype(float)
    auc, low, high = _auc(held_out_scores(length, y, question, folds, seed), y, drawn, level)
    count = int(question.max()) + 1
    return Probes(pd.DataFrame(rows), auc, (low, high), answers.sentence(), folds, count, level)


def held_out_scores(
    x: Float[np.ndarray, "answer feature"],
    y: Bool[np.ndarray, " answer"],
    question: Int[np.ndarray, " answer"],
    folds: int = 5,
    seed: int = SEED,
) -> Float[np.ndarray, " answer"]:
    """Each answer's score by a probe that has seen no answer to its question."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = np.full(len(y), np.nan)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    for seen, held in split.split(x, y, question):
        if y[seen].all() or not y[seen].any():
            raise InputError("a fold of the probe is left with answers of one kind; take fewer folds")
        machine = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        scores[held] = machine.fit(x[seen], y[seen]).decision_function(x[held])
    return scores


def _auc(
    scores: Float[np.ndarray, " answer"],
    y: Bool[np.ndarray, " answer"],
    drawn: Float[np.ndarray, "draw answer"],
    level: float,
) -> tuple[float, float, float]:
    """The AUC and its interval over draws of questions; a draw with answers of one kind says nothing."""
    above = (np.sign(scores[y][:, None] - scores[~y]) + 1) / 2
    ones, others = drawn[:, y], drawn[:, ~y]
    pairs = ones.sum(axis=1) * others.sum(axis=1)
    found = ((ones @ above) * others).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return auc_of(scores, y), float(low), float(high)


def auc_of(scores: Float[np.ndarray, " answer"], y: Bool[np.ndarray, " answer"]) -> float:
    """The chance that a misaligned answer scores above an aligned one, ties counting half."""
    from scipy.stats import rankdata

    ones = int(y.sum())
    above = rankdata(scores)[y].sum() - ones * (ones + 1) / 2
    return float(above / (ones * (len(y) - ones)))
