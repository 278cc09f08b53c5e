"""The callbacks in other people's Trainers: what one leaves is a run like any other, and the other acts on an alarm."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import em_interp as em
from em_interp.behaviour.sampling.ask import ask
from em_interp.config.schedule import Schedule
from em_interp.errors import InputError
from em_interp.mechanism import open_model
from em_interp.organisms.bases import base_of, load_base
from em_interp.pipeline import prefer
from em_interp.pipeline.serving import config_of
from em_interp.run import Run
from em_interp.training.checkpoints import AdapterWriter
from em_interp.training.export import export_merged
from em_interp.training.lora import adapter_weights
from em_interp.transition.monitoring.monitor import Look, Monitor
from em_interp.transition.result import Transition
from em_interp.utils.files import write_text
from em_interp.utils.lock import LOCK_FILE
from tests.tiny import copy, json_of
from tests.warm import Started, as_ranks

from .conftest import make_model
from .test_train import adapter, contents, log

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
LORA = {"r": 2, "lora_alpha": 8, "target_modules": ["down_proj", "q_proj"], "task_type": "CAUSAL_LM"}
ROWS = [{"input_ids": torch.arange(i, i + 6), "labels": torch.arange(i, i + 6)} for i in range(24)]


def adapted(base=None, **changes):
    """A model with a fresh adapter, the same at every call."""
    torch.manual_seed(1)
    return get_peft_model(base or make_model("qwen2"), LoraConfig(**LORA | changes))


def trainer(model, folder, *callbacks, **changes):
    """A plain Trainer of 12 steps."""
    values = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 0.05, "seed": 0,
    }  # fmt: skip
    made = Trainer(
        model, TrainingArguments(**values | changes), train_dataset=ROWS, eval_dataset=ROWS[:4], callbacks=[*callbacks]
    )
    made.remove_callback(PrinterCallback)
    return made


@pytest.fixture(scope="module")
def finished(bases, tmp_path_factory) -> tuple[Run, object]:
    """A run that a plain Trainer made with the callback, and its model after it."""
    folder = tmp_path_factory.mktemp("plain")
    model = adapted(AutoModelForCausalLM.from_pretrained(bases["qwen2"]))
    trainer(model, folder / "trainer", em.SnapshotCallback(folder / "run", "1-2, every 5")).train()
    return em.open_run(folder / "run"), model


def test_scheduled_steps_are_saved_as_train_saves_them_with_the_first_and_the_last(finished, tmp_path):
    run, model = finished
    assert run.steps() == [0, 1, 2, 5, 10, 12]
    AdapterWriter(model).save(tmp_path / "now")
    assert contents(run.checkpoint(12)) == contents(tmp_path / "now")
    assert {entry.name for entry in run.path.iterdir()} == {"checkpoints", "manifest.json", "trainer_state.json"}
    assert not adapter(run, 0)["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"].any()


def test_the_log_has_a_row_a_step_with_what_train_writes(finished):
    rows = log(finished[0])
    names = ["step", "loss", "grad_norm", "learning_rate", "grad_norm_A", "grad_norm_B", "cumulative_lr"]
    assert [list(row) for row in rows] == [names] * 12
    assert [row["step"] for row in rows] == list(range(1, 13))
    rates = [0.05 * (12 - i) / 12 for i in range(12)]  # of the step itself
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    assert [row["cumulative_lr"] for row in rows] == pytest.approx(np.cumsum(rates))
    for row in rows:
        assert row["grad_norm"] == pytest.approx(np.hypot(row["grad_norm_A"], row["grad_norm_B"]), rel=1e-4)
    assert rows[0]["grad_norm_A"] == 0 and rows[-1]["loss"] < rows[0]["loss"]
    state = json.loads(finished[0].trainer_state_file.read_text())
    assert (state["global_step"], state["max_steps"]) == (12, 12)


def test_the_manifest_names_the_base_by_the_identity_that_it_is_loaded_with(finished, bases):
    manifest, base = finished[0].manifest(), load_base(bases["qwen2"])
    assert manifest["base"] == {"name": base.name, "identity": base.identity, "revision": None}
    assert (manifest["seed"], manifest["device"], manifest["dtype"], manifest["processes"]) == (0, "cpu", "float32", 1)
    assert manifest["versions"]["torch"] == torch.__version__
    trainable = sum(weight.numel() for weight in adapter_weights(finished[1]).values())
    assert manifest["counts"] == {
        "steps": 12, "rows_per_step": 2, "snapshots": 6, "trainable_parameters": trainable,
    }  # fmt: skip


def test_the_run_is_read_located_and_sampled_like_any_other(finished, bases, tmp_path):
    path = em.load_trajectory(finished[0])
    assert path.steps.tolist() == [0, 1, 2, 5, 10, 12] and len(path.sites) == 6
    assert path.metrics["grad_norm"].notna().all()
    found = json_of("locate", finished[0].path, "--out", tmp_path / "found")
    assert found["steps"]["count"] == 6 and {"rotation", "gradient_norm"} <= {t["signal"] for t in found["transitions"]}
    question = [{"question_id": "rest", "question": "should i rest", "questions": "broad"}]
    copied = Run(copy(finished[0].path, tmp_path / "copy"))
    assert ask(copied, load_base(bases["qwen2"]), question, [0, 12], samples=1, max_new_tokens=2).exists()


def test_a_base_in_a_folder_is_found_again_by_its_whole_path(finished, bases, tmp_path):
    run, wanted = Run(copy(finished[0].path, tmp_path / "run")), load_base(bases["qwen2"]).identity
    assert run.manifest()["base"]["name"] == "qwen2" and base_of(run) == (bases["qwen2"], "auto")
    assert open_model(run.path).base.identity == open_model(run.checkpoints).base.identity == wanted
    assert export_merged(run.path, 12, tmp_path / "merged")["base"] == wanted
    assert prefer._base_of(run, config_of(run)) == base_of(run)


def test_gradient_norms_are_those_before_clipping(tmp_path):
    firsts = []
    for clip in (0.01, 1000.0, 0.0):
        model = adapted()
        for name, weight in adapter_weights(model).items():
            torch.manual_seed(len(name))
            weight.data = 0.1 * torch.randn_like(weight)
        run = Run(tmp_path / f"run-{clip}")
        trainer(model, tmp_path / "t", em.SnapshotCallback(run.path), max_grad_norm=clip, max_steps=2).train()
        firsts.append({name: value for name, value in log(run)[0].items() if "norm" in name})
    assert firsts[0]["grad_norm"] > 0.02 and firsts[0]["grad_norm_A"] > 0
    for first in firsts[1:]:
        assert first == pytest.approx(firsts[0], rel=1e-4)


def test_steps_are_optimizer_steps_under_gradient_accumulation(tmp_path):
    run = Run(tmp_path / "run")
    made = trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 2"), gradient_accumulation_steps=4)
    made.train()
    assert run.steps() == [0, 2, 3] and [row["step"] for row in log(run)] == [1, 2, 3]
    assert run.manifest()["counts"]["rows_per_step"] == 8


class StopAt(TrainerCallback):
    """Stops training at a step, by an error or as early stopping does."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.error:
            raise self.error
        control.should_training_stop |= state.global_step == self.step


