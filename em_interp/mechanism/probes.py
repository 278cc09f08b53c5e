"""Probes: how well an answer's scalars predict whether it is misaligned, on questions that the probe has not seen.

A logistic regression on each answer's mean, largest and smallest scalars, standardised, with balanced class weights;
with both extremes the sign of an adapter, which has no meaning, alters nothing. All answers to one question are in one
fold, or the probe would recognise the question and not the answer. The area under the ROC curve (AUC) is that of the
held-out scores of all folds together. Its interval is for other questions of the kind: a bootstrap over questions with
the probes as they are. (Soligo, Turner et al., arXiv 2506.11618, report AUC 0.66–0.75 for probes on nine scalars,
without saying how answers were split.)

There are two baselines: the same probe on the answer's length alone, which needs no model, and step 0, where the
scalars are those of a random A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.behaviour.rates import cluster_bootstrap
from em_interp.errors import InputError
from em_interp.mechanism.answers import MIN_ANSWERS
from em_interp.mechanism.scalars import Scalars, Summary
from em_interp.results import Line, Result, interval_columns, percent, picture
from em_interp.utils.checks import check_level

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MIN_QUESTIONS = 4  # with answers of either kind
N_BOOTSTRAP = 1000
PROBE_SEED = 20250611
CHANCE_AUC = 0.5


@dataclass(frozen=True, eq=False, repr=False)
class Probes(Result):
    """The AUC of the probe at every step.

    Attributes:
        rows: one row for each step: step, and auc with its interval.
        length_auc: AUC of a probe on the answer's length alone.
        length_interval: the interval of that AUC.
        answers: in words, the answers that were probed.
        folds: number of folds of the cross-validation.
        questions: number of questions.
        level: confidence level of the intervals.
    """

    rows: pd.DataFrame
    length_auc: float
    length_interval: tuple[float, float]
    answers: str
    folds: int
    questions: int
    level: float

    def frame(self) -> pd.DataFrame:
        """A row a step: auc, auc_low and auc_high; and length_auc, the same at every step."""
        return self.rows.assign(length_auc=self.length_auc)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        about = {"answers": self.answers, "folds": self.folds, "questions": self.questions, "level": self.level}
        length = {"length_auc": self.length_auc, "length_interval": list(self.length_interval)}
        return {**about, **length, "rows": self.rows.to_dict("records"), "sentence": self.sentence()}

    def sentence(self) -> str:
        """The AUC at the last and at the first step, and that of the length."""
        first, last = self.rows.iloc[0], self.rows.iloc[-1]
        before = f", at step {first.step:.0f} {first.auc:.2f}" if len(self.rows) > 1 else ""
        tells = "tells" if last.auc_low > CHANCE_AUC else "does not tell"
        return (
            f"A probe on the scalars of step {last.step:.0f} {tells} misaligned from aligned answers to new questions: "
            f"AUC {last.auc:.2f} ({percent(self.level)} interval {last.auc_low:.2f} to {last.auc_high:.2f}; chance "
            f"{CHANCE_AUC}){before}; "
            f"on the answer's length alone {self.length_auc:.2f}. {self.answers}; {self.questions} questions in "
            f"{self.folds} folds."
        )

    def plot(self) -> go.Figure:
        """AUC by step with its interval, chance and the AUC of the length."""
        from em_interp.figures.mechanism.scalars import plot_probes

        return plot_probes(self.frame(), self.level, self.sentence())

    def _picture(self) -> str:
        return picture([Line(self.rows["step"].to_numpy(), self.rows["auc"].to_numpy())], "AUC of the probe")


def probe(
    scalars: Scalars,
    features: Sequence[Summary] = ("mean", "max", "min"),
    folds: int = 5,
    level: float = 0.95,
    seed: int = PROBE_SEED,
) -> Probes:
    """Fit and test a probe on the scalars of every step.

    Args:
        scalars: the scalars of misaligned and aligned answers.
        features: the summaries of an answer's scalars from which the probe predicts.
        folds: number of folds of the cross-validation, at most the number of questions with answers of the rarer kind.
        level: confidence level of the intervals.
        seed: random seed of the folds and the bootstrap.

    Returns:
        The AUC on held-out questions with its interval, by step, and that of the answer's length.

    Raises:
        InputError: where there are fewer than 10 answers of a kind, or fewer than 4 questions with answers of either.
    """
    import pandas as pd

    check_level(level)
    answers = scalars.answers
    answers.require(MIN_ANSWERS, "a probe")
    y, question = answers.misaligned, answers.question
    with_both = min(len(np.unique(question[y])), len(np.unique(question[~y])))
    if with_both < MIN_QUESTIONS:
        raise InputError(
            f"a probe needs misaligned answers to {MIN_QUESTIONS} questions and aligned ones to as many, to be tested "
            f"on others than it was fitted on; found {with_both} ({answers.source})"
        )
    folds, weights = min(folds, with_both), cluster_bootstrap(question, N_BOOTSTRAP, seed)

    def auc_of(x: Float[np.ndarray, "answer feature"]) -> tuple[float, tuple[float, float]]:
        return auc_with_interval(held_out_scores(x, y, question, folds, seed), y, weights, level)

    rows = []
    for step in scalars.steps.tolist():
        auc, interval = auc_of(np.concatenate([scalars.per_answer(step, how) for how in features], axis=1))
        rows.append({"step": step, "auc": auc, **interval_columns("auc", interval)})
    length = auc_of(scalars.lengths[:, None].astype(float))
    return Probes(pd.DataFrame(rows), *length, answers.sentence(), folds, int(question.max()) + 1, level)


def held_out_scores(
    x: Float[np.ndarray, "answer feature"],
    y: Bool[np.ndarray, " answer"],
    question: Int[np.ndarray, " answer"],
    folds: int = 5,
    seed: int = PROBE_SEED,
) -> Float[np.ndarray, " answer"]:
    """Each answer's score by a probe that was fitted without any answer to its question."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = np.full(len(y), np.nan)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    for train, test in split.split(x, y, question):
        if y[train].all() or not y[train].any():
            raise InputError("a fold of the probe is left with answers of one kind; take fewer folds")
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        scores[test] = model.fit(x[train], y[train]).decision_function(x[test])
    return scores


def auc_with_interval(
    scores: Float[np.ndarray, " answer"],
    y: Bool[np.ndarray, " answer"],
    weights: Float[np.ndarray, "draw answer"],
    level: float,
) -> tuple[float, tuple[float, float]]:
    """The AUC, and its interval over a bootstrap (`weights`); a draw with answers of one kind is left out."""
    low, high = np.quantile(weighted_aucs(scores, y, weights), [(1 - level) / 2, (1 + level) / 2])
    return float(weighted_aucs(scores, y, np.ones((1, len(y))))[0]), (float(low), float(high))


def weighted_aucs(
    scores: Float[np.ndarray, " answer"], y: Bool[np.ndarray, " answer"], weights: Float[np.ndarray, "draw answer"]
) -> Float[np.ndarray, " kept"]:
    """The chance that a misaligned answer scores above an aligned one, ties counting half, by weights of answers."""
    above = (np.sign(scores[y][:, None] - scores[~y]) + 1) / 2
    misaligned, aligned = weights[:, y], weights[:, ~y]
    pairs = misaligned.sum(axis=1) * aligned.sum(axis=1)
    return ((misaligned @ above) * aligned).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
