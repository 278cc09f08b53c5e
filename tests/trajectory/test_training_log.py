"""Logs are used for what they say: missing values are counted, a bad log is passed over, a log alone is a source."""

import json
import re

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.training_log import read_log
from tests.trajectory.saving import save_log, save_run

STEPS = 400


def rows(count=STEPS, hump=240, every=1):
    """A log with a hump of the gradient norm."""
    rng, steps = np.random.default_rng(0), np.arange(1, count + 1)
    norms = np.exp(0.1 * rng.standard_normal(count)) * (1 + 2 * np.exp(-0.5 * ((steps - hump) / 20) ** 2))
    found = [
        {"step": int(step), "loss": 2 - step / 1000, "grad_norm": float(norm), "learning_rate": 1e-5}
        for step, norm in zip(steps, norms, strict=True)
    ]
    return found[every - 1 :: every]


def log_file(folder, given, name="trainer_state.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(given if isinstance(given, str) else json.dumps({"log_history": given}))
    return folder / name


def changed(**columns):
    """The log with other values in some rows, by column and index of the row."""
    given = rows()
    for name, by_row in columns.items():
        for index, value in by_row.items():
            given[index][name] = value
    return given


MISSING = {  # a log, what its notes say, and how many gradient norms it has
    "NaN and infinity": (changed(grad_norm={3: float("nan"), 50: float("inf")}), "2 of 400 values of grad_norm", 398),
    "an overflow of DeepSpeed": (changed(grad_norm={5: -1.0}), "1 of 400 values of grad_norm", 399),
    "text": (changed(grad_norm={5: "inf", 6: "low"}), "2 of 400 values of grad_norm", 398),
    "numbers as text": (changed(grad_norm={5: "1.5"}), "", 400),
    "null": (changed(grad_norm={5: None}), "", 399),
    "a list of one rate": (changed(learning_rate={5: [1e-5, 1e-5]}), "", 400),
    "a list of several": (changed(learning_rate={5: [1e-5, 2e-5]}), "1 of 400 values of learning_rate", 400),
    "half steps": (changed(step={5: 5.5, 6: "7", 7: -1, 8: 2**60}), "4 of 400 rows have no whole step", 396),
    "whole steps as floats": ([{**row, "step": float(row["step"])} for row in rows()], "", 400),
    "rows of time only": ([*rows(), {"train_runtime": 3.0}], "", 400),
    "steps again after resuming": (rows()[:250] + rows()[200:], "", 400),
    "every 10 steps": (rows(every=10), "", 40),
}


@pytest.mark.parametrize("case", MISSING)
def test_values_that_are_missing_are_counted_and_the_rest_is_used(tmp_path, case):
    given, note, count = MISSING[case]
    log = read_log(log_file(tmp_path, given))
    assert len(log.table["grad_norm"].dropna()) == count
    assert note in "; ".join(log.notes) if note else log.notes == ()


def test_a_byte_order_mark_and_lines_of_json_are_read_like_any_log(tmp_path):
    expected = read_log(log_file(tmp_path, rows())).table
    lines = "\n".join(map(json.dumps, rows()))
    for text, name in (
        ("\ufeff" + json.dumps({"log_history": rows()}), "with-mark.json"),
        (lines + "\n", "log.jsonl"),
        (json.dumps(rows()), "rows.json"),
        (lines, "lines.json"),
    ):
        assert read_log(log_file(tmp_path, text, name)).table.equals(expected)


def test_a_log_of_several_processes_or_with_the_newest_first_is_refused(tmp_path):
    ranks = [{**row, "loss": row["loss"] + rank} for row in rows(20) for rank in (0, 1)]
    with pytest.raises(InputError, match=r"20 steps \(the first 1\) have two different values of one metric"):
        read_log(log_file(tmp_path, ranks))
    again = [*rows(20)[:10], {**rows(20)[9], "loss": 9.0}, *rows(20)[10:]]  # a step again, where a run was resumed
    assert read_log(log_file(tmp_path, again)).table.loc[10, "loss"] == 9
    assert len(read_log(log_file(tmp_path, [row for row in rows(20) for _ in range(2)])).table) == 20
    with pytest.raises(InputError, match="the steps go down from row to row, as where the newest comes first"):
        read_log(log_file(tmp_path, rows(20)[::-1]))
    log = read_log(log_file(tmp_path, rows(20)[10:] + rows(20)[:10]))
    assert len(log.table) == 10 and "10 steps were logged before a return to an earlier one only" in log.notes[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {"_step": row["step"], "train/loss": row["loss"]},  # W&B's history
        lambda row: {"current_steps": row["step"], "loss": row["loss"], "lr": 1e-5},  # LLaMA-Factory's
        lambda row: {"iteration": row["step"], "train_loss": row["loss"]},  # MLX's
        lambda row: {"step": str(row["step"]), "loss": row["loss"]},
    ],
)
def test_a_log_alone_with_other_names_is_refused_with_those_it_has(tmp_path, change):
    lines = [change(row) for row in rows(20)]
    file = log_file(tmp_path, "\n".join(map(json.dumps, lines)), "log.jsonl")
    found = ", ".join(f"{key} {json.loads(json.dumps(value))!r}" for key, value in lines[0].items())
    with pytest.raises(InputError, match=f"a step \\(a whole number\\) and .* by these names; found {found}"):
        load_trajectory(file)


