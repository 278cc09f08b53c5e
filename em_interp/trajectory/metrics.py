"""What a run logged while it trained: `trainer_state.json` as a table by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from em_interp.errors import InputError
from em_interp.runs import read_json

FILE = "trainer_state.json"
METRICS = ("loss", "eval_loss", "grad_norm", "learning_rate", "cumulative_lr", "grad_norm_A", "grad_norm_B", "kl")


def read_metrics(folders: list[Path]) -> pd.DataFrame:
    """The log of a run by step, from the first of `folders` that has a `trainer_state.json`; empty where none has.

    Columns are those of METRICS that were logged, NaN at steps without them. `cumulative_lr`, where the run did not
    log it, is the sum of the learning rates so far, taking each as constant since the logged step before.
    """
    files = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    if not files:
        return pd.DataFrame(index=pd.Index([], name="step", dtype=int))
    state = read_json(files[0])
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise InputError(f"{files[0]} should have a list of rows called log_history; it has {type(history).__name__}")
    table = pd.DataFrame(history, columns=["step", *METRICS]).dropna(subset=["step"])
    try:
        table = table.astype(float).astype({"step": int})
    except (TypeError, ValueError) as error:
        raise InputError(f"{files[0]}: a logged value is not a number ({error})") from None
    table = table.groupby("step").last().dropna(axis=1, how="all")  # several rows a step: training, evaluation
    if "learning_rate" in table and "cumulative_lr" not in table:
        rate = table["learning_rate"].dropna()
        spans = np.diff(rate.index.to_numpy(), prepend=0)
        table["cumulative_lr"] = (rate * spans).cumsum()
    return table
