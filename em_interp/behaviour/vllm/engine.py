"""Answers and likelihoods from vLLM servers: adapters as LoRA modules, many requests in flight, each answer kept.

The base is requested as an adapter whose B is zero. Under its own name it would be wrong on a CPU: vLLM 0.32's
LoRA operations in torch give a row without an adapter the one in the last slot.

Answers and log-likelihoods go into the same tables as those of this process, and are resumed in the same way. Every
answer has a random stream of its own here too, so that an interruption does not alter it but for rounding; the streams
are vLLM's, so the answers are other samples than those of this process.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.judging.client import EndpointStopped, RequestFailed
from em_interp.behaviour.sampling.ask import Keep, Row, prompts_of
from em_interp.behaviour.sampling.checkpoint_models import Base
from em_interp.behaviour.vllm.adapters import AdapterFiles, AdapterKey, LoadedAdapters
from em_interp.behaviour.vllm.checks import (
    MAX_COMPARED_TOKENS,
    Comparison,
    Probe,
    check_same,
    delta_norm,
    greedy_answers,
)
from em_interp.behaviour.vllm.dispatch import dispatch_jobs
from em_interp.behaviour.vllm.server import VLLMServer
from em_interp.config.run_config import VLLMConfig
from em_interp.errors import InputError
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.utils.progress import announce

if TYPE_CHECKING:
    from em_interp.behaviour.sampling.chat import Tokens
    from em_interp.behaviour.sampling.generate import Sampler
    from em_interp.behaviour.sampling.likelihood import TokenizedAnswer
    from em_interp.trajectory.trajectory import AdapterTrajectory


class Job(NamedTuple):
    """A request: its number among the jobs, and the adapter it goes through."""

    number: int
    key: AdapterKey


@dataclass(frozen=True)
class _Replica:
    """One of the servers that serve the same base, with the adapters that it has loaded."""

    server: VLLMServer
    adapters: LoadedAdapters

    def send(self, key: AdapterKey, request: Callable[[VLLMServer, str], Any]) -> Any:
        """The result of a request through an adapter."""
        try:
            with self.adapters.using(key) as name:
                return request(self.server, name)
        except EndpointStopped:
            raise
        except RequestFailed as error:
            raise InputError(f"{self.server.url}: {error}; what was answered is kept, resume=True continues") from None


class VLLMEngine:
    """Samples answers and reads log-likelihoods on vLLM servers.

    Args:
        config: The servers.
        base: The base model here, with which the servers are compared.
        trajectory: The path whose adapters are used.
        sampler: How answers are sampled, and what ends them.
        folder: Where adapters are written while they are loaded; the servers must see it.
    """

    def __init__(
        self, config: VLLMConfig, base: Base, trajectory: AdapterTrajectory, sampler: Sampler, folder: Path
    ) -> None:
        self.config, self.base, self.trajectory, self.sampler = config, base, trajectory, sampler
        self.files = AdapterFiles(trajectory, base.model, base.name, folder)
        self.stack, self.replicas = ExitStack(), list[_Replica]()

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.replicas = []
        self.stack.close()

    def sample(self, rows: Sequence[Row], samples: int, numbers: Sequence[int], keep: Keep) -> None:
        """Sample the answers of these numbers; answer i is of row i // samples. Each is kept when it comes.

        Raises InputError where a server cannot be reached or cannot load an adapter, where an adapter has no effect,
        and where greedy answers are not those of this process.
        """
        from em_interp.behaviour.sampling.generate import Answer, decode_answers, stream_of

        prompts, sampler = prompts_of(rows, self.base.tokenizer, self.base.model.device), self.sampler
        keys, ids = [self._adapter_of(row.columns["step"], row.columns["scale"]) for row in rows], _unpadded(prompts)

        def ask(replica: _Replica, job: Job) -> list[int]:
            row, sample = divmod(job.number, samples)
            seed = _seed(stream_of(sampler.seed, Answer(row, sample), rows[row].name))
            limits = (sampler.max_new_tokens, sampler.temperature, sampler.ends, seed)
            return replica.send(job.key, lambda server, name: server.generate(name, ids[row], *limits))

        def keep_texts(finished: list[tuple[Job, list[int]]]) -> None:
            texts = decode_answers(self.base.tokenizer, [tokens for _, tokens in finished])
            keep({job.number: text for (job, _), text in zip(finished, texts, strict=True)})

        with self:
            self._connect(ids, keys, max(map(len, ids)) + sampler.max_new_tokens)
            self._send_all([Job(number, keys[number // samples]) for number in numbers], ask, keep_texts)

    def open(self, answers: Sequence[TokenizedAnswer], conditions: Sequence[AdapterKey]) -> None:
        """Connect for reading these answers at all these steps and scales, in as many calls of `read` as are needed.

        The servers are compared at them all: those of one call may be the base's alone. Raises what `sample` raises.
        """
        keys, prompts = (
            [self._adapter_of(*condition) for condition in conditions for _ in answers],
            [row.prompt for row in answers],
        )
        self._connect(prompts * len(conditions), keys, 1 + max(map(len, answers)))

    def read(
        self, answers: Sequence[TokenizedAnswer], conditions: Sequence[AdapterKey]
    ) -> Float[np.ndarray, "condition answer"]:
        """The log-likelihood of each answer at each of some steps and scales, after `open`. Raises what that raises."""
        keys = [self._adapter_of(step, scale) for step, scale in conditions]
        values = np.zeros(len(keys) * len(answers))

        def ask(replica: _Replica, job: Job) -> float:
            row = answers[job.number % len(answers)]
            read = replica.send(job.key, lambda server, name: server.log_probabilities(name, row.prompt + row.answer))
            return float(sum(read[len(row.prompt) - 1 :]))

        def keep(finished: list[tuple[Job, float]]) -> None:
            for job, value in finished:
                values[job.number] = value

        self._send_all([Job(number, keys[number // len(answers)]) for number in range(len(values))], ask, keep)
        return values.reshape(len(keys), len(answers))

    def _adapter_of(self, step: int, scale: float) -> AdapterKey:
        """The adapter of a step and multiplier; that of the base is the same for all steps."""
        return (int(self.trajectory.steps[0]), 0.0) if scale == 0 else (int(step), float(scale))

    def _send_all(
        self,
        jobs: Sequence[Job],
        ask: Callable[[_Replica, Job], Any],
        keep: Callable[[list[tuple[Job, Any]]], None],
        replicas: Sequence[_Replica] | None = None,
    ) -> None:
        """Send all requests, those through one adapter after those through another."""
        replicas, workers = replicas or self.replicas, min(self.config.workers, len(jobs))

        def stop() -> None:
            for replica in replicas:
                replica.server.endpoint.stop()

        dispatch_jobs(_chunks(jobs, self.config.workers), replicas, workers, ask, keep, stop)

    def _connect(self, prompts: Sequence[list[int]], keys: Sequence[AdapterKey], length: int) -> None:
        """Connect with the servers and compare them with this process on some of the rows."""
        servers = [self.stack.enter_context(VLLMServer(self.config, url)) for url in self.config.base_url]
        served = [server.models() for server in servers]
        for server, models in zip(servers, served, strict=True):
            if models.max_length is not None and models.max_length < length:
                raise InputError(
                    f"{server.url} serves sequences of up to {models.max_length} tokens; this run needs {length} "
                    "(--max-model-len)"
                )
        adapted = np.array([row for row, key in enumerate(keys) if key[1] != 0], dtype=int)
        rows = adapted[evenly_spaced(np.arange(len(adapted)), self.config.compared)].tolist()
        probe = self._probe(prompts[rows[0]], keys) if rows else None
        shutil.rmtree(self.files.folder, ignore_errors=True)
        self.stack.callback(shutil.rmtree, self.files.folder, ignore_errors=True)
        for number, (server, models) in enumerate(zip(servers, served, strict=True)):
            folder, check = self.files.folder / str(number), (lambda *_: None) if probe is None else probe.check
            adapters = LoadedAdapters(server, self.files, folder, self.config.max_loras, check)
            adapters.unload_leftovers(models.adapters)
            self.stack.callback(adapters.unload_all)
            self.replicas.append(replica := _Replica(server, adapters))
            if probe is not None:
                read = lambda server, name: server.log_probabilities(name, probe.ids)  # noqa: E731
                probe.of_base[server.url] = replica.send(self._adapter_of(0, 0.0), read)
        if rows:
            self._compare([prompts[row] for row in rows], [keys[row] for row in rows])

    def _probe(self, prompt: list[int], keys: Sequence[AdapterKey]) -> Probe | None:
        """What checks the effect of an adapter; None where none has any."""
        strongest = max(set(keys), key=lambda key: delta_norm(self.trajectory, key))
        if delta_norm(self.trajectory, strongest) == 0:
            return None
        prompts = _padded([prompt], self.base)
        (answer,) = greedy_answers(self.base, self.trajectory, prompts, [strongest], MAX_COMPARED_TOKENS)
        return Probe(self.base, self.trajectory, [*prompt, *answer], strongest)

    def _compare(self, prompts: Sequence[list[int]], keys: Sequence[AdapterKey]) -> None:
        """Compare the greedy answers of each server with ours. Raises InputError where most of them differ."""
        count = min(self.sampler.max_new_tokens, MAX_COMPARED_TOKENS)
        ours = greedy_answers(self.base, self.trajectory, _padded(prompts, self.base), keys, count)

        def ask(replica: _Replica, job: Job) -> list[int]:
            limits = (count, 0.0, self.sampler.ends, 0)
            return replica.send(job.key, lambda server, name: server.generate(name, prompts[job.number], *limits))

        for replica in self.replicas:
            theirs: dict[int, list[int]] = {}

            def keep(finished: list[tuple[Job, list[int]]], theirs: dict[int, list[int]] = theirs) -> None:
                theirs |= {job.number: tokens for job, tokens in finished}

            self._send_all([Job(*pair) for pair in enumerate(keys)], ask, keep, [replica])
            comparison = Comparison.of(ours, [theirs[row] for row in range(len(keys))])
            check_same(comparison, replica.server.url)
            announce(f"{replica.server.url}: {comparison.sentence()}")


def _chunks(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Neighbouring jobs of one adapter, `size` of them at most."""
    for _, group in groupby(jobs, lambda job: job.key):
        of_key = list(group)
        yield from (of_key[first : first + size] for first in range(0, len(of_key), size))


def _unpadded(prompts: Tokens) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(prompts.ids, prompts.mask, strict=True)]


def _padded(prompts: Sequence[Sequence[int]], base: Base) -> Tokens:
    """Prompts of token ids as one batch."""
    from em_interp.behaviour.sampling.chat import TokenizedChat, padded

    return padded(base.tokenizer, [TokenizedChat(list(ids), [False] * len(ids)) for ids in prompts], base.model.device)


def _seed(stream: str) -> int:
    """A whole number from 0 to 2^63 - 1 for a random stream."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little") >> 1
