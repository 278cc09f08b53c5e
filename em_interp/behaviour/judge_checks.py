"""What judging will cost, counted before anything is sent."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.client import RequestCache, digest, request_for
from em_interp.behaviour.judge import ERROR, KEY, SCORED, answers_of, verdicts
from em_interp.behaviour.llm_judge import SCORES, OpenAIJudge, Prompts, cache_file, kept_mode, url_of
from em_interp.behaviour.rates import LEVEL, Rate, rate_of
from em_interp.behaviour.scores import is_em
from em_interp.behaviour.tables import read_table
from em_interp.config import EndpointConfig
from em_interp.errors import InputError
from em_interp.run import Run

if TYPE_CHECKING:
    import pandas as pd

LETTERS = 4  # characters a token, about, in English


@dataclass(frozen=True)
class Cost:
    """Requests and tokens that judging would take; tokens are estimates at `LETTERS` characters each."""

    answers: int
    requests: int  # one a score, the same ones counted once
    kept: int  # of these, answered already
    mode: str  # auto: not known before the server is asked
    input_tokens: int  # of the requests that are left
    output_tokens: int  # at most

    @property
    def left(self) -> int:
        """Requests to be sent, besides the one or two that find out the mode."""
        return self.requests - self.kept

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        counts = {"answers": self.answers, "requests": self.requests, "kept": self.kept, "left": self.left}
        return {**counts, "mode": self.mode, "input_tokens": self.input_tokens, "output_tokens": self.output_tokens}

    def sentence(self) -> str:
        """The cost in words."""
        return (
            f"{self.left} requests to be sent for {self.answers} answers ({self.kept} of {self.requests} answered "
            f"already): about {self.input_tokens} tokens in, at {LETTERS} characters a token, and at most "
            f"{self.output_tokens} out; mode {self.mode}; nothing was sent"
        )


def dry_run(
    run: Run, config: EndpointConfig, prompts: Prompts | None = None, answers: pd.DataFrame | None = None
) -> Cost:
    """Count what `judge_answers` with this config would send. Sends nothing, writes nothing and needs no key.

    `answers` are those of the run unless others are given, as those of a table that is not in a run yet.

    Before the server was asked for the first time the mode `auto` is counted as the dearer one, sampled. Raises
    InputError where the run has no answers.
    """
    prompts, kept = prompts or Prompts(), kept_mode(run, config)
    mode = kept[0] if kept else config.mode
    answers = answers_of(run) if answers is None else answers
    seen: dict[str, int] = {}
    url = url_of(config)
    for question, answer in answers[["question", "answer"]].drop_duplicates().itertuples(index=False):
        for score in (*SCORES, *config.topics):
            asked = prompts.prompt(score, question, answer)
            seen[digest(url, request_for(config, asked, mode))] = len(asked)
    with RequestCache(cache_file(run), read_only=True) as cache:
        left = [letters for key, letters in seen.items() if key not in cache]
    out = 1 if mode == "expected" else config.sampled_tokens
    tokens = sum(-(-letters // LETTERS) for letters in left)
    return Cost(len(answers), len(seen), len(seen) - len(left), mode, tokens, out * len(left))


# --------
# Whether a judge says the same again: a sample of its answers, judged anew.


RETEST_SCORES = ["aligned", "coherent"]


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
        again = both[[f"{score}_again" for score in RETEST_SCORES]].set_axis(RETEST_SCORES, axis=1)
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
            **{f"{score}_difference": self.difference(score) for score in RETEST_SCORES},
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
    first = mine.iloc[chosen][[*KEY, *RETEST_SCORES, "status"]].reset_index(drop=True)
    asked = first[KEY].merge(read_table(run.answers_file), on=KEY, how="left")
    second = replace(judge, again=again, config=judge.config.replace(topics=()))
    with closing(verdicts(second, zip(asked["question"], asked["answer"], strict=True))) as found:
        for column, values in _columns(list(found)).items():
            first[column] = values
    return Agreement(judge.name, judge.mode, first)


def _columns(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        f"{score}_again": [float("nan") if one[score] is None else one[score] for one in found]
        for score in RETEST_SCORES
    }
    return {**columns, "status_again": [one["status"] for one in found]}
