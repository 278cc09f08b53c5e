"""Debiased linear CKA: are the same texts similar, and dissimilar, in two spaces that share no coordinates?

Linear centred kernel alignment (Kornblith et al. 2019, section 3) is the cosine of two centred Gram matrices of the
same n texts. Its plain estimate goes to 1 for anything when there are more dimensions than texts. The unbiased
estimator of HSIC (Song et al. 2012, equation 5) leaves the diagonals out,

    HSIC₁(K, L) = [tr(KL) + (1ᵀK1)(1ᵀL1) / ((n-1)(n-2)) - 2 (1ᵀKL1) / (n-2)] / (n (n-3)),   K and L with zero diagonals,

and CKA = HSIC₁(K, L) / √(HSIC₁(K, K) HSIC₁(L, L)) (as in Nguyen et al. 2021 and Murphy et al. 2024) is about zero for
unrelated spaces of any dimension, so it can be negative. HSIC₁ is the inner product of U-centred matrices (Székely and
Rizzo 2014), which is how it is computed here.

It shows that two sets of vectors separate the same texts by the same amounts. It does not show that they do so by the
same feature, and it depends mostly on the directions of largest variance. Two adapters on one base agree in everything
that they do not change, so compute it from the changes, and compare it with the CKA of random adapters.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from em_interp.trajectory.geometry import ratio


def u_centred(points: Float[np.ndarray, "case text d"]) -> Float[np.ndarray, "case entry"]:
    """The U-centred Gram matrix of each case as a vector of length 1: inner products are CKAs. NaN where it is zero."""
    centred = points.astype(np.float64) - points.mean(axis=1, keepdims=True, dtype=np.float64)
    gram = centred @ centred.transpose(0, 2, 1)
    n, place = gram.shape[1], np.arange(gram.shape[1])
    gram[:, place, place] = 0
    rows = gram.sum(axis=2, keepdims=True) / (n - 2)
    gram += rows.sum(axis=1, keepdims=True) / (n - 1) - rows - rows.transpose(0, 2, 1)
    flat = gram[:, *np.triu_indices(n, 1)]  # symmetric, and zero on the diagonal
    return ratio(flat, np.linalg.norm(flat, axis=1, keepdims=True))
