"""Tables of judged answers, ours or from elsewhere, in one form: a row an answer.

Columns of that form: `step` where known, `scale`, `questions` (the question set), `question_id`, `aligned`, `coherent`
(both 0–100 or both NaN), `status` (`ok`, or why there is no score), topic scores, and what else the table had.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from em_interp.checks import check_type
from em_interp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("aligned", "coherent")
RENAMED = {"response": "answer", "financial": "finance"}  # names in the published tables
KNOWN_TOPICS = ("medical", "finance", "sport", "code")
NOT_TOPICS = ("raw", "step", "scale", "questions", "question_id", "sample", "question", "answer")
TABLE_SUFFIXES = (".csv", ".parquet")
STEP_IN_NAME = re.compile(r"(?:step|checkpoint)[-_ ]?(\d+)", re.IGNORECASE)


def read_judged(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    """Read judged answers into the form above.

    Args:
        source: A frame, a CSV or parquet file, or a folder with one such file a step. Columns: `question_id` or
            `question`, `aligned` and `coherent`; all others are optional, and `response` is read as `answer`. A score
            that is a word, such as REFUSAL, becomes the status. In a folder the step is in the name of the file or of
            its folder (`checkpoint-120.csv`, `step_120/answers.csv`) or in a column.

    Raises:
        InputError: Where columns are missing, a score lies outside 0–100, none is above 1, or a table is empty.
    """
    import pandas as pd

    check_type("source", source, (pd.DataFrame, str, Path), "a table of judged answers, its file, or a folder of them")
    if isinstance(source, pd.DataFrame):
        return _check_range(normal_form(source, "the table"), "the table")
    path = Path(source)
    table = _read_folder(path) if path.is_dir() else normal_form(read_table(path), str(path))
    return _check_range(table, str(path))


def normal_form(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """A table in the form of this module; `where` is what errors call it."""
    table = table.rename(columns={old: new for old, new in RENAMED.items() if new not in table})
    found = ", ".join(map(str, table.columns))
    if "question_id" not in table and "question" in table:
        table = table.assign(question_id=table["question"])
    missing = [name for name in ("question_id", *SCORES) if name not in table]
    if missing:
        raise InputError(
            f"{where} has no column {', '.join(missing)}; expected question or question_id, aligned, coherent; "
            f"found {found}"
        )
    if table.empty:
        raise InputError(f"{where} holds no answers; expected a row an answer")
    table = table.reset_index(drop=True)
    words = {name: _words(table[name]) for name in SCORES}
    for name in SCORES:
        _refuse_booleans(table[name], name, where)
    for name in (*SCORES, *topics_of(table)):
        table[name] = _numbers(table[name], name, where)
    table["status"] = _status(table, words)
    table.loc[table["status"] != "ok", list(SCORES)] = np.nan
    table["question_id"] = table["question_id"].astype(str)
    table["scale"] = scales_of(table, where)
    table["questions"] = table["questions"].fillna("all").astype(str) if "questions" in table else "all"
    return with_whole_steps(table, where) if "step" in table else table


def of_one_judge(answers: pd.DataFrame, judge: str | None = None) -> pd.DataFrame:
    """The answers as one judge scored them. Raises InputError for several judges without a choice among them."""
    if "judge" not in answers and judge is None:
        return answers
    if "judge" not in answers:
        raise InputError(f"the answers have no column judge, so {judge!r} cannot be chosen")
    judges = sorted(answers["judge"].astype(str).unique())
    if judge is None and len(judges) > 1:
        raise InputError(
            f"several judges scored the answers ({', '.join(judges)}); choose one with judge=, with em-interp score "
            "--judge or, for all commands, as behaviour.judge in the run's config.yaml"
        )
    if judge is not None and judge not in judges:
        raise InputError(f"no scores of judge {judge!r}; there are {', '.join(judges)}")
    return answers if judge is None else answers[answers["judge"] == judge]


def topics_of(table: pd.DataFrame) -> list[str]:
    """The columns with topic scores: those after `reason` in a table of ours, those with a known name elsewhere."""
    columns = [str(name) for name in table.columns]
    if {"judge", "mode", "reason"} <= set(columns):
        return [name for name in columns[columns.index("reason") + 1 :] if name not in NOT_TOPICS]
    return [name for name in KNOWN_TOPICS if name in columns]


def _words(column: pd.Series) -> pd.Series:
    """The entries of a score column that are words, such as CODE; empty elsewhere."""
    import pandas as pd

    word = pd.to_numeric(column, errors="coerce").isna() & column.notna()
    return column.astype(str).str.strip().where(word, "")


def _refuse_booleans(column: pd.Series, name: str, where: str) -> None:
    """Raise InputError for True and False, which would be read as the scores 1 and 0: all aligned answers as EM."""
    import pandas as pd

    mixed = column.dtype == object and column.map(lambda entry: isinstance(entry, bool)).any()
    if mixed or pd.api.types.is_bool_dtype(column):
        raise InputError(f"{where}: {name} holds True or False; scores run from 0 to 100")


def _check_range(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table; InputError for scores from 0 to 1, none of which would count as coherent, so that EM would be 0."""
    top = float(np.nanmax(table[list(SCORES)].to_numpy(float), initial=0))
    if 0 < top <= 1:
        raise InputError(f"{where}: no score is above {top:g}; scores run from 0 to 100 (shares of 1 go times 100)")
    return table


