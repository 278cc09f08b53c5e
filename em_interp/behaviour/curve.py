"""Behaviour along a run: the same questions asked of many steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.judge import KEY
from em_interp.behaviour.rates import LEVEL
from em_interp.behaviour.scores import ALIGNED_BELOW, COHERENT_ABOVE, ScoredResponses, is_em
from em_interp.behaviour.tables import normal_form, of_one_judge, read_judged, read_table
from em_interp.errors import InputError
from em_interp.results import Line, html_card, picture
from em_interp.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

PART = ["scale", "questions"]
OUTSIDE = ("out_of_domain", "broad", "all")  # sets of questions about nothing trained on; `all` where none is named


@dataclass(frozen=True, eq=False, repr=False)
class BehaviourCurve:
    """Judged answers by step, adapter scale and question set. `domain` is what the fine-tune was about, if known."""

    answers: pd.DataFrame  # in the form of `tables.read_judged`
    domain: str | None = None
    level: float = LEVEL
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict, init=False)

    @property
    def steps(self) -> np.ndarray:
        """Asked steps, increasing."""
        return np.unique(self.answers["step"])

    @property
    def scale(self) -> float | None:
        """The adapter scale, where there is just one."""
        return self._only("scale")

    @property
    def questions(self) -> str | None:
        """The question set, where there is just one."""
        return self._only("questions")

    def _only(self, column: str) -> Any:
        there = self.answers[column].unique().tolist()
        return there[0] if len(there) == 1 else None

    def select(self, scale: float | None = None, questions: str | None = None) -> BehaviourCurve:
        """The curve of one scale, one question set, or both. Raises InputError with what there is."""
        chosen = self.answers
        for column, value in (("scale", scale), ("questions", questions)):
            if value is not None:
                if value not in set(chosen[column]):
                    there = ", ".join(map(str, sorted(chosen[column].unique())))
                    raise InputError(f"no answers with {column} {value!r}; there are {there}")
                chosen = chosen[chosen[column] == value]
        return BehaviourCurve(chosen, self.domain, self.level)

    def split(self) -> list[BehaviourCurve]:
        """The curves of each scale and question set."""
        kinds = self.answers[PART].drop_duplicates().sort_values(PART)
        return [self.select(scale, questions) for scale, questions in kinds.itertuples(index=False)]

    def outside(self) -> BehaviourCurve | None:
        """The curve of the adapter as trained on questions outside the training domain: the first set of `OUTSIDE`."""
        parts = {part.questions: part for part in self.split() if part.scale == 1.0}
        return next((parts[name] for name in OUTSIDE if name in parts), None)

    def at(self, step: int) -> ScoredResponses:
        """The answers of one step, counted. Raises InputError with the nearest step where it was not asked."""
        if step not in self.steps:
            nearest = self.steps[np.argmin(np.abs(self.steps - step))]
            raise InputError(f"step {step} was not asked; the nearest that was is {nearest}")
        return ScoredResponses(self.answers[self.answers["step"] == step], self.level)

    def outcomes(
        self, metric: str = "em", aligned: float = ALIGNED_BELOW, coherent: float = COHERENT_ABOVE
    ) -> pd.DataFrame:
        """A row a scored answer: `step`, `question_id` and `value` in [0, 1], for locating an onset.

        `em` and `coherent` are 0 or 1 by the thresholds; `aligned_mean` and `coherent_mean` are scores over 100.
        Raises InputError for another metric.
        """
        scored = self.answers[self.answers["status"] == "ok"]
        values = {
            "em": is_em(scored, aligned, coherent),
            "coherent": scored["coherent"] > coherent,
            "aligned_mean": scored["aligned"] / 100,
            "coherent_mean": scored["coherent"] / 100,
        }
        if metric not in values:
            raise InputError(f"no metric {metric!r}; known: {', '.join(values)}")
        return scored[["step", "question_id"]].assign(value=values[metric].astype(float))

    def frame(self) -> pd.DataFrame:
        """One row a step, scale and question set: counts, rates and means with `_low` and `_high`.

        `em`, `coherent` (fractions), `aligned_mean`, `coherent_mean` (0–100), `domain_share` (of EM answers, about
        the training domain); `em_between_low` and `_high` hold for other questions of the kind.
        """
        return self._table("step", lambda one: _row(one, self.domain)).copy()

    def per_question(self) -> pd.DataFrame:
        """One row a step, scale, question set and question, with the columns of `ScoredResponses.frame`."""
        return self._table("question", lambda one: one.frame()).copy()

    def unscored(self) -> dict[str, int]:
        """How many answers have no score, by reason."""
        return ScoredResponses(self.answers, self.level).unscored

    def _table(self, name: str, make: Any) -> pd.DataFrame:
        import pandas as pd

        if name not in self._frames:
            tables = []
            for (scale, questions, step), answers in self.answers.groupby([*PART, "step"], sort=True):
                table = make(ScoredResponses(answers, self.level))
                for place, (column, value) in enumerate((("step", step), ("scale", scale), ("questions", questions))):
                    table.insert(place, column, value)
                tables.append(table)
            self._frames[name] = pd.concat(tables, ignore_index=True)
        return self._frames[name]

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain values: `domain`, `level`, `unscored` and the rows of `frame()`."""
        rows = self.frame().to_dict("records")
        return {"domain": self.domain, "level": self.level, "unscored": self.unscored(), "rows": rows}

    def plot(self) -> go.Figure:
        """EM and coherent rates by step with their intervals."""
        from em_interp.figures.rates import behaviour

        return behaviour(self)

    def __repr__(self) -> str:
        sets = ", ".join(sorted(map(str, self.answers["questions"].unique())))
        scales = ", ".join(f"{scale:g}" for scale in sorted(self.answers["scale"].unique()))
        span = f"{len(self.steps)} steps {self.steps[0]} to {self.steps[-1]}"
        return f"BehaviourCurve({span}; questions {sets}; scale {scales}; {len(self.answers)} answers)"

    def _repr_html_(self) -> str:
        rates = self.frame()
        shown = rates[rates["scale"] == min(rates["scale"].unique(), key=lambda scale: abs(scale - 1.0))]
        lines = [
            Line(part["step"].to_numpy(), part["em"].to_numpy(), str(name).replace("_", " "))
            for name, part in shown.groupby("questions", dropna=False)
        ]
        last = rates[rates["step"] == rates["step"].max()]
        keys = ["step", "scale", "questions", "n", "scored", "em", "em_low", "em_high", "coherent", "domain_share"]
        table = last[keys].to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0)
        calls = (".plot()", ".frame()", ".per_question()", ".select(scale, questions)", "em.find_transition(this)")
        return html_card([repr(self)], picture(lines, "EM rate"), calls, table)


