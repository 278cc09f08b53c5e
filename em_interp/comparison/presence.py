"""How early the final direction of one run is present in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Presence:
    """The cosine of each step of one run to the end of another, and from which step on it is beyond chance."""

    final_of: str  # the run whose last step is looked for
    inside: str  # the run it is looked for in
    of: str  # B, A or delta
    steps: Int[np.ndarray, " step"]  # of `inside`
    cosine: Float[np.ndarray, " step"]
    band: float  # |cosine| of random directions stays below it with probability `level`, at each step by itself
    level: float

    @property
    def first_step(self) -> int | None:
        """The first of the steps from which on the cosine stays above the band; None where it does not end above.

        Only steps that were looked at count. ΔW must point the same way, not merely along the same line. With
        unrelated runs one in twenty (at 95 %) ends above the band by chance, from some late step on.
        """
        return first_above(self.steps, self.cosine, self.band)


def first_above(steps: Int[np.ndarray, " step"], values: Float[np.ndarray, " step"], bar: float) -> int | None:
    """The first step from which on the values stay above the bar to the end; NaN does not count as above."""
    below = np.flatnonzero(~(values > bar))
    first = int(below[-1]) + 1 if len(below) else 0
    return int(steps[first]) if first < len(steps) else None