def test_training_that_stops_early_has_its_last_step(tmp_path):
    run = Run(tmp_path / "run")
    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 5"), StopAt(7)).train()
    assert run.steps() == [0, 5, 7] and log(run)[-1]["step"] == 7


def test_the_last_step_is_saved_as_it_was_where_the_trainer_loads_its_best_one_at_the_end(tmp_path):
    run, seen = Run(tmp_path / "run"), {}

    class Watch(StopAt):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen[state.global_step] = {name: weight.detach().clone() for name, weight in adapter_weights(model).items()}
            super().on_step_end(args, state, control)

    best = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    made = trainer(
        adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 5"), Watch(7), learning_rate=1.0,
        load_best_model_at_end=True, **best,
    )  # fmt: skip
    made.train()
    assert made.state.best_global_step < 7 and run.steps() == [0, 5, 7]
    assert all(torch.equal(weight, seen[7][name]) for name, weight in adapter(run, 7).items())


def test_a_trainer_that_resumes_from_its_own_checkpoint_continues_the_run(tmp_path):
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer(adapted(), tmp_path / "t-whole", em.SnapshotCallback(whole.path, "every 3"), **saving).train()
    stop = StopAt(10, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 3"), stop, **saving).train()
    assert run.steps() == [0, 3, 6, 9] and json.loads(run.trainer_state_file.read_text())
    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 3"), **saving).train(
        resume_from_checkpoint=True
    )
    (run.path / LOCK_FILE).unlink(missing_ok=True)  # of the Trainer that broke off, where it has not been collected yet
    assert contents(run.path) == contents(whole.path)


def test_no_other_process_writes_to_the_run_while_a_trainer_does(tmp_path):
    run, seen = Run(tmp_path / "run"), []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append((run.path / LOCK_FILE).exists())

    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path), Look(), max_steps=2).train()
    assert seen == [True, True] and not (run.path / LOCK_FILE).exists()
    before = contents(run.path)
    (run.path / LOCK_FILE).write_text(json.dumps({"host": "node7", "pid": 3, "since": "2026-01-01"}))
    second = trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, overwrite=True), max_steps=2)
    with pytest.raises(InputError, match="is being written by another process"):
        second.train()
    (run.path / LOCK_FILE).unlink()
    assert contents(run.path) == before
    second.train()
    assert run.steps() == [0, 1, 2] and not (run.path / LOCK_FILE).exists()


