"""How far apart two distributions are, from samples of both and the likelihood of each sample under both.

The family of 2508.20015: D = ½ Σᵢ E_{x∼Pᵢ}[g(P(i|x))], where P(i|x) = Pᵢ(x) / (P₁(x) + P₂(x)) says how surely x came
from side i. Averaged over the even mixture of both sides it is E[h(P(1|x))] with h(p) = p·g(p) + (1−p)·g(1−p), which
needs no label of the side and varies less; both are unbiased, because the likelihoods are exact. All forms are 0 for
equal distributions and 1 for ones that share no outcome.

- `linear`, g(p) = 2p − 1: half the triangular discrimination, ½ Σ (P₁−P₂)²/(P₁+P₂) (Le Cam);
- `js`, g(p) = 1 + log₂ p: the Jensen–Shannon divergence in bits;
- `total_variation`, g(p) = |2p − 1|: ½ Σ |P₁ − P₂|.

The linear form is sometimes taken for the total variation; it is not: TV² ≤ linear ≤ TV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.behaviour.scores import ALIGNED_BELOW, COHERENT_ABOVE
from em_interp.behaviour.tables import topics_of
from em_interp.errors import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["linear", "js", "total_variation"]
FORMS: tuple[Form, ...] = ("linear", "js", "total_variation")


def check_form(form: str) -> None:
    """Raise InputError for a form that is not one of `FORMS`."""
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}; it is {form!r}{nearest(form, FORMS)}")


def told_apart(posterior: Float[np.ndarray, "*shape"], form: Form) -> Float[np.ndarray, "*shape"]:
    """h(p): what one outcome with P(1|x) = p adds to the distance, from 0 (p = ½) to 1 (p = 0 or 1)."""
    check_form(form)
    if form == "linear":
        return (2 * posterior - 1) ** 2
    if form == "total_variation":
        return np.abs(2 * posterior - 1)
    from scipy.special import xlogy

    return 1 + (xlogy(posterior, posterior) + xlogy(1 - posterior, 1 - posterior)) / np.log(2)


def influence(posterior: Float[np.ndarray, "*shape"], form: Form) -> Float[np.ndarray, "*shape"]:
    """How much the distance grows with P₁(x): its derivative ψ, with D = E₁[ψ(P(1|x))] + E₂[ψ(P(2|x))].

    So to first order a change of P₁ changes the distance by the change of E₁[ψ].
    """
    check_form(form)
    side = 2 * posterior - 1
    if form == "linear":
        return side * (2 - side) / 2
    if form == "total_variation":
        return np.sign(side) / 2
    return (1 + np.log2(np.maximum(posterior, np.finfo(float).tiny))) / 2


def distance(first: Float[np.ndarray, " outcome"], second: Float[np.ndarray, " outcome"], form: Form) -> float:
    """The distance of two distributions over the same finitely many outcomes, exactly."""
    both = np.asarray(first, float) + np.asarray(second, float)
    seen = both > 0
    posterior = np.asarray(first, float)[seen] / both[seen]
    return float((told_apart(posterior, form) * both[seen] / 2).sum())


def posterior_of(
    left: Float[np.ndarray, "sample checkpoint"], right: Float[np.ndarray, "sample other"]
) -> Float[np.ndarray, " sample"]:
    """P(left | x) from the log-likelihoods of x under the checkpoints of each side, which are mixed evenly."""
    from scipy.special import expit, logsumexp

    sides = [logsumexp(side, axis=1) - np.log(side.shape[1]) for side in (left, right)]
    return expit(sides[0] - sides[1])


# --------
# Left and right of a step: which checkpoints stand on each side, and how far apart the answers of the sides are.


FEWEST = 5  # places
SPLITS = 40  # ways of dealing a window's checkpoints to two sides that are looked at


@dataclass(frozen=True)
class Windows:
    """Places between asked steps, and the asked steps within `reach` training steps on either side of each."""

    steps: Int[np.ndarray, " step"]
    at: Float[np.ndarray, " place"]
    left: Bool[np.ndarray, "place step"]
    right: Bool[np.ndarray, "place step"]

    @property
    def needed(self) -> Bool[np.ndarray, "step step"]:
        """Whether answers sampled at the first step need their likelihood at the second: some window holds both."""
        inside = (self.left | self.right).astype(int)
        return inside.T @ inside > 0


def windows(steps: Int[np.ndarray, " step"], reach: float) -> Windows:
    """The windows of every place half-way between two asked steps that lies `reach` or more inside the run.

    Neighbours are looked up by step, so irregular steps do not change how much of the run a window covers. Raises
    InputError where fewer than five places are left, or a side holds a single checkpoint.
    """
    steps = np.asarray(steps)
    at = (steps[1:] + steps[:-1]) / 2
    half = np.diff(steps) / 2
    at = at[(at - steps[0] >= reach - half) & (steps[-1] - at >= reach - half)]
    away = steps[None, :] - at[:, None]
    found = Windows(steps, at, (away < 0) & (away >= -reach), (away > 0) & (away <= reach))
    least = min(found.left.sum(axis=1).min(initial=99), found.right.sum(axis=1).min(initial=99))
    if len(at) < FEWEST or least < 2:
        raise InputError(
            f"a window of {reach:g} steps leaves {len(at)} places with {least if len(at) else 0} or more checkpoints "
            f"on a side, of {len(steps)} asked steps; {FEWEST} places and 2 checkpoints are needed: ask at more steps"
        )
    return found


def posteriors(
    likelihood: Float[np.ndarray, "answer step"], at: Int[np.ndarray, " answer"], over: Windows
) -> Float[np.ndarray, "answer place"]:
    """P(left | answer) for every place whose windows hold the step at which the answer was sampled, else NaN.

    `at` is the index of that step.
    """
    found = np.full((len(at), len(over.at)), np.nan)
    for place, (left, right) in enumerate(zip(over.left, over.right, strict=True)):
        inside = (left | right)[at]
        found[inside, place] = posterior_of(likelihood[inside][:, left], likelihood[inside][:, right])
    return found


def weights(
    at: Int[np.ndarray, " answer"], question: Int[np.ndarray, " answer"], over: Windows
) -> Float[np.ndarray, "answer place"]:
    """How much each answer counts: questions alike, both sides alike, the checkpoints of a side alike; sums to 1."""
    cell = question * len(over.steps) + at
    alone = 1.0 / np.bincount(cell)[cell]
    sides = sum(side[:, at].T / side.sum(axis=1) for side in (over.left, over.right))
    counted = np.asarray(sides) * alone[:, None]
    return counted / counted.sum(axis=0)


def permutation_null(
    likelihood: Float[np.ndarray, "answer step"],
    at: Int[np.ndarray, " answer"],
    weight: Float[np.ndarray, "answer place"],
    over: Windows,
    form: Form,
    rng: np.random.Generator,
) -> list[Float[np.ndarray, " split"]]:
    """For each place, the distances when its checkpoints are dealt to two sides in other ways than left and right.

    What they show is how far apart checkpoints are whatever their order; left and right stand out from it only where
    the answers go somewhere. All ways, or `SPLITS` of them where there are more.
    """
    found = []
    for place in range(len(over.at)):
        members = np.flatnonzero(over.left[place] | over.right[place])
        inside, here = np.isin(at, members), likelihood[:, members]
        left = np.searchsorted(members, np.flatnonzero(over.left[place]))
        values = []
        for side in _other_sides(len(members), left, rng):
            rest = np.setdiff1d(np.arange(len(members)), side)
            posterior = posterior_of(here[inside][:, side], here[inside][:, rest])
            counted = weight[inside, place]
            values.append(float(counted @ told_apart(posterior, form) / counted.sum()))
        found.append(np.array(values))
    return found


def _other_sides(count: int, left: Int[np.ndarray, " left"], rng: np.random.Generator) -> list[np.ndarray]:
    """Sides as large as `left`, each way of dealing once, neither side being `left`."""
    size = len(left)
    if comb(count, size) <= 2 * SPLITS + 2:
        ways = [np.array(way) for way in combinations(range(count), size)]
    else:
        drawn = {tuple(sorted(rng.permutation(count)[:size].tolist())) for _ in range(SPLITS)}
        ways = [np.array(way) for way in sorted(drawn)]
    right = np.setdiff1d(np.arange(count), left)
    kept = [way for way in ways if not np.array_equal(way, left) and not np.array_equal(way, right)]
    return [way for way in kept if 2 * size != count or 0 in way]  # its complement is the same way


def jackknife(
    likelihood: Float[np.ndarray, "answer step"],
    at: Int[np.ndarray, " answer"],
    weight: Float[np.ndarray, "answer place"],
    over: Windows,
    form: Form,
) -> Float[np.ndarray, " place"]:
    """Standard deviation, about a smooth path, of what a single checkpoint adds to the distance at each place.

    A checkpoint of the left adds E[ψ(P(left|x))] over its own answers (`distance.influence`), which is read off all
    answers of the window by importance weights. On a smooth path that is the mean of what its two neighbours on the
    same side add; the departures are jitter. Of the departures at a place the lower middle one is taken, so that a
    corner on one side is no jitter, and of five places the median. NaN-free: zero where a side has two checkpoints.
    """
    from scipy.ndimage import median_filter

    found = np.zeros(len(over.at))
    for place, sides in enumerate(zip(over.left, over.right, strict=True)):
        inside = np.any(sides, axis=0)[at]
        here, counted = likelihood[inside], weight[inside, place]
        left = posterior_of(here[:, sides[0]], here[:, sides[1]])
        departures = []
        for side, posterior in zip(sides, (left, 1 - left), strict=True):
            ratio = _over_mixture(here, side, sides)
            added = (counted * influence(posterior, form)) @ ratio
            departures += np.abs(added[1:-1] - (added[2:] + added[:-2]) / 2).tolist()
        if departures:
            found[place] = _of_normals(np.sort(departures)) / np.sqrt(1.5)
    return median_filter(found, 5, mode="nearest")


def _over_mixture(
    likelihood: Float[np.ndarray, "answer step"], side: Bool[np.ndarray, " step"], sides: tuple[np.ndarray, np.ndarray]
) -> Float[np.ndarray, "answer member"]:
    """The probability of each answer under each checkpoint of a side, over that under the mixture of both sides."""
    from scipy.special import logsumexp

    mixed = [logsumexp(likelihood[:, one], axis=1) - np.log(2 * one.sum()) for one in sides]
    return np.exp(likelihood[:, side] - np.logaddexp(*mixed)[:, None])


def _of_normals(ordered: Float[np.ndarray, " departure"]) -> float:
    """The standard deviation of which the lower middle one of these absolute departures speaks."""
    from scipy.special import ndtri

    count = len(ordered)
    rank = (count + 1) // 2
    return float(ordered[rank - 1] / ndtri(0.5 + (rank - 0.3) / (count + 0.4) / 2))


# --------
# What a change of the answers consists of: the share of the distance that a property of the answers accounts for.
# A property maps answers to a few values. The distance between the values left and right is at most that between the
# answers, because what is lost in the mapping can only bring the two sides closer (data processing). Their ratio is
# the share that the property accounts for; 2508.20015 calls such properties order parameters.


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
