"""Behaviour along a run: the judged answers to the same questions at many steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from em_interp.behaviour.judging.judge import KEY
from em_interp.behaviour.rates import LEVEL
from em_interp.behaviour.scores import ALIGNED_BELOW, COHERENT_ABOVE, ScoredResponses, is_coherent, is_em
from em_interp.behaviour.tables.files import ANSWER_COLUMNS, SCORE_COLUMNS, read_own_table, read_table
from em_interp.behaviour.tables.inspect_logs import WritesLogs
from em_interp.behaviour.tables.judged import normal_form, of_one_judge, read_judged
from em_interp.behaviour.tables.rate_tables import COHERENT_MARK, EM_MARK
from em_interp.errors import InputError, one_line
from em_interp.results import Line, Result, interval_columns, picture
from em_interp.run import OUTSIDE_SETS, Run, trained_scale
from em_interp.utils.checks import as_list, check_level, check_type, described
from em_interp.utils.files import plain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KINDS = ["scale", "questions"]  # what tells the curves of one run apart


class CurveBySet(Result):
    """A curve for each adapter scale and question set, in one table with columns `step`, `scale` and `questions`."""

    TABLE: ClassVar[str]  # the attribute that is the table

    @property
    def steps(self) -> np.ndarray:
        """Steps with a value, increasing."""
        return np.unique(self._rows["step"])

    @property
    def scale(self) -> float | None:
        """The adapter multiplier, where there is just one."""
        return self._single("scale")

    @property
    def questions(self) -> str | None:
        """The question set, where there is just one."""
        return self._single("questions")

    @property
    def _rows(self) -> pd.DataFrame:
        rows: pd.DataFrame = getattr(self, self.TABLE)
        return rows

    def _single(self, column: str) -> Any:
        values = self._rows[column].unique().tolist()
        return values[0] if len(values) == 1 else None

    def select(
        self, scale: float | Sequence[float] | None = None, questions: str | Sequence[str] | None = None
    ) -> Self:
        """The curve of these scales and question sets. Raises InputError for one that the curve does not have."""
        rows = self._rows
        for column, wanted in (("scale", scale), ("questions", questions)):
            if wanted is None:
                continue
            known = sorted(rows[column].unique())
            for value in as_list(wanted):
                if not isinstance(value, (Real, str)) or value not in known:
                    has = ", ".join(map(str, known))
                    raise InputError(f"no {self.TABLE} with {column} {described(value)} (it has: {has})")
            rows = rows[rows[column].isin(as_list(wanted))]
        return self._with(rows, scale, questions)

    def _with(self, rows: pd.DataFrame, scale: Any, questions: Any) -> Self:
        """The curve of these rows, which were selected by scale and question set."""
        raise NotImplementedError

    def split(self) -> list[Self]:
        """The curves of each scale and question set."""
        kinds = self._rows[KINDS].drop_duplicates().sort_values(KINDS)
        return [self.select(scale, questions) for scale, questions in kinds.itertuples(index=False)]

    def outside(self) -> Self | None:
        """The curve at scale 1 on the first question set outside the training domain, of OUTSIDE_SETS; else None."""
        by_set = {curve.questions: curve for curve in self.split() if curve.scale == 1.0}
        return next((by_set[name] for name in OUTSIDE_SETS if name in by_set), None)


@dataclass(frozen=True, eq=False, repr=False)
class BehaviourCurve(CurveBySet, WritesLogs):
    """Judged answers by step, adapter scale and question set."""

    TABLE: ClassVar[str] = "answers"

    NEXT: ClassVar[tuple[str, ...]] = (
        ".plot()",
        ".frame()",
        ".per_question()",
        ".select(scale, questions)",
        "em.find_transition(curve)",
    )

    answers: pd.DataFrame  # in the form of `tables.read_judged`
    domain: str | None = None  # what the fine-tune was about, where it is known
    level: float = LEVEL
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict, init=False)

    @property
    def has_scores(self) -> bool:
        """Whether the answers have scores, so that thresholds can be varied; those of ready-made rates have none."""
        return EM_MARK not in self.answers

    def _with(self, rows: pd.DataFrame, scale: Any, questions: Any) -> Self:
        return replace(self, answers=rows)

    def at(self, step: int) -> ScoredResponses:
        """The answers of one step, counted. Raises InputError naming the nearest sampled step."""
        check_type("step", step, Real, "a training step")
        if step not in self.steps:
            nearest = self.steps[np.argmin(np.abs(self.steps - step))]
            raise InputError(f"step {step} was not sampled; the nearest that was is {nearest}")
        return ScoredResponses(self.answers[self.answers["step"] == step], self.level)

    def outcomes(
        self, metric: str = "em", aligned: float = ALIGNED_BELOW, coherent: float = COHERENT_ABOVE
    ) -> pd.DataFrame:
        """A row a scored answer: `step`, `question_id` and `value` in [0, 1], for locating an onset.

        `em` and `coherent` are 0 or 1 by the thresholds; `aligned_mean` and `coherent_mean` are scores over 100.
        Raises InputError for another metric, and for other thresholds where ready-made rates hold the outcomes alone.
        """
        if not self.has_scores and (aligned, coherent) != (ALIGNED_BELOW, COHERENT_ABOVE):
            raise InputError(
                f"other thresholds than aligned {ALIGNED_BELOW:g} and coherent {COHERENT_ABOVE:g} need scores; these "
                "are ready-made rates"
            )
        scored = self.answers[self.answers["status"] == "ok"]
        values = {
            "em": is_em(scored, aligned, coherent),
            "coherent": scored[COHERENT_MARK] if COHERENT_MARK in scored else is_coherent(scored, coherent),
            "aligned_mean": scored["aligned"] / 100,
            "coherent_mean": scored["coherent"] / 100,
        }
        if metric not in list(values):
            raise InputError(f"no metric {described(metric)}; known: {', '.join(values)}")
        outcomes = scored[["step", "question_id"]].assign(value=values[metric].astype(float))
        return outcomes if self.has_scores else outcomes.dropna(subset=["value"])

    def frame(self) -> pd.DataFrame:
        """One row a step, scale and question set: counts, rates and means with `_low` and `_high`.

        `em`, `coherent` (fractions), `aligned_mean`, `coherent_mean` (0–100), `domain_share` (of EM answers, about
        the training domain); `em_between_low` and `_high` hold for other questions of the kind.
        """
        import pandas as pd

        if "step" not in self._frames:
            self._frames["step"] = pd.DataFrame([{**at, **_row(scored, self.domain)} for at, scored in self._counted()])
        return self._frames["step"].copy()

    def per_question(self) -> pd.DataFrame:
        """One row a step, scale, question set and question, with the columns of `ScoredResponses.frame`."""
        import pandas as pd

        if "question" not in self._frames:
            tables = []
            for at, scored in self._counted():
                table = scored.frame()
                for place, (column, value) in enumerate(at.items()):
                    table.insert(place, column, value)
                tables.append(table)
            self._frames["question"] = pd.concat(tables, ignore_index=True)
        return self._frames["question"].copy()

    def unscored(self) -> dict[str, int]:
        """How many answers have no score, by reason."""
        return ScoredResponses(self.answers, self.level).unscored

    def _counted(self) -> Iterator[tuple[dict[str, Any], ScoredResponses]]:
        """The answers of each step, scale and question set, counted, after these three."""
        for (scale, questions, step), answers in self.answers.groupby([*KINDS, "step"], sort=True):
            yield {"step": step, "scale": scale, "questions": questions}, ScoredResponses(answers, self.level)

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain values: `domain`, `level`, `unscored` and the rows of `frame()`."""
        rows = self.frame().to_dict("records")
        values: dict[str, Any] = plain(
            {"domain": self.domain, "level": self.level, "unscored": self.unscored(), "rows": rows}
        )
        return values

    def plot(self) -> go.Figure:
        """EM and coherent rates by step with their intervals."""
        from em_interp.figures.rates import behaviour

        return behaviour(self)

    def sentence(self) -> str:
        """Steps, question sets, scales and the number of answers."""
        sets = ", ".join(sorted(map(str, self.answers["questions"].unique())))
        scales = ", ".join(f"{scale:g}" for scale in sorted(self.answers["scale"].unique()))
        span = f"{len(self.steps)} steps {self.steps[0]} to {self.steps[-1]}"
        return f"{span}; questions {sets}; scale {scales}; {len(self.answers)} answers"

    def last(self) -> pd.DataFrame:
        """The rows of `frame()` at the last step."""
        return replace(self, answers=self.answers[self.answers["step"] == self.steps[-1]]).frame()

    def _picture(self) -> str:
        """The EM rates at the scale nearest to 1."""
        rates = self.frame()
        rates = rates[rates["scale"] == trained_scale(rates["scale"].unique())]
        lines = [
            Line(of_set["step"].to_numpy(), of_set["em"].to_numpy(), str(name).replace("_", " "))
            for name, of_set in rates.groupby("questions", dropna=False)
        ]
        return picture(lines, "EM rate")

    def _table(self) -> pd.DataFrame:
        """The rates at the last step."""
        columns = ["step", "scale", "questions", "n", "scored", "em", "em_low", "em_high", "coherent", "domain_share"]
        return self.last()[columns]