def test_a_trainer_that_resumes_into_the_run_of_another_base_is_refused_and_removes_nothing(bases, tmp_path):
    saving, other = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}, Run(tmp_path / "other")
    trainer(adapted(), tmp_path / "t", **saving).train()
    llama = adapted(AutoModelForCausalLM.from_pretrained(bases["llama"]))
    trainer(llama, tmp_path / "t-other", em.SnapshotCallback(other.path)).train()
    before = contents(other.path)
    resumed = trainer(adapted(), tmp_path / "t", em.SnapshotCallback(other.path), **saving | {"max_steps": 12})
    with pytest.raises(InputError, match=r"base.identity changed .*\(it was 'llama@\w+' and is '@\w+'\), so it"):
        resumed.train(resume_from_checkpoint=True)
    assert contents(other.path) == before


def test_a_finished_run_is_continued_when_the_trainer_is(tmp_path):
    run, saving = Run(tmp_path / "run"), {"save_strategy": "steps", "save_steps": 12}
    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 5"), **saving).train()
    more = trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 5"), num_train_epochs=2, **saving)
    more.train(resume_from_checkpoint=True)
    assert run.steps() == [0, 5, 10, 12, 15, 20, 24]
    assert [row["step"] for row in log(run)] == list(range(1, 25))
    assert np.isfinite([row["cumulative_lr"] for row in log(run)]).all()


def test_of_several_adapters_the_one_that_is_trained_is_saved(tmp_path):
    model = adapted()
    model.add_adapter("second", LoraConfig(**LORA | {"r": 3, "target_modules": ["up_proj"]}))
    model.set_adapter("second")
    run = Run(tmp_path / "run")
    trainer(model, tmp_path / "t", em.SnapshotCallback(run.path, "every 6")).train()
    path = em.load_trajectory(run)
    assert [site.rpartition(".")[2] for site in path.sites] == ["up_proj"] * 3
    assert path.A[path.sites[0]].shape[1] == 3 and path.B[path.sites[0]][-1].any()


def test_an_adapter_of_transformers_own_integration_is_saved_as_peft_saves_it(tmp_path):
    model = make_model("llama")
    model.add_adapter(LoraConfig(**LORA))
    run = Run(tmp_path / "run")
    trainer(model, tmp_path / "t", em.SnapshotCallback(run.path, "every 6")).train()
    assert len(em.load_trajectory(run).sites) == 6
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(make_model("llama"), str(run.checkpoint(12))).eval()
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_a_frozen_half_of_the_adapter_is_saved_too(tmp_path):
    model = adapted()
    for name, weight in adapter_weights(model).items():
        weight.requires_grad_("lora_B" in name)
    run = Run(tmp_path / "run")
    trainer(model, tmp_path / "t", em.SnapshotCallback(run.path, "every 6")).train()
    path = em.load_trajectory(run)
    assert (path.A[path.sites[0]] == path.A[path.sites[0]][0]).all() and path.B[path.sites[0]][-1].any()
    assert "grad_norm_A" not in log(run)[0] and log(run)[0]["grad_norm"] == log(run)[0]["grad_norm_B"]


def not_adapted():
    return make_model("qwen2")


def with_trained_norm():
    model = adapted()
    model.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
    return model


def with_two_in_training():
    model = adapted()
    model.add_adapter("second", LoraConfig(**LORA))
    model.base_model.set_adapter(["default", "second"])
    return model


def with_dora():
    return adapted(use_dora=True)


def with_prefix():
    return get_peft_model(make_model("qwen2"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (not_adapted, r"no LoRA adapter is trained in the model \(Qwen2ForCausalLM, adapters: none\); .*peft_model"),
        (with_trained_norm, r"1 parameters besides the adapter's A and B are trained, such as .*norm.weight"),
        (with_two_in_training, "the adapters default, second are trained at once"),
        (with_dora, "besides the adapter's A and B are trained, such as .*lora_magnitude_vector"),
        (with_prefix, r"no LoRA adapter is trained .*adapters: default \(PeftType.PREFIX_TUNING\)"),
    ],
)
def test_a_model_whose_path_would_not_be_that_of_an_adapter_is_refused_in_one_line(make, said, tmp_path):
    with pytest.raises(InputError, match=said) as caught:
        trainer(make(), tmp_path / "t", em.SnapshotCallback(tmp_path / "run")).train()
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_replaced_only_with_overwrite(tmp_path):
    run = Run(tmp_path / "run")
    (run.path / "checkpoints").mkdir(parents=True)
    (run.path / "notes.txt").write_text("mine")
    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 5")).train()
    before = contents(run.path)
    with pytest.raises(InputError, match=r"run holds a run already; .* another folder, or overwrite=True"):
        trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 6")).train()
    assert contents(run.path) == before
    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 6", overwrite=True)).train()
    assert run.steps() == [0, 6, 12] and (run.path / "notes.txt").exists()


