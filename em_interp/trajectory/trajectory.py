"""The path of a LoRA adapter through training: two matrices per site, at every saved step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int

from em_interp.errors import InputError, listed, nearest
from em_interp.layouts import MAX_STEP
from em_interp.results import Line, Result, picture
from em_interp.trajectory import geometry
from em_interp.trajectory.checkpoint import Kind
from em_interp.utils.checks import described

if TYPE_CHECKING:
    import plotly.graph_objects as go

Matrix = Literal["A", "B", "delta"]  # of an adapter; delta is ΔW = scale · B · A
MATRICES: tuple[Matrix, ...] = ("B", "A", "delta")
MATRICES_IN_FRAME: tuple[Matrix, ...] = ("A", "B", "delta")  # the order of the columns
BLOCK = 2**23  # numbers that a Gram matrix takes in at once: 64 MiB in float64
MAX_ADAPTER_SCALE = 1e9  # its square, and norms with it, stay finite
_SPELLINGS: dict[str, Matrix] = {"a": "A", "b": "B", **dict.fromkeys(("delta", "deltaw", "dw", "δw", "∆w"), "delta")}
Adapter = dict[str, tuple[Float32[np.ndarray, "rank d_in"], Float32[np.ndarray, "d_out rank"]]]


def as_matrix(of: str) -> Matrix:
    """Which matrix `of` names: A, B, or ΔW, also spelled delta, dW, delta_W; upper and lower case are alike."""
    matrix = _SPELLINGS.get(of.lower().replace("_", "")) if isinstance(of, str) else None
    if matrix is None:
        raise InputError(f"of must be 'A', 'B' or 'delta' (also 'dW', 'ΔW'); it is {described(of)}")
    return matrix


@dataclass(frozen=True, eq=False, repr=False)
class AdapterTrajectory(Result):
    """An adapter at every saved step of one run. At each site ΔW_t = scale · B_t · A_t.

    B starts at zero. A starts at random and moves little, so its path is A_t - A_0; `gram("A")` is of A itself, and
    `em_interp.trajectory.geometry` says which measures depend on the origin.

    Within one run A, B and ΔW are all meaningful; across runs only ΔW is, because it does not change under B -> c·B,
    A -> A/c.

    Like a mapping by step: `len(path)` saved steps, `for step in path`, `step in path`, and `path[100]` is the adapter
    of step 100.
    """

    NEXT: ClassVar[tuple[str, ...]] = (".plot()", ".frame()", "em.find_transition(path)", "em.find_transitions(path)")

    steps: Int[np.ndarray, " step"]  # increasing
    A: dict[str, Float32[np.ndarray, "step rank d_in"]]  # by site, such as "layers.24.mlp.down_proj"
    B: dict[str, Float32[np.ndarray, "step d_out rank"]]
    scale: dict[str, float]  # PEFT's scaling: alpha / rank, or alpha / sqrt(rank) with rsLoRA
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)  # by logged step; empty where the run has no log
    base: str | None = None  # the model it was trained on
    source: str = ""
    kind: Kind = "lora"  # steering: B is a vector of the residual stream, A is 1; full: a projected change, A is 1
    magnitude: dict[str, Float32[np.ndarray, "step d_out"]] = field(default_factory=dict)  # of DoRA, by site
    extra_tensors: tuple[str, ...] = ()  # trained tensors beyond A and B, without which the model is not complete
    notes: tuple[str, ...] = ()  # what was left out when it was read, and what the log lacks
    _grams: dict[tuple[str, str | None], np.ndarray] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not set(self.A) == set(self.B) == set(self.scale) or bool(self.A) == (self.kind == "log"):
            raise InputError(
                f"A, B and scale must name the same sites; they name {[*self.A]}, {[*self.B]}, {[*self.scale]}"
            )
        if np.any(np.diff(self.steps) <= 0) or (
            len(self.steps) and not 0 <= self.steps[0] <= self.steps[-1] <= MAX_STEP
        ):
            raise InputError("steps must be increasing, from 0 or more to 2**53 or less")
        for site, scale in self.scale.items():
            if not abs(scale) <= MAX_ADAPTER_SCALE:
                raise InputError(f"{site}: the scale of an adapter is at most {MAX_ADAPTER_SCALE:g}; it is {scale}")
        for site in self.sites:
            a, b = self.A[site].shape, self.B[site].shape
            if len(a) != 3 or len(b) != 3 or not a[0] == b[0] == len(self.steps) or a[1] != b[2]:
                found = f"A {a} and B {b} for {len(self.steps)} steps"
                raise InputError(f"{site}: expected A (step, rank, d_in) and B (step, d_out, rank); found {found}")

    @property
    def sites(self) -> tuple[str, ...]:
        """The adapted modules."""
        return tuple(self.A)

    @property
    def cumulative_lr(self) -> Float[np.ndarray, " step"]:
        """Sum of the learning rates up to each saved step: how far the run could have gone.

        NaN where there is no log: without one, and more than one logged interval after its last row (up to there the
        sum grows as before).
        """
        logged = self.metrics.get("cumulative_lr", pd.Series(dtype=float)).dropna()
        if logged.empty:
            return np.full(len(self.steps), np.nan)
        steps, sums = np.array([0, *logged.index], float), np.array([0.0, *logged])
        if len(steps) > 2:
            interval, rate = np.median(np.diff(steps)), (sums[-1] - sums[-2]) / (steps[-1] - steps[-2])
            steps, sums = np.append(steps, steps[-1] + interval), np.append(sums, sums[-1] + interval * rate)
        return np.interp(self.steps, steps, sums, right=np.nan)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps.tolist())

    def __getitem__(self, step: int) -> Adapter:
        return self.at(step)

    def at(self, step: int) -> Adapter:
        """A and B of every site at a saved step, as `path[step]`.

        Raises InputError naming the nearest saved steps where this one was not saved.
        """
        row = geometry.index_of(self.steps, step)
        return {site: (self.A[site][row], self.B[site][row]) for site in self.sites}

    def vectors(self, of: Literal["A", "B"], site: str | None = None) -> Float32[np.ndarray, "step d"]:
        """A or B as one vector a step, flattened; the sites end to end where `site` is None."""
        matrix = as_matrix(of)
        if matrix == "delta":
            raise InputError(f"vectors are those of 'A' or 'B'; found {of!r} (ΔW is never formed: use its Gram matrix)")
        matrices = self.A if matrix == "A" else self.B
        return np.concatenate([matrices[s].reshape(len(self.steps), -1) for s in self._selected(site)], axis=1)

    def gram(self, of: Matrix, site: str | None = None) -> Float[np.ndarray, "step step"]:
        """Inner products of A, of B, or of ΔW (`delta`) between every two saved steps; read-only and cached.

        Pooled over the sites (their sum) where `site` is None. ΔW itself is never formed: its inner products are
        s² · tr((B_iᵀ B_j)(A_j A_iᵀ)), at rank 1 the product of those of A and B.
        """
        matrix, sites = as_matrix(of), self._selected(site)
        if (matrix, site) not in self._grams:
            self._compute_grams(matrix, site, sites)
        return self._grams[matrix, site]

    def _compute_grams(self, matrix: Matrix, site: str | None, sites: Sequence[str]) -> None:
        """Put a Gram matrix into the cache; with that of ΔW, where every site has rank 1, those of A and B."""
        found: dict[Matrix, np.ndarray] = {}
        rank_1 = all(self.A[s].shape[1] == 1 for s in sites)
        for s in sites:
            for of, gram in self._site_grams(matrix, s).items():
                if of == matrix or rank_1:
                    found[of] = found[of] + gram if of in found else gram
        for of, gram in found.items():
            gram.flags.writeable = False
            self._grams.setdefault((of, site), gram)

    def rounding(self, of: Matrix, site: str | None = None) -> Float[np.ndarray, " step"]:
        """Squared rounding error expected of each position where the values are stored in 16 bits, else 0.

        A value is off by up to half the spacing of numbers of its size, so the expected square is spacing² / 12. That
        of ΔW is s² · Σ_k (|δA_k|² |B_k|² + |A_k|² |δB_k|²) over the ranks k, for errors δ that are independent.
        """
        matrix, total = as_matrix(of), np.zeros(len(self.steps))
        for s in self._selected(site):
            A, B = self.A[s], self.B[s].transpose(0, 2, 1)  # (step, rank, coordinate)
            of_a = rounding_error(A) if self.kind == "lora" else np.zeros(A.shape[:2])
            of_b = rounding_error(B)
            if matrix == "delta":
                norm_a, norm_b = (np.einsum("tri,tri->tr", x, x, dtype=np.float64) for x in (A, B))
                total += self.scale[s] ** 2 * (of_a * norm_b + of_b * norm_a).sum(axis=1)
            else:
                total += (of_a if matrix == "A" else of_b).sum(axis=1)
        return total

    def frame(self, k: int = 10, site: str | None = None) -> pd.DataFrame:
        """One row a saved step: norms, cosines, turning angles, and what was logged.

        Args:
            k: Spacing of the turning angle in training steps.
            site: One adapted module; by default all of them pooled.

        Returns:
            By step: for A, B and ΔW (`delta`) the norm, the cosine to the final step and the turning angle in degrees;
            the cumulative learning rate; and the logged metrics of that step. With DoRA also `magnitude_change`, how
            far the magnitudes are from those of the first saved step, as a share of their length.
        """
        columns: dict[str, np.ndarray] = {}
        for matrix in MATRICES_IN_FRAME if self.sites else ():
            gram = self.gram(matrix, site)
            columns[f"norm_{matrix}"] = geometry.norms(gram)
            columns[f"cos_final_{matrix}"] = geometry.cosine_to_step(gram, self.steps, int(self.steps[-1]))
            columns[f"turning_angle_{matrix}"] = geometry.turning_angle(gram, self.steps, k)
        if self.magnitude:
            columns["magnitude_change"] = self._magnitude_change(site)
        measured = pd.DataFrame(columns, index=pd.Index(self.steps, name="step"))
        logged = self.metrics.reindex(measured.index)
        return measured.join(logged.drop(columns="cumulative_lr", errors="ignore")).assign(
            cumulative_lr=self.cumulative_lr
        )

    def check_complete(self) -> None:
        """Raise InputError where the base with the adapter alone is not the trained model."""
        if self.extra_tensors:
            raise InputError(
                f"{self.source or 'the run'} was trained with {listed(self.extra_tensors)} besides A and B, which is "
                "not applied here: base and adapter alone are not the trained model. Its path can be read and located"
            )

    def plot(self) -> go.Figure:
        """Norms, the path in two components and turning angles along the run."""
        from em_interp.figures.path import trajectory

        return trajectory(self)

    def to_dict(self) -> dict[str, Any]:
        """What the path is of, as plain values; its numbers are in `frame()`."""
        return {
            "source": self.source,
            "base": self.base,
            "steps": {"first": int(self.steps[0]), "last": int(self.steps[-1]), "count": len(self.steps)},
            "sites": list(self.sites),
            "rank": {site: int(A.shape[1]) for site, A in self.A.items()},
            "scale": dict(self.scale),
            "metrics": list(self.metrics.columns),
        }

    def sentence(self) -> str:
        """Steps, sites, base and source of the path, and what was logged."""
        sites = self.sites[0] if len(self.sites) == 1 else f"{len(self.sites) or 'no'} sites"
        span = f"{len(self.steps)} steps {self.steps[0]} to {self.steps[-1]}"
        logged = ", ".join(self.metrics.columns) or "nothing"
        return f"{span}, {sites}, base {self.base or 'unknown'}, from {self.source or 'memory'}; logged: {logged}"

    def _lines(self) -> list[str]:
        return [*super()._lines(), *self.notes]

    def _picture(self) -> str:
        if not self.sites:
            return ""
        return picture([Line(self.steps, geometry.norms(self.gram("delta")))], "‖ΔW‖")

    def _table(self) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {"site": site, "rank": A.shape[1], "d_in": A.shape[2], "d_out": self.B[site].shape[1], "scale": scale}
                for site, A, scale in zip(self.sites, self.A.values(), self.scale.values(), strict=True)
            ]
        )

    def _magnitude_change(self, site: str | None) -> Float[np.ndarray, " step"]:
        """Distance of DoRA's magnitudes from those of the first saved step, as a share of their length there."""
        path = np.concatenate([self.magnitude[s] for s in self._selected(site)], axis=1).astype(np.float64)
        length = float(np.linalg.norm(path[0]))
        return np.linalg.norm(path - path[0], axis=1) / length if length > 0 else np.full(len(path), np.nan)

    def _selected(self, site: str | None) -> Sequence[str]:
        if not self.sites:
            raise InputError(f"{self.source} is a log alone; there is no adapter whose path could be measured")
        if site is None:
            return self.sites
        if not isinstance(site, str) or site not in self.A:
            hint = nearest(site, self.sites) if isinstance(site, str) else ""
            raise InputError(f"there is no site {described(site)}{hint} (sites: {listed(self.sites)})")
        return (site,)

    def _site_grams(self, matrix: Matrix, site: str) -> dict[Matrix, Float[np.ndarray, "step step"]]:
        A, B = self.A[site], self.B[site]
        if matrix != "delta":
            return {matrix: _gram(A if matrix == "A" else B)}
        if A.shape[1] > 1:
            return {"delta": self.scale[site] ** 2 * _product_gram(A, B)}
        grams: dict[Matrix, np.ndarray] = {"A": _gram(A), "B": _gram(B)}
        return {**grams, "delta": self.scale[site] ** 2 * (grams["A"] * grams["B"])}


