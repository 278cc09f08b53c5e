"""`em.compare_families`: runs of different bases beside each other, by what does not depend on coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from typing import Any

import pandas as pd

from em_interp.behaviour.ask import Base
from em_interp.comparison.carry import check_labels, use_rows
from em_interp.comparison.chance import least_draws
from em_interp.comparison.family_result import FamilyComparison
from em_interp.comparison.family_texts import SharedTexts
from em_interp.comparison.likeness import carried_rows, likeness_rows, token_rows, vocabulary_row
from em_interp.comparison.matching import Source
from em_interp.comparison.members import Member, Opening, gathered, openings, texts_for
from em_interp.comparison.readout import shared_tokens
from em_interp.comparison.turning_profile import CLOCKS, TurningProfile, profile_test, turning_profile
from em_interp.errors import InputError


def compare_families(
    runs: Sequence[Source],
    texts: SharedTexts | None = None,
    bases: Sequence[Base | str | None] | None = None,
    draws: int = 99,
    level: float = 0.95,
    use: bool = False,
    tell: Callable[[str], None] = lambda says: None,
) -> FamilyComparison:
    """Compare runs across bases: read-outs on shared tokens, what they change on shared texts, carried directions, and
    turning profiles; each beside `draws` random adapters of the same norms on the same bases.

    `texts` are read by every model (by default the runs' own answers, `family_texts.shared_texts`). `bases` are those
    of the runs, where a path does not name its own. With `use` carried directions are used, too: every run is steered
    and ablated with those of every other (`em_interp.comparison.carry`), which needs judged answers among the texts and
    takes about as long again. `tell` is called with a line at each stage. Deterministic; the time is that of
    runs × (draws + 2) passes over the texts.

    Raises InputError for fewer than two runs, a base that is not known, too few texts or draws, and a zero adapter.
    """
    least_draws(level, draws)
    opened = openings(runs, bases)
    chosen = texts if texts is not None else texts_for(opened)
    if use:
        check_labels(chosen)
    profiles = [dict(_profiles(one)) for one in opened]
    members = list(gathered(opened, chosen, draws, tell))
    tell("comparing")
    likeness: list[dict[str, Any]] = []
    tokens: list[pd.DataFrame] = []
    vocabularies = []
    for one, other in combinations(members, 2):
        shared = shared_tokens(one.tokenizer, other.tokenizer)
        likeness += likeness_rows(one, other, shared, level)
        tokens.append(pd.DataFrame(token_rows(one, other, shared)))
        vocabularies.append(vocabulary_row(one, other, shared))
    carried = [rows for source, target in permutations(members, 2) for rows in carried_rows(source, target, level)]
    return FamilyComparison(
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
        use=pd.DataFrame(_use_rows(members, chosen, tell) if use else None),
    )


def _use_rows(members: Sequence[Member], texts: SharedTexts, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    for target in members:
        tell(f"{target.name}: steered and ablated with the directions of the others")
        yield from use_rows(target, [source for source in members if source is not target], texts)


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
