"""`em.compare`: several runs of one base, their directions against chance, and whether their transitions agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, permutations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from em_interp.comparison.matching import MatchedRuns, Sources, match
from em_interp.comparison.nulls import (
    Null,
    Nulls,
    SiteSpectra,
    composition_columns,
    composition_null,
    permutation_null,
    random_null,
    smallest_angle_quantile,
)
from em_interp.comparison.pooled import Agreement, pool_steps
from em_interp.comparison.result import POOLED, DirectionComparison, DirectionOnset
from em_interp.comparison.similarity import (
    Snapshots,
    StepSimilarity,
    common_plane,
    principal_angles,
    signed_vectors,
)
from em_interp.run import Run
from em_interp.trajectory.composition import composition_score, writes_residual
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.trajectory.trajectory import MATRICES
from em_interp.transition.find import Signal, find_transition
from em_interp.transition.result import Transition
from em_interp.utils.checks import check_level, check_whole, checked

SIGNALS: tuple[Signal, ...] = ("rotation", "gradient_norm", "norm_onset")
MAX_GRID_STEPS = 41  # of each run in the table of steps against steps
POINTS_AT_RANK_1, POINTS_ABOVE = 101, 41  # compared steps of a run, by default


@checked
def compare(
    runs: Sources,
    same_base: bool = False,
    level: float = 0.95,
    points: int | None = None,
    permutations: int = 999,
) -> DirectionComparison:
    """Compare runs of one base: their directions, the step from which each has them, and whether transitions agree.

    Args:
        runs: run directories, folders of checkpoints, Hub ids, `Run` objects or trajectories; two or more. A mapping
            gives their names; by default they are named after their folders.
        same_base: treat different names of the base as the same weights.
        level: confidence level of the bands of chance and of the intervals.
        points: how many saved steps of each run to compare, spread evenly with the last among them; by default 101 at
            rank 1 and 41 above.
        permutations: draws of the null in which coordinates are permuted.

    Returns:
        The comparison; the same for the same runs. It takes seconds, up to half a minute for adapters of 14B models.

    Raises:
        InputError: for fewer than two runs, other bases or dimensions (raw cosines mean nothing there), no shared
            site, and a level or a count out of range.
    """
    check_level(level)
    check_whole("permutations", permutations, 1)
    if points is not None:
        check_whole("points", points, 2)
    matched = match(runs, same_base)
    rank = max(path.A[site].shape[1] for path in matched.paths for site in matched.sites)
    measured = _measure(matched, points or (POINTS_AT_RANK_1 if rank == 1 else POINTS_ABOVE))
    spectra = [SiteSpectra.of(site) for site in measured.finals]
    nulls: Nulls = {
        (of, i, j): random_null(spectra, i, j, of)
        for i, j in combinations(range(len(matched.names)), 2)
        for of in MATRICES
    }
    permuted = permutation_null(measured.finals, permutations)
    return DirectionComparison(
        matched=matched,
        level=level,
        pairs=pd.DataFrame(_pair_rows(matched, measured, spectra, nulls, permuted, level)),
        angles=pd.DataFrame(_angle_rows(matched, measured, spectra, level)),
        steps=pd.concat(_step_rows(matched, measured, nulls, level), ignore_index=True),
        onsets=tuple(_direction_onsets(matched, measured, nulls, level)),
        plane=pd.concat(_planes(matched, measured), ignore_index=True),
        agreements=tuple(_agreements(matched, level)),
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """Everything computed from the adapters, site by site, so that one site is in memory at a time."""

    steps: list[Int[np.ndarray, " step"]]  # compared, by run
    pooled: dict[tuple[int, int], StepSimilarity]  # over the sites, of runs i <= j
    by_site: list[dict[tuple[int, int], StepSimilarity]]  # of the last steps
    finals: list[list[Snapshots]]  # by site, by run: the last step
    inner_B: dict[tuple[int, int], Float[np.ndarray, "left right"]] | None  # of s‖a‖b; None with a rank above 1


def _measure(matched: MatchedRuns, points: int) -> _Measured:
    rows = [evenly_spaced(path.steps, points) for path in matched.paths]
    pairs = [*combinations_with_replacement(range(len(matched.paths)), 2)]
    rank_one = all(path.A[site].shape[1] == 1 for path in matched.paths for site in matched.sites)
    pooled: dict[tuple[int, int], StepSimilarity] = {}
    inner_B = {(i, j): np.zeros((len(rows[i]), len(rows[j]))) for i, j in pairs}
    finals, by_site = [], []
    for site in matched.sites:
        runs = [Snapshots.of(path, site, chosen) for path, chosen in zip(matched.paths, rows, strict=True)]
        last = [run.last() for run in runs]
        vectors = signed_vectors(runs) if rank_one else []
        for i, j in pairs:
            similarity = StepSimilarity.between(runs[i], runs[j])
            pooled[i, j] = pooled[i, j] + similarity if (i, j) in pooled else similarity
            if rank_one:
                inner_B[i, j] += vectors[i] @ vectors[j].T
        by_site.append({(i, j): StepSimilarity.between(last[i], last[j]) for i, j in pairs})
        finals.append(last)
    steps = [path.steps[chosen] for path, chosen in zip(matched.paths, rows, strict=True)]
    return _Measured(steps, pooled, by_site, finals, inner_B if rank_one else None)


def _pair_rows(
    matched: MatchedRuns,
    measured: _Measured,
    spectra: Sequence[SiteSpectra],
    nulls: Nulls,
    permuted: Nulls,
    level: float,
) -> Iterator[dict[str, Any]]:
    """A row for each pair, measure and site, the pooled one first."""
    same_start = matched.same_start()
    for i, j in combinations(range(len(matched.names)), 2):
        pair = matched.names[i], matched.names[j]
        keys = {"run": pair[0], "other": pair[1], "same_start": pair in same_start}
        for of in MATRICES:
            value = float(measured.pooled[i, j].cosines(of)[-1, -1])
            yield {
                **_row(keys, of, POOLED, value, nulls[of, i, j], level),
                "permutation_band": permuted[of, i, j].quantile(level),
                "p_permutation": permuted[of, i, j].p_value(value),
            }
        if all(map(writes_residual, matched.sites)) and {path.kind for path in matched.paths} == {"lora"}:
            first, second = (composition_columns([site[run] for site in measured.finals]) for run in (i, j))
            score = composition_score(first, second, normalised=True)
            yield _row(keys, "composition", POOLED, score, composition_null(first, second), level)
        if len(matched.sites) > 1:
            for site, similarity, spectrum in zip(matched.sites, measured.by_site, spectra, strict=True):
                for of in MATRICES:
                    value = float(similarity[i, j].cosines(of)[0, 0])
                    yield _row(keys, of, site, value, random_null([spectrum], i, j, of), level)


def _row(keys: dict[str, Any], of: str, site: str, value: float, null: Null, level: float) -> dict[str, Any]:
    measure = {"measure": of, "site": site, "value": value}
    return {**keys, **measure, "random_band": null.quantile(level), "p_random": null.p_value(value)}


def _angle_rows(
    matched: MatchedRuns, measured: _Measured, spectra: Sequence[SiteSpectra], level: float
) -> Iterator[dict[str, Any]]:
    """A row for each principal angle of the column spaces of B and the row spaces of A, by pair and site."""
    for i, j in combinations(range(len(matched.names)), 2):
        for site, runs, spectrum in zip(matched.sites, measured.finals, spectra, strict=True):
            ranks = len(spectrum.singular[i]), len(spectrum.singular[j])
            for of, d in (("B", spectrum.d_out), ("A", spectrum.d_in)):
                bases = [run.column_basis[0] if of == "B" else run.row_basis[0] for run in (runs[i], runs[j])]
                keys = {"run": matched.names[i], "other": matched.names[j], "measure": of, "site": site}
                smallest = smallest_angle_quantile(d, *ranks, level)
                for number, angle in enumerate(principal_angles(*bases), 1):
                    band = smallest if number == 1 else float("nan")
                    yield {**keys, "angle": number, "degrees": float(angle), "random_band": band}


def _step_rows(matched: MatchedRuns, measured: _Measured, nulls: Nulls, level: float) -> Iterator[pd.DataFrame]:
    """A row for each measure, pair and two of their steps, pooled over the shared sites."""
    for of in MATRICES:
        for i, j in combinations(range(len(matched.names)), 2):
            keys = {"measure": of, "run": matched.names[i], "other": matched.names[j]}
            rows, others = (evenly_spaced(measured.steps[run], MAX_GRID_STEPS) for run in (i, j))
            first, second = np.meshgrid(measured.steps[i][rows], measured.steps[j][others], indexing="ij")
            cosines = measured.pooled[i, j].cosines(of)[np.ix_(rows, others)]
            columns = {"step": first.ravel(), "other_step": second.ravel(), "value": cosines.ravel()}
            yield pd.DataFrame({**keys, **columns, "random_band": nulls[of, i, j].quantile(level)})


def _direction_onsets(
    matched: MatchedRuns, measured: _Measured, nulls: Nulls, level: float
) -> Iterator[DirectionOnset]:
    for of in MATRICES:
        for final, inside in permutations(range(len(matched.names)), 2):
            first, second = sorted((final, inside))
            cosines = measured.pooled[first, second].cosines(of)
            curve, band = cosines[-1] if final < inside else cosines[:, -1], nulls[of, first, second].quantile(level)
            names = matched.names[final], matched.names[inside]
            yield DirectionOnset(*names, of, measured.steps[inside], curve, band, level)


def _planes(matched: MatchedRuns, measured: _Measured) -> Iterator[pd.DataFrame]:
    """The plane of B where every rank is 1, then that of ΔW."""
    deltas = {pair: similarity.inner for pair, similarity in measured.pooled.items()}
    for of, inner in (("B", measured.inner_B), ("delta", deltas)):
        if inner is not None:
            yield common_plane(of, matched.names, measured.steps, inner)


def _agreements(matched: MatchedRuns, level: float) -> Iterator[Agreement]:
    """Of the path's signals, and of the onsets of EM and of preference where every run has them on one question set."""
    for signal in SIGNALS:
        yield pool_steps(matched.names, [find_transition(path, signal, level=level) for path in matched.paths], level)
    for onset_of in (_onset, _preference_onset):
        onsets = [onset_of(run, level) for run in matched.runs]
        known = [onset for onset in onsets if onset is not None]
        if len(known) == len(onsets) and len({onset.questions for onset in known}) == 1:
            yield pool_steps(matched.names, known, level)


def _onset(run: Run | None, level: float) -> Transition | None:
    """The onset of EM outside the training domain, of the adapter as trained; None without such judged answers."""
    if run is None or not run.scores_file.exists():
        return None
    from em_interp.behaviour.curve import behaviour_curve

    part = behaviour_curve(run).outside()
    return None if part is None else find_transition(part, level=level)


def _preference_onset(run: Run | None, level: float) -> Transition | None:
    """The onset of preference outside the training domain; None where the run was not read on such pairs."""
    if run is None or not run.preferences_file.exists():
        return None
    from em_interp.behaviour.preference_curve import as_preference_curve

    part = as_preference_curve(run).outside()
    return None if part is None else find_transition(part, level=level)