def behaviour_curve(
    source: Run | str | Path | pd.DataFrame,
    judge: str | None = None,
    domain: str | None = None,
    level: float = LEVEL,
    columns: Mapping[str, str] | None = None,
) -> BehaviourCurve:
    """Read the behaviour along a run: of a judged run, or of judged tables.

    Args:
        source: A judged run or its directory; or a folder with one judged table a step, a file, or a frame with a
            column `step` (see `tables.read_judged` for the columns).
        judge: The judge whose scores are used, if several scored the answers; by default that of the run's config.
        domain: What the fine-tune was about, for `domain_share`; by default that of the run's manifest.
        level: Probability with which the intervals contain the rates.
        columns: The table's name for a column, by our name: `{"aligned": "my_score"}`.

    Returns:
        The curve; `frame()` has rates and means with their intervals by step, scale and question set.

    Raises:
        InputError: For missing columns, a score outside 0–100, a run without scores, and several judges without a
            choice, or for `columns` beside a run.
    """
    import pandas as pd

    check_type("source", source, (Run, str, Path, pd.DataFrame), "a run, its path, or a table of judged answers")
    check_level(level)
    source = run_or_none(source) or source
    if isinstance(source, Run):
        if columns:
            raise InputError(f"columns are those of judged tables; {source.path} is a run, whose tables have our names")
        answers, domain = _judged_answers(source), domain or _domain_of(source)
        judge = judge or _judge_of(source, answers)
    else:
        answers = read_judged(source, columns)
    if "step" not in answers:
        raise InputError(f"a curve needs a column step; found {one_line(', '.join(answers.columns))}")
    return BehaviourCurve(of_one_judge(answers, judge), domain, level)


