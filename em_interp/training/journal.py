"""The log of a run: one row a step, safe from the moment the step is done."""

from __future__ import annotations

import json
import time
from typing import Any

from em_interp.errors import InputError
from em_interp.runs import Run, read_json, to_json, write_json, write_text

Row = dict[str, Any]
REWRITE_AFTER = 5.0  # seconds between two versions of trainer_state.json while training


class Journal:
    """The rows of a run's log: each is appended to a file at once, and trainer_state.json follows every few seconds.

    A kill loses no row. trainer_state.json has the form of transformers' own, which readers of runs know; it is
    written too when the journal, used as a context, is left for whatever reason.
    """

    def __init__(self, run: Run, last: int, after: int = 0) -> None:
        """Begin the log of a run of `last` steps, or go on with the rows kept up to step `after`."""
        self.run, self.last = run, last
        self.rows = [row for row in _read(run) if row["step"] <= after]
        if [row["step"] for row in self.rows] != list(range(1, after + 1)):
            raise InputError(f"{_file(run)} has {len(self.rows)} rows; {after} were expected, so the run cannot go on")
        write_text(_file(run), "".join(map(_line, self.rows)))
        self._handle = _file(run).open("a", encoding="utf-8")
        self._written = time.monotonic()

    def add(self, row: Row) -> None:
        """Append the row of the step just done."""
        self.rows.append(row)
        self._handle.write(_line(row))
        self._handle.flush()
        if time.monotonic() - self._written > REWRITE_AFTER:
            self.write_state()

    def write_state(self) -> None:
        """Write trainer_state.json with the rows there are."""
        done = self.rows[-1]["step"] if self.rows else 0
        write_json(self.run.trainer_state_file, {"global_step": done, "max_steps": self.last, "log_history": self.rows})
        self._written = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()
        self.write_state()


def finished(run: Run) -> bool:
    """Whether training has been through its last step."""
    if not run.trainer_state_file.is_file():
        return False
    state = read_json(run.trainer_state_file)
    return bool(state["global_step"] == state["max_steps"])


def _file(run: Run) -> Any:
    return run.resume_state / "log.jsonl"


def _line(row: Row) -> str:
    return to_json(row, indent=None) + "\n"


def _read(run: Run) -> list[Row]:
    """The rows in the file; a last line cut short by a kill is no row."""
    if not _file(run).is_file():
        return []
    lines = _file(run).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
