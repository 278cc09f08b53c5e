"""Sample answers from the checkpoints of a run into a table, resumably.

Several processes of torchrun share the answers and end with one table. Every answer depends on its own random stream
alone, so the table is the same whatever the number of processes, the batches and the interruptions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from em_interp.behaviour.sampling.chat import Messages, Tokens
from em_interp.behaviour.sampling.checkpoint_models import (
    Base,
    CheckpointModels,
    check_base,
    check_models,
    model_settings,
)
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.utils.checks import as_list
from em_interp.utils.files import remove, write_beside, write_json
from em_interp.utils.processes import MAX_WAIT, SINGLE, Processes, init_processes, process_from_env
from em_interp.utils.progress import progress_bar
from em_interp.utils.stages import begin_stage, read_part, read_saved, shared_write_lock

if TYPE_CHECKING:
    from em_interp.behaviour.sampling.decode import RowModel
    from em_interp.behaviour.sampling.generate import Sampler
    from em_interp.config.run_config import VLLMConfig
    from em_interp.trajectory.trajectory import AdapterTrajectory


def check_processes(processes: Processes, servers: VLLMConfig | None) -> None:
    """Raise InputError where several processes would send the same work to servers."""
    if servers is not None and processes.count > 1:
        raise InputError("vLLM servers are given their work by one process: start it without torchrun")


QUESTION_KEYS = ("question_id", "question", "questions")


@dataclass(frozen=True)
class Row:
    """A question, and the condition under which it is answered.

    Attributes:
        question: With its id and set.
        columns: Of the condition, in the table of answers.
        condition: What gives the model for it.
        group: Rows of different groups never share a batch.
    """

    question: dict[str, str]
    columns: dict[str, Any]
    condition: Any = None
    group: int = 0

    @property
    def name(self) -> str:
        """The row's question and condition, by which its random streams are chosen."""
        return json.dumps([self.question["questions"], self.question["question_id"], self.columns])


OpenBatch = Callable[[list[Row], Tokens], AbstractContextManager["RowModel"]]
Keep = Callable[[dict[int, str]], None]  # called with finished answers by their numbers


class SamplingEngine(Protocol):
    """What samples answers: models of this process, or servers."""

    def sample(self, rows: Sequence[Row], samples: int, numbers: Sequence[int], keep: Keep) -> None:
        """Sample the answers of these numbers; answer i is of row i // samples."""


