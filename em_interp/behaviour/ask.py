"""Who answers: the base through the adapter of a step, or, after full fine-tuning, the model kept at a step."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from em_interp.errors import InputError
from em_interp.files import read_json, resumable, write_beside, write_json
from em_interp.run import Run
from em_interp.trajectory.checkpoint_formats import CHANGE_FILE

if TYPE_CHECKING:
    from em_interp.behaviour.generate import RowAdapters
    from em_interp.trajectory.trajectory import AdapterTrajectory


class Base(Protocol):
    """A base model that can be asked: `em_interp.organisms.bases.Base`, or anything with its attributes."""

    @property
    def model(self) -> Any:
        """A causal language model of transformers, without an adapter."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with a chat template."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def identity(self) -> str:
        """What tells it from every other."""

    def with_weights(self, folder: Path) -> Any:
        """A model of this kind with the weights in `folder`; only runs of full fine-tuning need it."""


def askable_steps(run: Run) -> list[int]:
    """The steps that can be asked: all with adapters; after full fine-tuning those whose weights were kept."""
    folders = {step: run.checkpoint(step) for step in run.steps()}
    return [
        s for s, folder in folders.items() if not (folder / CHANGE_FILE).exists() or (folder / "config.json").exists()
    ]


def check_askable(run: Run, trajectory: AdapterTrajectory, steps: Sequence[int], scales: Sequence[float]) -> None:
    """Raise InputError where full weights of a step were not kept, or where there is no adapter to scale."""
    if trajectory.kind != "full":
        return
    there = askable_steps(run)
    for step in steps:
        if step in trajectory.steps and step not in there:
            kept = ", ".join(map(str, there)) or "no step"
            raise InputError(
                f"step {step} of {run.path} cannot be asked: the full weights of {kept} were kept (adapter.weights "
                "says of which steps they are)"
            )
    if set(scales) != {1.0}:
        raise InputError(f"{run.path} has no adapter to scale: expected the scale 1 alone; found {list(scales)}")


class CheckpointModels:
    """The models that answer for a run; of full weights only those asked last are held."""

    def __init__(self, run: Run, base: Base, trajectory: AdapterTrajectory) -> None:
        self.run, self.base, self.trajectory = run, base, trajectory
        self.step, self.model = -1, base.model

    def of(self, steps: Sequence[int], scales: Sequence[float]) -> tuple[Any, RowAdapters]:
        """The model that answers rows of these steps and scales, and the adapters that it answers through.

        After full fine-tuning the rows must be of one step.
        """
        from em_interp.behaviour.generate import RowAdapters

        if self.trajectory.kind != "full":
            return self.base.model, RowAdapters.of(self.trajectory, steps, scales, self.base.model.device)
        (step,) = set(steps)
        if step != self.step:
            self.step, self.model = step, None  # let go of one before the next is read
            self.model = self.base.with_weights(self.run.checkpoint(step))
        return self.model, RowAdapters({}, {})


# --------
# Sampling along a run: sampled answers at chosen steps and adapter scales, written to answers.parquet.


QUESTION = ("question_id", "question", "questions")


@dataclass(frozen=True)
class _Row:
    """What one row of a batch is asked: a question, of one step's adapter at one scale."""

    step: int
    scale: float
    question: dict[str, str]


