"""What a write to the residual stream promotes and suppresses, in tokens, and how alike that is in two families.

A vector w in the residual stream is read out as W_U · norm(w): through the final norm's gains and the unembedding (the
logit lens, nostalgebraist 2020, of a direction alone; the scale of an RMS norm drops out of every rank correlation).
Tokens are matched by their text, so two vocabularies of any size and order can be compared; the likeness is Spearman's
rank correlation over the tokens that both have.

Unembeddings are far from isotropic: read-outs of unrelated directions correlate by ±0.3 and more where a few directions
of the unembedding (frequency, language) dominate. So the correlation means nothing without its null, random directions
read out the same way, which is wide.

It can show that two adapters write along directions that favour the same words. It cannot show that the words are said
because of it: later layers read the write too, and the read-out knows nothing of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError

LEAST = 10  # tokens that both have


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
    if len(texts) < LEAST:
        raise InputError(
            f"the two vocabularies have {len(texts)} tokens of equal text in common; at least {LEAST} are needed"
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
