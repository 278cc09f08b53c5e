"""The answer of `compare_across_bases`: runs of different bases, by measures that need no common coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from em_interp.errors import InputError, nearest
from em_interp.results import html_card

if TYPE_CHECKING:
    import plotly.graph_objects as go

Table = Literal["likeness", "use", "tokens", "vocabularies", "maps", "profiles", "turning"]
CROSS_BASE_TABLES: tuple[str, ...] = get_args(Table)
MEASURES = {
    "cka": "CKA of what the adapters change",
    "procrustes": "held-out Procrustes of what they change",
    "readout_write": "read-outs of the write, over tokens that are said",
    "readout_final": "read-outs of the whole change, over tokens that are said",
    "readout_all_write": "read-outs of the write, over all shared tokens",
    "readout_all_final": "read-outs of the whole change, over all shared tokens",
    "carried_orthogonal": "cosine of carried and own direction, by rotation",
    "carried_ridge": "cosine of carried and own direction, by ridge",
}
CLOCK = {"cumulative_lr": "cumulative learning rate", "norm": "share of the largest norm"}


@dataclass(frozen=True, eq=False, repr=False)
class CrossBaseComparison:
    """Runs across bases. No number depends on the coordinates of a base, nor on an adapter's sign or gauge.

    What it can show: that two adapters change the same texts alike, favour the same words, and turn alike in time,
    beyond what random adapters of their norms would on the same bases; and, with `use`, that a direction of one does in
    the other some of what it did at home. What it cannot: that they do so by the same mechanism; and being alike may be
    owed to what any training on such data does, which only a control run (other data) tells apart. Each measure's own
    limits stand in its module: `cka`, `procrustes`, `readout`, `transport`, `carry`, `turning_profile`.
    """

    names: tuple[str, ...]
    families: tuple[str, ...]  # the base of each run
    texts: int
    draws: int  # random adapters of each run
    level: float
    likeness: pd.DataFrame  # a row for each pair, measure and depth, with both nulls (`em_interp.comparison.chance`)
    maps: pd.DataFrame  # how well one base's streams predict another's on held-out texts
    vocabularies: pd.DataFrame  # tokens of each pair: how many, shared, and said
    tokens: pd.DataFrame  # every token that both say, with its rank in both read-outs
    profiles: pd.DataFrame  # angle to the final direction along normalised time
    turning: pd.DataFrame  # distances of the profiles of two families
    use: pd.DataFrame  # effects of carried directions; empty where they were not used

    def frame(self, table: Table = "likeness") -> pd.DataFrame:
        """A tidy table: `likeness`, `use`, `tokens`, `vocabularies`, `maps`, `profiles` or `turning`."""
        if table not in CROSS_BASE_TABLES:
            hint = nearest(table, CROSS_BASE_TABLES)
            raise InputError(f"there is no table {table!r}{hint} (there are: {', '.join(CROSS_BASE_TABLES)})")
        found: pd.DataFrame = getattr(self, table)
        return found.copy()

    def summary(self) -> pd.DataFrame:
        """The likeness at the last layer, where everything that an adapter changes has come together."""
        return self.likeness[self.likeness["depth"].isin([1.0]) | self.likeness["depth"].isna()]

    def plot(self, table: Table = "likeness", at: Literal["write", "final"] = "final") -> go.Figure:
        """The figure of a table: `likeness` (or `maps`), `tokens` (of read-outs `at` a place), `profiles`, `use`."""
        from em_interp.figures import cross_base as draw

        about = self.about()
        rows = self.frame(table)
        if table == "tokens":
            return draw.logit_lens_similarity(rows[rows["at"] == at], self.likeness, at, about)
        if table in ("profiles", "turning"):
            return draw.turning_profiles(self.profiles, self.turning, about)
        if table == "use":
            if rows.empty:
                raise InputError("no direction was transferred here; ask for it with use=True (--steering-transfer)")
            return draw.steering_transfer(rows, about)
        if table == "vocabularies":
            raise InputError("the vocabularies have no figure; see frame('vocabularies')")
        return draw.similarity(self.likeness, self.level, about)

    def about(self) -> str:
        """What is compared: how many runs, of which bases, on how many texts."""
        bases = list(dict.fromkeys(self.families))
        return f"{len(self.names)} runs of {', '.join(bases)}, {self.texts} texts, {self.draws} random adapters a run"

    def sentence(self) -> str:
        """The result in words, a line each: what was compared, each measure against chance, turning, and use."""
        lines = [self._said(measure) for measure in MEASURES]
        return "\n".join([self.about(), *lines, *self._turning_said(), *self._use_said()])

    def _said(self, measure: str) -> str:
        last = self.summary()
        rows = last[last["measure"] == measure].dropna(subset=["value"])
        if rows.empty:
            return f"{MEASURES[measure]}: undefined, for nothing changes"
        beyond = int((rows[["p_random", "p_kept"]].max(axis=1) <= 1 - self.level + 1e-9).sum())
        bands = f"below {_span(rows['random_band'])}, with one of the two real {_span(rows['kept_band'])}"
        verdict = f"{beyond} of {len(rows)} beyond chance" if len(rows) > 1 else "beyond chance"
        verdict = verdict if len(rows) > 1 or beyond else "not beyond chance"
        size = "in size " if measure.startswith(("readout", "carried")) else ""
        each = ", each by itself" if len(rows) > 1 else ""
        chance = f"random adapters stay {size}{bands}, in {self.level:.0%}{each}"
        return f"{MEASURES[measure]}: {_span(rows['value'])}; {verdict} ({chance})"

    def _turning_said(self) -> list[str]:
        lines = []
        for row in self.turning.to_dict("records"):
            said = f"turning profiles of {row['family']} and {row['other']} by {CLOCK[row['clock']]}: "
            said += f"{row['between']:.1f}° apart"
            if np.isnan(row["p_value"]):
                lines.append(f"{said}; no null ({row['reason']})")
            else:
                p = f"p = {row['p_value']:.2g}, at least {row['least_p']:.2g} with so few runs"
                lines.append(f"{said}, {row['within']:.1f}° within a family ({p})")
        return lines

    def _use_said(self) -> list[str]:
        lines = []
        for use, rows in self.use.groupby("use", sort=False) if len(self.use) else ():
            beyond = int(((rows["p_random"] <= 0.05 + 1e-9) & (rows["carried"] * rows["own"] > 0)).sum())
            shares = rows["carried"] / rows["own"]
            lines.append(
                f"{use} with a carried direction: {beyond} of {len(rows)} beyond every random one and the way of the "
                f"target's own; {_span(shares)} of the effect of the target's own direction, "
                f"{_span((rows['carried'] / rows['adapter']).abs())} of the adapter's"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what was compared, the tables but for tokens and profiles, and the sentence."""
        kept = {name: getattr(self, name) for name in ("likeness", "use", "vocabularies", "maps", "turning")}
        return {
            "runs": [{"name": name, "base": base} for name, base in zip(self.names, self.families, strict=True)],
            "texts": self.texts,
            "random_adapters": self.draws,
            "level": self.level,
            **{name: one.astype(object).where(one.notna(), None).to_dict("records") for name, one in kept.items()},
            "sentence": self.sentence(),
        }

    def __repr__(self) -> str:
        return f"CrossBaseComparison({self.about()})"

    def _repr_html_(self) -> str:
        columns = ["run", "other", "measure", "value", "random_band", "p_random", "kept_band", "p_kept"]
        table = self.summary()[columns].to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0)
        calls = [".plot()", ".plot('tokens')", ".plot('profiles')", ".plot('use')", ".frame('likeness')"]
        return html_card(self.sentence().splitlines(), calls=calls, table=table)


def _span(values: pd.Series) -> str:
    """'0.12' or '0.12 to 0.3'."""
    ends = [f"{values.min():.2g}", f"{values.max():.2g}"]
    return ends[1] if ends[0] == ends[1] else " to ".join(ends)
