"""Adapters that know nothing: random directions at the sites of a real one, with its singular values.

At each site ΔW keeps its scale and singular values (at rank 1 its norm) and gets random orthonormal directions on both
sides, so the drawn ones depend neither on the sign nor on the gauge of the real one. They are what two adapters would
be that have only their base, their sites and their size in common with it, and so the null of everything that is
measured on activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from em_interp.comparison.subspace import Snapshots
from em_interp.errors import InputError
from em_interp.trajectory.adapter import AdapterTrajectory
from em_interp.trajectory.geometry import index_of

SEED = 20250611


def random_adapters(
    path: AdapterTrajectory, draws: Sequence[int], key: Sequence[int] = (), step: int | None = None
) -> AdapterTrajectory:
    """Random adapters with the norms of the one at `step` (the last by default); their steps are the draws' numbers.

    A draw is the same whichever others are drawn with it; `key` makes those of different runs independent. Raises
    InputError where the adapter is zero, which has no norm to match.
    """
    row = index_of(path.steps, int(path.steps[-1] if step is None else step))
    A, B = {}, {}
    for number, site in enumerate(path.sites):
        real = Snapshots.of(path, site, np.array([row]))
        values = real.singular_values()[0]
        if not values[0] > 0:
            raise InputError(f"{path.source or 'the adapter'} is zero at {site}, so no random one can match its norm")
        drawn = []
        for draw in draws:
            rng = np.random.default_rng([SEED, *key, number, draw])
            drawn.append([_orthonormal(rng, size, len(values)) for size in (real.B.shape[1], real.A.shape[2])])
        B[site] = np.stack([out * values / path.scale[site] for out, _ in drawn]).astype(np.float32)
        A[site] = np.stack([into.T for _, into in drawn]).astype(np.float32)
    made = f"random adapters with the norm of {path.source or 'another'}"
    return AdapterTrajectory(np.array(draws), A, B, dict(path.scale), base=path.base, source=made)


def _orthonormal(rng: np.random.Generator, d: int, rank: int) -> Float[np.ndarray, "d rank"]:
    """Random, by the Haar measure (QR of a Gaussian matrix with the signs of R; Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((d, rank)))
    return np.asarray(q * np.sign(np.diag(r)))
