"""The answer of `compare`: directions of several runs of one base, against chance, and whether their steps agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from em_interp.comparison.matching import MatchedRuns
from em_interp.comparison.pooled import Agreement
from em_interp.errors import InputError
from em_interp.results import Result, local_name, percent
from em_interp.transition.family import holm
from em_interp.transition.signals.lock_in import first_sustained
from em_interp.utils.checks import check_known

if TYPE_CHECKING:
    import plotly.graph_objects as go

Table = Literal["pairs", "angles", "steps", "direction_onset", "plane", "transitions", "agreement"]
POOLED = "all shared sites"
MAX_NAMED_PAIRS = 6  # up to which a sentence names each pair
SHARED_START = (
    "they start from the same A at step 0, as runs of one seed do, so their cosines of A (and of ΔW, which has A in "
    "it) are high from the start"
)


@dataclass(frozen=True, eq=False)
class DirectionOnset:
    """The cosine of each step of one run to the final direction of another, and from which step it is beyond chance."""

    final_of: str  # the run whose final direction is looked for
    inside: str  # the run it is looked for in
    of: str  # B, A or delta
    steps: Int[np.ndarray, " step"]  # of `inside`
    cosine: Float[np.ndarray, " step"]
    band: float  # |cosine| of random directions stays below it with probability `level`, at each step by itself
    level: float

    @property
    def first_step(self) -> int | None:
        """The first compared step from which the cosine stays above the band; None where it does not end above.

        ΔW must point the same way, not merely along the same line. With unrelated runs one in twenty (at 95 %) ends
        above the band of |cos B| or |cos A| by chance, and one in forty above that of cos ΔW, from some late step on.
        """
        return first_sustained(self.steps, self.cosine > self.band)


@dataclass(frozen=True, eq=False, repr=False)
class DirectionComparison(Result):
    """The comparison of runs of one base. No number depends on the gauge or the sign of an adapter.

    It can show that B, A or ΔW of two adapters are more similar than random directions of the same norms, from which
    step on, and whether their transitions are at the same step. It does not show that they are similar for the same
    reason, nor that different directions have different effects. Runs that share their
    initial A have similar A from the start: `same_start()` names them.
    """

    NEXT: ClassVar[tuple[str, ...]] = (
        ".plot()",
        ".plot('steps')",
        ".plot('direction_onset')",
        ".plot('plane')",
        ".plot('agreement')",
        ".frame('pairs')",
    )
    TABLES: ClassVar[tuple[Any, ...]] = get_args(Table)
    NAME: ClassVar[str] = "comparison"  # of the files
    HEADING: ClassVar[str] = "Comparison of runs"
    ROWS: ClassVar[str] = "Every pair and site at the last steps"
    LIMITS: ClassVar[str] = (
        "Cosines belong to one base and its coordinates. Similarity beyond the band says that two adapters use the "
        "same directions, not that they do so for the same reason. Runs that started from the same A have similar A "
        "from the start."
    )

    matched: MatchedRuns
    level: float
    pairs: pd.DataFrame  # a row for each pair, measure and site, at the last steps
    angles: pd.DataFrame  # a row for each principal angle, by pair, measure (B or A) and site
    steps: pd.DataFrame  # a row for each two steps of a pair, by measure
    onsets: tuple[DirectionOnset, ...]
    plane: pd.DataFrame  # a row for each step of a run, by measure: its coordinates in the plane of all paths
    agreements: tuple[Agreement, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the runs."""
        return self.matched.names

    def same_start(self) -> list[tuple[str, str]]:
        """Pairs of runs with the same A at step 0."""
        return self.matched.same_start()

    def frame(self, table: Table = "pairs") -> pd.DataFrame:
        """A tidy table.

        Args:
            table: `pairs`, `angles`, `steps`, `direction_onset`, `plane`, `transitions` or `agreement`.

        Returns:
            The rows behind the figure of that name.

        Raises:
            InputError: for another name.
        """
        makers = {
            "pairs": self.pairs.copy,
            "angles": self.angles.copy,
            "steps": self.steps.copy,
            "direction_onset": lambda: _onsets_table(self.onsets),
            "plane": self.plane.copy,
            "transitions": lambda: _transitions_table(self.agreements),
            "agreement": lambda: pd.DataFrame([agreement.row() for agreement in self.agreements]),
        }
        check_known("table", table, self.TABLES)
        return makers[table]()

    def plot(self, table: Table = "pairs", of: str = "B", signal: str = "rotation") -> go.Figure:
        """The figure of a table.

        Args:
            table: `pairs` (also for `angles`), `steps`, `direction_onset`, `plane` or `agreement` (also for
                `transitions`).
            of: the measure of steps, direction_onset and plane: B, A or delta.
            signal: the signal of `agreement`: `rotation`, `gradient_norm`, `norm_onset`, `em_onset` or
                `preference_onset`.

        Returns:
            The figure.

        Raises:
            InputError: for a table, measure or signal that is not there.
        """
        from em_interp.figures import comparison as draw

        if table in ("pairs", "angles"):
            return draw.direction_matrix(self.pairs, self.level, self._about_figure("A"))
        if table in ("agreement", "transitions"):
            return self._agreement(signal).plot()
        rows = self.frame(table)
        rows = rows[rows["measure"] == of]
        if rows.empty:
            why = "; a plane of B is drawn at rank 1 only" if table == "plane" and of == "B" else ""
            raise InputError(f"the table {table!r} has no measure {of!r}{why}")
        if table == "plane":
            return draw.common_plane(rows, self._about_figure(of))
        figure = draw.direction_onset if table == "direction_onset" else draw.step_cosines
        return figure(rows, self.level, self._about_figure(of))

    def figures(self) -> list[go.Figure]:
        """Every figure, in the order of the page."""
        drawn = [self.plot("pairs")]
        drawn += [self.plot("direction_onset", of) for of in ("B", "delta")]
        drawn += [self.plot("steps", of) for of in ("B", "delta")]
        drawn += [self.plot("plane", of) for of in self.plane["measure"].unique()]
        return [*drawn, *(agreement.plot() for agreement in self.agreements)]

    def _agreement(self, signal: str) -> Agreement:
        known = {agreement.key: agreement for agreement in self.agreements}
        if signal not in known:
            raise InputError(f"there is no agreement on {signal!r} (there is: {', '.join(known)})")
        return known[signal]

    def about(self) -> str:
        """What is compared: how many runs, of which base, at which sites, and what was left out."""
        sites = self.matched.sites
        where = sites[0] if len(sites) == 1 else f"{len(sites)} shared sites"
        left = [f"{name} {', '.join(sites)}" for name, sites in self.matched.unmatched.items()]
        out = f"; not compared, for some other run lacks it: {'; '.join(left)}" if left else ""
        base = local_name(self.matched.base) if self.matched.base else "an unnamed base"
        return f"{len(self.names)} runs of {base} at {where}{out}"

    def _about_figure(self, of: str) -> str:
        """What is compared, and for a figure with A or ΔW in it which runs share their start."""
        return ". ".join([self.about(), *([] if of == "B" else self._shared_starts())])

    def _shared_starts(self) -> list[str]:
        """A line for each group of runs with the same A at step 0."""
        groups: list[list[str]] = []
        for run, other in self.same_start():
            group = next((group for group in groups if run in group), None)
            if group is None:
                groups.append([run, other])
            elif other not in group:
                group.append(other)
        return [f"{', '.join(group[:-1])} and {group[-1]}: {SHARED_START}" for group in groups]

    def sentence(self) -> str:
        """The result, a line each: what was compared, each measure against chance, and whether the steps agree."""
        from em_interp.figures.comparison import MEASURE_NAME

        duplicates = [
            f"{run} and {other} are one run given twice: equal to the bit, so their agreement says nothing of seeds"
            for run, other in self.matched.duplicates()
        ]
        measures = [self._measure(of, name) for of, name in MEASURE_NAME.items() if (self.pairs["measure"] == of).any()]
        agreements = [agreement.sentence() for agreement in self.agreements]
        return "\n".join([self.about(), *duplicates, *self._shared_starts(), *measures, *agreements])

    def _measure(self, of: str, name: str) -> str:
        """A measure at the end against chance; cos ΔW run by run where there are few pairs."""
        rows = self.pairs[(self.pairs["measure"] == of) & (self.pairs["site"] == POOLED)].dropna(subset=["value"])
        if rows.empty:
            return f"{name}: undefined, for an adapter is zero at the end"
        values = span(rows["value"])
        if of == "delta" and 1 < len(rows) <= MAX_NAMED_PAIRS:
            each = zip(rows["run"], rows["other"], rows["value"], strict=True)
            values = ", ".join(f"{value:.2g} {run} to {other}" for run, other, value in each)
        bands = rows["random_band"].dropna()
        if bands.empty:
            return f"{name} at the end: {values} (no band: too many columns)"
        beyond = int((holm(rows["p_random"].to_numpy()) <= 1 - self.level).sum())
        count = "the pair is" if len(rows) == 1 else f"{beyond} of {len(rows)} pairs are"
        negation = "" if len(rows) > 1 or beyond else "not "
        chance = f"random directions stay below {span(bands)} in {percent(self.level)}"
        chance += ", each pair by itself; the count is after Holm's correction" if len(rows) > 1 else ""
        return f"{name} at the end: {values}; {count} {negation}beyond chance ({chance})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the runs, the tables of pairs and angles, direction onsets, and agreements."""
        runs = [
            {"name": name, "sites_not_compared": list(self.matched.unmatched.get(name, ())), **path.to_dict()}
            for name, path in zip(self.names, self.matched.paths, strict=True)
        ]
        columns = ("final_of", "inside", "of", "band", "first_step")
        return {
            "base": self.matched.base,
            "sites": list(self.matched.sites),
            "level": self.level,
            "runs": runs,
            "same_start": [list(pair) for pair in self.same_start()],
            "pairs": records(self.pairs),
            "angles": records(self.angles),
            "direction_onset": [{key: getattr(onset, key) for key in columns} for onset in self.onsets],
            "agreements": [agreement.to_dict() for agreement in self.agreements],
            "sentence": self.sentence(),
        }

    def __repr__(self) -> str:
        return f"DirectionComparison({self.about()})"

    def _table(self) -> pd.DataFrame:
        return self.pairs[self.pairs["site"] == POOLED].drop(columns="site")


def span(values: Iterable[float]) -> str:
    """'0.12' or '0.12 to 0.3'."""
    ends = [f"{end:.2g}" for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain values, None for what is missing."""
    return [
        {str(name): value for name, value in row.items()}
        for row in table.astype(object).where(table.notna(), None).to_dict("records")
    ]


def _onsets_table(onsets: Sequence[DirectionOnset]) -> pd.DataFrame:
    """A row for each measure, final direction, run it is looked for in, and step of that run."""
    tables = []
    for onset in onsets:
        keys = {"measure": onset.of, "final_of": onset.final_of, "inside": onset.inside}
        first = np.nan if onset.first_step is None else onset.first_step
        numbers = {"step": onset.steps, "value": onset.cosine, "random_band": onset.band, "first_step": first}
        tables.append(pd.DataFrame({**keys, **numbers}))
    return pd.concat(tables, ignore_index=True)


def _transitions_table(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """A row for each signal and run, labelled by both."""
    rows = [agreement.frame().assign(label=agreement.label).to_dict("records") for agreement in agreements]
    table = pd.DataFrame([row for group in rows for row in group])
    return table[["label", "run", *table.columns.drop(["label", "run"])]]