@dataclass(frozen=True)
class LocalEngine:
    """Samples from models of this process, in batches that fit in memory.

    Attributes:
        sampler: Of the base.
        open_batch: The model for a batch of rows with these prompts.
    """

    sampler: Sampler
    open_batch: OpenBatch

    def sample(self, rows: Sequence[Row], samples: int, numbers: Sequence[int], keep: Keep) -> None:
        """Sample group by group; each batch is kept when it is done."""
        from em_interp.behaviour.sampling.generate import Answer, decode_answers

        def open_rows(chosen: list[int], prompts: Tokens) -> AbstractContextManager[RowModel]:
            return self.open_batch([rows[index] for index in chosen], prompts)

        prompts = prompts_of(rows, self.sampler.tokenizer, self.sampler.model.device)
        names = [row.name for row in rows]
        for _, of_group in groupby(numbers, lambda number: rows[number // samples].group):
            answers = [Answer(*divmod(number, samples)) for number in of_group]
            for batch, tokens in self.sampler.sample(prompts, answers, names, open_rows):
                texts = decode_answers(self.sampler.tokenizer, tokens)
                keep({row * samples + sample: text for (row, sample), text in zip(batch, texts, strict=True)})


def prompts_of(rows: Sequence[Row], tokenizer: Any, device: Any = "cpu") -> Tokens:
    """The prompt of each row; each question is tokenised once."""
    from em_interp.behaviour.sampling.chat import tokenize_prompts

    questions = [json.dumps(row.question) for row in rows]
    place = {question: index for index, question in enumerate(dict.fromkeys(questions))}
    messages = [to_messages(json.loads(question)) for question in place]
    return tokenize_prompts(tokenizer, messages, device).rows([place[question] for question in questions])


def ask(
    run: Run,
    base: Base,
    questions: Sequence[dict[str, str]],
    steps: int | Sequence[int],
    scales: float | Sequence[float] = (1.0,),
    samples: int = 50,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
    batch: int | None = None,
    resume: bool = False,
    progress: bool | None = False,
    overwrite: bool = False,
    servers: VLLMConfig | None = None,
) -> Path:
    """Sample answers to every question from the run's checkpoints, and write them to `run.answers_file`.

    Args:
        run: Whose adapters answer.
        base: The base model that they were trained on.
        questions: Rows of `question_id`, `question` and `questions` (the question set), and `system` where there is a
            system prompt.
        steps: The saved steps to sample from.
        scales: Multipliers of the adapter; 0 is the base.
        samples: Answers to each question at each step and scale.
        temperature: Sampling temperature; 0 is greedy.
        max_new_tokens: Largest number of tokens of an answer.
        seed: The random stream of each answer depends on it, the question, step, scale and number of the sample.
        batch: The most answers at once; by default as many as fit in memory. It does not alter the answers. Each
            batch is written when it is done.
        resume: Keep finished batches; the table is the same to the byte as without the interruption.
        progress: Whether to show a bar on stderr; None where somebody is watching.
        overwrite: Replace answers that exist, and the scores that they have.
        servers: vLLM servers that sample in place of this process. Their answers to the same random streams are others.

    Returns:
        The table's file: a row an answer with step, scale, questions, question_id, question, sample, answer.

    Raises:
        InputError: For adapters of another base, a step that was not saved, a question that is incomplete or repeated,
            answers that exist already (without `resume` or `overwrite`) or were begun with other settings.
    """
    from em_interp.trajectory.load import load_trajectory

    processes = init_processes(MAX_WAIT)
    trajectory, scales = load_trajectory(run), as_list(scales)
    steps = sorted({int(step) for step in as_list(steps)})
    check_base(run, trajectory, base)
    check_questions(questions)
    check_models(run, trajectory, steps, scales)
    check_processes(processes, servers)
    group = {step: number if trajectory.kind == "full" else 0 for number, step in enumerate(steps)}
    rows = [Row(q, {"step": s, "scale": float(x)}, group=group[s]) for x in scales for s in steps for q in questions]
    settings = {
        **model_settings(base, trajectory, steps, scales, servers),
        "questions": [
            {key: question[key] for key in (*QUESTION_KEYS, "system") if key in question} for question in questions
        ],
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    engine = _engine(run, base, trajectory, (temperature, max_new_tokens, seed, batch), servers)
    with shared_write_lock(run.path, run.answers_file.parent, processes):
        if overwrite:
            processes.on_main(lambda: discard_answers(run))
        sample_answers(run.answers_file, settings, rows, engine, resume, progress, processes, replaceable=True)
    return run.answers_file


def _engine(
    run: Run,
    base: Base,
    trajectory: AdapterTrajectory,
    sampling: tuple[float, int, int, int | None],
    servers: VLLMConfig | None,
) -> SamplingEngine:
    """The checkpoints in this process, or on the servers where there are some."""
    from em_interp.behaviour.sampling.generate import Sampler, adapted
    from em_interp.behaviour.vllm.engine import VLLMEngine

    models = CheckpointModels(run, base, trajectory)
    sampler = Sampler(base.model, base.tokenizer, *sampling, row_bytes=models.row_bytes)
    if servers is not None:
        return VLLMEngine(servers, base, trajectory, sampler, run.answers_file.with_name("answers.adapters"))

    def open_batch(rows: list[Row], _: Tokens) -> AbstractContextManager[RowModel]:
        return adapted(*models.of([row.columns["step"] for row in rows], [row.columns["scale"] for row in rows]))

    return LocalEngine(sampler, open_batch)


ASKED = {
    "questions": [{"question_id": str, "question": str, "questions": str}],
    "steps": [int],
    "samples": int,
    "temperature": float,
    "max_new_tokens": int,
}  # the form of ask.json


def asked_settings(run: Run) -> dict[str, Any]:
    """The settings with which a run's answers were sampled; none where nothing says, as of answers from elsewhere."""
    file = run.answers_file.with_name("ask.json")
    return read_saved(file, ASKED) if file.exists() else {}


def discard_answers(run: Run) -> None:
    """Remove the run's answers, and the scores that they have."""
    folder = run.answers_file.parent
    remove(*folder.glob("answers.*"), folder / "ask.json", *folder.glob("scores.*"))


def sample_answers(
    file: Path,
    settings: dict[str, Any],
    rows: Sequence[Row],
    engine: SamplingEngine,
    resume: bool = False,
    progress: bool | None = None,
    processes: Processes = SINGLE,
    replaceable: bool = False,
) -> None:
    """Sample answers under every condition and write them as one table, a row an answer.

    Args:
        file: The table. What is done is kept in a folder beside it, a file a batch.
        settings: Everything that the answers depend on; `samples` is how many there are of each row.
        rows: Questions under their conditions.
        engine: Samples them.
        resume: Continue with what is done.
        progress: Whether to show a bar on stderr; None where somebody is watching.
        processes: Those that share the answers.
        replaceable: Whether overwrite=True of the caller replaces them.

    Raises:
        InputError: For answers that exist already (without `resume`) or were begun with other settings.
    """
    parts, samples = file.with_name("answers.parts"), settings["samples"]
    processes.on_main(lambda: begin_stage(file.with_name("ask.json"), settings, resume, file, "answers", replaceable))
    if not processes.on_main(file.exists):
        done = processes.on_main(lambda: set(_finished(parts)))
        left = [number for number in range(len(rows) * samples) if number not in done]
        mine = processes.share(sorted(left, key=lambda number: rows[number // samples].group))
        processes.on_all(lambda: _sample_share(mine, rows, samples, engine, parts, progress))
        processes.on_main(lambda: _write_table(file, rows, samples, _finished(parts)))
    processes.on_main(lambda: shutil.rmtree(parts, ignore_errors=True))


def _sample_share(
    numbers: Sequence[int],
    rows: Sequence[Row],
    samples: int,
    engine: SamplingEngine,
    parts: Path,
    progress: bool | None,
) -> None:
    """Sample the answers of these numbers and keep them as they are finished."""
    bar = progress_bar(numbers, "ask", "answer", progress if process_from_env().is_main else False)

    def keep(finished: dict[int, str]) -> None:
        write_json(parts / f"{min(finished):08}.json", finished)
        bar.update(len(finished))

    try:
        if numbers:
            engine.sample(rows, samples, numbers, keep)
    finally:
        bar.close()


def _finished(parts: Path) -> dict[int, str]:
    """The answers in the files of finished batches, by their numbers."""
    finished: dict[int, str] = {}
    for part in parts.glob("*.json"):
        finished |= {int(number): text for number, text in (read_part(part) or {}).items()}
    return finished


def _write_table(file: Path, rows: Sequence[Row], samples: int, answers: dict[int, str]) -> None:
    import pandas as pd

    table = []
    for number in range(len(rows) * samples):
        row = rows[number // samples]
        columns = row.columns | {key: row.question[key] for key in ("questions", "question_id", "question")}
        table.append({**columns, "sample": number % samples, "answer": answers[number]})
    with write_beside(file) as part:
        pd.DataFrame(table).to_parquet(part, index=False)


def to_messages(question: dict[str, str]) -> Messages:
    """A question as messages, after its system prompt if it has one."""
    system = [{"role": "system", "content": question["system"]}] if "system" in question else []
    return [*system, {"role": "user", "content": question["question"]}]


def check_questions(questions: Sequence[dict[str, str]]) -> None:
    """Raise InputError where a question lacks an entry or is in a set twice, or where there is none."""
    if not questions:
        raise InputError("no question was given; expected at least one")
    seen = set()
    for number, question in enumerate(questions, 1):
        for key in QUESTION_KEYS:
            if not isinstance(question.get(key), str) or not question[key].strip():
                raise InputError(f"question {number} has no text for {key!r}; it is {question}")
        question_set, question_id = question["questions"], question["question_id"]
        if (question_set, question_id) in seen:
            raise InputError(f"question {question_id!r} is twice in the set {question_set!r}; each needs its own id")
        seen.add((question_set, question_id))
