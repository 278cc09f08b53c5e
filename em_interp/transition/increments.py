"""A path as increments between evenly spaced steps, known only through their inner products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# More increments than this are pooled: the cost grows with the square, the resolution stays far below a run's length.
MOST = 800
SLACK = 0.25  # of the spacing, by which a saved step may miss its place


@dataclass(frozen=True, eq=False)
class Increments:
    """Displacements of a path between saved steps: increment i leads from `edges[i]` to `edges[i + 1]`."""

    gram: Float[np.ndarray, "increment increment"]  # inner products of the increments
    edges: Int[np.ndarray, " edge"]  # steps, evenly spaced to within a quarter of the spacing
    spacing: int  # steps an increment lasts

    @property
    def count(self) -> int:
        """Number of increments."""
        return len(self.gram)


def even_increments(gram: Float[np.ndarray, "step step"], steps: Int[np.ndarray, " step"]) -> Increments:
    """The increments of the longest evenly saved stretch of a path.

    Runs are saved at 1, 2, …, 10, then every 5, then at the end: neighbours are looked up by step, so that no increment
    mixes spacings. Of several stretches that reach about equally far the densest is taken.
    """
    rows, spacing = _longest_stretch(steps)
    pool = max(1, -(-(len(rows) - 1) // MOST))
    rows = rows[::pool]
    inner = gram[np.ix_(rows, rows)]
    return Increments(np.diff(np.diff(inner, axis=0), axis=1), steps[rows], spacing * pool)


def _longest_stretch(steps: Int[np.ndarray, " step"]) -> tuple[list[int], int]:
    """Rows and spacing of the stretch that spans most of the run: the densest within a tenth of the longest span."""
    stretches = [(_stretch(steps, int(spacing)), int(spacing)) for spacing in np.unique(np.diff(steps))]
    spans = [steps[rows[-1]] - steps[rows[0]] for rows, _ in stretches]
    wide = [stretch for stretch, span in zip(stretches, spans, strict=True) if span >= 0.9 * max(spans)]
    return max(wide, key=lambda stretch: len(stretch[0]), default=([0], 1))


def _stretch(steps: Int[np.ndarray, " step"], spacing: int) -> list[int]:
    """Rows of the longest stretch saved every `spacing` steps."""
    best: list[int] = []
    left = set(range(len(steps)))
    for start in range(len(steps)):
        if start in left:
            rows = [start]
            while (row := _row_at(steps, int(steps[rows[-1]]) + spacing, SLACK * spacing)) is not None:
                rows.append(row)
            left.difference_update(rows)
            best = max(best, rows, key=len)
    return best


def _row_at(steps: Int[np.ndarray, " step"], step: int, slack: float) -> int | None:
    """The row saved nearest to `step`, or None where that misses it by more than `slack`."""
    after = int(np.searchsorted(steps, step))
    near = min(
        (row for row in (after - 1, after) if 0 <= row < len(steps)), key=lambda row: abs(int(steps[row]) - step)
    )
    return near if abs(int(steps[near]) - step) <= slack else None
