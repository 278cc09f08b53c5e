"""The composition signal: from which step on several adapters write together what they write at the end.

A description, not a test, like `lock_in`: every path comes to its end from some step on. Where lock-in asks whether
each site's ΔW points where it ends, this asks whether the space that all sites write into, whichever of them writes
which part, is the final one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from em_interp.transition.lock_in import stays_above
from em_interp.transition.result import Transition

_NOTE = "a description, not a test: every path does so from some step on"


def composition(
    steps: Int[np.ndarray, " step"], score: Float[np.ndarray, " step"], threshold: float = 0.95
) -> Transition:
    """The first saved step from which on the composition score with the final step stays above `threshold`.

    `score` is normalised, so that the final step has 1 with itself (`composition_path(path, normalised=True)`); as
    published it ends at a number that depends on how many adapters there are. There is no p-value and no interval, and
    the verdict is always `inconclusive`.
    """
    first = stays_above(steps, score, threshold)
    evidence = {"steps": np.asarray(steps), "score": np.asarray(score, dtype=float), "threshold": threshold}
    if first is None:
        reason = f"The adapters write nothing at the last step, {steps[-1]}, so there is nothing to come to."
        return Transition("composition", "inconclusive", reason, evidence=evidence)
    reason = f"From step {first} on the adapters' composition score with the end stays above {threshold:g}; {_NOTE}."
    return Transition("composition", "inconclusive", reason, step=float(first), evidence=evidence)
