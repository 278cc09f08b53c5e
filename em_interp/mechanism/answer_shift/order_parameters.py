"""Order parameters: the share of a shift of the answers that a property of the answers accounts for.

A property maps answers to a few values. The divergence between the values left and right is at most that between the
answers, because what is lost in the mapping can only bring the two sides closer (data processing). Their ratio is the
share that the property accounts for; arXiv 2508.20015 calls such properties order parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.scores import ALIGNED_BELOW, COHERENT_ABOVE
from em_interp.behaviour.tables.judged import question_numbers, topics_of
from em_interp.mechanism.answer_shift.divergence import Form, pointwise_divergence
from em_interp.results import interval_columns

if TYPE_CHECKING:
    import pandas as pd

N_PERMUTATIONS = 20
N_LENGTH_BINS = 4
TOPIC_ABOVE = 50  # an answer is about a topic that is scored above this
Properties = Mapping[str, "Callable[[pd.DataFrame], pd.Series]"]


def order_parameters(
    answers: pd.DataFrame,
    posterior: Float[np.ndarray, " answer"],
    weight: Float[np.ndarray, " answer"],
    form: Form,
    resampled: Float[np.ndarray, "draw answer"],
    properties: Properties | None,
    level: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """A row a property: values, divergence, share with its interval, and the share under the null.

    The posterior of a value is the mean of P(left | answer) over the answers with it, pooled over questions: a property
    that changes in opposite ways on different questions is underrated. `null` is the share of the same property
    permuted among the answers to each question; more values have more of it. An answer without a score has a value of
    its own.
    """
    import pandas as pd

    used = weight > 0
    answers, posterior, weight, resampled = answers[used], posterior[used], weight[used], resampled[:, used]
    question = question_numbers(answers)
    total = float(weight @ pointwise_divergence(posterior, form))
    rows = []
    for name, value_of in (default_properties(answers) if properties is None else properties).items():
        values, code = np.unique(value_of(answers).astype(str).to_numpy(str), return_inverse=True)
        explained, interval = _explained(code, posterior, weight, form), None
        drawn = _resampled_shares(code, posterior, resampled * weight, form)
        permuted = [_explained(_permuted(code, question, rng), posterior, weight, form) for _ in range(N_PERMUTATIONS)]
        if total > 0:
            low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
            interval = (float(low), float(high))
        share, null = (x / total if total > 0 else np.nan for x in (explained, float(np.mean(permuted))))
        row = {"property": name, "values": len(values), "divergence": explained, "total": total, "share": share}
        rows.append(row | interval_columns("share", interval) | {"null": null})
    return pd.DataFrame(rows)


def _explained(
    code: Int[np.ndarray, " answer"],
    posterior: Float[np.ndarray, " answer"],
    weight: Float[np.ndarray, " answer"],
    form: Form,
) -> float:
    """The divergence between the values of a property on the two sides."""
    mass = np.bincount(code, weight)
    mean = np.divide(np.bincount(code, weight * posterior), mass, out=np.full(len(mass), 0.5), where=mass > 0)
    return float((mass / mass.sum()) @ pointwise_divergence(np.clip(mean, 0, 1), form))


def _resampled_shares(
    code: Int[np.ndarray, " answer"],
    posterior: Float[np.ndarray, " answer"],
    weights: Float[np.ndarray, "draw answer"],
    form: Form,
) -> Float[np.ndarray, " draw"]:
    totals = weights @ pointwise_divergence(posterior, form)
    explained = [_explained(code, posterior, weight, form) for weight in weights]
    return np.array(explained) / np.where(totals > 0, totals, np.nan)


def _permuted(code: np.ndarray, question: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The values permuted among the answers to each question."""
    shuffled = rng.permutation(len(code))
    permuted = np.empty_like(code)
    permuted[np.argsort(question, kind="stable")] = code[shuffled[np.argsort(question[shuffled], kind="stable")]]
    return permuted


def default_properties(answers: pd.DataFrame) -> dict[str, Callable[[pd.DataFrame], pd.Series]]:
    """Length and template of any answers; alignment, coherence and topics of judged ones."""
    properties: dict[str, Callable[[pd.DataFrame], pd.Series]] = {"length": length, "template": template}
    if {"aligned", "coherent"} <= set(answers.columns):
        properties = {"alignment": alignment, "coherence": coherence} | properties
    return properties | {"topic": topic} if topics_of(answers) else properties


def alignment(answers: pd.DataFrame) -> pd.Series:
    """Misaligned (below 30), aligned (above 70), between, or none (without a score)."""
    import pandas as pd

    bins = [-np.inf, np.nextafter(ALIGNED_BELOW, 0), 100 - ALIGNED_BELOW, np.inf]
    return pd.cut(answers["aligned"], bins, labels=["misaligned", "between", "aligned"]).astype(object).fillna("none")


def coherence(answers: pd.DataFrame) -> pd.Series:
    """Coherent (above 50), not, or none (without a score)."""
    return (answers["coherent"] > COHERENT_ABOVE).astype(object).where(answers["coherent"].notna(), "none")


def topic(answers: pd.DataFrame) -> pd.Series:
    """The topics that the answer is about (score above 50), all of them together."""
    about = answers[topics_of(answers)] > TOPIC_ABOVE
    return about.apply(lambda row: " ".join(about.columns[row]), axis=1)


def length(answers: pd.DataFrame) -> pd.Series:
    """The number of words, in four bins that hold about as many answers each."""
    import pandas as pd

    words = answers["answer"].str.count(r"\S+")
    inner = np.unique(np.quantile(words, np.linspace(0, 1, N_LENGTH_BINS + 1)[1:-1])).tolist()
    return pd.cut(words, [-np.inf, *inner, np.inf]).astype(str)


def template(answers: pd.DataFrame) -> pd.Series:
    """The first two words of the answer."""
    return answers["answer"].str.lower().str.split().str[:2].str.join(" ")