@pytest.mark.parametrize("state", [{"step": [10, 20], "loss": [2.0, 1.0]}, [[10, 2.0], [20, 1.0]]])
def test_what_has_no_rows_is_said_to_be_what_it_is(tmp_path, state):
    with pytest.raises(InputError, match=f"called log_history; it has {re.escape(str(state))}"):
        read_log(log_file(tmp_path, json.dumps(state)))


def test_files_that_came_in_place_of_a_log_are_called_what_they_are(tmp_path):
    for text, said in (("<!DOCTYPE html>", "a web page"), ("version https://git-lfs.github.com", "a Git LFS pointer")):
        with pytest.raises(InputError, match=f"is {said}, not the file itself"):
            load_trajectory(log_file(tmp_path, text))
    for name in ("export.csv", "log.txt"):
        with pytest.raises(InputError, match=r"is a file; expected .* a log \(.*\) with step, loss, grad_norm in each"):
            load_trajectory(log_file(tmp_path, "Step,Value\n", name))


def test_steps_that_go_back_are_those_of_the_run_that_came_later(tmp_path):
    again = [{**row, "loss": 9.0} for row in rows()[:100]]
    table = read_log(log_file(tmp_path, rows() + again)).table
    assert table.index.max() == 100 and (table["loss"] == 9.0).all()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"log_history": null}', '{"log_history": 3}', "[" * 100_000])
def test_a_log_that_cannot_be_read_is_named_and_passed_over(tmp_path, text):
    save_run(tmp_path)
    log_file(tmp_path, text)
    path = load_trajectory(tmp_path)
    assert path.metrics.empty and any("a log was not used: " in note for note in path.notes)
    log_file(tmp_path / "checkpoints/checkpoint-10", rows(10))
    path = load_trajectory(tmp_path)
    assert len(path.metrics) == 10 and any("a log was not used: " in note for note in path.notes)


def test_the_log_is_the_one_that_reaches_further(tmp_path):
    save_run(tmp_path, steps=(0, 200, 400))
    log_file(tmp_path, rows(100))
    assert f"{tmp_path / 'trainer_state.json'} ends at step 100, before the last" in load_trajectory(tmp_path).notes[-1]
    log_file(tmp_path / "checkpoints/checkpoint-400", rows())
    path = load_trajectory(tmp_path)
    assert len(path.metrics) == 400 and len(path.notes) == 1
    save_log(tmp_path, [{**row, "kl": 7.0} for row in rows()])
    assert (load_trajectory(tmp_path).metrics["kl"] == 7).all()


@pytest.mark.parametrize("steps", [300, 400, 450])
def test_a_log_that_an_earlier_run_left_in_the_folder_is_told_and_not_used(steps, tmp_path):
    save_run(tmp_path, steps=(0, 200, 400))
    log_file(tmp_path / "checkpoints/checkpoint-400", rows())
    log_file(tmp_path, [{**row, "loss": 7.0} for row in rows(steps)])
    path = load_trajectory(tmp_path)
    assert len(path.metrics) == 400 and (path.metrics["loss"] < 7).all()
    assert path.notes[-1].endswith(f"checkpoint-400/trainer_state.json at {min(steps, 400)} steps")
    assert f"{tmp_path / 'trainer_state.json'} is of another run and was not used" in path.notes[-1]