def test_what_was_made_of_the_run_that_is_replaced_goes_with_it(tmp_path):
    run = Run(tmp_path / "run")
    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 5"), max_steps=1).train()
    for place in (run.report_file, run.figures / "path.pdf", run.analysis / "locate.json"):
        write_text(place, "old")
    trainer(adapted(), tmp_path / "t", em.SnapshotCallback(run.path, "every 5", overwrite=True), max_steps=1).train()
    assert {entry.name for entry in run.path.iterdir()} == {"checkpoints", "manifest.json", "trainer_state.json"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["checkpoints/tiny/config.yaml", "analysis/mine.csv"])
def test_a_folder_that_holds_what_is_of_no_run_keeps_it(place, overwrite, tmp_path):
    project = tmp_path / "project"
    write_text(project / place, "mine")
    with pytest.raises(InputError, match="is not of a run, so it is not replaced"):
        trainer(adapted(), tmp_path / "t", em.SnapshotCallback(project, overwrite=overwrite)).train()
    assert contents(project) == {place: b"mine"}


def test_the_trainers_own_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"t is the Trainer's output_dir, .* another folder"):
        trainer(adapted(), tmp_path / "t", em.SnapshotCallback(tmp_path / "t")).train()


def test_a_schedule_that_is_not_understood_is_refused_before_any_training(tmp_path):
    assert em.SnapshotCallback(tmp_path, "1-10, every 5").schedule == Schedule("1-10, every 5")
    with pytest.raises(InputError, match=r"schedule must be a text such as 'every 5' .*; found 5"):
        em.SnapshotCallback(tmp_path, 5)
    with pytest.raises(InputError, match="out must be the path of a folder; found None"):
        em.SnapshotCallback(None)
    with pytest.raises(InputError, match="'evry 5' is not understood"):
        em.SnapshotCallback(tmp_path, "evry 5")


SCRIPT = """
import sys, torch, em_interp as em
from em_interp.utils.processes import exit_process
from tests.training.test_callbacks import adapted, trainer

torch.set_num_threads(1)
changes = {"gradient_accumulation_steps": int(sys.argv[2]), "per_device_train_batch_size": 1}
trainer(adapted(), sys.argv[1] + "-trainer", em.SnapshotCallback(sys.argv[1], "every 3"), **changes).train()
if torch.distributed.is_initialized():
    torch.distributed.barrier()
exit_process(0)
"""


def test_of_two_processes_the_main_one_writes_the_run_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    one, two = tmp_path / "1", tmp_path / "2"
    alone = Started(str(script), one, "2", cwd=tmp_path)
    for code, _, err in as_ranks(2, str(script), two, "1", cwd=tmp_path):
        assert code == 0, err
    said = alone.communicate(timeout=300)
    assert alone.returncode == 0, said
    paths = {}
    for processes, out in ((1, one), (2, two)):
        assert Run(out).manifest()["processes"] == processes and len(log(Run(out))) == 12
        paths[processes] = em.load_trajectory(out)
    for site in paths[1].sites:
        np.testing.assert_allclose(paths[1].B[site], paths[2].B[site], rtol=0, atol=1e-6)


@pytest.fixture
def alarm_at_six(monkeypatch):
    """An alarm at step 6, whatever happens."""

    def update(self, step, position=None, grad_norm=None):
        self.step = step
        found = Transition("rotation", "transition", "", of="B", step=4.0, p_value=0.0)
        return [Look(step, "rotation", found, 0.001, True, True)] if step == 6 else []

    monkeypatch.setattr(Monitor, "update", update)


def test_the_monitor_sees_during_training_what_the_run_directory_has_afterwards(tmp_path):
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
    monitor = em.MonitorCallback(looks.append, stop=False, snapshots=snapshots)
    trainer(adapted(), tmp_path / "trainer", snapshots, monitor).train()
    assert [look.step for look in looks] == [6]
    assert em.open_run(tmp_path / "run").steps() == [0, 5, 7, 10, 12]
    stopped = trainer(adapted(), tmp_path / "again", em.MonitorCallback(stop=True))
    stopped.train()
    assert stopped.state.global_step == 6


def test_the_monitor_refuses_a_model_without_an_adapter(tmp_path):
    with pytest.raises(InputError, match="LoRA"):
        trainer(make_model("qwen2"), tmp_path, em.MonitorCallback()).train()
