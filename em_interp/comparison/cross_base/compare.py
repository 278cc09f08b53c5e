"""`em.compare_across_bases`: runs of different bases, compared by measures that do not depend on coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from typing import Any

import pandas as pd

from em_interp.behaviour.sampling.checkpoint_models import Base
from em_interp.comparison.cross_base.activation_diff import (
    MeasuredRun,
    RunOnBase,
    measured_runs,
    runs_on_bases,
    texts_for,
)
from em_interp.comparison.cross_base.logit_lens import shared_tokens
from em_interp.comparison.cross_base.result import CrossBaseComparison
from em_interp.comparison.cross_base.similarity import (
    TOKEN_COLUMNS,
    band_rank,
    mapped_rows,
    similarity_rows,
    token_rows,
    vocabulary_row,
)
from em_interp.comparison.cross_base.steering_transfer import check_labels, transfer_rows
from em_interp.comparison.cross_base.texts import SharedTexts
from em_interp.comparison.cross_base.turning_profile import CLOCKS, TurningProfile, profile_test, turning_profile
from em_interp.comparison.matching import Sources
from em_interp.errors import InputError
from em_interp.utils.checks import check_level, checked

Profiles = dict[str, TurningProfile]  # by clock


@checked
def compare_across_bases(
    runs: Sources,
    texts: SharedTexts | None = None,
    bases: Sequence[Base | str | None] | None = None,
    draws: int = 99,
    level: float = 0.95,
    steering_transfer: bool = False,
    log: Callable[[str], None] = lambda says: None,
) -> CrossBaseComparison:
    """Compare runs across bases: logit lenses on shared tokens, what the adapters change on shared texts, mapped
    directions, and turning profiles; each against random adapters of the same norms on the same bases.

    Args:
        runs: run directories, folders of checkpoints, Hub ids, `Run` objects or trajectories; two or more. A mapping
            gives their names; by default they are named after their folders.
        texts: questions and answers that every model reads; by default the runs' own answers (`shared_texts`).
        bases: the base of each run, loaded or by name, where a path does not name its own.
        draws: random adapters of each run.
        level: confidence level of the bands of chance.
        steering_transfer: also steer and ablate every run with the mapped directions of every other. It needs judged
            answers among the texts and about doubles the time.
        log: called with a line at each stage.

    Returns:
        The comparison; the same for the same runs. The time is that of runs × (draws + 2) passes over the texts.

    Raises:
        InputError: for fewer than two runs, an unknown base, too few texts or draws, a level out of range, and an
            adapter that is zero.
    """
    check_level(level)
    band_rank(level, draws)
    opened = runs_on_bases(runs, bases)
    chosen = texts if texts is not None else texts_for(opened)
    if steering_transfer:
        check_labels(chosen)
    profiles = [_profiles(run) for run in opened]
    measured = list(measured_runs(opened, chosen, draws, log))
    log("comparing")
    similarities: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    vocabularies = []
    for first, second in combinations(measured, 2):
        shared = shared_tokens(first.tokenizer, second.tokenizer)
        similarities += similarity_rows(first, second, shared, level)
        tokens += token_rows(first, second, shared)
        vocabularies.append(vocabulary_row(first, second, shared))
    mapped = [rows for source, target in permutations(measured, 2) for rows in mapped_rows(source, target, level)]
    return CrossBaseComparison(
        names=tuple(run.name for run in opened),
        bases=tuple(run.base_name for run in opened),
        texts=len(chosen),
        draws=draws,
        level=level,
        similarity=pd.DataFrame([*similarities, *(row for row, _ in mapped)]),
        maps=pd.DataFrame([row for _, row in mapped]),
        vocabularies=pd.DataFrame(vocabularies),
        tokens=pd.DataFrame(tokens, columns=TOKEN_COLUMNS),
        profiles=pd.concat(_profile_tables(opened, profiles), ignore_index=True),
        turning=pd.DataFrame(_turning_rows(opened, profiles)),
        steering_transfer=pd.DataFrame(_transfer_rows(measured, chosen, log) if steering_transfer else None),
    )


def _transfer_rows(
    measured: Sequence[MeasuredRun], texts: SharedTexts, log: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    for target in measured:
        log(f"{target.name}: steered and ablated with the directions of the others")
        yield from transfer_rows(target, [source for source in measured if source is not target], texts)


def _profiles(run: RunOnBase) -> Profiles:
    """The profile of a run on every clock that it has."""
    profiles = {}
    for clock in CLOCKS:
        try:
            profiles[clock] = turning_profile(run.path, clock)  # type: ignore[arg-type]
        except InputError:
            if clock == "norm":  # the cumulative learning rate needs a log; a direction is needed for either
                raise
    return profiles


def _profile_tables(opened: Sequence[RunOnBase], profiles: Sequence[Profiles]) -> Iterator[pd.DataFrame]:
    for run, known in zip(opened, profiles, strict=True):
        for clock, profile in known.items():
            keys = {"run": run.name, "base": run.base_name, "clock": clock}
            yield pd.DataFrame({**keys, "time": profile.time, "degrees": profile.degrees})


def _turning_rows(opened: Sequence[RunOnBase], profiles: Sequence[Profiles]) -> Iterator[dict[str, Any]]:
    """A row for each two bases and clock that all of their runs have."""
    for first, second in combinations(dict.fromkeys(run.base_name for run in opened), 2):
        groups = [
            [known for run, known in zip(opened, profiles, strict=True) if run.base_name == name]
            for name in (first, second)
        ]
        for clock in CLOCKS:
            if all(clock in known for group in groups for known in group):
                test = profile_test(*([known[clock] for known in group] for group in groups))
                counts = {"runs": len(groups[0]), "other_runs": len(groups[1])}
                yield {"base": first, "other": second, "clock": clock, **counts, **vars(test)}
