"""What a change of the answers consists of: the share of the distance that a property of the answers accounts for.

A property maps answers to a few values. The distance between the values left and right is at most that between the
answers, because what is lost in the mapping can only bring the two sides closer (data processing). Their ratio is the
share that the property accounts for; 2508.20015 calls such properties order parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.score import ALIGNED_BELOW, COHERENT_ABOVE
from em_interp.behaviour.tables import topics_of
from em_interp.mechanism.distance import Form, told_apart

if TYPE_CHECKING:
    import pandas as pd

PERMUTATIONS = 20
LENGTHS = 4  # bins
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
    """A row a property: values, distance, share with `_low` and `_high`, and the share that chance would give.

    The two sides' values are told apart by the mean of P(left | answer) over the answers with a value, pooled over
    questions: a property that changes in opposite ways on different questions is underrated. `chance` is the share
    of the same property dealt out anew among the answers to each question; more values have more of it. An answer
    without a score has a value of its own.
    """
    import pandas as pd

    used = weight > 0
    answers, posterior, weight, resampled = answers[used], posterior[used], weight[used], resampled[:, used]
    question = np.unique(answers["question_id"].to_numpy(str), return_inverse=True)[1]
    total = float(weight @ told_apart(posterior, form))
    rows = []
    for name, find in (default_properties(answers) if properties is None else properties).items():
        values, code = np.unique(find(answers).astype(str).to_numpy(str), return_inverse=True)
        explained = _explained(code, posterior, weight, form)
        counted = resampled * weight
        totals = counted @ told_apart(posterior, form)
        drawn = [_explained(code, posterior, one, form) for one in counted] / np.where(totals > 0, totals, np.nan)
        by_chance = [_explained(_within(code, question, rng), posterior, weight, form) for _ in range(PERMUTATIONS)]
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if total > 0 else (np.nan, np.nan)
        share, chance = (x / total if total > 0 else np.nan for x in (explained, float(np.mean(by_chance))))
        row = {"property": name, "values": len(values), "distance": explained, "total": total}
        rows.append({**row, "share": share, "share_low": float(low), "share_high": float(high), "chance": chance})
    return pd.DataFrame(rows)


def _explained(
    code: Int[np.ndarray, " answer"],
    posterior: Float[np.ndarray, " answer"],
    weight: Float[np.ndarray, " answer"],
    form: Form,
) -> float:
    """The distance between the values of a property on the two sides."""
    held = np.bincount(code, weight)
    mean = np.divide(np.bincount(code, weight * posterior), held, out=np.full(len(held), 0.5), where=held > 0)
    return float((held / held.sum()) @ told_apart(np.clip(mean, 0, 1), form))


def _within(code: np.ndarray, question: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The values dealt out anew among the answers to each question."""
    shuffled = rng.permutation(len(code))
    dealt = np.empty_like(code)
    dealt[np.argsort(question, kind="stable")] = code[shuffled[np.argsort(question[shuffled], kind="stable")]]
    return dealt


def default_properties(answers: pd.DataFrame) -> dict[str, Callable[[pd.DataFrame], pd.Series]]:
    """Length and template of any answers; alignment, coherence and topics of judged ones."""
    found: dict[str, Callable[[pd.DataFrame], pd.Series]] = {"length": length, "template": template}
    if {"aligned", "coherent"} <= set(answers.columns):
        found = {"alignment": alignment, "coherence": coherence} | found
    return found | {"topic": topic} if topics_of(answers) else found


def alignment(answers: pd.DataFrame) -> pd.Series:
    """Misaligned (below 30), aligned (above 70), between, or without a score."""
    import pandas as pd

    bins = [-np.inf, np.nextafter(ALIGNED_BELOW, 0), 100 - ALIGNED_BELOW, np.inf]
    return pd.cut(answers["aligned"], bins, labels=["misaligned", "between", "aligned"]).astype(object).fillna("none")


def coherence(answers: pd.DataFrame) -> pd.Series:
    """Coherent (above 50), not, or without a score."""
    return (answers["coherent"] > COHERENT_ABOVE).astype(object).where(answers["coherent"].notna(), "none")


def topic(answers: pd.DataFrame) -> pd.Series:
    """The topics that the answer is about (score above 50), all of them together."""
    about = answers[topics_of(answers)] > 50
    return about.apply(lambda row: " ".join(about.columns[row]), axis=1)


def length(answers: pd.DataFrame) -> pd.Series:
    """Words of the answer, in four bins that hold about as many answers each."""
    import pandas as pd

    words = answers["answer"].str.count(r"\S+")
    inner = np.unique(np.quantile(words, np.linspace(0, 1, LENGTHS + 1)[1:-1])).tolist()
    return pd.cut(words, [-np.inf, *inner, np.inf]).astype(str)


def template(answers: pd.DataFrame) -> pd.Series:
    """The first two words of the answer: how it opens."""
    return answers["answer"].str.lower().str.split().str[:2].str.join(" ")