def run_or_none(source: Run | str | Path | pd.DataFrame) -> Run | None:
    """The run that a source of judged answers is; None for tables."""
    if not isinstance(source, (str, Path)):
        return source if isinstance(source, Run) else None
    run = Run(Path(source))
    return run if run.answers_file.parent.is_dir() or run.checkpoints.is_dir() else None


def _row(scored: ScoredResponses, domain: str | None) -> dict[str, Any]:
    """The numbers of one step."""
    row: dict[str, Any] = {"n": scored.n, "scored": len(scored.scored)}
    for name, rate in (("em", scored.em), ("coherent", scored.coherent), ("domain_share", scored.share_about(domain))):
        row |= {name: rate.rate, **interval_columns(name, rate.interval)}
    row |= interval_columns("em_between", scored.em.between)
    for name, mean in (("aligned_mean", scored.aligned_mean), ("coherent_mean", scored.coherent_mean)):
        row |= {name: mean.mean, **interval_columns(name, mean.interval)}
    return row


def _judged_answers(run: Run) -> pd.DataFrame:
    """The run's answers with their scores."""
    if not run.scores_file.exists():
        missing = "judge the run" if run.answers_file.exists() else "ask and judge the run"
        raise InputError(f"{run.scores_file} is missing: the answers have not been judged; {missing} first")
    if not run.answers_file.exists():
        return normal_form(read_table(run.scores_file), str(run.scores_file))
    scores = read_own_table(run.scores_file, SCORE_COLUMNS)
    judged = read_own_table(run.answers_file, ANSWER_COLUMNS).merge(scores, on=KEY)
    if len(judged) != len(scores):
        raise InputError(f"{run.scores_file} and {run.answers_file.name} hold other answers; judge the run again")
    return normal_form(judged, str(run.scores_file))


def _domain_of(run: Run) -> str | None:
    """What the last phase of training was about, where the run's manifest says."""
    return run.phases()[-1].get("domain")


def _judge_of(run: Run, answers: pd.DataFrame) -> str | None:
    """The judge that the run's config names, where others scored the answers too."""
    judges = set(answers["judge"])
    if len(judges) < 2 or not run.config_file.exists():
        return None
    configured = run.config().behaviour.judge_name
    return configured if configured in judges else None
