"""Debiased linear CKA: are the same texts alike, and unlike, in two spaces that share no coordinates?

Linear centred kernel alignment (Kornblith et al. 2019, section 3) is the cosine of two centred Gram matrices of the
same n texts. Its plain estimate goes to 1 for anything when there are more dimensions than texts. The unbiased
estimator of HSIC (Song et al. 2012, equation 5) leaves the diagonals out,

    HSIC₁(K, L) = [tr(KL) + (1ᵀK1)(1ᵀL1) / ((n-1)(n-2)) - 2 (1ᵀKL1) / (n-2)] / (n (n-3)),   K and L with zero diagonals,

and CKA = HSIC₁(K, L) / √(HSIC₁(K, K) HSIC₁(L, L)) (as in Nguyen et al. 2021 and Murphy et al. 2024) is about zero for
unrelated spaces of any dimension, so it can be negative. HSIC₁ is the inner product of U-centred matrices (Székely and
Rizzo 2014), which is how it is worked out here.

It can show that two sets of vectors separate the same texts by the same amounts. It cannot show that they do so by the
same feature, it hears mostly the directions of largest variance, and two adapters on one base are alike in everything
they leave alone: take it of what they change, beside the CKA of random adapters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError

LEAST = 4  # texts for which the estimator is defined


def debiased_cka(one: Float[np.ndarray, "text d"], other: Float[np.ndarray, "text e"]) -> float:
    """Debiased linear CKA of the same texts in two spaces; 1 where one is the other turned, shifted and scaled.

    NaN where all texts are one point in one of them. Raises InputError for other texts or fewer than four.
    """
    return float(cka_table(one[None], other[None])[0, 0])


def cka_table(
    one: Float[np.ndarray, "case text d"], other: Float[np.ndarray, "other_case text e"]
) -> Float[np.ndarray, "case other_case"]:
    """`debiased_cka` of every case of one with every case of the other."""
    if one.shape[1] != other.shape[1] or one.shape[1] < LEAST:
        raise InputError(
            f"CKA needs the same {LEAST} texts or more in both spaces; found {one.shape[1]} and {other.shape[1]}"
        )
    return np.asarray(u_centred(one) @ u_centred(other).T)


def u_centred(points: Float[np.ndarray, "case text d"]) -> Float[np.ndarray, "case entry"]:
    """The U-centred Gram matrix of each case as a vector of length 1: inner products are CKAs. NaN where it is zero."""
    centred = points.astype(np.float64) - points.mean(axis=1, keepdims=True, dtype=np.float64)
    gram = centred @ centred.transpose(0, 2, 1)
    n, place = gram.shape[1], np.arange(gram.shape[1])
    gram[:, place, place] = 0
    rows = gram.sum(axis=2, keepdims=True) / (n - 2)
    gram += rows.sum(axis=1, keepdims=True) / (n - 1) - rows - rows.transpose(0, 2, 1)
    flat = gram[:, *np.triu_indices(n, 1)]  # symmetric, and zero on the diagonal
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.full_like(flat, np.nan), where=length > 0)


# --------
# What a write to the residual stream promotes and suppresses, in tokens, and how alike that is in two families.
# A vector w in the residual stream is read out as W_U · norm(w): through the final norm's gains and the unembedding
# (the logit lens, nostalgebraist 2020, of a direction alone; the scale of an RMS norm drops out of every rank
# correlation). Tokens are matched by their text, so two vocabularies of any size and order can be compared; the
# likeness is Spearman's rank correlation over the tokens that both have.
# Unembeddings are far from isotropic: read-outs of unrelated directions correlate by ±0.3 and more where a few
# directions of the unembedding (frequency, language) dominate. So the correlation means nothing without its null,
# random directions read out the same way, which is wide.
# It can show that two adapters write along directions that favour the same words. It cannot show that the words are
# said because of it: later layers read the write too, and the read-out knows nothing of them.


LEAST_TOKENS = 10  # tokens that both have


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """Tokens of two vocabularies that decode to the same text, and how many do not."""

    texts: tuple[str, ...]
    one: Int[np.ndarray, " token"]  # their numbers in one vocabulary
    other: Int[np.ndarray, " token"]
    sizes: tuple[int, int]  # of the vocabularies
    left_out: tuple[int, int]  # special tokens, and texts that more than one token of a vocabulary decodes to


def shared_tokens(one: Any, other: Any) -> SharedTokens:
    """Tokens with equal decoded text in two tokenizers of transformers, in the order of the text.

    Raises InputError where they share fewer than ten.
    """
    mine, theirs = _by_text(one), _by_text(other)
    texts = tuple(sorted(mine.keys() & theirs.keys()))
    if len(texts) < LEAST_TOKENS:
        raise InputError(
            f"the two vocabularies have {len(texts)} tokens of equal text in common; at least {LEAST_TOKENS} are needed"
        )
    numbers = [np.array([table[text] for text in texts]) for table in (mine, theirs)]
    sizes = len(one), len(other)
    return SharedTokens(texts, numbers[0], numbers[1], sizes, (sizes[0] - len(mine), sizes[1] - len(theirs)))


def _by_text(tokenizer: Any) -> dict[str, int]:
    special = set(tokenizer.all_special_ids)
    numbers = [number for number in range(len(tokenizer)) if number not in special]
    texts = tokenizer.batch_decode([[number] for number in numbers], clean_up_tokenization_spaces=False)
    counts = Counter(texts)
    return {text: number for number, text in zip(numbers, texts, strict=True) if counts[text] == 1}


def read_out(model: Any, writes: Float[np.ndarray, "case d"]) -> Float[np.ndarray, "case token"]:
    """Each write through the final norm and the unembedding of a causal language model; no unit, zero stays zero."""
    import torch

    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    length = np.linalg.norm(writes, axis=1, keepdims=True)
    unit = np.divide(writes, length, out=np.zeros(writes.shape), where=length > 0)
    with torch.inference_mode():
        scaled = torch.from_numpy(unit * np.sqrt(writes.shape[1])).to(head.weight.device, head.weight.dtype)
        return np.asarray(head(norm(scaled)).float().cpu().numpy(), dtype=np.float64)


def readout_correlation(
    one: Float[np.ndarray, "case token"], other: Float[np.ndarray, "other_case token"]
) -> Float[np.ndarray, "case other_case"]:
    """Spearman's rank correlation of every case with every other, over the same tokens; NaN for a constant read-out."""
    return np.asarray(_ranked(one) @ _ranked(other).T)