def _row(one: ScoredResponses, domain: str | None) -> pd.DataFrame:
    """The numbers of one step, as a table of one row."""
    import pandas as pd

    row: dict[str, Any] = {"n": one.n, "scored": len(one.scored)}
    for name, rate in (("em", one.em), ("coherent", one.coherent), ("domain_share", one.share_about(domain))):
        row |= {name: rate.rate, f"{name}_low": rate.interval[0], f"{name}_high": rate.interval[1]}
    row |= {"em_between_low": one.em.between[0], "em_between_high": one.em.between[1]}
    for name, mean in (("aligned_mean", one.aligned_mean), ("coherent_mean", one.coherent_mean)):
        row |= {name: mean.mean, f"{name}_low": mean.interval[0], f"{name}_high": mean.interval[1]}
    return pd.DataFrame([row])


def behaviour_curve(
    source: Run | str | Path | pd.DataFrame, judge: str | None = None, domain: str | None = None, level: float = LEVEL
) -> BehaviourCurve:
    """The behaviour along a run: of a run that was asked and judged, or of judged tables.

    `source` is a run or its directory, a folder with one table a step, a file or a frame with a column `step` (see
    `tables.read_judged`). Where several judges scored the answers `judge` chooses one, by default that of the run's
    config; `domain`, by default that of the run's manifest, is the topic counted in `domain_share`. Raises InputError
    for missing columns, a score outside 0–100, a run without scores, and several judges without a choice.
    """
    if isinstance(source, (str, Path)):
        run = Run(Path(source))
        source = run if run.answers_file.parent.is_dir() or run.checkpoints.is_dir() else source
    if isinstance(source, Run):
        answers, domain = _judged(source), domain or _domain(source)
        judge = judge or _judge_of(source, answers)
    else:
        answers = read_judged(source)
    if "step" not in answers:
        raise InputError(f"a curve needs a column step; found {', '.join(map(str, answers.columns))}")
    return BehaviourCurve(of_one_judge(answers, judge), domain, level)


def _judged(run: Run) -> pd.DataFrame:
    """The run's answers with their scores."""
    if not run.scores_file.exists():
        before = "judge the run" if run.answers_file.exists() else "ask and judge the run"
        raise InputError(f"{run.scores_file} is missing: the answers have not been judged; {before} first")
    scores = read_table(run.scores_file)
    if run.answers_file.exists():
        answers, judged = read_table(run.answers_file), len(scores)
        scores = answers.merge(scores, on=KEY)
        if len(scores) != judged:
            raise InputError(f"{run.scores_file} and {run.answers_file.name} hold other answers; judge the run again")
    return normal_form(scores, str(run.scores_file))


def _domain(run: Run) -> str | None:
    """What the last phase of training was about, where the run's manifest says."""
    if not run.manifest_file.exists():
        return None
    phases = run.manifest().get("phases") or [{}]
    return phases[-1].get("domain")


def _judge_of(run: Run, answers: pd.DataFrame) -> str | None:
    """The judge that the run's config names, where others scored the answers too."""
    there = set(answers["judge"])
    if len(there) < 2 or not run.config_file.exists():
        return None
    named = run.config().behaviour.judge_name
    return named if named in there else None
