"""Asking adapters that no checkpoint holds: A of one step with B of another, at any size; in parts, and judged.

What is asked lies in a folder of its own in the form of a run's answers, so that judging is the same stage as for a
run and goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.ask import QUESTION, Base, check_questions
from em_interp.behaviour.judge import KEY, Judge, judge_answers
from em_interp.behaviour.tables import normal_form, read_table
from em_interp.errors import InputError
from em_interp.mechanism.asked import chat
from em_interp.runs import Run, read_json, resumable, write_beside, write_json

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.behaviour.generate import RowAdapters
    from em_interp.trajectory.adapter import AdapterTrajectory


@dataclass(frozen=True)
class Cell:
    """One adapter to ask: A of a step and B of a step, multiplied. `kind`, `row` and `column` say what it is for."""

    kind: str
    row: int
    column: int
    A: int  # step
    B: int  # step
    multiplier: float = 1.0


Group = tuple["AdapterTrajectory", list[Cell]]  # cells, and the path they take A and B from


@dataclass(frozen=True)
class Asking:
    """How cells are asked: the settings of `behaviour.ask.ask`."""

    samples: int = 6
    temperature: float = 1.0
    max_new_tokens: int = 600
    seed: int = 0
    batch: int = 512


def judged_cells(
    folder: Path,
    base: Base,
    judge: Judge,
    questions: Sequence[dict[str, str]],
    groups: Sequence[Group],
    asking: Asking,
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
        _ask(kept, base, questions, groups, asking, resume, progress)
        answers = read_table(kept.answers_file)
        scores = read_table(judge_answers(kept, judge, resume, progress))
    scores = scores[scores["judge"] == judge.name]
    return normal_form(answers.merge(scores, on=KEY), str(kept.scores_file))


def _ask(
    kept: Run,
    base: Base,
    questions: Sequence[dict[str, str]],
    groups: Sequence[Group],
    asking: Asking,
    resume: bool,
    progress: bool,
) -> None:
    from tqdm import tqdm

    _begin(kept, _settings(base, questions, groups, asking), resume)
    parts = kept.answers_file.with_name("answers.parts")
    if not kept.answers_file.exists():
        chunks = list(_chunks(groups, questions, max(1, asking.batch // asking.samples)))
        for index, (path, rows) in enumerate(tqdm(chunks, "ask", unit="batch", disable=not progress)):
            part = parts / f"{index:05}.json"
            if not part.exists():
                write_json(part, _answers(base, path, rows, asking, index))
        _join(kept.answers_file, parts, chunks)
    shutil.rmtree(parts, ignore_errors=True)


_Row = tuple[int, Cell, dict[str, str]]  # the number of the cell, the cell, a question


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


def _answers(base: Base, path: AdapterTrajectory, rows: list[_Row], asking: Asking, index: int) -> list[list[str]]:
    from em_interp.behaviour.generate import generate

    return generate(
        base.model,
        base.tokenizer,
        [chat(question) for _, _, question in rows],
        adapters_of(path, [cell for _, cell, _ in rows], base.model.device),
        asking.samples,
        asking.temperature,
        asking.max_new_tokens,
        seed=int(np.random.SeedSequence([asking.seed, index]).generate_state(1)[0]),
    )


def adapters_of(path: AdapterTrajectory, cells: Sequence[Cell], device: Any) -> RowAdapters:
    """The adapters of the cells, one a row."""
    from em_interp.behaviour.generate import RowAdapters

    ones = [1.0] * len(cells)
    reads = RowAdapters.of(path, [cell.A for cell in cells], ones, device)
    writes = RowAdapters.of(path, [cell.B for cell in cells], [cell.multiplier for cell in cells], device)
    return RowAdapters(reads.A, writes.B)


def _join(file: Path, parts: Path, chunks: Sequence[tuple[AdapterTrajectory, list[_Row]]]) -> None:
    """All parts as one table. `step` counts the cells: with it a row has the key of a run's answers."""
    import pandas as pd

    table = []
    for index, (_, rows) in enumerate(chunks):
        for (number, cell, question), answers in zip(rows, read_json(parts / f"{index:05}.json"), strict=True):
            asked = {"step": number, "scale": 1.0, "kind": cell.kind, "row": cell.row, "column": cell.column}
            asked |= {key: question[key] for key in QUESTION}
            table += [{**asked, "sample": sample, "answer": answer} for sample, answer in enumerate(answers)]
    with write_beside(file) as part:
        pd.DataFrame(table).to_parquet(part, index=False)


def _settings(
    base: Base, questions: Sequence[dict[str, str]], groups: Sequence[Group], asking: Asking
) -> dict[str, Any]:
    return {
        "base": base.identity,
        "adapters": [_digest(path, cells) for path, cells in groups],
        "cells": [list(asdict(cell).values()) for _, cells in groups for cell in cells],
        "questions": [dict(question) for question in questions],
        **asdict(asking),
    }


def _digest(path: AdapterTrajectory, cells: Sequence[Cell]) -> str:
    """A hash of the adapters asked, so that answers of others are never taken for theirs."""
    digest = hashlib.sha256()
    for step in sorted({step for cell in cells for step in (cell.A, cell.B)}):
        for site, (a, b) in path.at(step).items():
            digest.update(f"{step} {site} {path.scale[site]}".encode())
            digest.update(np.ascontiguousarray(a).tobytes() + np.ascontiguousarray(b).tobytes())
    return digest.hexdigest()[:16]


def _begin(kept: Run, settings: dict[str, Any], resume: bool) -> None:
    """Write the settings, or check that those of a stage begun earlier are the same."""
    file = kept.answers_file.with_name("ask.json")
    if not file.exists() and not kept.answers_file.exists():
        write_json(file, settings)
        return
    if not resume:
        raise InputError(f"{kept.path} holds answers already; give --resume to continue, or another --out")
    begun = read_json(file) if file.exists() else {}
    other = [key for key, value in json.loads(json.dumps(settings)).items() if begun.get(key) != value]
    if other:
        raise InputError(f"the answers in {kept.path} were begun with other {other[0]}; remove the folder to ask anew")
