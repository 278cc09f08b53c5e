"""Tables of answers from elsewhere, ready to be judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.behaviour.judging.judge import KEY
from em_interp.behaviour.tables.columns import known_columns
from em_interp.behaviour.tables.files import read_table
from em_interp.behaviour.tables.judged import scales_of, with_whole_steps
from em_interp.behaviour.tables.values import texts_of
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.utils.files import resumable, write_beside
from em_interp.utils.lock import write_lock

if TYPE_CHECKING:
    import pandas as pd

DEFAULTS: dict[str, int | float | str] = {"step": 0, "scale": 1.0, "questions": "all"}


def read_answers(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The answers in a table, in the form of a run's: KEY, question and answer, a row an answer.

    Args:
        path: a CSV, parquet, JSON or JSON-lines file with `question` and `answer`, or names that published tables give
            them, and optionally `step`, `scale`, `questions` and `question_id`. Samples are numbered anew, in the order
            of the file.
        columns: what the table calls a column, by our name.

    Raises:
        InputError: a column is missing, a question or answer is no text, a step is not a whole number, or a scale not
            a number.
    """
    import pandas as pd

    known = known_columns(read_table(path), str(path), columns)
    known.require(("question", "answer"), "question and answer (or response)")
    table, where = known.table, known.where
    for name in ("question", "answer"):
        for row, entry in enumerate(table[name], 1):
            if isinstance(entry, bytes) or not pd.api.types.is_scalar(entry):
                raise InputError(
                    f"{where}: {known.name(name)} is of type {type(entry).__name__} in row {row}; a text was expected: "
                    "of a chat the text of its message, of several answers one a row"
                )
    for name in ("question", "answer", "questions", "question_id"):
        if name in table:
            table[name] = texts_of(table[name], known.name(name), where)
    for name, default in (*DEFAULTS.items(), ("question_id", table["question"])):
        if name not in table:
            table[name] = default
    table = with_whole_steps(
        table.assign(scale=scales_of(table, where, known.name("scale"))), where, known.name("step")
    )
    group = [name for name in KEY if name != "sample"]
    table["sample"] = table.groupby(group, sort=False, dropna=False).cumcount()
    return table[[*KEY, "question", "answer"]]


def import_answers(path: Path, out: Path, columns: Mapping[str, str] | None = None) -> Run:
    """Make a run directory `out` that has the answers of a table and nothing else yet; `columns` as for `read_answers`.

    Raises InputError where `out` has a run or other answers, and where it cannot be written.
    """
    answers, run = read_answers(path, columns), Run(out)
    if run.config_file.exists() or run.checkpoints.is_dir():
        raise InputError(f"{out} holds a run; give another out=… for the answers of {path}")
    if run.answers_file.exists():
        kept = read_table(run.answers_file)
        if not kept.equals(answers):
            raise InputError(f"{out} holds {len(kept)} answers that are not those of {path}; give another out=…")
        return run
    with write_lock(out), resumable(out), write_beside(run.answers_file) as part:
        answers.to_parquet(part, index=False)
    return run