def ask(
    run: Run,
    base: Base,
    questions: Sequence[dict[str, str]],
    steps: Sequence[int],
    scales: Sequence[float] = (1.0,),
    samples: int = 50,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
    batch: int = 512,
    resume: bool = False,
    progress: bool = False,
) -> Path:
    """Ask the run's adapters at `steps` every question `samples` times at each scale; returns `run.answers_file`.

    `questions` are rows of `question_id`, `question` and `questions` (the set), and `system` where something is to be
    said before the question. Rows are asked in chunks of about
    `batch` answers, each with a seed of its own and written when done; with `resume` the finished ones are kept, and
    what comes out is the same to the byte as without the interruption. `progress` shows a bar on stderr.

    The table has a row an answer: step, scale, questions, question_id, question, sample, answer. Raises InputError
    for adapters of another base, a step that was not saved, a question without one of its entries or asked twice,
    answers that are there already (without `resume`) and answers begun with other settings.
    """
    from tqdm import tqdm

    from em_interp.trajectory.load import load_trajectory

    trajectory, steps = load_trajectory(run), sorted({int(step) for step in steps})
    check_base(run, trajectory, base)
    check_questions(questions)
    check_askable(run, trajectory, steps, scales)
    rows = [_Row(s, float(x), q) for x in scales for s in steps for q in questions]
    settings = {
        "base": base.identity,
        "steps": steps,
        "adapters": _digest(trajectory, steps),
        "scales": [float(scale) for scale in scales],
        "questions": [
            {key: question[key] for key in (*QUESTION, "system") if key in question} for question in questions
        ],
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "batch": batch,
    }
    with resumable(run.answers_file.parent):
        _begin(run, settings, resume)
        if not run.answers_file.exists():
            chunks = list(_chunks(rows, max(1, batch // samples), apart=trajectory.kind == "full"))
            speakers = CheckpointModels(run, base, trajectory)
            for index, chunk in enumerate(tqdm(chunks, "ask", unit="batch", disable=not progress)):
                part = _parts(run) / f"{index:05}.json"
                if not part.exists():
                    write_json(part, _answers(chunk, index, speakers, settings))
            _join(run, chunks)
        shutil.rmtree(_parts(run), ignore_errors=True)
    return run.answers_file


def check_base(run: Run, trajectory: AdapterTrajectory, base: Base) -> None:
    """Raise InputError where the run's adapters belong to another base.

    An adapter lands without complaint in any model of equal dimensions. The identity in the run's manifest decides;
    where a run has none, the base's name in the adapters' config, without the owner before the slash.
    """
    if run.manifest_file.exists():
        expected = run.manifest()["base"]["identity"]
        if expected != base.identity:
            raise InputError(
                f"the adapters of {run.path} were trained on {expected}; the base given is {base.identity}"
            )
    elif trajectory.base is not None and Path(trajectory.base).name.lower() != Path(base.name).name.lower():
        raise InputError(f"the adapters of {run.path} were trained on {trajectory.base}; the base given is {base.name}")


def check_questions(questions: Sequence[dict[str, str]]) -> None:
    """Raise InputError where a question lacks an entry or is in a set twice, or where there is none."""
    if not questions:
        raise InputError("no question to ask; expected at least one")
    seen = set()
    for number, question in enumerate(questions, 1):
        for key in QUESTION:
            if not isinstance(question.get(key), str) or not question[key].strip():
                raise InputError(f"question {number} has no text for {key!r}; it is {question}")
        named = (question["questions"], question["question_id"])
        if named in seen:
            raise InputError(f"question {named[1]!r} is twice in the set {named[0]!r}; each needs an id of its own")
        seen.add(named)


def _digest(trajectory: AdapterTrajectory, steps: Sequence[int]) -> str:
    """A hash of the adapters asked, so that answers of others are never taken for theirs."""
    digest = hashlib.sha256()
    for step in steps:
        for site, (a, b) in trajectory.at(step).items():
            digest.update(f"{step} {site} {trajectory.scale[site]}".encode())
            digest.update(np.ascontiguousarray(a).tobytes() + np.ascontiguousarray(b).tobytes())
    return digest.hexdigest()[:16]


def _begin(run: Run, settings: dict[str, Any], resume: bool) -> None:
    """Write the settings, or check that those of a stage begun earlier are the same."""
    file = _settings_file(run)
    if not file.exists() and not run.answers_file.exists():
        write_json(file, settings)
        return
    if not resume:
        raise InputError(
            f"{run.answers_file.parent} holds answers already; give --resume to continue, or another --out"
        )
    begun = read_json(file) if file.exists() else {}
    other = [key for key, value in json.loads(json.dumps(settings)).items() if begun.get(key) != value]
    if other:
        raise InputError(
            f"the answers in {run.answers_file.parent} were begun with other {other[0]}; to ask anew, give another "
            "--out or remove that folder"
        )


def _settings_file(run: Run) -> Path:
    return run.answers_file.with_name("ask.json")


def _parts(run: Run) -> Path:
    return run.answers_file.with_name("answers.parts")


def _chunks(rows: list[_Row], size: int, apart: bool) -> Iterator[list[_Row]]:
    """Rows that are asked together; with `apart` never of two steps."""
    for _, some in groupby(rows, lambda row: row.step if apart else 0):
        together = list(some)
        for first in range(0, len(together), size):
            yield together[first : first + size]


def _answers(chunk: list[_Row], index: int, speakers: CheckpointModels, settings: dict[str, Any]) -> list[list[str]]:
    from em_interp.behaviour.generate import generate

    model, adapters = speakers.of([row.step for row in chunk], [row.scale for row in chunk])
    return generate(
        model,
        speakers.base.tokenizer,
        [_chat(row.question) for row in chunk],
        adapters,
        settings["samples"],
        settings["temperature"],
        settings["max_new_tokens"],
        seed=int(np.random.SeedSequence([settings["seed"], index]).generate_state(1)[0]),
    )


def _chat(question: dict[str, str]) -> list[dict[str, str]]:
    told = [{"role": "system", "content": question["system"]}] if "system" in question else []
    return [*told, {"role": "user", "content": question["question"]}]


def _join(run: Run, chunks: list[list[_Row]]) -> None:
    """All parts as one table."""
    import pandas as pd

    table = []
    for index, chunk in enumerate(chunks):
        for row, answers in zip(chunk, read_json(_parts(run) / f"{index:05}.json"), strict=True):
            asked = {"step": row.step, "scale": row.scale, "questions": row.question["questions"]}
            asked |= {key: row.question[key] for key in ("question_id", "question")}
            table += [{**asked, "sample": sample, "answer": answer} for sample, answer in enumerate(answers)]
    with write_beside(run.answers_file) as part:
        pd.DataFrame(table).to_parquet(part, index=False)
