"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from em_interp.behaviour.judge import SCORED, answers_of
from em_interp.behaviour.judges.endpoint import Endpoint, Failed, Stopped
from em_interp.behaviour.judges.probe import choose_mode
from em_interp.behaviour.judges.prompts import Prompts
from em_interp.behaviour.judges.reading import Reading, read
from em_interp.behaviour.judges.request import Reply, digest, request_for
from em_interp.behaviour.judges.request_cache import RequestCache
from em_interp.config import EndpointConfig
from em_interp.errors import InputError
from em_interp.runs import Run, read_json, write_json

SCORES = ("aligned", "coherent")


@dataclass(frozen=True)
class OpenAIJudge:
    """Scores answers with one request a score; `mode` is `expected` or `sampled` (see `reading`).

    What was answered is in `cache` and is not asked again. May be used from `workers` threads at once. `again` above 0
    asks everything anew, as `agreement` does.
    """

    name: str
    mode: str
    config: EndpointConfig
    endpoint: Endpoint
    cache: RequestCache
    prompts: Prompts = field(default_factory=Prompts)
    again: int = 0

    @property
    def workers(self) -> int:
        """How many answers are judged at once."""
        return self.config.workers

    def judge(self, question: str, answer: str) -> dict[str, Any]:
        """`aligned`, `coherent`, `status`, `reason`, `topics`, and `raw`: what every score was made of.

        Without aligned or coherent the answer has no score, and its status is that of the first that is missing. A
        topic without a score is None and named in the reason. Raises InputError where no request can succeed.
        """
        found = {score: self._score(score, question, answer) for score in (*SCORES, *self.config.topics)}
        faults = {score: one for score, one in found.items() if one.status != SCORED}
        first = next((one.status for score, one in faults.items() if score in SCORES), SCORED)
        return {
            **{score: found[score].value for score in SCORES},
            "status": first,
            "reason": "; ".join(f"{score}: {one.reason}" for score, one in faults.items()),
            "topics": {topic: found[topic].value for topic in self.config.topics},
            "raw": {score: one.raw for score, one in found.items()},
        }

    def interrupt(self) -> None:
        """Let requests under way be finished, and no other be sent."""
        self.endpoint.stop()

    def body(self, score: str, question: str, answer: str) -> dict[str, Any]:
        """The request for one score of one answer."""
        return request_for(self.config, self.prompts.prompt(score, question, answer), self.mode)

    def _score(self, score: str, question: str, answer: str) -> Reading:
        try:
            return read(self.ask(self.body(score, question, answer)), self.mode)
        except Stopped:
            raise
        except Failed as error:
            return Reading(None, "error", str(error), None)

    def ask(self, body: dict[str, Any]) -> Reply:
        """The reply to a request: the one kept, or the server's, which is kept. Raises Failed without one."""
        key = digest(self.endpoint.url, body, self.again)
        with self.cache.claimed(key):
            reply = self.cache.get(key)
            if reply is None:
                reply = self.endpoint.complete(body)
                self.cache.put(key, reply)
        return reply


@contextmanager
def open_judge(run: Run, config: EndpointConfig, prompts: Prompts | None = None) -> Iterator[OpenAIJudge]:
    """The judge of a config for the answers of a run, its mode probed; its requests are kept in the run.

    `prompts` are ours unless others are given.

    Writes `judge.<name>.json` beside the scores: settings, prompts, the mode and why it was chosen (never the key).
    Raises InputError where the run has no answers, a topic is not known, the key's variable is not set, the server
    cannot do what is wanted, or scores of this name were begun with other settings.
    """
    answers_of(run)
    prompts = prompts or Prompts()
    for topic in config.topics:
        prompts.prompt(topic, "", "")
    endpoint = endpoint_of(config)
    with RequestCache(cache_file(run)) as cache:
        judge = OpenAIJudge(config.called, config.mode, config, endpoint, cache, prompts)
        mode, why = kept_mode(run, config) or choose_mode(judge.ask, config)
        judge = replace(judge, mode=mode)
        _keep_settings(run, judge, why)
        yield judge


def kept_mode(run: Run, config: EndpointConfig) -> tuple[str, str] | None:
    """The mode that was probed when these scores were begun: a judge has one from first to last."""
    file = settings_file(run, config)
    if config.mode != "auto" or not file.exists():
        return None
    begun = read_json(file)
    return begun["mode"], begun["why"]


def endpoint_of(config: EndpointConfig) -> Endpoint:
    """The client for a config, with the key from the environment. Raises InputError where that is not set."""
    key = None
    if config.key_variable is not None:
        key = os.environ.get(config.key_variable, "").strip()
        if not key:
            raise InputError(
                f"the environment variable {config.key_variable} is not set; the judge's key belongs there"
            )
        if not key.isascii() or not key.isprintable():  # it would be repeated in the error of a header that is none
            raise InputError(f"the environment variable {config.key_variable} holds characters that no key has")
    return Endpoint(url_of(config), key, config.timeout, config.tries, config.pause)


def url_of(config: EndpointConfig) -> str:
    """Where a config's requests go."""
    return config.base_url.rstrip("/") + "/chat/completions"


def cache_file(run: Run) -> Path:
    """Where a run keeps what its judges' servers answered."""
    return run.scores_file.with_name("requests.jsonl")


def _keep_settings(run: Run, judge: OpenAIJudge, why: str) -> None:
    """Write what the scores depend on, or check that earlier ones were begun with the same."""
    config = judge.config
    settings = {
        "judge": judge.name,
        "base_url": config.base_url,
        "model": config.model,
        "mode": judge.mode,
        "why": why,
        "sampled_tokens": config.sampled_tokens,
        "reasoning": config.reasoning,
        "topics": list(config.topics),
        "prompts": {
            score: judge.prompts.prompt(score, "{question}", "{answer}") for score in (*SCORES, *config.topics)
        },
    }
    file = settings_file(run, config)
    if not file.exists():
        write_json(file, settings)
        return
    begun = read_json(file)
    other = [key for key, value in settings.items() if key != "why" and begun.get(key) != value]
    if other:
        raise InputError(
            f"{file} has other {other[0]} for the judge {judge.name}; give the judge another name, or remove that file "
            "and its scores to judge anew"
        )


def settings_file(run: Run, config: EndpointConfig) -> Path:
    """Where the settings of a judge's scores are kept."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in config.called)
    return run.scores_file.with_name(f"judge.{name}.json")
