"""The composition score: do two sets of adapters write into the same directions, whichever site writes which?

comp(X, Y) = ‖Xᵀ Y‖_F / (‖X‖_F ‖Y‖_F), where X and Y are d × n with one column for each adapter's direction in the
residual stream. Source: arXiv 2506.11613, which tracks it against the final step of a run with nine adapters; after
Elhage et al. 2021. Xᵀ Y is n × n, the inner products of columns, so for one adapter the score is |cosine|. (With the
stacks transposed, n × d, it is the norm of an outer product and identically 1 for one adapter.)

The columns are those of s B (A Aᵀ)^½, at rank 1 s ‖a‖ b; a change of gauge only rotates them among themselves. As
published the columns are de-meaned, here each over its coordinates.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError
from em_interp.trajectory.trajectory import AdapterTrajectory

RESIDUAL_WRITERS = {  # the modules of a layer whose output is added to the residual stream, and Gemma's norm before it
    "down_proj": "post_feedforward_layernorm",
    "o_proj": "post_attention_layernorm",
}


def composition_score(X: Float[np.ndarray, "d n"], Y: Float[np.ndarray, "d m"], normalised: bool = False) -> float:
    """‖Xᵀ Y‖_F / (‖X‖_F ‖Y‖_F) of two stacks of columns, each less its mean; NaN where one of them is zero.

    As published it is 1/√n for two equal stacks of n orthogonal columns of one length. `normalised` divides by
    √(‖Xᵀ X‖_F ‖Yᵀ Y‖_F) instead, which makes it 1 for equal stacks (the root of the RV coefficient of X Xᵀ and Y Yᵀ).
    Raises InputError for columns of different lengths.
    """
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
        found = f"{X.shape}, {Y.shape}"
        raise InputError(f"two stacks of columns in one space were expected, d × n and d × m; found {found}")
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    if normalised:
        size = float(np.sqrt(np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)))
    else:
        size = float(np.linalg.norm(X) * np.linalg.norm(Y))
    return float(np.linalg.norm(X.T @ Y)) / size if size > 0 else float("nan")


def composition_path(path: AdapterTrajectory, normalised: bool = False) -> Float[np.ndarray, " step"]:
    """The score of every saved step against the final one; NaN where the adapter is zero.

    Raises InputError where the sites write into spaces of different dimensions.
    """
    if len({B.shape[1] for B in path.B.values()}) > 1:
        sizes = ", ".join(f"{site}: {B.shape[1]}" for site, B in path.B.items())
        raise InputError(f"the sites write into spaces of different dimensions ({sizes}); a composition needs one")
    final = path_columns(path, len(path.steps) - 1)
    rows = range(len(path.steps))
    return np.array([composition_score(path_columns(path, row), final, normalised=normalised) for row in rows])


def no_composition(path: AdapterTrajectory) -> str | None:
    """Why the composition score does not apply to a path, or None where it does.

    It needs several sites, each one of RESIDUAL_WRITERS: other modules of a layer write into spaces of their own, even
    where their dimensions agree.
    """
    if path.kind != "lora":
        return "there is no adapter"
    if len(path.sites) < 2:
        return "it compares several adapters, and this path has one"
    others = [site for site in path.sites if not writes_residual(site)]
    writers = " and ".join(RESIDUAL_WRITERS)
    return f"{others[0]} does not write into the residual stream ({writers} do)" if others else None


def writes_residual(site: str) -> bool:
    """Whether the output of an adapted module is added to the residual stream."""
    return site.rpartition(".")[2] in RESIDUAL_WRITERS


def layer_of(site: str) -> int:
    """The layer of an adapted module or of a steering vector: 24 for `layers.24.mlp.down_proj` and `layers.24`."""
    match = re.search(r"(?:^|\.)layers\.(\d+)(?:\.|$)", site)
    if match is None:
        raise InputError(f"adapter site {site!r} is in no layer, such as layers.24.mlp.down_proj")
    return int(match[1])


def path_columns(path: AdapterTrajectory, row: int) -> Float[np.ndarray, "d n"]:
    """The columns of every site at one saved step, by its row."""
    return np.concatenate(
        [site_columns(path.A[site][row], path.B[site][row], path.scale[site]) for site in path.sites], axis=1
    )


def site_columns(
    A: Float[np.ndarray, "rank d_in"], B: Float[np.ndarray, "d rank"], scaling: float
) -> Float[np.ndarray, "d rank"]:
    """s B (A Aᵀ)^½ of one site at one step, in float64; `scaling` is s."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    values, vectors = np.linalg.eigh(A @ A.T)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return scaling * B @ root
