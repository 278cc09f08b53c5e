"""Which tokens a change of the residual stream promotes and suppresses, and how similar that is on two bases.

A vector w in the residual stream is read as W_U · norm(w): through the final norm's gains and the unembedding (the
logit lens, nostalgebraist 2020, of a direction alone; the scale of an RMS norm does not matter to a rank correlation).
Tokens are matched by their text, so two vocabularies of any size and order can be compared; the similarity is
Spearman's rank correlation over the tokens that both have.

Unembeddings are far from isotropic: logit lenses of unrelated directions correlate by ±0.3 and more where a few
directions of the unembedding (frequency, language) dominate. So the correlation means nothing without its null, random
directions read the same way, which is wide.

It shows that two adapters write along directions that promote the same tokens. It does not show that the tokens are
generated because of it: later layers read the write too, and the logit lens leaves them out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.trajectory.geometry import ratio

MIN_TOKENS = 10  # that both vocabularies have, or both runs' answers


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """Tokens of two vocabularies that decode to the same text, and how many do not."""

    texts: tuple[str, ...]
    first: Int[np.ndarray, " token"]  # their ids in the first vocabulary
    second: Int[np.ndarray, " token"]
    sizes: tuple[int, int]  # of the vocabularies
    left_out: tuple[int, int]  # special tokens, and texts that more than one token of a vocabulary decodes to


def shared_tokens(first: Any, second: Any) -> SharedTokens:
    """Tokens with equal decoded text in two tokenizers of transformers, in the order of the text.

    Raises InputError where they share fewer than ten.
    """
    tables = _by_text(first), _by_text(second)
    texts = tuple(sorted(tables[0].keys() & tables[1].keys()))
    if len(texts) < MIN_TOKENS:
        raise InputError(
            f"the two vocabularies have {len(texts)} tokens of equal text in common; at least {MIN_TOKENS} are needed"
        )
    ids = [np.array([table[text] for text in texts]) for table in tables]
    sizes = len(first), len(second)
    return SharedTokens(texts, ids[0], ids[1], sizes, (sizes[0] - len(tables[0]), sizes[1] - len(tables[1])))


def _by_text(tokenizer: Any) -> dict[str, int]:
    special = set(tokenizer.all_special_ids)
    ids = [number for number in range(len(tokenizer)) if number not in special]
    texts = tokenizer.batch_decode([[number] for number in ids], clean_up_tokenization_spaces=False)
    counts = Counter(texts)
    return {text: number for number, text in zip(ids, texts, strict=True) if counts[text] == 1}


def rank_correlation(
    first: Float[np.ndarray, "case token"], second: Float[np.ndarray, "other_case token"]
) -> Float[np.ndarray, "case other_case"]:
    """Spearman's rank correlation of every case with every other, over the same tokens.

    NaN for constant logits, and for fewer than ten tokens.
    """
    if first.shape[1] < MIN_TOKENS:
        return np.full((len(first), len(second)), np.nan)
    return np.asarray(_unit_ranks(first) @ _unit_ranks(second).T)


def _unit_ranks(values: Float[np.ndarray, "case token"]) -> Float[np.ndarray, "case token"]:
    """Centred ranks of length 1."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=1)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    return ratio(centred, np.linalg.norm(centred, axis=1, keepdims=True))
