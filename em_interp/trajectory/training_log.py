"""The log of a run as a table by step: what `trainer_state.json` or a file of JSON lines contains.

A log is used for what it covers. A value that is missing there (no number, NaN, infinite, or a negative gradient norm,
which is how DeepSpeed writes an overflow) is missing here too and counted, and a log that cannot be read is named and
passed over: the adapters do not depend on it. What is to be known about the log is said in `Log.notes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from em_interp.errors import InputError
from em_interp.layouts import LOG_FILE, MAX_STEP
from em_interp.utils.checks import described
from em_interp.utils.files import is_json_lines, json_lines, read_json, read_text

METRICS = ("loss", "eval_loss", "grad_norm", "learning_rate", "cumulative_lr", "grad_norm_A", "grad_norm_B", "kl")
NEVER_NEGATIVE = ("grad_norm", "learning_rate", "cumulative_lr", "grad_norm_A", "grad_norm_B")
LOG_SUFFIXES = (".json", ".jsonl", ".ndjson")  # of a log that is given alone
MAX_TWICE = 2  # steps that may have two values of one metric: those at which a run was resumed
SAME = 1e-6  # two values are the same up to this share
MAX_FIRST_GAP = 3  # logged intervals before the first row; beyond them the learning rates there are not known


@dataclass(frozen=True)
class Log:
    """What was logged."""

    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(index=pd.Index([], name="step", dtype=int)))
    notes: tuple[str, ...] = ()  # what is missing in it
    file: Path | None = None

    @property
    def last(self) -> int:
        """The last step that it reaches; -1 where there is none."""
        return int(self.table.index.max()) if len(self.table) else -1


def find_log(root: Path, checkpoints: Iterable[Path], last: int) -> Log:
    """The log of a run: of the root's and the last checkpoint's that has one, the one that reaches further.

    Where they differ in a step, the root's is of another run, as an earlier one in the same folder leaves it.

    Args:
        root: The run, or the folder with its checkpoints.
        checkpoints: The folders of the steps, the last one first.
        last: The last saved step, to which a log should reach.
    """
    logs, notes = [], []
    for folders in ([root], checkpoints):
        for file in (folder / LOG_FILE for folder in folders):
            if not file.is_file():
                continue
            try:
                logs.append(read_log(file))
                break
            except InputError as error:
                notes.append(f"a log was not used: {error}")
    if not logs:
        return Log(notes=tuple(notes))
    best = max(logs, key=lambda log: log.last)  # the root's, where they reach equally far
    if len(logs) > 1 and (n_steps := _count_differing(*logs)):
        best = logs[1]
        notes.append(
            f"{logs[0].file} is of another run and was not used: it differs from {best.file} at {n_steps} steps"
        )
    notes += best.notes
    if best.last < last:
        notes.append(f"{best.file} ends at step {best.last}, before the last checkpoint ({last})")
    return Log(best.table, tuple(notes), best.file)


def _count_differing(log: Log, other: Log) -> int:
    """The number of steps at which both have a value that is not the same."""
    steps, names = log.table.index.intersection(other.table.index), log.table.columns.intersection(other.table.columns)
    one, two = (each.table.loc[steps, names].to_numpy() for each in (log, other))
    return int((np.abs(one - two) > SAME * np.abs(two)).any(axis=1).sum())


def read_log(file: Path) -> Log:
    """The log in a file: a `trainer_state.json`, a JSON list of rows, or JSON lines with `step` in each.

    Columns are those of METRICS that were logged, NaN at steps without them. Where steps go back, as after resuming
    from an earlier checkpoint, the later rows replace all from their step on. `cumulative_lr`, where the run did not
    log it, is the sum of the learning rates so far, taking each as constant since the logged step before.

    Raises InputError where the file holds no such rows.
    """
    rows, notes = log_rows(file), []
    logged = [row for row in rows if _step(row) is not None]
    kept = _after_last_return(logged)
    _check_order(file, logged, kept)
    lost = {row["step"] for row in logged} - {row["step"] for row in kept}
    if lost:
        notes.append(f"{file}: {len(lost)} steps were logged before a return to an earlier one only, and were left out")
    without = sum(any(name in row for name in METRICS) and _step(row) is None for row in rows)
    if without:
        notes.append(f"{file}: {without} of {len(rows)} rows have no whole step and were left out")
    columns: dict[str, list[float]] = {name: [_value(name, row.get(name)) for row in kept] for name in METRICS}
    for name, values in columns.items():
        given = sum(name in row and row[name] is not None for row in kept)
        missing = given - int(np.isfinite(values).sum())
        if missing:
            notes.append(f"{file}: {missing} of {given} values of {name} are missing (NaN, infinite, negative or text)")
    table = pd.DataFrame(columns, index=pd.Index([_step(row) for row in kept], name="step", dtype=int))
    table = table.groupby("step").last().dropna(axis=1, how="all")  # several rows a step: training, evaluation
    return Log(_with_cumulative_lr(table), tuple(notes), file)


def log_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a log as they are in its file; InputError where it holds none."""
    rows: Any
    text = read_text(file)
    if file.suffix in (".jsonl", ".ndjson") or is_json_lines(text):
        rows = [row for _, row in json_lines(text, file, "one row")]
    else:
        state = read_json(file)
        rows = state.get("log_history", state) if isinstance(state, dict) else state
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file} should have a list of rows with step, called log_history; it has {described(rows)}")
    return rows


def _step(row: dict[str, Any]) -> int | None:
    """The step of a row; None where it is no whole number from 0 to MAX_STEP."""
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 <= step <= MAX_STEP or step != int(step):
        return None
    return int(step)


def _check_order(file: Path, logged: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
    """Raise InputError for steps that only go down, and for steps with two different values of one metric."""
    if len(logged) > 2 and all(row["step"] > after["step"] for row, after in itertools.pairwise(logged)):
        raise InputError(f"{file}: the steps go down from row to row, as where the newest comes first; sort it by step")
    values: dict[tuple[int, str], set[float]] = {}
    for row in kept:
        for name in METRICS:
            if isfinite(value := _value(name, row.get(name))):
                values.setdefault((int(row["step"]), name), set()).add(value)
    twice = sorted({step for (step, _), different in values.items() if len(different) > 1})
    if len(twice) > MAX_TWICE:
        raise InputError(
            f"{file}: {len(twice)} steps (the first {twice[0]}) have two different values of one metric, as where "
            "several processes or runs write one log; expected one row a step"
        )


def _after_last_return(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those that were logged again after a return to an earlier step."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1]["step"] > row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _value(name: str, value: Any) -> float:
    """A logged value; NaN where it is missing."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]  # one learning rate for each group of parameters
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else np.nan
    except (ValueError, OverflowError):
        number = np.nan
    return number if isfinite(number) and not (name in NEVER_NEGATIVE and number < 0) else np.nan


def _with_cumulative_lr(table: pd.DataFrame) -> pd.DataFrame:
    if "learning_rate" not in table or "cumulative_lr" in table:
        return table
    rate = table["learning_rate"].dropna()
    spans = np.diff(rate.index.to_numpy(), prepend=0)
    if len(spans) > 1 and spans[0] > MAX_FIRST_GAP * np.median(spans[1:]):
        return table  # the log begins within the run
    return table.assign(cumulative_lr=(rate * spans).cumsum())
