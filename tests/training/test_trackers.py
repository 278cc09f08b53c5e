"""The log goes to trackers while a run trains, and the transitions of the run are marked there."""

from pathlib import Path

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import em_interp as em
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training import trackers
from em_interp.training.train import train

from .test_train import log


class Recorder(TrainerCallback):
    """Stands for a tracker: what it is told, as transformers' own would be."""

    told: list

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.told.append(("begin", args.run_name, model is not None))

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        self.told.append((state.global_step, logs, state.is_world_process_zero))

    def on_train_end(self, args, state, control, **kwargs):
        self.told.append(("end",))


@pytest.fixture
def told(monkeypatch):
    told: list = []
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", type("R", (Recorder,), {"told": told}))
    return told


def test_each_step_is_told_as_it_is_logged_and_the_transitions_are_marked_before_the_end(
    settings, tmp_path, told, monkeypatch
):
    seen = []

    def found(run):
        seen.append((run.steps(), len(log(run))))  # all of them are there by then
        return [("rotation_B", 5)]

    monkeypatch.setattr(trackers, "found_steps", found)
    run = train(settings(training={"report_to": "trackio"}), tmp_path / "run")
    assert told[0] == ("begin", "run", True) and told[-1] == ("end",)
    assert [{"step": step, **row} for step, row, _ in told[1:-2]] == log(run)
    assert told[-2] == (5, {"transition/rotation_B": 1.0}, True)
    assert seen == [(list(range(13)), 12)]


def test_a_resumed_run_goes_on_at_its_own_steps_and_its_adapters_are_those_without_a_tracker(
    settings, tmp_path, told, monkeypatch
):
    add, values = trackers.TrackerCallback.on_log, settings(training={"report_to": ["trackio"]})

    def stop(self, args, state, control, **kwargs):
        add(self, args, state, control, **kwargs)
        if len(told) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trackers.TrackerCallback, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            train(values, tmp_path / "run")
    train(values, tmp_path / "run", resume=True)
    steps = [entry[0] for entry in told if isinstance(entry[0], int)]
    assert steps == [*range(1, 8), *range(8, 13)]
    plain = train(settings(), tmp_path / "plain")
    assert log(Run(tmp_path / "run")) == log(plain)


def test_the_transitions_are_those_that_the_path_has(monkeypatch):
    path = em.planted_path("abrupt", seed=1).trajectory()
    monkeypatch.setattr(trackers, "load_trajectory", lambda run: path)
    turn = em.find_transition(path)
    assert turn.verdict == "transition" and ("rotation_B", round(turn.step)) in trackers.found_steps(Run(Path("any")))
    monkeypatch.undo()
    assert trackers.found_steps(Run(Path("nowhere"))) == []


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    with pytest.raises(InputError, match=r"training\.report_to names trackio, which is not installed \(pip install"):
        train(settings(training={"report_to": ["trackio"]}), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(InputError, match=r"training\.report_to"):
        train(settings(training={"report_to": ["mlflow"]}), tmp_path / "run")


def test_a_tracker_that_is_installed_and_broken_is_not_called_missing(monkeypatch):
    def broken():
        raise ImportError("libfoo.so.1: cannot open shared object file")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", broken)
    with pytest.raises(ImportError, match=r"libfoo\.so\.1"):
        trackers.open_trackers(["wandb"], Run(Path("any")))


def test_tensorboard_writes_into_the_run(tmp_path, monkeypatch):
    class Board(Recorder):
        logging_dir = None

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Board)
    [board] = trackers.open_trackers(["tensorboard"], Run(tmp_path))
    assert board.logging_dir == str(tmp_path / "tensorboard")
