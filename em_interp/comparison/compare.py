"""`em.compare`: several runs of one base beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from itertools import permutations as arrangements

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from em_interp.comparison.matching import Matched, Source, match
from em_interp.comparison.nulls import (
    Null,
    Permuted,
    SiteSpectra,
    columns,
    composition_null,
    permuted,
    random_null,
    smallest_angle_quantile,
)
from em_interp.comparison.pooled import Agreement, pool_steps
from em_interp.comparison.result import POOLED, DirectionComparison, DirectionOnset, PairGrid
from em_interp.comparison.similarity import (
    PARTS,
    CommonPlane,
    Likeness,
    Snapshots,
    common_plane,
    principal_angles,
    signed_vectors,
)
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.trajectory.composition import composition_score
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.transition.find import Signal, find_transition
from em_interp.transition.result import Transition

SIGNALS: tuple[Signal, ...] = ("rotation", "gradient_norm", "norm_onset")
GRID = 41  # steps of each run in the table of steps against steps
_RANK = 1e-6


def compare(
    runs: Sequence[Source],
    same_base: bool = False,
    level: float = 0.95,
    points: int | None = None,
    permutations: int = 999,
) -> DirectionComparison:
    """Compare runs of one base: their directions, when each has them, and whether their transitions agree.

    Deterministic; seconds to half a minute for 14B adapters.

    Args:
        runs: run directories, Hub ids, `Run` objects or trajectories.
        same_base: vouches that different names of the base are the same weights.
        level: of the intervals.
        points: the most saved steps of a run that are looked at, spread evenly and with the last among them; by default
            101 at rank 1 and 41 above.
        permutations: of the null of the cosines.

    Returns:
        The comparison; its tables are `.frame("agreement")` and others.

    Raises:
        InputError: for fewer than two runs, other bases or dimensions (raw cosines mean nothing there), no common site,
            and for a level or counts that make no sense.
    """
    if not 0 < level < 1 or (points is not None and points < 2) or permutations < 1:
        found = f"level {level}, points {points}, permutations {permutations}"
        raise InputError(
            f"expected a level between 0 and 1, two points or more and a permutation or more; found {found}"
        )
    matched = match(runs, same_base)
    rank = max(path.A[site].shape[1] for path in matched.paths for site in matched.sites)
    seen = _look(matched, points or (101 if rank == 1 else 41))
    spectra = [_spectra(site) for site in seen.finals]
    shuffled = permuted(seen.finals, permutations)
    nulls: dict[tuple[str, int, int], Null] = {
        (of, i, j): random_null(spectra, i, j, of)
        for i, j in combinations(range(len(matched.names)), 2)
        for of in PARTS
    }
    return DirectionComparison(
        matched=matched,
        level=level,
        pairs=pd.DataFrame(_pair_rows(matched, seen, spectra, nulls, shuffled, level)),
        angles=pd.DataFrame(_angle_rows(matched, seen, spectra, level)),
        grids=tuple(_grids(matched, seen, nulls, level)),
        presence=tuple(_presence(matched, seen, nulls, level)),
        planes=_planes(matched, seen),
        agreements=tuple(_agreements(matched, level)),
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """Everything that is worked out from the adapters, site by site, so that one site is in memory at a time."""

    steps: list[Int[np.ndarray, " step"]]  # looked at, by run
    likeness: dict[tuple[int, int], Likeness]  # pooled, of runs i <= j
    by_site: list[dict[tuple[int, int], Likeness]]  # of the last steps
    finals: list[list[Snapshots]]  # by site, by run: the last step
    inner_B: dict[tuple[int, int], Float[np.ndarray, "left right"]] | None  # of s‖a‖b; None where a rank is above 1


def _look(matched: Matched, points: int) -> _Seen:
    rows = [evenly_spaced(path.steps, points) for path in matched.paths]
    couples = [*combinations_with_replacement(range(len(matched.paths)), 2)]
    rank_one = all(path.A[site].shape[1] == 1 for path in matched.paths for site in matched.sites)
    pooled: dict[tuple[int, int], Likeness] = {}
    inner_B = {(i, j): np.zeros((len(rows[i]), len(rows[j]))) for i, j in couples}
    finals, by_site = [], []
    for site in matched.sites:
        here = [Snapshots.of(path, site, chosen) for path, chosen in zip(matched.paths, rows, strict=True)]
        last = [Snapshots(one.A[-1:], one.B[-1:], one.scale) for one in here]
        vectors = signed_vectors(here) if rank_one else []
        for i, j in couples:
            found = Likeness.between(here[i], here[j])
            pooled[i, j] = pooled[i, j] + found if (i, j) in pooled else found
            if rank_one:
                inner_B[i, j] += vectors[i] @ vectors[j].T
        by_site.append({(i, j): Likeness.between(last[i], last[j]) for i, j in couples})
        finals.append(last)
    steps = [path.steps[chosen] for path, chosen in zip(matched.paths, rows, strict=True)]
    return _Seen(steps, pooled, by_site, finals, inner_B if rank_one else None)


def _spectra(site: Sequence[Snapshots]) -> SiteSpectra:
    values = [run.singular_values()[0] for run in site]
    kept = tuple(found[found > _RANK * max(found[0], np.finfo(float).tiny)] for found in values)
    return SiteSpectra(site[0].B.shape[1], site[0].A.shape[2], kept)


def _pair_rows(
    matched: Matched,
    seen: _Seen,
    spectra: Sequence[SiteSpectra],
    nulls: dict[tuple[str, int, int], Null],
    shuffled: Permuted,
    level: float,
) -> Iterator[dict[str, object]]:
    """A row for each pair, measure and site, the pooled one first."""
    for i, j in combinations(range(len(matched.names)), 2):
        who = {"run": matched.names[i], "other": matched.names[j]}
        for of in PARTS:
            value = float(seen.likeness[i, j].cosines(of)[-1, -1])
            yield {
                **_row(who, of, POOLED, value, nulls[of, i, j], level),
                "permutation_band": shuffled.quantile(of, i, j, level),
                "p_permutation": shuffled.p_value(of, i, j, value),
            }
        if len({site.d_out for site in spectra}) == 1:
            mine, theirs = (columns([site[run] for site in seen.finals]) for run in (i, j))
            score = composition_score(mine, theirs, normalised=True)
            yield _row(who, "composition", POOLED, score, composition_null(mine, theirs), level)
        for site, found, spectrum in zip(matched.sites, seen.by_site, spectra, strict=True):
            for of in PARTS if len(matched.sites) > 1 else ():
                null = random_null([spectrum], i, j, of)
                yield _row(who, of, site, float(found[i, j].cosines(of)[0, 0]), null, level)


def _row(who: dict[str, str], of: str, site: str, value: float, null: Null, level: float) -> dict[str, object]:
    seen = {"measure": of, "site": site, "value": value}
    return {**who, **seen, "random_band": null.quantile(level), "p_random": null.p_value(value)}


def _angle_rows(
    matched: Matched, seen: _Seen, spectra: Sequence[SiteSpectra], level: float
) -> Iterator[dict[str, object]]:
    """A row for each principal angle of the column spaces of B and the row spaces of A, by pair and site."""
    for i, j in combinations(range(len(matched.names)), 2):
        for site, runs, spectrum in zip(matched.sites, seen.finals, spectra, strict=True):
            ranks = len(spectrum.singular[i]), len(spectrum.singular[j])
            for of, d in (("B", spectrum.d_out), ("A", spectrum.d_in)):
                bases = [run.out[0] if of == "B" else run.into[0] for run in (runs[i], runs[j])]
                who = {"run": matched.names[i], "other": matched.names[j], "measure": of, "site": site}
                chance = smallest_angle_quantile(d, *ranks, level)
                for number, angle in enumerate(principal_angles(*bases), 1):
                    band = chance if number == 1 else float("nan")
                    yield {**who, "angle": number, "degrees": float(angle), "random_band": band}


def _grids(matched: Matched, seen: _Seen, nulls: dict[tuple[str, int, int], Null], level: float) -> Iterator[PairGrid]:
    for of in PARTS:
        for i, j in combinations(range(len(matched.names)), 2):
            pair = matched.names[i], matched.names[j]
            rows, others = (evenly_spaced(seen.steps[run], GRID) for run in (i, j))
            cosines = seen.likeness[i, j].cosines(of)[np.ix_(rows, others)]
            band = nulls[of, i, j].quantile(level)
            yield PairGrid(of, *pair, seen.steps[i][rows], seen.steps[j][others], cosines, band)


def _presence(
    matched: Matched, seen: _Seen, nulls: dict[tuple[str, int, int], Null], level: float
) -> Iterator[DirectionOnset]:
    for of in PARTS:
        for final, inside in arrangements(range(len(matched.names)), 2):
            first, second = sorted((final, inside))
            cosines, null = seen.likeness[first, second].cosines(of), nulls[of, first, second]
            curve = cosines[-1] if final < inside else cosines[:, -1]
            names = matched.names[final], matched.names[inside]
            yield DirectionOnset(*names, of, seen.steps[inside], curve, null.quantile(level), level)


def _planes(matched: Matched, seen: _Seen) -> tuple[CommonPlane, ...]:
    """The plane of B where every rank is 1, then that of ΔW."""
    deltas = {pair: found.inner for pair, found in seen.likeness.items()}
    count = range(len(matched.names))
    planes = []
    for of, inner in (("B", seen.inner_B), ("delta", deltas)):
        if inner is not None:
            blocks = [[inner[min(i, j), max(i, j)] for j in count] for i in count]
            planes.append(common_plane(of, matched.names, seen.steps, blocks))
    return tuple(planes)


def _agreements(matched: Matched, level: float) -> Iterator[Agreement]:
    """Of the path's signals, and of the onset of EM where every run was asked and judged."""
    for signal in SIGNALS:
        yield pool_steps(matched.names, [find_transition(path, signal, level=level) for path in matched.paths], level)
    onsets = [_onset(run, level) for run in matched.runs]
    known = [onset for onset in onsets if onset is not None]
    if len(known) == len(onsets) and len({onset.questions for onset in known}) == 1:
        yield pool_steps(matched.names, known, level)


def _onset(run: Run | None, level: float) -> Transition | None:
    """The onset of EM outside the training domain, of the adapter as trained; None where the run was not asked that."""
    if run is None or not run.scores_file.exists():
        return None
    from em_interp.behaviour.curve import behaviour_curve

    part = behaviour_curve(run).outside()
    return None if part is None else find_transition(part, level=level)