def rounding_error(values: Float32[np.ndarray, "step row column"]) -> Float[np.ndarray, "step row"]:
    """Expected squared rounding error of each row, if all values of all steps are numbers of a 16-bit type, else 0."""
    steps = [np.ascontiguousarray(step, np.float32) for step in values]
    half = brain = True
    for step in reversed(steps):  # B begins at zero, a number of any type; the last step tells most paths
        with np.errstate(over="ignore"):
            half = half and bool((step.astype(np.float16) == step).all())
        brain = brain and not (step.view(np.uint32) & 0xFFFF).any()
        if not (half or brain):
            return np.zeros(values.shape[:2])
    digits, smallest = (7, 0.0) if brain else (10, 2.0**-24)  # most of bfloat16's numbers are of float16 too
    return np.array([_squared_rounding(step, digits, smallest) for step in steps])


def _squared_rounding(
    rows: Float32[np.ndarray, "row column"], digits: int, smallest: float
) -> Float[np.ndarray, " row"]:
    """Sums of spacing² / 12 over the numbers of each row, with so many binary digits after the first."""
    spacing = np.maximum(np.ldexp(1.0, np.frexp(rows)[1] - 1 - digits), smallest)
    return np.where(rows != 0, spacing**2 / 12, 0.0).sum(axis=-1)


