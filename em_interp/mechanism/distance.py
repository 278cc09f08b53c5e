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

from typing import Literal

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError, nearest

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
