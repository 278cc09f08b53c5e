"""The monitor in other people's Trainers: it sees what the run directory has, and acts on an alarm."""

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.training.monitoring import MonitorCallback
from em_interp.transition.monitoring.monitor import Look, Monitor
from em_interp.transition.result import Transition

from .test_snapshots import adapted, make_model, trainer

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def alarm_at_six(monkeypatch):
    """An alarm at step 6, whatever happens."""

    def update(self, step, position=None, grad_norm=None):
        self.step = step
        found = Transition("rotation", "transition", "", of="B", step=4.0, p_value=0.0)
        return [Look(step, "rotation", found, 0.001, True, True)] if step == 6 else []

    monkeypatch.setattr(Monitor, "update", update)


def test_it_sees_during_training_what_the_run_directory_has_afterwards(tmp_path):
    snapshots, monitor = em.SnapshotCallback(tmp_path / "run"), em.MonitorCallback()
    trainer(adapted(), tmp_path / "trainer", snapshots, monitor).train()
    live, replayed = monitor.monitor, em.watch(tmp_path / "run")
    assert live.last == 12
    assert live.finished
    assert [look.step for look in live.looks] == [look.step for look in replayed.looks]
    assert {look.signal for look in live.looks} == {"rotation", "gradient_norm"}
    assert np.allclose(live._path.gram[:13, :13], replayed._path.gram[:13, :13])
    assert np.allclose(live._log.logs, replayed._log.logs)


def test_an_alarm_calls_saves_more_densely_and_stops(tmp_path, alarm_at_six):
    looks = []
    snapshots = em.SnapshotCallback(tmp_path / "run", "every 5")
    monitor = MonitorCallback(looks.append, stop=False, snapshots=snapshots)
    trainer(adapted(), tmp_path / "trainer", snapshots, monitor).train()
    assert [look.step for look in looks] == [6]
    assert em.open_run(tmp_path / "run").steps() == [0, 5, 7, 10, 12]
    stopped = trainer(adapted(), tmp_path / "again", em.MonitorCallback(stop=True))
    stopped.train()
    assert stopped.state.global_step == 6


def test_a_model_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(InputError, match="LoRA"):
        trainer(make_model("qwen2"), tmp_path, em.MonitorCallback()).train()
