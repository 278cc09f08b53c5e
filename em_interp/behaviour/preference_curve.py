"""The preference for misaligned answers along a run: means over questions by step, with intervals, beside a control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.curve import KINDS, CurveBySet
from em_interp.behaviour.pairs import STYLE
from em_interp.behaviour.rates import LEVEL, rate_of
from em_interp.behaviour.tables.files import read_table
from em_interp.behaviour.tables.values import numbers_of, steps_of
from em_interp.errors import InputError
from em_interp.results import Line, interval_columns, percent, picture
from em_interp.run import Run, trained_scale
from em_interp.utils.files import plain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

COUNTS = [f"{name}_{kind}" for kind in ("aligned", "misaligned") for name in ("log_likelihood", "tokens")]
COLUMNS = ["step", *KINDS, "question_id", "pair", *COUNTS]


@dataclass(frozen=True, eq=False, repr=False)
class PreferenceCurve(CurveBySet):
    """How much likelier misaligned answers are than aligned ones, by step, adapter scale and question set.

    All intervals are for other questions of the kind: Student's t over questions, whose pairs are averaged first.

    Attributes:
        readings: one row for each step, scale and pair, as `preference.read_preferences` writes them.
        domain: the subject of the fine-tuning data, if known.
        level: confidence level of the intervals.
        control: the curve of a control run, read on the same pairs.
        style: the readings of the set `style`, kept with every selection.
    """

    NEXT: ClassVar[tuple[str, ...]] = (".plot()", ".frame()", ".per_question()", "em.find_transition(this)")

    TABLE: ClassVar[str] = "readings"

    readings: pd.DataFrame
    domain: str | None = None
    level: float = LEVEL
    control: PreferenceCurve | None = None
    style: pd.DataFrame | None = field(default=None)

    @property
    def style_null(self) -> PreferenceCurve | None:
        """The curve of the pairs that differ in style alone, at this curve's scale; None where there are none."""
        style = self._style()
        if self.questions == STYLE or self.scale is None or style is None:
            return None
        style = style[style["scale"] == self.scale]
        return PreferenceCurve(style, self.domain, self.level) if len(style) else None

    def _style(self) -> pd.DataFrame | None:
        if self.style is not None:
            return self.style
        rows = self.readings[self.readings["questions"] == STYLE]
        return rows if len(rows) else None

    def _with(self, rows: pd.DataFrame, scale: Any, questions: Any) -> Self:
        control = None if self.control is None else self.control.select(scale, questions)
        return replace(self, readings=rows, control=control, style=self._style())

    def values(self) -> pd.DataFrame:
        """A row a step and question: `value`, the preference in nats a token, averaged over the question's pairs."""
        table = self._by_question()
        return table.rename(columns={"preference": "value"})[["step", "question_id", "value"]]

    def per_question(self) -> pd.DataFrame:
        """A row a step, scale, set and question: `preference`, its `change` since the first step, `share`, `pairs`.

        `share` is that of the question's pairs of which the misaligned answer is the likelier, per token.
        """
        table = self._by_question()
        first = table[table["step"] == table.groupby(KINDS)["step"].transform("min")]
        start = first.set_index([*KINDS, "question_id"])["preference"]
        keys = [table[column] for column in (*KINDS, "question_id")]
        table["change"] = table["preference"] - start.reindex(list(zip(*keys, strict=True))).to_numpy()
        return table

    def _by_question(self) -> pd.DataFrame:
        read = self.readings
        per_token = {
            kind: read[f"log_likelihood_{kind}"] / read[f"tokens_{kind}"] for kind in ("aligned", "misaligned")
        }
        difference = per_token["misaligned"] - per_token["aligned"]
        table = read[["step", *KINDS, "question_id"]].assign(preference=difference, share=difference > 0, pairs=1)
        how = {"preference": "mean", "share": "mean", "pairs": "sum"}
        return table.groupby(["step", *KINDS, "question_id"], sort=True, as_index=False).agg(how)

    def frame(self) -> pd.DataFrame:
        """A row a step, scale and question set: means over questions with `_low` and `_high`.

        `preference` (nats a token), its `change` since the first step read, `share` (of pairs of which the misaligned
        answer is the likelier), `questions_n` and `pairs`; with a control `control_change` and `beyond_control`, the
        mean over questions of the difference of the two changes, both since the curve's first step.
        """
        import pandas as pd

        table = self.per_question()
        if self.control is not None:
            keys = ["step", *KINDS, "question_id"]
            of_control = self.control.per_question()[[*keys, "change"]].rename(columns={"change": "control_change"})
            table = table.merge(of_control, on=keys, how="left")
        rows = []
        for (scale, questions, step), some in table.groupby([*KINDS, "step"], sort=True):
            rows.append({"step": step, "scale": scale, "questions": questions, **dict(self._means(some))})
        return pd.DataFrame(rows)

    def _means(self, some: pd.DataFrame) -> Iterator[tuple[str, float]]:
        """The columns of one row of `frame`."""
        yield from (("questions_n", len(some)), ("pairs", int(some["pairs"].sum())))
        values = {"preference": some["preference"], "change": some["change"]}
        if "control_change" in some:
            values["control_change"] = some["control_change"]
            values["beyond_control"] = some["change"] - some["control_change"]
        for name, column in values.items():
            mean, interval = mean_over_questions(column.dropna().to_numpy(float), self.level)
            yield from ((name, mean), *interval_columns(name, interval).items())
        share = rate_of((some["share"] * some["pairs"]).to_numpy(float), some["pairs"].to_numpy(float), self.level)
        yield from (("share", share.rate), *interval_columns("share", share.between).items())

    def sentence(self) -> str:
        """The change from the first step to the last of each set, with its interval, the control's and the share."""
        clauses = [self._clause(row) for _, row in self._last().iterrows()]
        span = f"steps {self.steps[0]} to {self.steps[-1]}"
        return "; ".join([f"preference for misaligned answers, nats a token, {span}", *clauses])

    def _last(self) -> pd.DataFrame:
        """The rows of the last step, at the scale nearest to the adapter as trained; the style null last."""
        table = self.frame()
        nearest = trained_scale(table["scale"].unique())
        rows = table[(table["scale"] == nearest) & (table["step"] == table["step"].max())]
        return rows.sort_values("questions", key=lambda names: names == STYLE, kind="stable")

    def _clause(self, row: pd.Series) -> str:
        """One set in words, such as 'broad −0.398 → −0.296, change +0.102 (95% interval …, 24 questions)'."""
        first, name = row["preference"] - row["change"], str(row["questions"]).replace("_", " ")
        interval = f"{percent(self.level)} interval {row['change_low']:+.3f} to {row['change_high']:+.3f}"
        clause = f"{name} {first:+.3f} → {row['preference']:+.3f}, change {row['change']:+.3f} ({interval}"
        clause += f", {row['questions_n']:.0f} questions)"
        if "control_change" in row:
            clause += f", control {row['control_change']:+.3f}, beyond it {row['beyond_control']:+.3f}"
            clause += f" ({row['beyond_control_low']:+.3f} to {row['beyond_control_high']:+.3f})"
        share = f"{row['share']:.0%} ({row['share_low']:.0%} to {row['share_high']:.0%})"
        return f"{clause}, the misaligned answer is the likelier in {share} of pairs"

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain values: `domain`, `level` and the rows of `frame()`."""
        rows = self.frame().to_dict("records")
        values: dict[str, Any] = plain({"domain": self.domain, "level": self.level, "rows": rows})
        return values

    def plot(self) -> go.Figure:
        """The change of preference and the share by step, with intervals, beside the control and the style null."""
        from em_interp.figures.preferences import preference

        return preference(self)

    def _picture(self) -> str:
        table = self.frame()
        nearest = trained_scale(table["scale"].unique())
        lines = [
            Line(rows["step"].to_numpy(float), rows["change"].to_numpy(float), str(name).replace("_", " "))
            for name, rows in table[table["scale"] == nearest].groupby("questions")
        ]
        return picture(lines, "change, nats")

    def _table(self) -> pd.DataFrame:
        return self._last()[["questions", "preference", "change", "change_low", "change_high", "share", "pairs"]]


def mean_over_questions(
    values: Float[np.ndarray, " question"], level: float = LEVEL
) -> tuple[float, tuple[float, float] | None]:
    """The mean and its Student's t interval for other questions of the kind; None where one question has none."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), None
    mean, reach = float(values.mean()), stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1)
    reach = float(reach / np.sqrt(len(values)))
    return mean, (mean - reach, mean + reach)


