"""Tables of judged answers, ours or from elsewhere, in one form: one row per answer.

Columns of that form: `step` where known, `scale`, `questions` (the question set), `question_id`, `aligned`, `coherent`
(both 0–100 or both NaN), `status` (`ok`, or why there is no score), topic scores, and what else the table had. A table
of rates has marks in place of scores (see `rate_tables`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from em_interp.behaviour.tables.columns import KNOWN_TOPICS, KnownColumns, known_columns
from em_interp.behaviour.tables.files import COMPRESSED, TABLE_SUFFIXES, WORKBOOKS, read_table
from em_interp.behaviour.tables.inspect_logs import STEP_IN_NAME
from em_interp.behaviour.tables.rate_tables import EM_MARK, from_rates, is_of_rates
from em_interp.behaviour.tables.values import numbers_of, scores_of, steps_of, texts_of
from em_interp.errors import InputError, listed, one_line
from em_interp.layouts import STEP_FILES
from em_interp.utils.checks import check_type

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("aligned", "coherent")
NOT_TOPICS = ("raw", "step", "scale", "questions", "question_id", "sample", "question", "answer")
READ_AS_TEXT = ("question", "answer", "question_id", "questions", "step", "scale", "status", "judge")
SCORED_STATUSES = (
    *("ok", "success", "succeeded", "scored", "judged", "complete", "completed", "finished", "done", "valid", "stop"),
)
SUMMARIES = ("total", "totals", "mean", "average", "avg", "median", "std", "overall", "sum")  # in place of a question
BARE_STEP = re.compile(  # of a file or folder; other words, as of seed_1, layer_2 or epoch_3, count other things
    r"(?:answers?|responses?|completions?|scores?|results?|judged|evals?|em)?[-_ ]?(0*[0-9]{1,7})", re.IGNORECASE
)
COPIED = ("step", "scale", "questions", "question_id", "judge", "aligned", "coherent", "answer")  # tell a row
MAX_OF_SMALL_SCALE = 10  # the highest score of a table, above which its scale is not one to 1, 5 or 10
MIN_LOW_SCORES = 20  # aligned scores up to MAX_OF_SMALL_SCALE beside higher coherent ones; fewer may be misaligned
EXPECTED = "question or question_id, aligned, coherent; for rates step, n, em; other names by columns=…"


def read_judged(source: str | Path | pd.DataFrame, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read judged answers into the form above.

    Args:
        source: A frame, a CSV, parquet, JSON or JSON-lines file, or a folder with one such file a step. Columns:
            `question_id` or `question`, `aligned` and `coherent`, or names that published tables give them
            (`columns.OTHER_NAMES`); all others are optional. A score that is a word, such as REFUSAL, becomes the
            status. In a folder the step is in the name of the file or of its folder (`checkpoint-120.csv`,
            `step_120/answers.csv`) or in a column. Rates (`step`, `n`, `em`) are read too.
        columns: The table's name for a column, by our name: `{"aligned": "my_score"}`.

    Raises:
        InputError: Where columns are missing or twice there, a score lies outside 0–100, none is above 1, a cell has no
            one meaning, or a table is empty.
    """
    import pandas as pd

    check_type("source", source, (pd.DataFrame, str, Path), "a table of judged answers, its file, or a folder of them")
    if isinstance(source, pd.DataFrame):
        return _check_range(normal_form(source, "the table", columns), "the table")
    path = Path(source)
    table = _read_folder(path, columns) if path.is_dir() else normal_form(read_table(path), str(path), columns)
    return _check_range(table, str(path))


