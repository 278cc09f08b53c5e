"""The signals `lock_in` and `composition`: the step from which on the adapter stays close to its final state.

`lock_in` follows the cosine of ΔW to its final value. `composition` follows the composition score of several adapters
with their final ones: whether the space they write into together is the final one, whichever of them writes which
direction. Both describe and do not test: every path, a straight one included, stays close to its end from some step on,
so there is no p-value, no interval, and the verdict is always `inconclusive`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.errors import InputError
from em_interp.transition.result import Transition

_NOTE = "a description, not a test: every path does so from some step on"


def lock_in(
    steps: Int[np.ndarray, " step"], cos_to_final: Float[np.ndarray, " step"], threshold: float = 0.95
) -> Transition:
    """The first saved step from which on cos(ΔW_t, ΔW_final) stays above `threshold`.

    An undefined cosine (ΔW is zero at step 0) does not count as above. `step` is None where ΔW is zero at the end.
    """
    steps, cosine = _checked(steps, cos_to_final, threshold, "cosine")
    evidence = {"steps": steps, "cos_to_final": cosine, "threshold": threshold}
    first = first_sustained(steps, cosine > threshold)
    if first is None:
        reason = f"ΔW has no direction at the last step, {steps[-1]}, so there is none to lock in to."
        return Transition("lock_in", "inconclusive", reason, of="delta", evidence=evidence)
    reason = f"From step {first} on the cosine of ΔW to its end stays above {threshold:g}; {_NOTE}."
    return Transition("lock_in", "inconclusive", reason, of="delta", step=float(first), evidence=evidence)


def composition(
    steps: Int[np.ndarray, " step"], score: Float[np.ndarray, " step"], threshold: float = 0.95
) -> Transition:
    """The first saved step from which on the composition score with the final step stays above `threshold`.

    `score` is normalised, so that the final step has 1 with itself (`composition_path(path, normalised=True)`); as
    published it ends at a number that depends on how many adapters there are.
    """
    steps, score = _checked(steps, score, threshold, "composition score")
    evidence = {"steps": steps, "score": score, "threshold": threshold}
    first = first_sustained(steps, score > threshold)
    if first is None:
        reason = f"The adapters write nothing at the last step, {steps[-1]}, so there is no end to compare with."
        return Transition("composition", "inconclusive", reason, evidence=evidence)
    reason = f"From step {first} on the adapters' composition score with the end stays above {threshold:g}; {_NOTE}."
    return Transition("composition", "inconclusive", reason, step=float(first), evidence=evidence)


def first_sustained(steps: Int[np.ndarray, " step"], condition: Bool[np.ndarray, " step"]) -> int | None:
    """The first step from which on `condition` holds to the last step; None where it does not hold there."""
    failing = np.flatnonzero(~condition)
    first = int(failing[-1]) + 1 if len(failing) else 0
    return int(steps[first]) if first < len(steps) else None


def _checked(steps: np.ndarray, values: np.ndarray, threshold: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(steps), np.asarray(values, dtype=float)
    if steps.ndim != 1 or steps.shape != values.shape or len(steps) < 2:
        raise InputError(f"expected one {name} a step, two steps or more; found {values.shape} for {steps.shape}")
    if np.any(np.diff(steps) <= 0):
        raise InputError(f"the steps of the {name}s must be increasing")
    if not -1 <= threshold < 1:
        raise InputError(f"the threshold is a {name} below 1; it is {threshold}")
    return steps, values
