"""What a run was asked, and the path of adapters that it is asked again with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.ask import QUESTION, Base, check_base, check_questions
from em_interp.behaviour.judge import KEY, Judge, judge_answers
from em_interp.behaviour.tables import normal_form, read_table
from em_interp.errors import InputError
from em_interp.files import read_json, resumable, write_beside, write_json
from em_interp.mechanism.engines.base import AblateDirection, AddVector, Intervention, Positions
from em_interp.run import Run
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from em_interp.behaviour.generate import RowAdapters
    from em_interp.mechanism.model import TrajectoryModel
    from em_interp.trajectory.trajectory import AdapterTrajectory


def path_of(run: Run, base: Base) -> AdapterTrajectory:
    """The run's adapters, which are of this base. Raises InputError where they are not, or cannot be run."""
    path = load_trajectory(run)
    check_base(run, path, base)
    if path.kind == "full":
        raise InputError(
            f"{run.path} holds projections of the change of full weights; LoRA adapters or steering vectors were "
            "expected, which can be put back into the base"
        )
    return path


def questions_of(run: Run, kind: str | None = None) -> list[dict[str, str]]:
    """The questions that the run was asked, or those of one set. Raises InputError where there are none."""
    settings = run.answers_file.with_name("ask.json")
    if settings.exists():
        asked = [dict(question) for question in read_json(settings)["questions"]]
    elif run.answers_file.exists():
        rows = read_table(run.answers_file)[list(QUESTION)].drop_duplicates().to_dict("records")
        asked = [{str(key): str(value) for key, value in row.items()} for row in rows]
    else:
        raise InputError(f"{run.answers_file} is missing: no questions to go by; ask the run first, or give questions")
    chosen = [question for question in asked if kind in (None, question["questions"])]
    if not chosen:
        there = ", ".join(sorted({question["questions"] for question in asked}))
        raise InputError(f"the run was asked no questions of the set {kind!r}; there are {there}: give questions")
    return chosen


def chat(question: dict[str, str]) -> list[dict[str, str]]:
    """A question as messages, after what is said to the model as its system prompt, if anything."""
    told = [{"role": "system", "content": question["system"]}] if "system" in question else []
    return [*told, {"role": "user", "content": question["question"]}]


def digest(path: AdapterTrajectory, steps: Iterable[int]) -> str:
    """A hash of the adapters of some steps, so that results of others are never taken for theirs."""
    found = hashlib.sha256()
    for step in sorted(set(steps)):
        for site, (a, b) in path.at(step).items():
            found.update(f"{step} {site} {path.scale[site]}".encode())
            found.update(np.ascontiguousarray(a).tobytes() + np.ascontiguousarray(b).tobytes())
    return found.hexdigest()[:16]


# --------
# Long work in parts: each kept when it is done, so that an interrupted stage goes on to the same bytes.


def begin(settings_file: Path, settings: dict[str, Any], resume: bool) -> None:
    """Write the settings of a stage, or check that those of one begun earlier are the same.

    Raises InputError where it was begun before (without `resume`) or with other settings, naming the first.
    """
    folder = settings_file.parent
    if not settings_file.exists():
        write_json(settings_file, settings)
        return
    if not resume:
        raise InputError(f"{folder} holds results already; give --resume to continue, or another --out")
    begun = read_json(settings_file)
    other = [key for key, value in json.loads(json.dumps(settings)).items() if begun.get(key) != value]
    if other:
        raise InputError(f"what is in {folder} was begun with other {other[0]}; remove the folder to begin anew")


def in_parts(folder: Path, count: int, make: Callable[[int], Any], name: str, progress: bool = False) -> list[Any]:
    """The values of parts 0 … count − 1, each read from `folder` or made and kept there as JSON."""
    from tqdm import tqdm

    values = []
    for index in tqdm(range(count), name, unit="batch", disable=not progress):
        part = folder / f"{index:05}.json"
        if not part.exists():
            write_json(part, make(index))
        values.append(read_json(part))
    return values


def clear(folder: Path) -> None:
    """Remove parts whose values have been put together."""
    shutil.rmtree(folder, ignore_errors=True)


# --------
# Sampling from adapters that no checkpoint holds: A of one step with B of another, at any size; in parts, and judged.
# What is asked lies in a folder of its own in the form of a run's answers, so that judging is the same stage as for
# a run and goes on where it was interrupted.


