"""Tables of answers from elsewhere, ready to be judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.behaviour.judge import KEY
from em_interp.behaviour.tables import RENAMED, read_table, scales_of, with_whole_steps
from em_interp.errors import InputError
from em_interp.files import resumable, write_beside
from em_interp.run import Run

if TYPE_CHECKING:
    import pandas as pd

DEFAULTS: dict[str, int | float | str] = {"step": 0, "scale": 1.0, "questions": "all"}
TEXT_COLUMNS = ("question", "answer", "response", "question_id", "questions")


def read_answers(path: Path) -> pd.DataFrame:
    """The answers in a CSV or parquet file, in the form of a run's: KEY, question and answer, a row an answer.

    The file has `question` and `answer` (or `response`), and optionally `step`, `scale`, `questions` and `question_id`;
    samples are numbered anew, in the order of the file. Raises InputError where a column is missing, a step is not a
    whole number, or a scale not a number.
    """
    import pandas as pd

    table = read_table(path)
    if path.suffix != ".parquet":  # read the texts again as text: an answer may be the word None, or empty
        texts = pd.read_csv(path, keep_default_na=False, dtype=str, usecols=lambda name: name in TEXT_COLUMNS)
        table[list(texts.columns)] = texts
    table = table.rename(columns={old: new for old, new in RENAMED.items() if new not in table})
    missing = [name for name in ("question", "answer") if name not in table]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; expected question and answer (or response); "
            f"found {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise InputError(f"{path} holds no answers; expected a row an answer")
    table = table.assign(answer=table["answer"].fillna("").astype(str), question=table["question"].astype(str))
    for name, default in (*DEFAULTS.items(), ("question_id", table["question"])):
        if name not in table:
            table[name] = default
    table = with_whole_steps(table.assign(scale=scales_of(table, str(path))), str(path))
    group = [name for name in KEY if name != "sample"]
    table["sample"] = table.groupby(group, sort=False, dropna=False).cumcount()
    return table[[*KEY, "question", "answer"]]


def adopt(path: Path, out: Path) -> Run:
    """Make a run directory `out` that has the answers of a table and nothing else yet.

    Raises InputError where `out` has a run or other answers, and where it cannot be written.
    """
    answers, run = read_answers(path), Run(out)
    if run.config_file.exists() or run.checkpoints.is_dir():
        raise InputError(f"{out} holds a run; give another --out for the answers of {path}")
    if run.answers_file.exists():
        if not read_table(run.answers_file).equals(answers):
            raise InputError(f"{out} holds other answers than {path}; give another --out")
        return run
    with resumable(out), write_beside(run.answers_file) as part:
        answers.to_parquet(part, index=False)
    return run