def _gram(path: Float[np.ndarray, "step row column"]) -> Float[np.ndarray, "step step"]:
    flat = path.reshape(len(path), -1)
    return sum((part @ part.T for part in _blocks(flat)), np.zeros((len(path), len(path))))


def _blocks(rows: Float[np.ndarray, "row column"]) -> Iterator[Float[np.ndarray, "row some"]]:
    """Neighbouring columns in float64, as many at a time as BLOCK has room for."""
    width = max(1, BLOCK // len(rows))
    for first in range(0, rows.shape[1], width):
        yield rows[:, first : first + width].astype(np.float64)


def _product_gram(
    A: Float[np.ndarray, "step rank d_in"], B: Float[np.ndarray, "step d_out rank"]
) -> Float[np.ndarray, "step step"]:
    """Inner products <B_i A_i, B_j A_j> = tr((B_iᵀ B_j)(A_j A_iᵀ)), without forming B A."""
    count, rank = A.shape[:2]
    rows_a, rows_b = A.reshape(count * rank, -1), B.transpose(0, 2, 1).reshape(count * rank, -1)
    gram = np.empty((count, count))
    for some in _step_blocks(count, rank):
        inner = _inner(rows_a, some, rank) * _inner(rows_b, some, rank)
        block = inner.reshape(-1, rank, count - some.start, rank).sum(axis=(1, 3))
        gram[some, some.start :], gram[some.start :, some] = block, block.T
    return gram


def _step_blocks(count: int, rank: int) -> Iterator[slice]:
    """Steps whose rows of inner products with those of all later steps have room in BLOCK."""
    size = max(1, BLOCK // (count * rank**2))
    return (slice(first, first + size) for first in range(0, count, size))


def _inner(rows: Float[np.ndarray, "row column"], some: slice, rank: int) -> Float[np.ndarray, "some row"]:
    """Inner products of the rows of some steps with theirs and those of all later steps."""
    own, on = slice(some.start * rank, some.stop * rank), slice(some.start * rank, None)
    return sum((part[own] @ part[on].T for part in _blocks(rows)), np.zeros((len(rows[own]), len(rows[on]))))