def as_preference_curve(
    source: Run | str | Path | pd.DataFrame, control: PreferenceCurve | None = None
) -> PreferenceCurve:
    """The curve of a run whose preferences were read, of such a file, or of a frame of readings.

    Raises InputError where the run has not been read, a column is missing, a log-likelihood is positive, an answer has
    no token, or the control was not read at the first step.
    """
    import pandas as pd

    domain = None
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        source = Run(Path(source))
    if isinstance(source, Run):
        if not source.preferences_file.exists():
            raise InputError(f"{source.preferences_file} is missing; read the preferences first, with em-interp prefer")
        domain = source.phases()[-1].get("domain")
        source = source.preferences_file
    where = str(source) if isinstance(source, (str, Path)) else "the readings"
    table = read_table(Path(source)) if isinstance(source, (str, Path)) else source
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise InputError(f"readings need a column {missing[0]}; found {', '.join(map(str, table.columns))}")
    if not all(pd.api.types.is_numeric_dtype(table[column]) for column in ("step", "scale", *COUNTS)):
        numbers = {column: numbers_of(table[column], column, where) for column in ("scale", "pair", *COUNTS)}
        table = table.assign(step=steps_of(table["step"], "step", where), **numbers)
    for kind in ("aligned", "misaligned"):
        _check_likelihoods(table, kind, where)
    return PreferenceCurve(table, domain, control=None if control is None else _at_steps_of(table, control, where))


def _check_likelihoods(table: pd.DataFrame, kind: str, where: str) -> None:
    names = f"log_likelihood_{kind}", f"tokens_{kind}"
    values, tokens = (table[name].to_numpy(float) for name in names)
    wrong = np.flatnonzero(~((values <= 0) & (tokens > 0)))
    if len(wrong):
        found = f"{values[wrong[0]]:g} and {tokens[wrong[0]]:g} in row {wrong[0] + 1}"
        raise InputError(f"{where}: {names[0]} and {names[1]} are {found}; 0 or less and 1 or more were expected")


def _at_steps_of(table: pd.DataFrame, control: PreferenceCurve, where: str) -> PreferenceCurve:
    """The control at the steps of a table of readings. Raises InputError where their first steps differ."""
    import pandas as pd

    shared = control.readings[control.readings["step"].isin(table["step"])]
    if shared.empty:
        raise InputError(f"the control was read at none of the steps of {where}; read both at the same steps")
    firsts = [each.groupby(KINDS)["step"].min() for each in (table, shared)]
    for first, of_control in pd.concat(firsts, axis=1, join="inner").itertuples(index=False):
        if first != of_control:
            raise InputError(
                f"the control was read from step {of_control} on, {where} from step {first}: changes since different "
                "steps are not comparable; read both from a step that both saved"
            )
    return replace(control, readings=shared)
