"""How similar two runs of different bases are, measure by measure, each against two nulls of random adapters.

*Both random*: would two random adapters be as similar on these bases and texts? Draw k of one base is paired with draw
k of the other, so that pairs are independent and the p-value is exact: two random adapters are called similar with the
stated probability. *One random*: is it the pair, or would one of these two be as similar to anything? Each run is
compared with the random adapters of the other, and the larger of the two p-values counts. It is the stricter one
wherever a trained adapter changes the stream along directions of large variance, which all texts share. A similarity is
beyond chance only where it is beyond the bands of both nulls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from em_interp.comparison.cross_base.activation_diff import MeasuredRun, depth_columns, same_depths
from em_interp.comparison.cross_base.alignment_map import KINDS, DirectionMap, fit_map, held_out_cosine
from em_interp.comparison.cross_base.logit_lens import SharedTokens, rank_correlation
from em_interp.errors import InputError
from em_interp.trajectory.geometry import ratio
from em_interp.transition.family import empirical_p

Row = dict[str, Any]
TOKEN_COLUMNS = ["run", "other", "at", "token", "rank", "other_rank"]


@dataclass(frozen=True, eq=False)
class TwoNulls:
    """A value and its draws from the two nulls. A signed measure is judged by its size."""

    value: float
    both_random: Float[np.ndarray, " draw"]
    one_random: tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]  # the second random, the first random
    signed: bool = False

    @classmethod
    def of(cls, table: Float[np.ndarray, "case other_case"], signed: bool = False) -> TwoNulls:
        """From the measure between every case of one run and every case of another; case 0 of each is the real one."""
        return cls(float(table[0, 0]), np.diag(table)[1:], (table[0, 1:], table[1:, 0]), signed)

    def row(self, level: float) -> dict[str, float]:
        """The value with the band and p-value of each null; NaN where it is undefined."""
        return {
            "value": self.value,
            "random_band": self._band(self.both_random, level),
            "p_random": self._p_value(self.both_random),
            "one_random_band": max(self._band(draws, level) for draws in self.one_random),
            "p_one_random": max(self._p_value(draws) for draws in self.one_random),
        }

    def _sizes(self, values: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
        return np.abs(values) if self.signed else values

    def _band(self, draws: Float[np.ndarray, " draw"], level: float) -> float:
        """The draw that a further one stays at or below with this probability, exactly (an order statistic)."""
        return float(np.sort(self._sizes(draws))[band_rank(level, len(draws)) - 1])

    def _p_value(self, draws: Float[np.ndarray, " draw"]) -> float:
        return empirical_p(self._sizes(draws), abs(self.value) if self.signed else self.value)


def band_rank(level: float, draws: int) -> int:
    """Which of the sorted draws is the edge of the band; raises InputError where so few have none at this level."""
    edge = ceil(level * (draws + 1) - 1e-9)
    if edge > draws:
        needed = ceil(1 / (1 - level) - 1e-9) - 1
        raise InputError(f"a band at level {level:g} needs {needed} random adapters or more; {draws} were asked for")
    return edge


def similarity_rows(first: MeasuredRun, second: MeasuredRun, tokens: SharedTokens, level: float) -> Iterator[Row]:
    """CKA and Procrustes of the differences at each depth; rank correlation of the logit lenses."""
    keys = {"run": first.name, "other": second.name}
    for rows in same_depths(first, second):
        where = depth_columns(first, second, rows)
        left, right = (run.diff.grams[:, row] for run, row in zip((first, second), rows, strict=True))
        yield {**keys, "measure": "cka", **where, **TwoNulls.of(left @ right.T).row(level)}
        scores = [[case[row] for case in run.diff.scores] for run, row in zip((first, second), rows, strict=True)]
        yield {**keys, "measure": "procrustes", **where, **_procrustes(*scores).row(level)}
    in_answers = _in_both_answers(first, second, tokens)
    for measure, chosen in (("logit_lens", in_answers), ("logit_lens_all", np.ones_like(in_answers))):
        for at in ("write", "final"):
            left, right = _logits(first, second, tokens, at)
            nulls = TwoNulls.of(rank_correlation(left[:, chosen], right[:, chosen]), signed=True)
            yield {**keys, "measure": f"{measure}_{at}", **nulls.row(level)}


def _procrustes(first: list[np.ndarray], second: list[np.ndarray]) -> TwoNulls:
    draws = range(1, len(first))
    both = np.array([held_out_cosine(first[k], second[k]) for k in draws])
    second_random = np.array([held_out_cosine(first[0], second[k]) for k in draws])
    first_random = np.array([held_out_cosine(first[k], second[0]) for k in draws])
    return TwoNulls(held_out_cosine(first[0], second[0]), both, (second_random, first_random))


def _logits(
    first: MeasuredRun, second: MeasuredRun, tokens: SharedTokens, at: str
) -> tuple[Float[np.ndarray, "case token"], Float[np.ndarray, "case token"]]:
    """Logit lenses of both runs over the shared tokens: of the `write`, or of the difference of the `final` stream."""
    left, right = (run.diff.write_logits if at == "write" else run.diff.final_logits for run in (first, second))
    return left[:, tokens.first], right[:, tokens.second]


def _in_both_answers(first: MeasuredRun, second: MeasuredRun, tokens: SharedTokens) -> Bool[np.ndarray, " token"]:
    """Which shared tokens occur in the answers as both tokenizers cut them.

    The unembeddings of tokens that hardly ever occur are arbitrary, and there are many of them.
    """
    return np.isin(tokens.first, first.diff.answer_tokens) & np.isin(tokens.second, second.diff.answer_tokens)


def vocabulary_row(first: MeasuredRun, second: MeasuredRun, tokens: SharedTokens) -> Row:
    """How many tokens the two have, share, and share among those of the answers."""
    return {
        "run": first.name,
        "other": second.name,
        "tokens": tokens.sizes[0],
        "other_tokens": tokens.sizes[1],
        "shared": len(tokens.texts),
        "shared_in_answers": int(_in_both_answers(first, second, tokens).sum()),
        "not_unique_or_special": tokens.left_out[0],
        "other_not_unique_or_special": tokens.left_out[1],
    }


def token_rows(first: MeasuredRun, second: MeasuredRun, tokens: SharedTokens) -> Iterator[Row]:
    """Every token in the answers of both, with its rank in both logit lenses (1: the most promoted)."""
    places = np.flatnonzero(_in_both_answers(first, second, tokens))
    for at in ("write", "final"):
        logits = _logits(first, second, tokens, at)
        ranks = [rankdata(-values[0, places], method="ordinal").astype(int) for values in logits]
        for place, rank, second_rank in zip(places, *ranks, strict=True):
            row = first.name, second.name, at, tokens.texts[place], int(rank), int(second_rank)
            yield dict(zip(TOKEN_COLUMNS, row, strict=True))


def mapped_rows(source: MeasuredRun, target: MeasuredRun, level: float) -> Iterator[tuple[Row, Row]]:
    """For each depth and kind of map: the cosine of the source's mapped mean difference to the target's; the map's fit.

    The null maps the mean differences of random adapters, which have the same few directions of large variance.
    """
    for rows in same_depths(source, target):
        where = {"run": source.name, "other": target.name, **depth_columns(source, target, rows)}
        own = target.diff.mean[:, rows[1]]
        own = ratio(own, np.linalg.norm(own, axis=1, keepdims=True))
        for kind in KINDS:
            fitted = fit_map(source.diff.base[rows[0]], target.diff.base[rows[1]], kind)  # type: ignore[arg-type]
            mapped = np.stack([_mapped(fitted, vector) for vector in source.diff.mean[:, rows[0]]])
            nulls = TwoNulls.of(mapped @ own.T, signed=True)
            fit = {"map": kind, "held_out_r2": fitted.held_out_r2, "texts": fitted.texts}
            yield {**where, "measure": f"mapped_{kind}", **nulls.row(level)}, {**where, **fit}


def _mapped(fitted: DirectionMap, vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " e"]:
    """NaN where there is nothing to map: before the first adapted layer nothing changes."""
    if not vector.any():
        return np.full(fitted.right.shape[1], np.nan)
    return fitted.map(vector)
