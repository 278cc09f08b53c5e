"""Paths of several runs in one plane: principal components of all their steps together, from inner products alone.

ΔW is the same in every gauge and starts at zero in every run, so the paths share an origin. B (rank 1 only) is taken as
s ‖a‖ b, as long as ΔW, with the sign in which its end agrees with the first run's: another sign is the same adapter.
Runs whose A started elsewhere have ΔW at right angles even where they write the same b, so both pictures are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from em_interp.comparison.subspace import Snapshots
from em_interp.trajectory.geometry import principal_components


@dataclass(frozen=True, eq=False)
class CommonPlane:
    """Coordinates of every run's path along the directions of largest variance of all steps together.

    What it cannot show: runs that have nothing in common lie in a plane too, as a star around the origin, and any
    smooth path bends in it. The share of variance says how much of the paths lies outside.
    """

    of: str  # B or delta
    names: tuple[str, ...]
    steps: tuple[Int[np.ndarray, " step"], ...]  # by run
    scores: tuple[Float[np.ndarray, "step 2"], ...]  # by run; in units of weights
    explained: Float[np.ndarray, " 2"]


def common_plane(
    of: str,
    names: tuple[str, ...],
    steps: Sequence[Int[np.ndarray, " step"]],
    inner: Sequence[Sequence[Float[np.ndarray, "left right"]]],
) -> CommonPlane:
    """From the inner products between every two runs' steps: `inner[i][j]` for j >= i, its transpose below."""
    rows = [[inner[i][j] if j >= i else inner[j][i].T for j in range(len(names))] for i in range(len(names))]
    scores, explained = principal_components(np.block(rows))
    ends = np.cumsum([len(one) for one in steps])[:-1]
    return CommonPlane(of, names, tuple(steps), tuple(np.split(scores, ends)), explained)


def signed_vectors(site: Sequence[Snapshots]) -> list[Float[np.ndarray, "step d_out"]]:
    """s ‖a‖ b of each run at a rank-1 site, with the sign in which its end agrees with the first run's."""
    found = [run.scale * np.linalg.norm(run.A[:, 0], axis=1)[:, None] * run.B[:, :, 0] for run in site]
    return [path * (-1.0 if path[-1] @ found[0][-1] < 0 else 1.0) for path in found]
