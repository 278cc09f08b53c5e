"""Before and after judging: what it will cost, and whether the judge gives the same scores a second time."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.judging.client import digest, request_for, url_of
from em_interp.behaviour.judging.judge import ERROR, KEY, SCORED, answers_of, judgements
from em_interp.behaviour.judging.llm_judge import OpenAIJudge, Prompts, cache_file, kept_mode
from em_interp.behaviour.judging.request_cache import RequestCache
from em_interp.behaviour.rates import LEVEL, Rate, rate_of
from em_interp.behaviour.scores import is_em
from em_interp.behaviour.tables.files import ANSWER_COLUMNS, SCORE_COLUMNS, read_own_table
from em_interp.behaviour.tables.judged import SCORES
from em_interp.config.run_config import EndpointConfig
from em_interp.errors import InputError
from em_interp.results import Result, percent
from em_interp.run import Run

if TYPE_CHECKING:
    import pandas as pd

CHARACTERS_PER_TOKEN = 4  # about, in English


@dataclass(frozen=True)
class JudgingCost:
    """Requests and tokens that judging would take; tokens are estimates at `CHARACTERS_PER_TOKEN`."""

    answers: int
    requests: int  # one a score, equal ones counted once
    kept: int  # of these, answered already
    mode: str  # auto: not known before the endpoint was probed
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
            f"already): about {self.input_tokens} tokens in, at {CHARACTERS_PER_TOKEN} characters a token, and at most "
            f"{self.output_tokens} out; mode {self.mode}; nothing was sent"
        )


def dry_run(
    run: Run, config: EndpointConfig, prompts: Prompts | None = None, answers: pd.DataFrame | None = None
) -> JudgingCost:
    """Count what `judge_answers` with this config would send. Sends nothing, writes nothing and needs no key.

    `answers` are those of the run unless others are given, as those of a table that is not in a run yet. Before the
    endpoint was probed the mode `auto` is counted as the dearer one, sampled. Raises InputError where
    the run has no answers.
    """
    prompts, kept = prompts or Prompts(), kept_mode(run, config)
    mode = kept[0] if kept else config.mode
    answers = answers_of(run) if answers is None else answers
    lengths: dict[str, int] = {}
    url = url_of(config.base_url)
    for question, answer in answers[["question", "answer"]].drop_duplicates().itertuples(index=False):
        for score in (*SCORES, *config.topics):
            prompt = prompts.prompt(score, question, answer)
            lengths[digest(url, request_for(config, prompt, mode))] = len(prompt)
    with RequestCache(cache_file(run), read_only=True) as cache:
        left = [length for key, length in lengths.items() if key not in cache]
    output_tokens = 1 if mode == "expected" else config.sampled_tokens
    input_tokens = sum(-(-length // CHARACTERS_PER_TOKEN) for length in left)
    return JudgingCost(
        len(answers), len(lengths), len(lengths) - len(left), mode, input_tokens, output_tokens * len(left)
    )


@dataclass(frozen=True, eq=False, repr=False)
class RetestReliability(Result):
    """Answers that were judged twice, a row an answer: how repeatable the judge is, not how right.

    Columns `aligned` and `coherent` are from the first judging, `aligned_retest` and `coherent_retest` from the second.
    """

    judge: str
    mode: str
    answers: pd.DataFrame
    level: float = LEVEL

    NEXT = (".frame()", ".to_dict()")

    @property
    def n(self) -> int:
        """Answers in the sample."""
        return len(self.answers)

    @property
    def status_changed(self) -> int:
        """Number of answers that were scored one time and not the other, or unscored for another reason."""
        return int((self.answers["status"] != self.answers["status_retest"]).sum())

    @property
    def scored_twice(self) -> pd.DataFrame:
        """The answers scored both times."""
        return self.answers[(self.answers[["status", "status_retest"]] == SCORED).all(axis=1)]

    @property
    def em_flipped(self) -> Rate:
        """Share of the answers scored twice that are EM one time and not the other."""
        twice = self.scored_twice
        retest = twice[[f"{score}_retest" for score in SCORES]].set_axis(list(SCORES), axis=1)
        hits = (is_em(twice) != is_em(retest)).to_numpy().sum()
        return rate_of(np.array([float(hits)]), np.array([float(len(twice))]), self.level)

    def difference(self, score: str) -> float:
        """Mean absolute difference of a score between the two times, in points of 0–100; NaN without any."""
        return float((self.scored_twice[score] - self.scored_twice[f"{score}_retest"]).abs().mean())

    def frame(self) -> pd.DataFrame:
        """One row an answer judged twice."""
        return self.answers.copy()

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "judge": self.judge,
            "mode": self.mode,
            "n": self.n,
            "scored_twice": len(self.scored_twice),
            "status_changed": self.status_changed,
            "em_flipped": self.em_flipped.to_dict(),
            **{f"{score}_difference": self.difference(score) for score in SCORES},
        }

    def sentence(self) -> str:
        """The result in words."""
        if not len(self.scored_twice):
            return f"none of {self.n} answers was scored both times; the status of {self.status_changed} changed"
        flipped = self.em_flipped
        return (
            f"judged again, {flipped.rate:.1%} of {len(self.scored_twice)} answers change their EM label "
            f"({percent(self.level)} interval {flipped.interval[0]:.1%} to {flipped.interval[1]:.1%}); aligned moves "
            f"by {self.difference('aligned'):.1f} points on average, coherent by {self.difference('coherent'):.1f}; "
            f"{self.status_changed} of {self.n} change their status"
        )

    def _table(self) -> pd.DataFrame:
        return self.frame().head(20)


def retest(run: Run, judge: OpenAIJudge, n: int = 100, seed: int = 0) -> RetestReliability:
    """Judge a random sample of `n` judged answers anew and compare.

    The run's scores stay as they are. New replies are kept apart from the first ones: the same call gives the same
    result and sends nothing. Raises InputError where the run has no scores of this judge.
    """
    if not run.scores_file.exists():
        raise InputError(f"{run.scores_file} is missing: judge the run before judging it again")
    scores = read_own_table(run.scores_file, SCORE_COLUMNS)
    own = scores[(scores["judge"] == judge.name) & (scores["status"] != ERROR)]
    if own.empty:
        raise InputError(f"{run.scores_file} has no scores of {judge.name}; judge the run before judging it again")
    if n < 1:
        raise InputError(f"a sample of {n} answers cannot be judged again; 1 or more was expected")
    chosen = np.sort(np.random.default_rng(seed).choice(len(own), min(n, len(own)), replace=False))
    sample = own.iloc[chosen][[*KEY, *SCORES, "status"]].reset_index(drop=True)
    answers = sample[KEY].merge(read_own_table(run.answers_file, ANSWER_COLUMNS), on=KEY, how="left")
    second = replace(judge, retest=True, config=judge.config.replace(topics=()))
    with closing(judgements(second, zip(answers["question"], answers["answer"], strict=True))) as judged:
        again = list(judged)
    for score in SCORES:
        sample[f"{score}_retest"] = [float("nan") if row[score] is None else row[score] for row in again]
    sample["status_retest"] = [row["status"] for row in again]
    return RetestReliability(judge.name, judge.mode, sample)
