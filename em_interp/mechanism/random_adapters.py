"""Random adapters and random directions: the null of everything that is measured with an adapter in the model.

At each site ΔW keeps its scale and its singular values (at rank 1 its norm) and gets random orthonormal directions on
both sides, or with `keep_A` only on the output side: the adapter then reads as before and writes elsewhere. The random
adapters depend neither on the sign nor on the gauge of the real one. They share only the base, the sites and the norms
with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError
from em_interp.trajectory.trajectory import AdapterTrajectory

RANDOM_ADAPTER_SEED = 20250611


def random_adapters(
    path: AdapterTrajectory,
    draws: Iterable[int],
    key: Sequence[int] = (),
    keep_A: bool = False,
) -> AdapterTrajectory:
    """Random adapters with the singular values of the last one; they are the steps of a trajectory.

    Args:
        path: the real adapters.
        draws: numbers of the draws, which are the steps; a draw is the same whichever others are drawn with it.
        key: makes the draws of different runs or purposes independent.
        keep_A: keep the real adapter's A, so that only the directions of B are random.

    Returns:
        A trajectory whose steps are the draws, at the sites and with the scale of `path`.

    Raises:
        InputError: where the real adapter is zero at every site. A single site that is zero stays zero.
    """
    draws, A, B = list(draws), {}, {}
    for number, site in enumerate(path.sites):
        values, read = _singular(path.A[site][-1], path.B[site][-1], path.scale[site])
        pairs = []
        for draw in draws:
            rng = np.random.default_rng([RANDOM_ADAPTER_SEED, *key, number, draw])
            write = _orthonormal(rng, path.B[site].shape[1], len(values))
            pairs.append((write, read if keep_A else _orthonormal(rng, len(read), len(values))))
        B[site] = np.stack([write * values / path.scale[site] for write, _ in pairs]).astype(np.float32)
        A[site] = np.stack([read.T for _, read in pairs]).astype(np.float32)
    name = path.source or "the adapter"
    if not any(b.any() for b in B.values()):
        raise InputError(f"{name} is zero at step {path.steps[-1]}, so no random adapter can match its norm")
    source = f"random adapters with the norm of {name}"
    return AdapterTrajectory(np.array(draws), A, B, dict(path.scale), base=path.base, source=source, kind=path.kind)


def _singular(
    A: Float[np.ndarray, "rank d_in"], B: Float[np.ndarray, "d_out rank"], scale: float
) -> tuple[Float[np.ndarray, " rank"], Float[np.ndarray, "d_in rank"]]:
    """The singular values of ΔW and its right singular vectors, each with its largest entry positive."""
    read, into = np.linalg.qr(A.T.astype(np.float64))
    out = np.linalg.qr(B.astype(np.float64)).R
    _, values, right = np.linalg.svd(out @ into.T)
    vectors = read @ right.T
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return abs(scale) * values, vectors * np.where(largest < 0, -1.0, 1.0)


def _orthonormal(rng: np.random.Generator, d: int, rank: int) -> Float[np.ndarray, "d rank"]:
    """Random, by the Haar measure (QR of a Gaussian matrix with the signs of R; Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((d, rank)))
    return np.asarray(q * np.sign(np.diag(r)))


def random_directions(vectors: Float[np.ndarray, "layer d"], rng: np.random.Generator) -> Float[np.ndarray, "layer d"]:
    """A random direction after each layer, uniform and exactly as long as the one given (a zero stays zero).

    A draw from a standard normal is √d too long; it is divided by its own length.
    """
    drawn = rng.standard_normal(vectors.shape)
    return drawn * (np.linalg.norm(vectors, axis=1) / np.linalg.norm(drawn, axis=1))[:, None]


def cosine_quantile(d: int, level: float = 0.95) -> float:
    """The value that |cos| of two random directions in d dimensions stays below with probability `level`; exact."""
    from scipy.stats import beta

    return 1.0 if d == 1 else float(np.sqrt(beta.ppf(level, 0.5, (d - 1) / 2)))


def cosine_band(cosines: Float[np.ndarray, " draw"], level: float = 0.95) -> float:
    """The upper prediction bound of |cosine| for the next draw, by the folded normal; at most 1.

    Cosines are taken as normal, not about zero: a layer may answer to any input alike. The spread is widened for few
    draws, as in Student's prediction interval.
    """
    from scipy.special import ndtri, stdtrit
    from scipy.stats import foldnorm

    n, tail = len(cosines), (1 + level) / 2
    spread = float(cosines.std(ddof=1) * np.sqrt(1 + 1 / n) * stdtrit(n - 1, tail) / ndtri(tail))
    return min(float(foldnorm.ppf(level, abs(float(cosines.mean())) / spread, scale=spread)), 1.0) if spread else 1.0
