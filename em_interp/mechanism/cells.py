"""Asking adapters that no checkpoint holds: A of one step with B of another, at any size; in parts, and judged.

What is asked lies in a folder of its own in the form of a run's answers, so that judging is the same stage as for a
run and goes on where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.ask import QUESTION, Base, check_questions
from em_interp.behaviour.judge import KEY, Judge, judge_answers
from em_interp.behaviour.tables import normal_form, read_table
from em_interp.mechanism.asked import chat, digest
from em_interp.mechanism.parts import begin, clear, in_parts
from em_interp.runs import Run, resumable, write_beside

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
    begin(kept.answers_file.with_name("ask.json"), _settings(base, questions, groups, asking), resume)
    parts = kept.answers_file.with_name("answers.parts")
    if not kept.answers_file.exists():
        chunks = list(_chunks(groups, questions, max(1, asking.batch // asking.samples)))
        made = in_parts(parts, len(chunks), lambda i: _answers(base, *chunks[i], asking, i), "ask", progress)
        _join(kept.answers_file, [rows for _, rows in chunks], made)
    clear(parts)


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
    base: Base, questions: Sequence[dict[str, str]], groups: Sequence[Group], asking: Asking
) -> dict[str, Any]:
    return {
        "base": base.identity,
        "adapters": [digest(path, [step for cell in cells for step in (cell.A, cell.B)]) for path, cells in groups],
        "cells": [list(asdict(cell).values()) for _, cells in groups for cell in cells],
        "questions": [dict(question) for question in questions],
        **asdict(asking),
    }