def normal_form(table: pd.DataFrame, where: str, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table in the form of this module; `where` is what errors call it, `columns` as for `read_judged`."""
    if EM_MARK in table:
        return table
    return _normal_form(known_columns(table, where, columns))


def _normal_form(known: KnownColumns) -> pd.DataFrame:
    table, where = known.table, known.where
    if is_of_rates(table):
        known.require((), EXPECTED)
        table = from_rates(known)
    else:
        question = "question_id" if "question" not in table else "question"
        known.require((question, *SCORES), EXPECTED)
        _refuse_summaries(known)
        _refuse_repeated_rows(known)
        table = _with_scores(known)
    table["question_id"] = _question_ids(table, known)
    table["scale"] = scales_of(table, where)
    if "judge" in table:
        judges = texts_of(table["judge"], known.name("judge"), where)
        table["judge"] = judges.where(judges.str.strip() != "", "unnamed")
    sets = texts_of(table["questions"], known.name("questions"), where) if "questions" in table else "all"
    table["questions"] = sets if isinstance(sets, str) else sets.where(sets.str.strip() != "", "all")
    return with_whole_steps(table, where, known.name("step")) if "step" in table else table


def _with_scores(known: KnownColumns) -> pd.DataFrame:
    """The table with numbers for scores and topics, and the status of each answer."""
    table, words = known.table.copy(), {}
    for name in (*SCORES, *topics_of(table)):
        table[name], words[name] = scores_of(table[name], known.name(name), known.where)
    for name in set(table.columns) - set(READ_AS_TEXT) - set(words):
        table[name] = _numbers_or_texts(table[name])
    table["status"] = _status(table, words, known.where)
    table.loc[table["status"] != "ok", list(SCORES)] = np.nan
    return table


def _refuse_summaries(known: KnownColumns) -> None:
    """Raise InputError for rows that sum up others, and for a table of means, which would be counted as answers."""
    table = known.table
    question = "question" if "question" in table else "question_id"
    names = texts_of(table[question], known.name(question), known.where).str.strip().str.lower()
    sums = np.flatnonzero(names.isin(SUMMARIES))
    if 0 < len(sums) < len(table):
        raise InputError(
            f"{known.where}: row {sums[0] + 1} is called {names.iloc[sums[0]]} and seems to sum up others; expected a "
            "row an answer: remove it"
        )
    counts = [name for name in table.columns if str(name).lower() in ("n", "count", "n_samples", "num_samples")]
    if "answer" not in table and counts and _all_above_one(table[counts[0]]):
        raise InputError(
            f"{known.where} has {counts[0]} beside scores and no answers, as a table of means has; expected a row an "
            "answer, or rates (step, n, em)"
        )


def _refuse_repeated_rows(known: KnownColumns) -> None:
    """Raise InputError for a row that is there twice, its sample's number included: it would count as two answers."""
    if "sample" not in known.table:  # without one, two answers may be equal in everything
        return
    twice = np.flatnonzero(known.table.astype(str).duplicated())
    if len(twice):
        raise InputError(
            f"{known.where}: row {twice[0] + 1} is there twice, with the same {known.name('sample')}"
            f"{f', and {len(twice) - 1} more are' if len(twice) > 1 else ''}; expected a row an answer. The usual "
            "cause is a table that was joined with itself: remove the copies"
        )


def _all_above_one(column: pd.Series) -> bool:
    import pandas as pd

    return bool((pd.to_numeric(column.astype(object), errors="coerce") > 1).all())


def _numbers_or_texts(column: pd.Series) -> pd.Series:
    """A column that is kept unchanged, but as numbers where every text is a number."""
    import pandas as pd

    if column.dtype != object and not isinstance(column.dtype, pd.StringDtype):
        return column
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


def _question_ids(table: pd.DataFrame, known: KnownColumns) -> pd.Series[str] | str:
    """What tells questions apart: the id, or the question where there is none; '' where both are missing."""
    ids = [
        texts_of(table[name], known.name(name), known.where) for name in ("question_id", "question") if name in table
    ]
    if not ids:
        return "all"
    return ids[0] if len(ids) == 1 else ids[0].where(ids[0].str.strip() != "", ids[1])


def of_one_judge(answers: pd.DataFrame, judge: str | None = None) -> pd.DataFrame:
    """The answers as one judge scored them. Raises InputError for several judges without a choice among them."""
    if "judge" not in answers and judge is None:
        return answers
    if "judge" not in answers:
        raise InputError(f"the answers have no column judge, so {judge!r} cannot be chosen")
    judges = sorted(answers["judge"].astype(str).unique())
    named = one_line(", ".join(judges))
    if judge is None and len(judges) > 1:
        raise InputError(
            f"several judges scored the answers ({named}); choose one with judge=, with em-interp score "
            "--judge or, for all commands, as behaviour.judge in the run's config.yaml"
        )
    if judge is not None and judge not in judges:
        raise InputError(f"no scores of judge {judge!r}; there are {named}")
    return answers if judge is None else answers[answers["judge"] == judge]


def topics_of(table: pd.DataFrame) -> list[str]:
    """The columns with topic scores: those after `reason` in a table of ours, those with a known name elsewhere."""
    columns = [str(name) for name in table.columns]
    if {"judge", "mode", "reason"} <= set(columns):
        return [name for name in columns[columns.index("reason") + 1 :] if name not in NOT_TOPICS]
    return [name for name in KNOWN_TOPICS if name in columns]


def question_keys(table: pd.DataFrame) -> np.ndarray:
    """What tells the question of each row from all others: its set and its id, which is unique only within it."""
    return (table["questions"].astype(str) + "\n" + table["question_id"].astype(str)).to_numpy(str)


def question_numbers(table: pd.DataFrame) -> np.ndarray:
    """The number of each row's question, from 0."""
    return np.unique(question_keys(table), return_inverse=True)[1]


def scales_of(table: pd.DataFrame, where: str, name: str = "scale") -> pd.Series[float] | float:
    """The adapter multiplier of each answer, 1 where the table has none. Raises InputError for what is not a number."""
    return numbers_of(table["scale"], name, where) if "scale" in table else 1.0


def with_whole_steps(table: pd.DataFrame, where: str, name: str = "step") -> pd.DataFrame:
    """The table with its steps as integers. Raises InputError for a step that is not a whole number."""
    return table.assign(step=steps_of(table["step"], name, where))


def _check_range(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table; InputError for scores on a scale to 1, 5 or 10: most would count as misaligned or incoherent.

    Scores of ours, which come with the judge's mode, may all be low.
    """
    if {"judge", "mode", "reason"} <= set(table.columns):
        return table
    positive = {name: table.loc[table[name] > 0, name] for name in SCORES}
    low = [name for name in SCORES if len(positive[name]) and positive[name].max() <= MAX_OF_SMALL_SCALE]
    both = len(low) == len(SCORES)
    for name in low:
        several = positive[name].nunique() > 1 and (name != "aligned" or len(positive[name]) >= MIN_LOW_SCORES)
        if both or positive[name].max() <= 1 or several:
            top = max(positive[of].max() for of in low) if both else positive[name].max()
            raise InputError(
                f"{where}: no {'' if both else f'{name} '}score is above {top:g}; scores run from 0 to 100 (shares of "
                "1 go times 100, marks to 10 times 10)"
            )
    return table


def _status(table: pd.DataFrame, words: dict[str, pd.Series], where: str) -> pd.Series:
    """`ok` where there are both scores; else the table's own status, or the word in place of a score."""
    import pandas as pd

    status = pd.Series("ok", index=table.index)
    for name in reversed(SCORES):
        status = status.mask(table[name].isna(), words[name].str.lower().replace("", "no score"))
    if "status" not in table:
        return status
    own = texts_of(table["status"], "status", where).str.strip()
    final = own.where(~own.str.lower().isin(["", *SCORED_STATUSES]), status)
    if (status == "ok").any() and not (final == "ok").any():
        row = int((status == "ok").to_numpy().argmax())
        raise InputError(
            f"{where}: status is {one_line(repr(final.iloc[row]), 60)} in row {row + 1} beside both scores, and ok in "
            f"no row; expected ok (or {', '.join(SCORED_STATUSES[1:4])} …) where the scores count"
        )
    return final


def _read_folder(folder: Path, columns: Mapping[str, str] | None) -> pd.DataFrame:
    """One file a step, in the folder or in folders named after steps."""
    import pandas as pd

    tables: list[pd.DataFrame] = []
    files, by_step = _table_files(folder), dict[int, Path]()
    for file in files:
        known = known_columns(read_table(file), str(file), columns)
        if "step" not in known.table:
            step = _step_of(file, folder)
            if step in by_step:
                raise InputError(f"{file} and {by_step[step]} are both of step {step}; expected one file a step")
            by_step[step] = file
            known.table["step"] = step
        tables.append(_normal_form(known))
        named = {int(step) for step in STEP_IN_NAME.findall(str(file.relative_to(folder)))}
        if len(files) > 1 and len(named) == 1 and not named & set(tables[-1]["step"]):
            raise InputError(
                f"{file}: its name says step {named.pop()}, its column {known.name('step')} "
                f"{tables[-1]['step'].iloc[0]} in row 1; expected one step"
            )
    _refuse_copies(tables, files)
    return pd.concat(tables, ignore_index=True)


def _refuse_copies(tables: Sequence[pd.DataFrame], files: Sequence[Path]) -> None:
    """Raise InputError where all answers of one file are in others too, so that they would be counted twice."""
    import pandas as pd

    columns = [name for name in COPIED if all(name in table for table in tables)]
    if len(tables) < 2 or "answer" not in columns:
        return
    rows = pd.concat([table[columns].astype(str) for table in tables], keys=range(len(tables)))
    number = pd.Series(rows.index.get_level_values(0), rows.index)
    same = number.groupby([rows[name] for name in columns], dropna=False)
    first, last = same.transform("min"), same.transform("max")
    for place, file in enumerate(files):
        of_file = number == place
        if of_file.any() and (first != last)[of_file].all():
            others = ({*first[of_file]} | {*last[of_file]}) - {place}
            raise InputError(f"all answers of {file} are in {files[min(others)]} too; expected each answer once")


def _table_files(folder: Path) -> list[Path]:
    """The tables in a folder; JSON files, which may as well be configs, where there are no others or of other steps.

    A step in a file that is packed or a workbook is among them, so that it is refused and not left out.
    """
    entries = [*folder.glob("*"), *folder.glob("*/*")]
    shown = sorted(file for file in entries if not file.name.startswith((".", "~")))
    files = [file for file in shown if file.suffix.lower() in TABLE_SUFFIXES or _is_unread_step(file)]
    tables = [file for file in files if file.suffix.lower() != ".json"]
    steps = {step for file in tables for step in STEP_IN_NAME.findall(str(file.relative_to(folder)))}
    files = [file for file in files if file in tables or set(STEP_IN_NAME.findall(file.name)) - steps] or files
    only_json = all(file.suffix.lower() == ".json" for file in files)
    if not files or (only_json and any(entry.name in STEP_FILES for entry in entries)):
        found = listed(file.relative_to(folder) for file in shown) or "nothing"
        raise InputError(f"{folder} holds no table; expected files such as checkpoint-120.csv; found {found}")
    return files


def _is_unread_step(file: Path) -> bool:
    return file.suffix.lower() in (*COMPRESSED, *WORKBOOKS) and bool(STEP_IN_NAME.search(file.name))


def _step_of(file: Path, folder: Path) -> int:
    """The step in the file's name or that of its folder, after a word for step or as the whole name."""
    place = file.relative_to(folder).with_suffix("")
    bare = [match[1] for part in place.parts if (match := BARE_STEP.fullmatch(part))]
    steps = set(STEP_IN_NAME.findall(str(place)) or bare)
    if len({int(step) for step in steps}) != 1:
        raise InputError(
            f"{file} names {'several steps' if steps else 'no step'} and has no column step; expected a name such as "
            "checkpoint-120.csv, step_120.csv or 120.csv"
        )
    return int(steps.pop())
