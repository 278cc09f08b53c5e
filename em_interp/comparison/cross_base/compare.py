"""How alike two runs of different bases are, measure by measure, each beside its nulls: the rows of the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from em_interp.behaviour.ask import Base
from em_interp.comparison.cross_base.activation_diff import (
    Member,
    Opening,
    depth_columns,
    gathered,
    openings,
    same_depths,
    texts_for,
)
from em_interp.comparison.cross_base.alignment_map import KINDS, DirectionMap, fit_map, held_out_cosine
from em_interp.comparison.cross_base.result import CrossBaseComparison
from em_interp.comparison.cross_base.similarity import (
    Chance,
    SharedTokens,
    least_draws,
    readout_correlation,
    shared_tokens,
)
from em_interp.comparison.cross_base.steering_transfer import check_labels, transfer_rows
from em_interp.comparison.cross_base.texts import SharedTexts
from em_interp.comparison.cross_base.turning_profile import CLOCKS, TurningProfile, profile_test, turning_profile
from em_interp.comparison.matching import Source
from em_interp.errors import InputError

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


# --------
# `em.compare_across_bases`: runs of different bases beside each other, by what does not depend on coordinates.


def compare_across_bases(
    runs: Sequence[Source],
    texts: SharedTexts | None = None,
    bases: Sequence[Base | str | None] | None = None,
    draws: int = 99,
    level: float = 0.95,
    use: bool = False,
    log: Callable[[str], None] = lambda says: None,
) -> CrossBaseComparison:
    """Compare runs across bases, each measure beside random adapters of the same norms on the same bases.

    Read-outs on shared tokens, what the runs change on shared texts, transferred directions, and turning profiles.
    Deterministic; the time is that of runs × (draws + 2) passes over the texts.

    Args:
        runs: run directories, Hub ids, `Run` objects or trajectories.
        texts: read by every model; by default the runs' own answers.
        bases: those of the runs, where a path does not name its own.
        draws: random adapters.
        level: of the intervals and nulls.
        use: also steer and ablate every run with the directions of every other, which needs judged answers among the
            texts and takes about as long again.
        log: called with a line at each stage.

    Returns:
        The comparison, with a table and a figure for each measure.

    Raises:
        InputError: for fewer than two runs, a base that is not known, too few texts or draws, and a zero adapter.
    """
    least_draws(level, draws)
    opened = openings(runs, bases)
    chosen = texts if texts is not None else texts_for(opened)
    if use:
        check_labels(chosen)
    profiles = [dict(_profiles(one)) for one in opened]
    members = list(gathered(opened, chosen, draws, log))
    log("comparing")
    likeness: list[dict[str, Any]] = []
    tokens: list[pd.DataFrame] = []
    vocabularies = []
    for one, other in combinations(members, 2):
        shared = shared_tokens(one.tokenizer, other.tokenizer)
        likeness += likeness_rows(one, other, shared, level)
        tokens.append(pd.DataFrame(token_rows(one, other, shared)))
        vocabularies.append(vocabulary_row(one, other, shared))
    carried = [rows for source, target in permutations(members, 2) for rows in carried_rows(source, target, level)]
    return CrossBaseComparison(
        names=tuple(one.name for one in opened),
        families=tuple(one.family for one in opened),
        texts=len(chosen),
        draws=draws,
        level=level,
        likeness=pd.DataFrame([*likeness, *(row for row, _ in carried)]),
        maps=pd.DataFrame([row for _, row in carried]),
        vocabularies=pd.DataFrame(vocabularies),
        tokens=pd.concat(tokens, ignore_index=True),
        profiles=pd.concat([_profile_table(*known) for known in zip(opened, profiles, strict=True)], ignore_index=True),
        turning=pd.DataFrame(_turning_rows(opened, profiles)),
        use=pd.DataFrame(_use_rows(members, chosen, log) if use else None),
    )


def _use_rows(members: Sequence[Member], texts: SharedTexts, log: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    for target in members:
        log(f"{target.name}: steered and ablated with the directions of the others")
        yield from transfer_rows(target, [source for source in members if source is not target], texts)


def _profiles(one: Opening) -> Iterator[tuple[str, TurningProfile]]:
    """The profile of a run on every clock that it has."""
    for clock in CLOCKS:
        try:
            yield clock, turning_profile(one.path, clock)  # type: ignore[arg-type]
        except InputError:
            if clock == "norm":  # without a log there is no other time; without a direction there is none at all
                raise


def _profile_table(one: Opening, profiles: dict[str, TurningProfile]) -> pd.DataFrame:
    who = {"run": one.name, "family": one.family}
    tables = [
        pd.DataFrame({**who, "clock": clock, "time": profile.time, "degrees": profile.degrees})
        for clock, profile in profiles.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _turning_rows(opened: Sequence[Opening], profiles: Sequence[dict[str, TurningProfile]]) -> Iterator[dict[str, Any]]:
    """A row for each two families and clock that all of their runs have."""
    for family, other in combinations(dict.fromkeys(one.family for one in opened), 2):
        groups = [
            [known for one, known in zip(opened, profiles, strict=True) if one.family == name]
            for name in (family, other)
        ]
        for clock in CLOCKS:
            if all(clock in known for group in groups for known in group):
                found = profile_test(*([known[clock] for known in group] for group in groups))
                counted = {"runs": len(groups[0]), "other_runs": len(groups[1])}
                yield {"family": family, "other": other, "clock": clock, **counted, **vars(found)}
