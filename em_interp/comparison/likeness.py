"""How alike two runs of different bases are, measure by measure, each beside its nulls: the rows of the tables."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from em_interp.comparison.chance import Chance
from em_interp.comparison.members import Member, depth_columns, same_depths
from em_interp.comparison.procrustes import held_out_cosine
from em_interp.comparison.readout import SharedTokens, readout_correlation
from em_interp.comparison.transport import KINDS, DirectionMap, fit_map

Row = dict[str, Any]


def likeness_rows(one: Member, other: Member, tokens: SharedTokens, level: float) -> Iterator[Row]:
    """CKA and Procrustes of the changes at each depth; correlation of read-outs of the write and the whole change."""
    who = {"run": one.name, "other": other.name}
    for rows in same_depths(one, other):
        where = depth_columns(one, other, rows)
        mine, theirs = (member.changes.grams[:, row] for member, row in zip((one, other), rows, strict=True))
        yield {**who, "measure": "cka", **where, **Chance.of(mine @ theirs.T).row(level)}
        scores = [[case[row] for case in member.changes.scores] for member, row in zip((one, other), rows, strict=True)]
        yield {**who, "measure": "procrustes", **where, **_procrustes(*scores).row(level)}
    said = both_say(one, other, tokens)
    for measure, chosen in (("readout", said), ("readout_all", np.ones_like(said))):
        for at in ("write", "final"):
            mine, theirs = read_outs(one, other, tokens, at)
            found = Chance.of(readout_correlation(mine[:, chosen], theirs[:, chosen]), signed=True).row(level)
            yield {**who, "measure": f"{measure}_{at}", **found}


def _procrustes(mine: list[np.ndarray], theirs: list[np.ndarray]) -> Chance:
    def alike(i: int, j: int) -> float:
        return held_out_cosine(mine[i], theirs[j])

    draws = range(1, len(mine))
    both = np.array([alike(k, k) for k in draws])
    kept = np.array([alike(0, k) for k in draws]), np.array([alike(k, 0) for k in draws])
    return Chance(alike(0, 0), both, kept)


def read_outs(
    one: Member, other: Member, tokens: SharedTokens, at: str
) -> tuple[Float[np.ndarray, "case token"], Float[np.ndarray, "case token"]]:
    """Read-outs of both runs over the shared tokens: of the `write`, or of the change of the `final` stream."""
    found = [member.changes.write_tokens if at == "write" else member.changes.final_tokens for member in (one, other)]
    return found[0][:, tokens.one], found[1][:, tokens.other]


def both_say(one: Member, other: Member, tokens: SharedTokens) -> Bool[np.ndarray, " token"]:
    """Which shared tokens occur in the answers as both tokenizers cut them.

    The unembeddings of tokens that are hardly ever said are arbitrary, and there are many of them.
    """
    return np.isin(tokens.one, one.changes.said) & np.isin(tokens.other, other.changes.said)


def vocabulary_row(one: Member, other: Member, tokens: SharedTokens) -> Row:
    """How many tokens the two have, share, and share among those that are said."""
    return {
        "run": one.name,
        "other": other.name,
        "tokens": tokens.sizes[0],
        "other_tokens": tokens.sizes[1],
        "shared": len(tokens.texts),
        "shared_and_said": int(both_say(one, other, tokens).sum()),
        "not_unique_or_special": tokens.left_out[0],
        "other_not_unique_or_special": tokens.left_out[1],
    }


def token_rows(one: Member, other: Member, tokens: SharedTokens) -> Iterator[Row]:
    """Every token that both say, with its rank in both read-outs (1: the most promoted)."""
    said = np.flatnonzero(both_say(one, other, tokens))
    for at in ("write", "final"):
        ranks = [
            np.argsort(np.argsort(-values[0, said], kind="stable")) + 1 for values in read_outs(one, other, tokens, at)
        ]
        for place, mine, theirs in zip(said, *ranks, strict=True):
            who = {"run": one.name, "other": other.name, "at": at}
            yield {**who, "token": tokens.texts[place], "rank": int(mine), "other_rank": int(theirs)}


def carried_rows(source: Member, target: Member, level: float) -> Iterator[tuple[Row, Row]]:
    """For each depth and kind of map: how the source's mean change, carried, lies to the target's; and the map's fit.

    The null carries the mean changes of random adapters, which have the same few directions of large variance.
    """
    for rows in same_depths(source, target):
        where = {"run": source.name, "other": target.name, **depth_columns(source, target, rows)}
        for kind in KINDS:
            fitted = fit_map(source.changes.base[rows[0]], target.changes.base[rows[1]], kind)  # type: ignore[arg-type]
            mine, theirs = source.changes.mean[:, rows[0]], target.changes.mean[:, rows[1]]
            moved = np.stack(list(map(partial(_carried, fitted), mine)))
            found = Chance.of(moved @ _unit(theirs).T, signed=True).row(level)
            fit = {"map": kind, "held_out_r2": fitted.held_out_r2, "texts": fitted.texts}
            yield {**where, "measure": f"carried_{kind}", **found}, {**where, **fit}


def _carried(fitted: DirectionMap, vector: Float[np.ndarray, " d"]) -> Float[np.ndarray, " e"]:
    """NaN where there is nothing to carry: before the first adapted layer nothing changes."""
    if not vector.any():
        return np.full(fitted.out.shape[1], np.nan)
    return fitted.carry(vector).direction


def _unit(vectors: Float[np.ndarray, "case e"]) -> Float[np.ndarray, "case e"]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.full_like(vectors, np.nan), where=length > 0)
