"""The answer of `compare_across_bases`: runs of different bases, by measures that need no common coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd

from em_interp.comparison.cross_base.logit_lens import MIN_TOKENS
from em_interp.comparison.result import records, span
from em_interp.errors import InputError
from em_interp.results import Result, percent
from em_interp.utils.checks import check_known

if TYPE_CHECKING:
    import plotly.graph_objects as go

Table = Literal["similarity", "steering_transfer", "tokens", "vocabularies", "maps", "profiles", "turning"]
MEASURES = {
    "cka": "CKA of what the adapters change",
    "procrustes": "held-out Procrustes of what they change",
    "logit_lens_write": "logit lenses of the write, over tokens in the answers",
    "logit_lens_final": "logit lenses of the whole change, over tokens in the answers",
    "logit_lens_all_write": "logit lenses of the write, over all shared tokens",
    "logit_lens_all_final": "logit lenses of the whole change, over all shared tokens",
    "mapped_orthogonal": "cosine of mapped and own direction, by rotation",
    "mapped_ridge": "cosine of mapped and own direction, by ridge",
}
CLOCK_NAME = {"cumulative_lr": "cumulative learning rate", "norm": "share of the largest norm"}
TRANSFER_ALPHA = 0.05


@dataclass(frozen=True, eq=False, repr=False)
class CrossBaseComparison(Result):
    """The comparison of runs across bases. No number depends on a base's coordinates or an adapter's sign or gauge.

    It can show that two adapters change the same texts alike, promote the same tokens, and turn at the same share of
    training, more than random adapters of their norms on the same bases; and, with `steering_transfer`, that a
    direction of one model has part of its effect in the other. It does not show that they do so by the same mechanism;
    and the similarity may be due to any training on such data, which only a control run on other data can exclude. The
    limits of each measure are in its module: `cka`, `alignment_map`, `logit_lens`, `steering_transfer`,
    `turning_profile`.
    """

    NEXT: ClassVar[tuple[str, ...]] = (
        ".plot()",
        ".plot('tokens')",
        ".plot('profiles')",
        ".plot('steering_transfer')",
        ".frame('similarity')",
    )
    TABLES: ClassVar[tuple[Any, ...]] = get_args(Table)
    NAME: ClassVar[str] = "cross_base"  # of the files
    HEADING: ClassVar[str] = "Comparison across bases"
    ROWS: ClassVar[str] = "Every pair, measure and depth"
    LIMITS: ClassVar[str] = (
        "Across bases only what needs no common coordinates is compared. Similarity beyond the nulls says that two "
        "adapters change the same texts alike or favour the same words more than random adapters of their norms do, "
        "not that they do so by the same mechanism, nor that other training data would not have done the same."
    )

    names: tuple[str, ...]
    bases: tuple[str, ...]  # of each run
    texts: int
    draws: int  # random adapters of each run
    level: float
    similarity: pd.DataFrame  # a row for each pair, measure and depth, with both nulls (`TwoNulls`)
    maps: pd.DataFrame  # how well one base's streams predict another's on held-out texts
    vocabularies: pd.DataFrame  # tokens of each pair: how many, shared, and in the answers
    tokens: pd.DataFrame  # every token in the answers of both, with its rank in both logit lenses
    profiles: pd.DataFrame  # angle to the final direction along normalised time
    turning: pd.DataFrame  # distances of the profiles of two bases
    steering_transfer: pd.DataFrame  # effects of transferred directions; empty where they were not used

    def frame(self, table: Table = "similarity") -> pd.DataFrame:
        """A tidy table.

        Args:
            table: `similarity`, `steering_transfer`, `tokens`, `vocabularies`, `maps`, `profiles` or `turning`.

        Returns:
            A copy of the rows.

        Raises:
            InputError: for another name.
        """
        check_known("table", table, self.TABLES)
        rows: pd.DataFrame = getattr(self, table)
        return rows.copy()

    def summary(self) -> pd.DataFrame:
        """The similarity at the last layer, where everything that an adapter changes has come together."""
        return self.similarity[self.similarity["depth"].isin([1.0]) | self.similarity["depth"].isna()]

    def plot(self, table: Table = "similarity", at: Literal["write", "final"] = "final") -> go.Figure:
        """The figure of a table.

        Args:
            table: `similarity` (also for `maps`), `tokens`, `profiles` (also for `turning`) or `steering_transfer`.
            at: the logit lens of `tokens`: of the adapter's write, or of the whole change.

        Returns:
            The figure.

        Raises:
            InputError: for a table without a figure, and where there are no tokens or no steering transfer to draw.
        """
        from em_interp.figures import cross_base as draw

        rows, about = self.frame(table), self.about()
        if table == "tokens":
            if rows.empty:
                raise InputError("no token that the bases share occurs in the answers, so there are no ranks to draw")
            return draw.logit_lens_similarity(rows[rows["at"] == at], self.similarity, at, about)
        if table in ("profiles", "turning"):
            return draw.turning_profiles(self.profiles, self.turning, about)
        if table == "steering_transfer":
            if rows.empty:
                raise InputError("no direction was transferred; ask for it with steering_transfer=True")
            return draw.steering_transfer(rows, about)
        if table == "vocabularies":
            raise InputError("the vocabularies have no figure; see frame('vocabularies')")
        return draw.similarity(self.similarity, self.level, about)

    def figures(self) -> list[go.Figure]:
        """Every figure that there is, in the order of the page."""
        tokens = [self.plot("tokens", "final"), self.plot("tokens", "write")] if len(self.tokens) else []
        transferred = [self.plot("steering_transfer")] if len(self.steering_transfer) else []
        return [self.plot("similarity"), *tokens, *transferred, self.plot("profiles")]

    def about(self) -> str:
        """What is compared: how many runs, of which bases, on how many texts."""
        bases = ", ".join(dict.fromkeys(self.bases))
        return f"{len(self.names)} runs of {bases}, {self.texts} texts, {self.draws} random adapters a run"

    def sentence(self) -> str:
        """The result, a line each: what was compared, each measure against chance, turning, and steering transfer."""
        measures = [self._measure(measure) for measure in MEASURES]
        return "\n".join([self.about(), *measures, *self._turning_lines(), *self._transfer_lines()])

    def _measure(self, measure: str) -> str:
        """A measure at the last layer against both nulls."""
        last = self.summary()
        rows = last[last["measure"] == measure].dropna(subset=["value"])
        if rows.empty:
            return f"{MEASURES[measure]}: undefined, for {self._why_undefined(measure)}"
        beyond = int((rows[["p_random", "p_one_random"]].max(axis=1) <= 1 - self.level + 1e-9).sum())
        bands = f"below {span(rows['random_band'])}, and beside one real adapter below {span(rows['one_random_band'])}"
        verdict = f"{beyond} of {len(rows)} beyond chance" if len(rows) > 1 else "beyond chance"
        verdict = verdict if len(rows) > 1 or beyond else "not beyond chance"
        size = "in absolute value " if measure.startswith(("logit_lens", "mapped")) else ""
        each = "; each pair by itself, uncorrected" if len(rows) > 1 else ""
        chance = f"{percent(self.level)} of random adapters stay {size}{bands}{each}"
        return f"{MEASURES[measure]}: {span(rows['value'])}; {verdict} ({chance})"

    def _why_undefined(self, measure: str) -> str:
        """Why no pair has a value of a measure."""
        in_answers = measure in ("logit_lens_write", "logit_lens_final")
        if in_answers and (self.vocabularies["shared_in_answers"] < MIN_TOKENS).all():
            return f"fewer than {MIN_TOKENS} tokens that the bases share occur in the answers"
        return "nothing changes"

    def _turning_lines(self) -> Iterator[str]:
        for row in self.turning.to_dict("records"):
            line = f"turning profiles of {row['base']} and {row['other']} by {CLOCK_NAME[row['clock']]}: "
            line += f"{row['between']:.1f}° apart"
            if np.isnan(row["p_value"]):
                yield f"{line}; no null ({row['reason']})"
            else:
                p = f"p = {row['p_value']:.2g}, at least {row['least_p']:.2g} with so few runs"
                yield f"{line}, {row['within']:.1f}° within a base ({p})"

    def _transfer_lines(self) -> Iterator[str]:
        table = self.steering_transfer
        for kind, rows in table.groupby("intervention", sort=False) if len(table) else ():
            same_sign = rows["transferred"] * rows["own"] > 0
            beyond = int(((rows["p_random"] <= TRANSFER_ALPHA + 1e-9) & same_sign).sum())
            yield (
                f"{kind} with a transferred direction: {beyond} of {len(rows)} beyond every random one and with the "
                f"sign of the target's own; {span(rows['transferred'] / rows['own'])} of the effect of the target's "
                f"own direction, {span((rows['transferred'] / rows['adapter']).abs())} of the adapter's"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what was compared, the tables but for tokens and profiles, and the sentence."""
        tables = ("similarity", "steering_transfer", "vocabularies", "maps", "turning")
        return {
            "runs": [{"name": name, "base": base} for name, base in zip(self.names, self.bases, strict=True)],
            "texts": self.texts,
            "random_adapters": self.draws,
            "level": self.level,
            **{name: records(getattr(self, name)) for name in tables},
            "sentence": self.sentence(),
        }

    def __repr__(self) -> str:
        return f"CrossBaseComparison({self.about()})"

    def _table(self) -> pd.DataFrame:
        columns = ["run", "other", "measure", "value", "random_band", "p_random", "one_random_band", "p_one_random"]
        return self.summary()[columns]
