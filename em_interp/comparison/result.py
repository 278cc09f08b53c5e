"""How early the final direction of one run is present in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from em_interp.comparison.matching import Matched
from em_interp.comparison.pooled import Agreement
from em_interp.comparison.similarity import CommonPlane
from em_interp.errors import InputError, nearest
from em_interp.transition.family import holm
from em_interp.transition.lock_in import first_sustained

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class DirectionOnset:
    """The cosine of each step of one run to the end of another, and from which step on it is beyond chance."""

    final_of: str  # the run whose last step is looked for
    inside: str  # the run it is looked for in
    of: str  # B, A or delta
    steps: Int[np.ndarray, " step"]  # of `inside`
    cosine: Float[np.ndarray, " step"]
    band: float  # |cosine| of random directions stays below it with probability `level`, at each step by itself
    level: float

    @property
    def first_step(self) -> int | None:
        """The first of the steps from which on the cosine stays above the band; None where it does not end above.

        Only steps that were looked at count. ΔW must point the same way, not merely along the same line. With
        unrelated runs one in twenty (at 95 %) ends above the band by chance, from some late step on.
        """
        return first_sustained(self.steps, self.cosine > self.band)


# --------
# The answer of `compare`: directions of several runs of one base, beside what chance would give.


Table = Literal["pairs", "angles", "steps", "presence", "plane", "transitions", "agreement"]
POOLED = "all shared sites"
TABLES: tuple[str, ...] = get_args(Table)
NAMES = {"B": "|cos B|", "A": "|cos A|", "delta": "cos ΔW", "composition": "composition score"}


@dataclass(frozen=True, eq=False)
class PairGrid:
    """A measure between every looked-at step of one run and every one of another, pooled over the shared sites."""

    measure: str  # B, A or delta
    run: str
    other: str
    steps: Int[np.ndarray, " left"]
    other_steps: Int[np.ndarray, " right"]
    values: Float[np.ndarray, "left right"]
    random_band: float


@dataclass(frozen=True, eq=False, repr=False)
class DirectionComparison:
    """Runs of one base beside each other. Every number is the same in every gauge and for every sign.

    What it can show: that two adapters write along, read from, or amount to the same directions beyond what random
    directions of the same norms would, and from which step on. What it cannot: that they do so for the same reason, nor
    that unlike directions do unlike things; and runs that share their initial A are alike in A from the start.
    """

    matched: Matched
    level: float
    pairs: pd.DataFrame  # a row for each pair, measure and site, at the last steps
    angles: pd.DataFrame  # a row for each principal angle, by pair, measure (B or A) and site
    grids: tuple[PairGrid, ...]
    presence: tuple[DirectionOnset, ...]
    planes: tuple[CommonPlane, ...]
    agreements: tuple[Agreement, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the runs are called here."""
        return self.matched.names

    def matrix(self, of: str, site: str = POOLED) -> pd.DataFrame:
        """The measure (`B`, `A`, `delta` or `composition`) of every two runs at their last steps; 1 on the diagonal."""
        chosen = self.pairs[(self.pairs["measure"] == of) & (self.pairs["site"] == site)]
        if chosen.empty:
            there = ", ".join(f"{m} at {s}" for m, s in self.pairs[["measure", "site"]].drop_duplicates().to_numpy())
            raise InputError(f"there is no measure {of!r} at site {site!r} (there are: {there})")
        square = pd.DataFrame(np.eye(len(self.names)), index=list(self.names), columns=list(self.names))
        for run, other, value in chosen[["run", "other", "value"]].itertuples(index=False):
            square.loc[run, other] = square.loc[other, run] = value
        return square

    def frame(self, table: Table = "pairs") -> pd.DataFrame:
        """A tidy table: `pairs`, `angles`, `steps`, `presence`, `plane`, `transitions` or `agreement`."""
        if table not in TABLES:
            raise InputError(f"there is no table {table!r}{nearest(table, TABLES)} (there are: {', '.join(TABLES)})")
        if table == "pairs":
            return self.pairs.copy()
        if table == "angles":
            return self.angles.copy()
        if table == "steps":
            return steps_table(self.grids)
        if table == "presence":
            return presence_table(self.presence)
        if table == "plane":
            return plane_table(self.planes)
        return transitions_table(self.agreements) if table == "transitions" else agreement_table(self.agreements)

    def plot(self, table: Table = "pairs", of: str = "B", signal: str = "rotation") -> go.Figure:
        """The figure of a table: `pairs` (or `angles`, the default), `steps`, `presence`, `plane`, `agreement`.

        `of` is the measure of steps, presence and plane; `signal` that of `agreement` (or `transitions`).
        """
        from em_interp.figures import comparison as draw

        if table in ("pairs", "angles"):
            return draw.direction_matrix(self.pairs, self.level, self.about())
        if table in ("agreement", "transitions"):
            held = next((one for one in self.agreements if one.signal == signal), None)
            if held is None:
                known = ", ".join(one.signal for one in self.agreements)
                raise InputError(f"there is no agreement on {signal!r} (there is: {known})")
            interval = None if held.pooled is None else held.pooled.interval
            mean = None if held.pooled is None else held.pooled.mean
            return draw.agreement(held.names, held.transitions, mean, interval, held.level, held.sentence())
        rows = self.frame(table)
        rows = rows[rows["measure"] == of]
        if rows.empty:
            why = "; a plane of B is drawn at rank 1 only" if table == "plane" and of == "B" else ""
            raise InputError(f"the table {table!r} has no measure {of!r}{why}")
        if table == "plane":
            return draw.common_plane(rows, self.about())
        return (draw.direction_onset if table == "presence" else draw.step_cosines)(rows, self.level, self.about())

    def about(self) -> str:
        """What is compared: how many runs, of which base, at which sites, and what was left out."""
        sites = self.matched.sites
        where = sites[0] if len(sites) == 1 else f"{len(sites)} shared sites"
        left = [f"{name} {', '.join(sites)}" for name, sites in self.matched.unmatched.items()]
        out = f"; not compared, for some other run lacks it: {'; '.join(left)}" if left else ""
        return f"{len(self.names)} runs of {self.matched.base or 'an unnamed base'} at {where}{out}"

    def sentence(self) -> str:
        """The result in words, a line each: what was compared, each measure against chance, each signal's step."""
        measures = [self._said(of) for of in NAMES if (self.pairs["measure"] == of).any()]
        twins = [
            f"{run} and {other} are one run given twice: equal to the bit, so their agreement says nothing of seeds"
            for run, other in self.matched.twins()
        ]
        return "\n".join([self.about(), *twins, *measures, *(agreement.sentence() for agreement in self.agreements)])

    def _said(self, of: str) -> str:
        rows = self.pairs[(self.pairs["measure"] == of) & (self.pairs["site"] == POOLED)].dropna(subset=["value"])
        if rows.empty:
            return f"{NAMES[of]}: undefined, for an adapter is zero at the end"
        low, high = rows["value"].min(), rows["value"].max()
        values = f"{low:.2g}" if len(rows) == 1 else f"{low:.2g} to {high:.2g}"
        bands = rows["random_band"].dropna()
        if bands.empty:
            return f"{NAMES[of]} at the end: {values} (no band: too many columns)"
        edges = [f"{bands.min():.2g}", f"{bands.max():.2g}"]
        band = edges[1] if edges[0] == edges[1] else " to ".join(edges)
        beyond = int((holm(rows["p_random"].to_numpy()) <= 1 - self.level).sum())
        pairs = "the pair is" if len(rows) == 1 else f"{beyond} of {len(rows)} pairs are"
        verdict = "" if len(rows) > 1 or beyond else "not "
        chance = f"{pairs} {verdict}beyond chance (random directions stay below {band} in {self.level:.0%}"
        return f"{NAMES[of]} at the end: {values}; {chance}{'; Holm' if len(rows) > 1 else ''})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the runs, the table of pairs, angles, when a final direction is present, and the agreements."""
        runs = [
            {"name": name, "sites_not_compared": list(self.matched.unmatched.get(name, ())), **path.to_dict()}
            for name, path in zip(self.names, self.matched.paths, strict=True)
        ]
        pairs, angles = (one.astype(object).where(one.notna(), None) for one in (self.pairs, self.angles))
        seen = ("final_of", "inside", "of", "band", "first_step")
        return {
            "base": self.matched.base,
            "sites": list(self.matched.sites),
            "level": self.level,
            "runs": runs,
            "pairs": pairs.to_dict("records"),
            "angles": angles.to_dict("records"),
            "presence": [{key: getattr(one, key) for key in seen} for one in self.presence],
            "agreements": [agreement.to_dict() for agreement in self.agreements],
            "sentence": self.sentence(),
        }

    def __repr__(self) -> str:
        return f"DirectionComparison({self.about()})"

    def _repr_html_(self) -> str:
        lines = "<br>".join(map(escape, self.sentence().splitlines()))
        pooled = self.pairs[self.pairs["site"] == POOLED].drop(columns="site")
        next_calls = (
            "<code>.plot('steps')</code>, <code>'presence'</code>, <code>'plane'</code>, <code>'agreement'</code>"
        )
        table = pooled.to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0)
        calls = f"Pictures: <code>.plot()</code>, {next_calls}; numbers: <code>.frame(…)</code>."
        return f"<p>{lines}</p>{table}<p>{calls}</p>"