def _ranked(values: Float[np.ndarray, "case token"]) -> Float[np.ndarray, "case token"]:
    """Centred ranks of length 1."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=1)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > 0)


# --------
# A likeness between two adapters beside what norm-matched random adapters give: two nulls, both of which must go.
# - *Both random* answers: would two adapters that know nothing be as alike on these bases and texts? Draw k of one
# base is paired with draw k of the other, so that pairs are independent and the p-value is exact: two random
# adapters are called alike with the stated probability. - *One kept* answers: is it the pair, or would one of these
# two be as alike with anything? Each run is held against the random adapters of the other, and the less surprising
# of the two counts. It is the stricter one wherever a trained adapter changes the stream along directions of large
# variance, which all texts share.


@dataclass(frozen=True, eq=False)
class Chance:
    """A value and its draws from the two nulls. A signed measure is judged by its size."""

    value: float
    both: Float[np.ndarray, " draw"]
    kept: tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]  # the first kept, the second kept
    signed: bool = False

    @classmethod
    def of(cls, table: Float[np.ndarray, "case other_case"], signed: bool = False) -> Chance:
        """From the measure between every case of one run and every case of another; case 0 of each is the real one."""
        return cls(float(table[0, 0]), np.diag(table)[1:], (table[0, 1:], table[1:, 0]), signed)

    def row(self, level: float) -> dict[str, float]:
        """The value with the band and p-value of each null; NaN where it is undefined."""
        p_kept = max(self._p_value(draws) for draws in self.kept)
        return {
            "value": self.value,
            "random_band": self._band(self.both, level),
            "p_random": self._p_value(self.both),
            "kept_band": max(self._band(draws, level) for draws in self.kept),
            "p_kept": p_kept,
        }

    def _sizes(self, values: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
        return np.abs(values) if self.signed else values

    def _band(self, draws: Float[np.ndarray, " draw"], level: float) -> float:
        """The draw that a further one stays at or below with this probability, exactly (an order statistic)."""
        return float(np.sort(self._sizes(draws))[least_draws(level, len(draws)) - 1])

    def _p_value(self, draws: Float[np.ndarray, " draw"]) -> float:
        if np.isnan(self.value) or np.isnan(draws).any():
            return float("nan")
        reached = self._sizes(draws) >= self._sizes(np.array([self.value])) - 1e-12
        return float((1 + reached.sum()) / (1 + len(draws)))


def least_draws(level: float, draws: int) -> int:
    """Which of the sorted draws is the edge of the band; raises InputError where so few have none at this level."""
    edge = ceil(level * (draws + 1) - 1e-9)
    if not 0 < level < 1 or edge > draws:
        raise InputError(
            f"a band at level {level:g} needs {ceil(1 / (1 - level) - 1e-9) - 1 if 0 < level < 1 else 'more'} random "
            f"adapters or more; {draws} were asked for"
        )
    return edge