def test_learning_rates_before_the_log_begins_are_not_made_up(tmp_path):
    save_run(tmp_path, steps=(0, 200, 400))
    log_file(tmp_path, rows()[199:])
    path = load_trajectory(tmp_path)
    assert np.isnan(path.cumulative_lr).all() and "cumulative_lr" not in path.metrics
    (onset,) = em.find_transitions(path, "norm_onset")
    assert onset.reason == "The run has no log of the learning rate from its beginning."


def test_a_log_that_ends_early_is_used_for_the_steps_it_covers():
    path = em.planted_path("gradual", seed=1).trajectory()
    from dataclasses import replace

    cut = replace(path, metrics=path.metrics[path.metrics.index <= 300])
    (onset,) = em.find_transitions(cut, "norm_onset")
    assert onset.reason.endswith(" only.") and "The log covers steps 0 to 300" in onset.reason
    assert em.find_transition(cut).verdict == em.find_transition(path).verdict == "transition"


def test_a_log_of_half_a_run_is_no_evidence_that_nothing_happens_in_the_other_half(tmp_path):
    save_run(tmp_path, steps=range(0, 401, 4))
    for part, verdict in ((rows(), "transition"), (rows()[:200], "inconclusive"), (rows()[260:], "inconclusive")):
        log_file(tmp_path, part)
        peak = em.find_transition(load_trajectory(tmp_path), "gradient_norm")  # planted at step 240
        assert peak.verdict == verdict
        covered = f"The log covers steps {part[0]['step']} to {part[-1]['step']} only."
        assert (covered in peak.reason) == (len(part) < 400)
        onset = em.find_transition(load_trajectory(tmp_path), "norm_onset")
        assert onset.verdict != "none" or len(part) == 400


def test_a_log_of_one_row_says_too_little_and_stops_nothing(tmp_path):
    """transformers logs every 500 steps unless told otherwise."""
    save_run(tmp_path, steps=(0, 200, 400))
    log_file(tmp_path, rows()[299:300])
    found = {found.signal: found for found in em.find_transitions(load_trajectory(tmp_path))}
    assert found["gradient_norm"].verdict == "inconclusive"
    assert found["gradient_norm"].reason.startswith("Too little was logged: 0 usable values")
    assert found["rotation"].verdict == "inconclusive" and "increments were saved" in found["rotation"].reason


@pytest.mark.parametrize("name", ["trainer_state.json", "log.jsonl"])
def test_a_log_alone_has_the_peak_of_its_gradient_norm(tmp_path, name):
    lines = "\n".join(map(json.dumps, rows()))
    file = log_file(tmp_path, lines if name.endswith("l") else rows(), name)
    log = load_trajectory(file)
    assert log.kind == "log" and log.sites == () and log.frame()["loss"].iloc[-1] == pytest.approx(1.6)
    (peak,) = em.find_transitions(str(file))
    assert peak.signal == "gradient_norm" and abs(peak.step - 240) < 20
    assert em.find_transition(log) == peak
    for signal in ("rotation", "composition"):
        with pytest.raises(InputError, match=r"no signal .* is a log alone, without adapters; it has gradient_norm"):
            em.find_transitions(log, signal)
    for of_adapters in ({"of": "B"}, {"of": "B", "signal": "gradient_norm"}, {"site": "layers.1"}, {"site": ""}):
        for find in (em.find_transitions, em.find_transition):
            with pytest.raises(InputError, match="a log alone, has no matrices and no sites; found"):
                find(log, **of_adapters)
    for of_adapters in (log.gram, log.vectors, log.rounding, lambda of: em.figures.norms(log)):
        with pytest.raises(InputError, match="is a log alone"):
            of_adapters("B")
    assert [look.signal for look in em.watch(log, level=0.2).alarms] == ["gradient_norm"]
    assert "no sites" in log.sentence() and "<table" in log._repr_html_()


def test_a_folder_with_a_log_and_no_checkpoints_says_how_to_read_the_log(tmp_path):
    file = log_file(tmp_path, rows())
    with pytest.raises(InputError, match=f"found none; give {file} to read the log alone"):
        load_trajectory(tmp_path)
    with pytest.raises(InputError, match=r"has no row with a step .* and a loss"):
        load_trajectory(log_file(tmp_path, [{"note": 1}], "empty.json"))