# --------
# The tidy tables behind the figures of a comparison.


def steps_table(grids: Sequence[PairGrid]) -> pd.DataFrame:
    """A row for each measure, pair and two of their steps."""
    tables = []
    for grid in grids:
        first, second = np.meshgrid(grid.steps, grid.other_steps, indexing="ij")
        columns = {"step": first.ravel(), "other_step": second.ravel(), "value": grid.values.ravel()}
        who = {"measure": grid.measure, "run": grid.run, "other": grid.other}
        tables.append(pd.DataFrame({**who, **columns, "random_band": grid.random_band}))
    return pd.concat(tables, ignore_index=True)


def presence_table(found: Sequence[DirectionOnset]) -> pd.DataFrame:
    """A row for each measure, final direction, run it is looked for in, and step of that run."""
    tables = []
    for one in found:
        who = {"measure": one.of, "final_of": one.final_of, "inside": one.inside}
        first = np.nan if one.first_step is None else one.first_step
        numbers = {"step": one.steps, "value": one.cosine, "random_band": one.band, "first_step": first}
        tables.append(pd.DataFrame({**who, **numbers}))
    return pd.concat(tables, ignore_index=True)


def plane_table(planes: Sequence[CommonPlane]) -> pd.DataFrame:
    """A row for each measure, run and step, with its coordinates (weight units) and the shares of variance."""
    tables = []
    for plane in planes:
        shares = dict(zip(("share_x", "share_y"), plane.explained, strict=True))
        for name, steps, scores in zip(plane.names, plane.steps, plane.scores, strict=True):
            where = {"step": steps, "x": scores[:, 0], "y": scores[:, 1]}
            tables.append(pd.DataFrame({"measure": plane.of, "run": name, **where, **shares}))
    return pd.concat(tables, ignore_index=True)


def transitions_table(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """A row for each signal and run."""
    rows = [
        {"run": name, **transition.to_dict()}
        for one in agreements
        for name, transition in zip(one.names, one.transitions, strict=True)
    ]
    return pd.DataFrame(rows)


def agreement_table(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """A row for each signal: the pooled step with its interval, and the runs by verdict."""
    rows = []
    for one in agreements:
        values = one.to_dict()
        low, high = values["interval"] or (np.nan, np.nan)
        kept = {
            key: values[key] for key in ("signal", "of", "questions", "mean", "level", "between_runs_sd", "pooled_runs")
        }
        rows.append({**kept, "low": low, "high": high, **values["runs"], "sentence": values["sentence"]})
    return pd.DataFrame(rows)
