"""Following a run directory while it is written gives what the finished run gives."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import em_interp as em
from em_interp.errors import InputError
from em_interp.transition.monitoring import watch as module
from em_interp.transition.synthetic.logs import planted_log
from em_interp.transition.synthetic.paths import planted_path
from tests.trajectory.saving import CONFIG, SITE

LAST = 200


def save_b(folder, vector):
    """An adapter whose B is the vector."""
    folder.mkdir(parents=True)
    tensors = {"A": np.ones((1, 5), "f4"), "B": np.asarray(vector, "f4")[:, None]}
    named = {f"base_model.model.{SITE}.lora_{part}.weight": tensor for part, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))


@pytest.fixture
def writer(tmp_path):
    """Writes the next part of a run: a planted turn and a planted hump."""
    path = planted_path("abrupt", 602, last=LAST)
    log = planted_log("gaussian", 3)
    norms = np.interp(np.linspace(0, 1, LAST), np.linspace(0, 1, len(log.grad_norm)), log.grad_norm)
    run = em.Run(tmp_path / "run")

    def write(first, last):
        run.resume_state.mkdir(parents=True, exist_ok=True)
        for step, vector in zip(path.steps.tolist(), path.vectors, strict=True):
            if first <= step <= last:
                save_b(run.checkpoint(step), vector)
        rows = [{"step": step, "loss": 1.0, "grad_norm": norms[step - 1]} for step in range(1, last + 1)]
        state = {"global_step": last, "max_steps": LAST, "log_history": rows}
        run.trainer_state_file.write_text(json.dumps(state))
        return run

    return write


def test_a_run_that_is_followed_gives_what_it_gives_when_it_is_finished(writer, monkeypatch):
    run = writer(0, 90)
    parts = iter([(91, 150), (151, LAST)])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: writer(*next(parts)))
    seen = []
    followed = em.watch(run, follow=True, on_update=lambda monitor, looks: seen.append((monitor.step, looks)))
    finished = em.watch(run)
    assert followed.finished
    assert followed.to_dict() == finished.to_dict()
    assert followed.frame().equals(finished.frame())
    assert {"rotation"} <= {look.signal for look in followed.alarms}
    assert [look for _, looks in seen for look in looks] == followed.looks


def test_following_ends_with_a_run_that_was_stopped_early(writer):
    run = writer(0, 120)
    run.resume_state.rmdir()
    monitor = em.watch(run, follow=True)
    assert monitor.step == 120
    assert not monitor.finished
    assert em.watch(run).step == 120


def test_a_run_that_has_not_begun_is_waited_for(writer, tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: writer(0, LAST))
    assert em.watch(tmp_path / "run", follow=True).finished


def test_a_run_without_its_length_is_refused(tmp_path):
    save_b(em.Run(tmp_path).checkpoint(0), np.zeros(4))
    with pytest.raises(InputError, match="give the run's length"):
        em.watch(tmp_path, follow=True)


def test_a_length_that_the_run_has_passed_and_a_run_as_its_own_control_are_refused(writer):
    run = writer(0, LAST)
    for length, said in ((LAST - 1, "has step 200 already"), (0, "whole number, 1 or more")):
        with pytest.raises(InputError, match=said):
            em.watch(run, last=length)
    with pytest.raises(InputError, match="is what it is to be compared with; expected another run"):
        em.watch(run, controls=[run.path / "../run"])


def test_the_command_follows_a_run_and_prints_one_object(writer, tmp_path, capsys):
    from em_interp.cli import main

    run = writer(0, LAST)
    control = shutil.copytree(run.path, tmp_path / "control")
    assert main(["watch", str(run.path), "--control", str(control), "--json"]) == 0
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert values["finished"]
    assert values["controls"] == 1
    assert values["signals"]["rotation"]["alarm"] is None
    assert main(["watch", str(run.path), "--once"]) == 0
    printed = capsys.readouterr()
    assert "ALARM at step" in printed.out
    assert "alarm at step" in printed.err