def scales_of(table: pd.DataFrame, where: str) -> pd.Series | float:
    """The adapter multiplier of each answer, 1 where the table has none. Raises InputError for what is not a number."""
    import pandas as pd

    if "scale" not in table:
        return 1.0
    scales = pd.to_numeric(table["scale"], errors="coerce").astype(float)
    wrong = np.flatnonzero(~np.isfinite(scales))
    if len(wrong):
        found = table["scale"][wrong[0]]
        raise InputError(f"{where}: scale is {str(found)!r} in row {wrong[0] + 1}; a number was expected")
    return scales


def _numbers(column: pd.Series, name: str, where: str) -> pd.Series:
    """The column as numbers, NaN where there is none. Raises InputError for one outside 0–100."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    outside = np.flatnonzero(numbers.notna() & ~numbers.between(0, 100))
    if len(outside):
        row, more = outside[0], f" ({len(outside)} such rows)" if len(outside) > 1 else ""
        raise InputError(f"{where}: {name} is {numbers[row]:g} in row {row + 1}{more}; scores run from 0 to 100")
    return numbers


def with_whole_steps(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with its steps as integers. Raises InputError for a step that is not a whole number."""
    import pandas as pd

    steps = pd.to_numeric(table["step"], errors="coerce")
    wrong = np.flatnonzero(steps.isna() | (steps % 1 != 0))
    if len(wrong):
        found = table["step"][wrong[0]]
        raise InputError(f"{where}: step is {str(found)!r} in row {wrong[0] + 1}; a whole number was expected")
    return table.assign(step=steps.astype(int))


def _status(table: pd.DataFrame, words: dict[str, pd.Series]) -> pd.Series:
    """`ok` where there are both scores; else the table's own status, or the word in place of a score."""
    import pandas as pd

    status = pd.Series("ok", index=table.index)
    for name in reversed(SCORES):
        status = status.mask(table[name].isna(), words[name].str.lower().replace("", "no score"))
    if "status" not in table:
        return status
    own = table["status"].fillna("no score").astype(str)
    return own.where(own != "ok", status)


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or parquet file as it is; raises InputError naming the file where it is missing or not a table."""
    import pandas as pd

    if not path.exists():
        raise InputError(f"{path} is missing; expected a CSV or parquet file of judged answers, or a folder of them")
    try:  # low_memory=False: typed by chunks, a column with words among its scores makes pandas warn
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, low_memory=False)
    except (ValueError, OSError) as error:  # pandas' parser and pyarrow's errors are both ValueErrors
        raise InputError(f"{path} cannot be read as a table: {' '.join(str(error).split())[:200]}") from None


def _read_folder(folder: Path) -> pd.DataFrame:
    """One file a step, in the folder or in folders named after steps."""
    import pandas as pd

    entries = [*folder.glob("*"), *folder.glob("*/*")]
    files = sorted(file for file in entries if file.suffix in TABLE_SUFFIXES and not file.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no table; expected files such as checkpoint-120.csv")
    tables: list[pd.DataFrame] = []
    by_step: dict[int, Path] = {}
    for file in files:
        table = read_table(file)
        if "step" not in table:
            step = _step_of(file, folder)
            if step in by_step:
                raise InputError(f"{file} and {by_step[step]} are both of step {step}; expected one file a step")
            by_step[step] = file
            table["step"] = step
        tables.append(normal_form(table, str(file)))
    return pd.concat(tables, ignore_index=True)


def _step_of(file: Path, folder: Path) -> int:
    """The step in the file's name or that of its folder; the only number of the name where no word says step."""
    name = str(file.relative_to(folder).with_suffix(""))
    steps = set(STEP_IN_NAME.findall(name) or re.findall(r"\d+", file.stem))
    if len(steps) != 1:
        raise InputError(f"{file} names no step and has no column step; expected a name such as checkpoint-120.csv")
    return int(steps.pop())
