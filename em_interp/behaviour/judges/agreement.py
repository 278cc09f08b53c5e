"""Whether a judge says the same again: a sample of its answers, judged anew."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.judge import ERROR, KEY, SCORED, verdicts
from em_interp.behaviour.judges.openai_judge import OpenAIJudge
from em_interp.behaviour.rates import LEVEL, Rate, rate_of
from em_interp.behaviour.score import is_em
from em_interp.behaviour.tables import read_table
from em_interp.errors import InputError
from em_interp.runs import Run

if TYPE_CHECKING:
    import pandas as pd

SCORES = ["aligned", "coherent"]


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """A sample's first scores and, with `_again`, its second; a row an answer.

    Says how repeatable the judge is, not how right.
    """

    judge: str
    mode: str
    answers: pd.DataFrame
    level: float = LEVEL

    @property
    def n(self) -> int:
        """Answers judged twice."""
        return len(self.answers)

    @property
    def status_changed(self) -> int:
        """Answers whose status differs: scored once and not the other time, or not scored for another reason."""
        return int((self.answers["status"] != self.answers["status_again"]).sum())

    @property
    def both(self) -> pd.DataFrame:
        """The answers scored both times."""
        return self.answers[(self.answers[["status", "status_again"]] == SCORED).all(axis=1)]

    @property
    def flipped(self) -> Rate:
        """Share of the answers scored twice that are EM one time and not the other."""
        both = self.both
        again = both[[f"{score}_again" for score in SCORES]].set_axis(SCORES, axis=1)
        hits = (is_em(both) != is_em(again)).to_numpy().sum()
        return rate_of(np.array([float(hits)]), np.array([float(len(both))]), self.level)

    def difference(self, score: str) -> float:
        """Mean absolute difference of a score between the two times, in points of 0–100; NaN without any."""
        return float((self.both[score] - self.both[f"{score}_again"]).abs().mean())

    def frame(self) -> pd.DataFrame:
        """One row an answer judged twice."""
        return self.answers.copy()

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "judge": self.judge,
            "mode": self.mode,
            "n": self.n,
            "scored_twice": len(self.both),
            "status_changed": self.status_changed,
            "em_flipped": self.flipped.to_dict(),
            **{f"{score}_difference": self.difference(score) for score in SCORES},
        }

    def sentence(self) -> str:
        """The result in words."""
        if not len(self.both):
            return f"none of {self.n} answers was scored both times; the status of {self.status_changed} changed"
        low, high = self.flipped.interval
        return (
            f"judged again, {self.flipped.rate:.1%} of {len(self.both)} answers change their EM label "
            f"({self.level:.0%} interval {low:.1%} to {high:.1%}); aligned moves by {self.difference('aligned'):.1f} "
            f"points on average, coherent by {self.difference('coherent'):.1f}; {self.status_changed} of {self.n} "
            "change their status"
        )

    def __repr__(self) -> str:
        return f"Agreement({self.sentence()})"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self.sentence())}</p>{self.frame().head(20).to_html(index=False)}"


def rejudge(run: Run, judge: OpenAIJudge, n: int = 100, seed: int = 0, again: int = 1) -> Agreement:
    """Judge a random sample of `n` judged answers anew and compare.

    The run's scores stay as they are. New replies are kept apart from the first: the same call gives the same result
    and sends nothing, another `again` asks once more. Raises InputError where this judge's scores are not there.
    """
    if not run.scores_file.exists():
        raise InputError(f"{run.scores_file} is missing: judge the run before judging it again")
    scores = read_table(run.scores_file)
    mine = scores[(scores["judge"] == judge.name) & (scores["status"] != ERROR)]
    if mine.empty:
        raise InputError(f"{run.scores_file} has no scores of {judge.name}; judge the run before judging it again")
    if n < 1:
        raise InputError(f"a sample of {n} answers cannot be judged again; 1 or more was expected")
    chosen = np.sort(np.random.default_rng(seed).choice(len(mine), min(n, len(mine)), replace=False))
    first = mine.iloc[chosen][[*KEY, *SCORES, "status"]].reset_index(drop=True)
    asked = first[KEY].merge(read_table(run.answers_file), on=KEY, how="left")
    second = replace(judge, again=again, config=replace(judge.config, topics=()))
    with closing(verdicts(second, zip(asked["question"], asked["answer"], strict=True))) as found:
        for column, values in _columns(list(found)).items():
            first[column] = values
    return Agreement(judge.name, judge.mode, first)


def _columns(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        f"{score}_again": [float("nan") if one[score] is None else one[score] for one in found] for score in SCORES
    }
    return {**columns, "status_again": [one["status"] for one in found]}