@dataclass(frozen=True)
class PatchedAdapter:
    """One adapter to ask: A of a step and B of a step, multiplied. `kind`, `row` and `column` say what it is for."""

    kind: str
    row: int
    column: int
    A: int  # step
    B: int  # step
    multiplier: float = 1.0


Group = tuple["AdapterTrajectory", list[PatchedAdapter]]  # cells, and the path they take A and B from


@dataclass(frozen=True)
class SamplingParams:
    """How cells are asked: the settings of `behaviour.ask.ask`."""

    samples: int = 6
    temperature: float = 1.0
    max_new_tokens: int = 600
    seed: int = 0
    batch: int = 512


def sample_patched_adapters(
    folder: Path,
    base: Base,
    judge: Judge,
    questions: Sequence[dict[str, str]],
    groups: Sequence[Group],
    sampling: SamplingParams,
    resume: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Ask every cell every question and judge the answers: a row an answer, with the cell's `kind`, `row`, `column`.

    Everything is kept under `folder`; with `resume` what is there is not done again, and what comes out is the same
    to the byte. Raises InputError for answers that are there already (without `resume`) or were begun with other
    settings.
    """
    check_questions(questions)
    kept = Run(Path(folder))
    with resumable(kept.path):
        _ask(kept, base, questions, groups, sampling, resume, progress)
        answers = read_table(kept.answers_file)
        scores = read_table(judge_answers(kept, judge, resume, progress))
    scores = scores[scores["judge"] == judge.name]
    return normal_form(answers.merge(scores, on=KEY), str(kept.scores_file))


def _ask(
    kept: Run,
    base: Base,
    questions: Sequence[dict[str, str]],
    groups: Sequence[Group],
    sampling: SamplingParams,
    resume: bool,
    progress: bool,
) -> None:
    begin(kept.answers_file.with_name("ask.json"), _settings(base, questions, groups, sampling), resume)
    parts = kept.answers_file.with_name("answers.parts")
    if not kept.answers_file.exists():
        chunks = list(_chunks(groups, questions, max(1, sampling.batch // sampling.samples)))
        made = in_parts(parts, len(chunks), lambda i: _answers(base, *chunks[i], sampling, i), "ask", progress)
        _join(kept.answers_file, [rows for _, rows in chunks], made)
    clear(parts)


_Row = tuple[int, PatchedAdapter, dict[str, str]]  # the number of the cell, the cell, a question


def _chunks(
    groups: Sequence[Group], questions: Sequence[dict[str, str]], size: int
) -> Iterator[tuple[AdapterTrajectory, list[_Row]]]:
    """Rows of one batch each; adapters of different paths may differ in rank and do not share one."""
    number = 0
    for path, cells in groups:
        rows = [(number + place, cell, question) for place, cell in enumerate(cells) for question in questions]
        number += len(cells)
        for first in range(0, len(rows), size):
            yield path, rows[first : first + size]


def _answers(
    base: Base, path: AdapterTrajectory, rows: list[_Row], sampling: SamplingParams, index: int
) -> list[list[str]]:
    from em_interp.behaviour.generate import generate

    return generate(
        base.model,
        base.tokenizer,
        [chat(question) for _, _, question in rows],
        adapters_of(path, [cell for _, cell, _ in rows], base.model.device),
        sampling.samples,
        sampling.temperature,
        sampling.max_new_tokens,
        seed=int(np.random.SeedSequence([sampling.seed, index]).generate_state(1)[0]),
    )


def adapters_of(path: AdapterTrajectory, cells: Sequence[PatchedAdapter], device: Any) -> RowAdapters:
    """The adapters of the cells, one a row."""
    from em_interp.behaviour.generate import RowAdapters

    ones = [1.0] * len(cells)
    reads = RowAdapters.of(path, [cell.A for cell in cells], ones, device)
    writes = RowAdapters.of(path, [cell.B for cell in cells], [cell.multiplier for cell in cells], device)
    return RowAdapters(reads.A, writes.B)


def _join(file: Path, chunks: list[list[_Row]], made: list[list[list[str]]]) -> None:
    """All parts as one table. `step` counts the cells: with it a row has the key of a run's answers."""
    import pandas as pd

    table = []
    for rows, part_answers in zip(chunks, made, strict=True):
        for (number, cell, question), answers in zip(rows, part_answers, strict=True):
            asked = {"step": number, "scale": 1.0, "kind": cell.kind, "row": cell.row, "column": cell.column}
            asked |= {key: question[key] for key in QUESTION}
            table += [{**asked, "sample": sample, "answer": answer} for sample, answer in enumerate(answers)]
    with write_beside(file) as part:
        pd.DataFrame(table).to_parquet(part, index=False)


def _settings(
    base: Base, questions: Sequence[dict[str, str]], groups: Sequence[Group], sampling: SamplingParams
) -> dict[str, Any]:
    return {
        "base": base.identity,
        "adapters": [digest(path, [step for cell in cells for step in (cell.A, cell.B)]) for path, cells in groups],
        "cells": [list(asdict(cell).values()) for _, cells in groups for cell in cells],
        "questions": [dict(question) for question in questions],
        **asdict(sampling),
    }


# --------
# Many interventions asked the same questions: each an arm, all arms in one batch, the answers kept and judged.
# An edit takes a vector a row, so arms of any dose, layer and direction share a batch. What is asked lies in a
# folder of its own in the form of a run's answers, so that judging is the same stage as for a run and goes on where
# it was interrupted.


Held = Literal["base", "adapted"]
How = Literal["add", "project_out", "move"]
NONE, DIRECTION, RANDOM, MOVED = "none", "direction", "random", "moved"  # kinds of arms
TIMES = 4  # as many answers as another arm of the model left alone
COLUMNS = ("held", "kind", "place", "number", "dose")


@dataclass(frozen=True, eq=False)
class NormMatchedAblation(Intervention):
    """x − r̂(v̂ᵀx): as much as an ablation of v (`along`) takes away at each token, taken along r (`vector`) instead."""

    along: Any = None  # of the shape of `vector`

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x − r̂(v̂ᵀx)."""
        import torch

        along = torch.as_tensor(self.along, dtype=x.dtype, device=x.device).reshape(vector.shape)
        return x - (x * _unit(along)).sum(dim=-1, keepdim=True) * _unit(vector)

    def repeated(self, rows: Sequence[int]) -> Intervention:
        """The same edit for a batch made of these rows."""
        import torch

        along = torch.as_tensor(self.along)
        chosen = along[list(rows)] if along.ndim == 2 else along
        return replace(super().repeated(rows), along=chosen)  # type: ignore[call-arg]


def _unit(vector: torch.Tensor) -> torch.Tensor:
    length = vector.norm(dim=-1, keepdim=True)
    return vector / length.where(length > 0, 1.0)


EDITS: dict[How, Any] = {"add": AddVector, "project_out": AblateDirection, "move": NormMatchedAblation}


@dataclass(frozen=True, eq=False)
class Arm:
    """One intervention: a vector after each layer (zero: that layer is left alone) and what is done with it."""

    held: Held
    kind: str
    how: How
    vectors: Float[np.ndarray, "layer d"]
    place: str = ""  # where, in words
    number: int = 0  # which of the random ones
    dose: float = 1.0
    along: Float[np.ndarray, "layer d"] | None = None  # of a move: what is taken elsewhere
    positions: Positions = "all"  # or "new": only as generated tokens are read back in


def no_intervention(held: Held, like: Float[np.ndarray, "layer d"]) -> list[Arm]:
    """The model as it is, asked several times over: every other arm is held against it."""
    return [Arm(held, NONE, "add", np.zeros_like(like), number=number, dose=0.0) for number in range(TIMES)]


def interventions_of(arms: Sequence[Arm]) -> list[Intervention]:
    """The edits of a batch whose row i is under arm i: one for each way and layer, with a vector for each row."""
    interventions: list[Intervention] = []
    for how, positions in dict.fromkeys((arm.how, arm.positions) for arm in arms):
        like = [arm.how == how and arm.positions == positions for arm in arms]
        chosen = zip(like, arms, strict=True)
        vectors = np.stack([arm.vectors if mine else np.zeros_like(arm.vectors) for mine, arm in chosen])
        along = np.stack([np.zeros_like(arm.vectors) if arm.along is None else arm.along for arm in arms])
        for layer in np.flatnonzero(vectors.any(axis=(0, 2))).tolist():
            more = {"along": along[:, layer]} if how == "move" else {}
            interventions.append(EDITS[how](vectors[:, layer], layer, positions, **more))
    return interventions


def random_like(vectors: Float[np.ndarray, "layer d"], rng: np.random.Generator) -> Float[np.ndarray, "layer d"]:
    """A random direction after each layer, uniform and exactly as long as the one given (a zero stays zero).

    A draw from a standard normal is √d too long; it is divided by its own length.
    """
    drawn = rng.standard_normal(vectors.shape)
    return drawn * (np.linalg.norm(vectors, axis=1) / np.linalg.norm(drawn, axis=1))[:, None]


def sample_arms(
    folder: Path,
    model: TrajectoryModel,
    arms: Sequence[Arm],
    judge: Judge,
    questions: Sequence[dict[str, str]],
    sampling: SamplingParams,
    step: int | None = None,
    resume: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Ask every question under every arm and judge the answers: a row an answer, with the arm's `COLUMNS`.

    `adapted` arms are of the adapter of `step`, the last where None. Everything is kept under `folder`; with `resume`
    what is there is not done again, and what comes out is the same to the byte. Raises InputError for answers that
    are there already (without `resume`) or were begun with other settings.
    """
    check_questions(questions)
    kept = Run(Path(folder))
    step = int(model.trajectory.steps[-1]) if step is None else step
    with resumable(kept.path):
        begin(kept.answers_file.with_name("ask.json"), _arm_settings(model, arms, questions, sampling, step), resume)
        parts = kept.answers_file.with_name("answers.parts")
        if not kept.answers_file.exists():
            chunks = list(_arm_chunks(arms, questions, max(1, sampling.batch // sampling.samples)))
            made = in_parts(
                parts, len(chunks), lambda i: _sample_arms(model, chunks[i], sampling, step, i), "ask", progress
            )
            _join_arms(kept.answers_file, chunks, made)
        clear(parts)
        answers = read_table(kept.answers_file)
        scores = read_table(judge_answers(kept, judge, resume, progress))
    scores = scores[scores["judge"] == judge.name]
    return normal_form(answers.merge(scores, on=KEY), str(kept.scores_file))


_ArmRow = tuple[int, Arm, dict[str, str]]  # the number of the arm, the arm, a question


def _arm_chunks(arms: Sequence[Arm], questions: Sequence[dict[str, str]], size: int) -> Iterator[list[_ArmRow]]:
    """Rows of one batch each; the base and the adapted model do not share one."""
    for _, some in groupby(enumerate(arms), lambda numbered: numbered[1].held):
        rows = [(number, arm, question) for number, arm in some for question in questions]
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


def _sample_arms(
    model: TrajectoryModel, rows: list[_ArmRow], sampling: SamplingParams, step: int, index: int
) -> list[list[str]]:
    chats = [chat(question) for _, _, question in rows]
    interventions = interventions_of([arm for _, arm, _ in rows])
    seed = int(np.random.SeedSequence([sampling.seed, index]).generate_state(1)[0])
    with model.at(step, scale=float(rows[0][1].held == "adapted")) as held:
        return held.generate(
            chats, sampling.samples, sampling.temperature, sampling.max_new_tokens, interventions, seed, sampling.batch
        )


def _join_arms(file: Path, chunks: list[list[_ArmRow]], made: list[list[list[str]]]) -> None:
    """All parts as one table. `step` counts the arms: with it a row has the key of a run's answers."""
    import pandas as pd

    table = []
    for rows, part_answers in zip(chunks, made, strict=True):
        for (number, arm, question), answers in zip(rows, part_answers, strict=True):
            asked = {"step": number, "scale": 1.0, **{name: getattr(arm, name) for name in COLUMNS}}
            asked |= {key: question[key] for key in QUESTION}
            table += [{**asked, "sample": sample, "answer": answer} for sample, answer in enumerate(answers)]
    with write_beside(file) as part:
        pd.DataFrame(table).to_parquet(part, index=False)


def _arm_settings(
    model: TrajectoryModel,
    arms: Sequence[Arm],
    questions: Sequence[dict[str, str]],
    sampling: SamplingParams,
    step: int,
) -> dict[str, Any]:
    return {
        "base": model.base.identity,
        "adapter": digest(model.trajectory, [step]),
        "arms": [[arm.how, arm.positions, *(getattr(arm, name) for name in COLUMNS), _hash(arm)] for arm in arms],
        "questions": [dict(question) for question in questions],
        **asdict(sampling),
    }


def _hash(arm: Arm) -> str:
    """Of the vectors as they are used, in single precision."""
    found = hashlib.sha256()
    for part in (arm.vectors, arm.along):
        found.update(b"" if part is None else np.ascontiguousarray(part, np.float32).tobytes())
    return found.hexdigest()[:16]
