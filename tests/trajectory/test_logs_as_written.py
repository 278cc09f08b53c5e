"""A log that transformers wrote is read to the values that were logged; what is missing stays missing."""

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerState

from em_interp.errors import InputError
from em_interp.trajectory.training_log import METRICS, read_log

NUMBERS = st.floats(1e-8, 1e4) | st.integers(1, 50)
ODD = st.sampled_from([math.nan, math.inf, -math.inf, None, "nan", "high", True])
VALUES = st.one_of(NUMBERS, NUMBERS, NUMBERS, ODD)
TRAINING = st.fixed_dictionaries(
    {"loss": VALUES},
    optional={
        "grad_norm": VALUES | st.just(-1.0),
        "learning_rate": VALUES,
        "epoch": NUMBERS,
        "rewards/chosen": VALUES,
        "mean_token_accuracy": VALUES,
    },
)
EVALUATION = st.fixed_dictionaries({"eval_loss": VALUES}, optional={"eval_runtime": NUMBERS, "epoch": NUMBERS})
SUMMARY = st.fixed_dictionaries({"train_runtime": NUMBERS, "train_loss": NUMBERS, "total_flos": NUMBERS})
ROWS = st.lists(
    st.tuples(st.integers(0, 6), st.one_of(TRAINING, TRAINING, EVALUATION, SUMMARY)), min_size=1, max_size=12
)
RESUMED = st.integers(0, 40)


def logged(pieces, back):
    """Rows as a Trainer logs them, with steps that go on; once it was resumed from an earlier checkpoint."""
    rows, step = [], 0
    for number, (ahead, values) in enumerate(pieces):
        step = max(0, step - back) if number == len(pieces) // 2 and back > 30 else step + ahead
        rows.append({**values, "step": step})
    return rows


def truth(rows):
    """The last value of each metric at each step, of the rows that no later return to an earlier step replaced."""
    values = {}
    for row in rows:
        values = {key: value for key, value in values.items() if key[0] <= row["step"]}
        values |= {
            (row["step"], name): number for name in METRICS if (number := finite(name, row.get(name))) is not None
        }
    return values


def finite(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return None if name == "grad_norm" and value < 0 else float(value)


def check(file, rows):
    try:
        table = read_log(file).table
    except InputError as error:
        assert "\n" not in str(error)
        return
    found = {
        (int(step), str(name)): value
        for (step, name), value in table.drop(columns="cumulative_lr", errors="ignore").stack().items()
        if np.isfinite(value)
    }
    assert found == truth(rows)
    if "cumulative_lr" in table:
        rates, total, before = table["learning_rate"].dropna(), 0.0, 0
        for step, rate in rates.items():
            total, before = total + rate * (step - before), step
            assert table.loc[step, "cumulative_lr"] == total


@given(ROWS, RESUMED, st.sampled_from(["trainer_state.json", "list.json", "log.jsonl"]), st.booleans(), st.booleans())
def test_what_a_trainer_logs_in_any_order_of_rows(tmp_path_factory, pieces, back, name, marked, ascii_only):
    rows = logged(pieces, back)
    file = tmp_path_factory.mktemp("log") / name
    if name == "trainer_state.json":
        state = TrainerState(log_history=rows, global_step=rows[-1]["step"], max_steps=100, best_metric=math.nan)
        state.save_to_json(str(file))
    elif name == "list.json":
        file.write_text(json.dumps(rows, indent=1))
    else:
        file.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows))
    if marked:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    check(file, rows)


@given(ROWS, st.integers(1, 400))
def test_what_is_left_of_a_log_that_was_cut_off(tmp_path_factory, pieces, cut):
    rows = logged(pieces, 0)
    folder = tmp_path_factory.mktemp("log")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows)[:-cut])
    kept = (folder / "log.jsonl").read_text()
    whole = [json.loads(line) for line in kept.split("\n") if line.endswith("}")]
    check(folder / "log.jsonl", whole)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}, indent=2)[:-cut])
    check(folder / "trainer_state.json", rows)
