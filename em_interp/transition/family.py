"""Several tests, one level: Holm's family-wise p-values of the transitions that were declared beforehand.

A run is tested for rotations of three matrices, a gradient-norm peak, a norm onset and the onsets of several question
sets at several adapter scales. Each p-value is about one of them; among a dozen, one below 0.05 is to be expected. So a
few are declared before looking, by default the rotation of B and the onset of EM outside the training domain, and only
these carry a claim. Their p-values are adjusted so that, whatever their dependence, the probability of calling any
transition where there is none stays below the level (Holm 1979). The others are exploratory.

Several rotations of one path need no further correction: the p-value of `rotation` is that of the largest turn among
all windows, so the probability that a path without any turn has one or more is at most the level, and after a true turn
the remaining windows are fewer. Where a part of the run is too noisy to show a turn of 60°, a second test runs on that
part alone: by theory the probability is then at most twice the level, and on planted paths it is less
(docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from em_interp.results import Result
from em_interp.run import OUTSIDE_SETS
from em_interp.transition.result import Transition, p_text

FAMILY_LEVEL = 0.05


@dataclass(frozen=True, repr=False)
class FamilyWise(Result):
    """The declared transitions of a run at one family-wise level."""

    NEXT = (".frame()", ".to_dict()")

    declared: tuple[Transition, ...]
    adjusted: tuple[float, ...]  # Holm's p-values, 1 for a transition whose own p-value is undefined

    @property
    def p_value(self) -> float:
        """The p-value of the hypothesis that none of the declared transitions took place."""
        return min(self.adjusted)

    def adjusted_p(self, transition: Transition) -> float | None:
        """Holm's p-value of a declared transition; None for any other."""
        pairs = zip(self.declared, self.adjusted, strict=True)
        return next((p for t, p in pairs if t is transition), None)

    def holds(self, transition: Transition) -> bool:
        """Whether a declared transition was found and is significant at the family-wise level."""
        p_value = self.adjusted_p(transition)
        return transition.found and p_value is not None and p_value <= FAMILY_LEVEL

    def frame(self) -> pd.DataFrame:
        """One row a declared transition, with its own and its adjusted p-value."""
        rows = [{**t.to_dict(), "adjusted_p": p} for t, p in zip(self.declared, self.adjusted, strict=True)]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """The declared transitions by name, and the family-wise p-value, as `em-interp align --json` has them."""
        keys = ("signal", "of", "site", "questions", "scale", "verdict", "p_value")
        return {
            "declared": [
                {**{key: getattr(t, key) for key in keys}, "adjusted_p": p}
                for t, p in zip(self.declared, self.adjusted, strict=True)
            ],
            "family_wise_p": self.p_value,
        }

    def sentence(self) -> str:
        """Which of the declared transitions are significant together."""
        parts = [
            f"{t.name} ({t.verdict}, adjusted {p_text(p)})" for t, p in zip(self.declared, self.adjusted, strict=True)
        ]
        count = sum(self.holds(t) for t in self.declared)
        level = f"at a family-wise level of {FAMILY_LEVEL:.0%} (Holm)"
        return "; ".join([f"{count} of {len(self.declared)} declared transitions {level}", *parts])


def family_wise(declared: Sequence[Transition]) -> FamilyWise:
    """Holm's p-values of the transitions that were named before looking, one or more."""
    p_values = np.array([1.0 if t.p_value is None else t.p_value for t in declared])
    return FamilyWise(tuple(declared), tuple(holm(p_values).tolist()))


def main_onset(transitions: Sequence[Transition]) -> Transition | None:
    """The onset at the adapter's own scale on the first of OUTSIDE_SETS that there is, else on the first set.

    That of EM; where no answers were judged, that of the preference.
    """
    own = [t for t in transitions if t.signal == "onset" and t.scale in (None, 1.0)]
    onsets = [t for t in own if t.of == "em"] or [t for t in own if t.of == "preference"]
    wanted = [*OUTSIDE_SETS, *(t.questions for t in onsets)]
    return next((t for name in wanted for t in onsets if t.questions == name), None)


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """P-values adjusted so that the probability of any false rejection stays below the level (Holm 1979)."""
    order = np.argsort(p_values)
    stepped = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def empirical_p(draws: Float[np.ndarray, " draw"], value: float) -> float:
    """The share of draws from a null that reach a value, which counts as one of them, so that it is never 0.

    NaN where the value or a draw is undefined.
    """
    if np.isnan(value) or np.isnan(draws).any():
        return float("nan")
    return float((1 + np.sum(draws >= value - 1e-12)) / (1 + len(draws)))
