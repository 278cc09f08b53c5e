"""What judging will cost, counted before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.judge import answers_of
from em_interp.behaviour.judges.openai_judge import SCORES, cache_file, kept_mode, url_of
from em_interp.behaviour.judges.prompts import Prompts
from em_interp.behaviour.judges.request import digest, request_for
from em_interp.behaviour.judges.request_cache import RequestCache
from em_interp.config import EndpointConfig
from em_interp.runs import Run

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
