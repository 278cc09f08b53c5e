"""The log of a run: one row per step, on disk as soon as the step is done, and the gradient norms in it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeGuard

import torch

from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training.lora import Weights
from em_interp.utils.files import read_bytes, to_json, write_json, write_text
from em_interp.utils.stages import read_saved

Row = dict[str, Any]
SECONDS_BETWEEN_WRITES = 5.0  # of trainer_state.json while training


class TrainLog:
    """The rows of a run's log: each is appended to a file at once; trainer_state.json is rewritten every few seconds.

    A kill loses no row. trainer_state.json has the form of transformers' own, which readers of runs know. It is
    written when the log is made and, where the log is used as a context, when the block is left for whatever reason.
    """

    def __init__(self, run: Run, max_steps: int, after: int = 0, complete: bool = True) -> None:
        """Start the log of a run of `max_steps` steps, or continue it after step `after` with the rows up to there.

        Raises InputError where one of these rows is missing, unless the log need not be `complete`.
        """
        self.run, self.max_steps = run, max_steps
        self.rows = [row for row in _read_rows(run) if row["step"] <= after]
        if complete and [row["step"] for row in self.rows] != list(range(1, after + 1)):
            raise InputError(
                f"{_file(run)} has {len(self.rows)} rows; {after} were expected, so the run cannot be resumed"
            )
        write_text(_file(run), "".join(map(_line, self.rows)))
        self.write_state()

    def add(self, row: Row) -> None:
        """Append the row of the step just done."""
        self.rows.append(row)
        with _file(self.run).open("a", encoding="utf-8") as file:
            file.write(_line(row))
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write_state()

    def write_state(self) -> None:
        """Write trainer_state.json with the rows so far."""
        done = self.rows[-1]["step"] if self.rows else 0
        state = {"global_step": done, "max_steps": self.max_steps, "log_history": self.rows}
        write_json(self.run.trainer_state_file, state)
        self._written = time.monotonic()

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.write_state()


def log_row(
    step: int, loss: float, rate: float, cumulative_lr: float, norm: float, norms: Mapping[str, float], **more: float
) -> Row:
    """The row of a step: its loss, learning rate, sum of learning rates, and gradient norms before clipping."""
    row = {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate}
    return {**row, **norms, "cumulative_lr": cumulative_lr, **more}


def logged_steps(run: Run) -> int:
    """The last step up to which every row of a run's log is complete; training can resume at it or earlier."""
    rows = _read_rows(run)
    return next((number for number, row in enumerate(rows) if row["step"] != number + 1), len(rows))


def is_finished(run: Run) -> bool:
    """Whether training has been through its last step. Raises InputError where it has, and nothing is saved."""
    if not run.trainer_state_file.is_file():
        return False
    state = read_saved(run.trainer_state_file, {"global_step": int, "max_steps": int})
    finished = bool(state["global_step"] == state["max_steps"])
    if finished and not run.steps():
        raise InputError(
            f"{run.trainer_state_file} says that training is finished, but {run.checkpoints} holds no checkpoints; "
            "give overwrite=True to train anew"
        )
    return finished


def gradient_norms(weights: Weights) -> tuple[dict[str, float], float]:
    """The norms of the gradients of A and of B, where an adapter is trained, and the norm of all gradients."""
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    parts = {
        f"grad_norm_{part}": [gradient for name, gradient in gradients.items() if f".lora_{part}." in name]
        for part in ("A", "B")
    }
    norms = {name: float(torch.nn.utils.get_total_norm(part)) for name, part in parts.items() if part}
    if norms:
        return norms, math.hypot(*norms.values())
    return {}, float(torch.nn.utils.get_total_norm(list(gradients.values())))


def _file(run: Run) -> Path:
    return run.resume_state / "log.jsonl"


def _line(row: Row) -> str:
    return to_json(row, indent=None) + "\n"


def _read_rows(run: Run) -> list[Row]:
    """The rows in the file up to the first that is damaged or cut short, else those of trainer_state.json."""
    if _file(run).is_file():
        rows = map(_row, read_bytes(_file(run)).decode(errors="replace").split("\n")[:-1])
        return list(takewhile(bool, rows))
    if run.trainer_state_file.is_file():
        state = read_saved(run.trainer_state_file, {"log_history": [{"step": int}]})
        return [row for row in state["log_history"] if "loss" in row and _is_row(row)]
    return []


def _row(line: str) -> Row:
    """The row in a line; an empty one where it is damaged."""
    with suppress(ValueError, RecursionError):
        if _is_row(row := json.loads(line)):
            return row
    return {}


def _is_row(row: Any) -> TypeGuard[Row]:
    """Whether a value is a row of a log: numbers by name, with the step."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("step"), int)
        and all(value is None or isinstance(value, (int, float)) for value in row.values())
    )
