"""A likeness between two adapters beside what norm-matched random adapters give: two nulls, both of which must go.

- *Both random* answers: would two adapters that know nothing be as alike on these bases and texts? Draw k of one base
  is paired with draw k of the other, so that pairs are independent and the p-value is exact: two random adapters are
  called alike with the stated probability.
- *One kept* answers: is it the pair, or would one of these two be as alike with anything? Each run is held against the
  random adapters of the other, and the less surprising of the two counts. It is the stricter one wherever a trained
  adapter changes the stream along directions of large variance, which all texts share.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Float

from em_interp.errors import InputError


@dataclass(frozen=True, eq=False)
class Chance:
    """A value and its draws from the two nulls. A signed measure is judged by its size."""

    value: float
    both: Float[np.ndarray, " draw"]
    kept: tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]  # the first kept, the second kept
    signed: bool = False

    @classmethod
    def of(cls, table: Float[np.ndarray, "case other_case"], signed: bool = False) -> Chance:
        """From the measure between every case of one run and every case of another; case 0 of each is the real one."""
        return cls(float(table[0, 0]), np.diag(table)[1:], (table[0, 1:], table[1:, 0]), signed)

    def row(self, level: float) -> dict[str, float]:
        """The value with the band and p-value of each null; NaN where it is undefined."""
        p_kept = max(self._p_value(draws) for draws in self.kept)
        return {
            "value": self.value,
            "random_band": self._band(self.both, level),
            "p_random": self._p_value(self.both),
            "kept_band": max(self._band(draws, level) for draws in self.kept),
            "p_kept": p_kept,
        }

    def _sizes(self, values: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
        return np.abs(values) if self.signed else values

    def _band(self, draws: Float[np.ndarray, " draw"], level: float) -> float:
        """The draw that a further one stays at or below with this probability, exactly (an order statistic)."""
        return float(np.sort(self._sizes(draws))[least_draws(level, len(draws)) - 1])

    def _p_value(self, draws: Float[np.ndarray, " draw"]) -> float:
        if np.isnan(self.value) or np.isnan(draws).any():
            return float("nan")
        reached = self._sizes(draws) >= self._sizes(np.array([self.value])) - 1e-12
        return float((1 + reached.sum()) / (1 + len(draws)))


def least_draws(level: float, draws: int) -> int:
    """Which of the sorted draws is the edge of the band; raises InputError where so few have none at this level."""
    edge = ceil(level * (draws + 1) - 1e-9)
    if not 0 < level < 1 or edge > draws:
        raise InputError(
            f"a band at level {level:g} needs {ceil(1 / (1 - level) - 1e-9) - 1 if 0 < level < 1 else 'more'} random "
            f"adapters or more; {draws} were asked for"
        )
    return edge
