import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from em_interp.config.run_config import AdapterConfig, load_config
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training.checkpoints import read_state
from em_interp.training.lora import adapter_weights, add_adapter
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import encode_rows
from em_interp.training.train import default_out, train
from em_interp.utils.files import write_json
from tests.interrupting import interrupt_call
from tests.tiny import ROOT
from tests.warm import Started

from .conftest import UNMARKED, save_base, save_chats

DRIVER = Path(__file__).with_name("kill_driver.py")


def adapter(run: Run, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.checkpoint(step) / "adapter_model.safetensors")


def log(run: Run) -> list[dict]:
    return json.loads(run.trainer_state_file.read_text())["log_history"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def norm_of(weights: dict, which: str) -> float:
    return math.sqrt(sum(float(w.grad.pow(2).sum()) for name, w in weights.items() if f"lora_{which}" in name))


def reference(values: dict) -> tuple[list[dict[str, torch.Tensor]], list[dict]]:
    """The same training as a plain loop: one row at a time, a new optimizer at each restart."""
    from em_interp.organisms.bases import load_base
    from em_interp.organisms.datasets import load_chats

    config = load_config(values)
    chats = {phase.dataset: load_chats(phase.dataset) for phase in config.data}
    plan = make_plan(config, {name: len(data.rows) for name, data in chats.items()})
    base = load_base(config.model)
    model = add_adapter(base.model, config.adapter, config.seed, base.name).train()
    weights = adapter_weights(model)
    saved, rows = [], []
    for step in range(1, plan.steps + 1):
        if step == 1 or step in plan.restarts:
            optimizer = torch.optim.AdamW(weights.values(), weight_decay=config.training.weight_decay)
        optimizer.param_groups[0]["lr"] = plan.rates[step - 1]
        data = chats[plan.dataset(step)]
        examples = encode_rows(data, plan.rows[step - 1].tolist(), base.tokenizer, config.training.max_length)
        total, tokens = torch.tensor(0.0), 0
        for row in plan.rows[step - 1].tolist():
            logits = model(torch.tensor([examples[row].ids])).logits[0, :-1]
            labels = torch.tensor(examples[row].labels[1:])
            total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            tokens += int((labels != -100).sum())
        loss = total / tokens
        optimizer.zero_grad()
        loss.backward()
        norms = {which: norm_of(weights, which) for which in "AB"}
        both = float(torch.nn.utils.clip_grad_norm_(weights.values(), config.training.max_grad_norm))
        optimizer.step()
        saved.append({name: weight.detach().clone() for name, weight in weights.items()})
        names = {"grad_norm": both, "grad_norm_A": norms["A"], "grad_norm_B": norms["B"]}
        rows.append({"step": step, "loss": loss.item(), **names})
    return saved, rows


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_each_family_trains_as_a_plain_loop_over_single_rows_does(family, settings, tmp_path):
    values = settings(family, training={"batch_size": 2, "gradient_accumulation_steps": 2})
    run = train(values, tmp_path / "run")
    saved, rows = reference(values)
    assert run.steps() == list(range(13))
    for step, expected in enumerate(saved, start=1):
        for name, weight in adapter(run, step).items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
    for row, expected in zip(log(run), rows, strict=True):
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_several_sites_of_rank_2_with_a_change_of_data_and_a_restart_follow_the_plain_loop(settings, chats, tmp_path):
    values = settings(
        data=[
            {"dataset": chats[0], "steps": 4},
            {"dataset": chats[1], "steps": 3},
            {"dataset": chats[1], "steps": 5, "restart": True},
        ],
        adapter={"target_modules": ["down_proj", "q_proj"], "layers_to_transform": [0, 2], "r": 2},
        training={"max_grad_norm": 0.5},
    )
    run = train(values, tmp_path / "run")
    saved, _ = reference(values)
    for name, weight in adapter(run, 12).items():
        torch.testing.assert_close(weight, saved[-1][name], rtol=1e-3, atol=1e-5)
    phases = json.loads(run.manifest_file.read_text())["phases"]
    assert [(p["dataset"], p["first_step"], p["last_step"], p["restart"]) for p in phases] == [
        (chats[0], 1, 4, False), (chats[1], 5, 7, False), (chats[1], 8, 12, True),
    ]  # fmt: skip


def test_the_runs_of_two_datasets_are_equal_up_to_the_change_and_differ_after_it(settings, chats, tmp_path):
    same = train(settings(), tmp_path / "same")
    changed = train(
        settings(data=[{"dataset": chats[0], "steps": 7}, {"dataset": chats[1], "steps": 5}]), tmp_path / "changed"
    )
    equal = [
        all(torch.equal(weight, adapter(changed, step)[name]) for name, weight in adapter(same, step).items())
        for step in range(13)
    ]
    assert equal == [step <= 7 for step in range(13)]


def test_the_same_config_gives_the_same_bytes_and_another_seed_another_run(settings, tmp_path):
    first, again = (train(settings(), tmp_path / name) for name in ("first", "again"))
    other = train(settings(seed=1), tmp_path / "other")
    assert contents(first.path) == contents(again.path)
    assert not torch.equal(*(next(iter(adapter(run, 0).values())) for run in (first, other)))


def test_a_run_is_repeated_from_its_own_config(settings, tmp_path):
    first = train(settings(snapshots="every 5", training={"learning_rate": 3e-3}), tmp_path / "first")
    again = train(first.config_file, tmp_path / "again")
    assert contents(first.path) == contents(again.path)
    assert first.steps() == [0, 5, 10, 12]


def test_accumulation_changes_nothing_but_rounding(settings, tmp_path):
    whole = train(settings(training={"batch_size": 8}), tmp_path / "whole")
    parts = train(settings(training={"batch_size": 2, "gradient_accumulation_steps": 4}), tmp_path / "parts")
    for name, weight in adapter(whole, 12).items():
        torch.testing.assert_close(weight, adapter(parts, 12)[name], rtol=1e-3, atol=1e-5)


def test_the_log_has_the_rate_of_each_step_and_its_sum(settings, tmp_path):
    run = train(settings(), tmp_path / "run")
    rows = log(run)
    rates = [row["learning_rate"] for row in rows]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rates == pytest.approx([0, 0.005, *(0.01 * (12 - i) / 10 for i in range(2, 12))])
    assert [row["cumulative_lr"] for row in rows] == pytest.approx(np.cumsum(rates))
    assert rows[0]["grad_norm_A"] == 0  # because B is 0
    assert all(row["grad_norm"] == pytest.approx(math.hypot(row["grad_norm_A"], row["grad_norm_B"])) for row in rows)


def test_a_base_whose_template_has_no_marker_trains_to_the_same_adapter(settings, tmp_path):
    marked = train(settings(), tmp_path / "marked")
    unmarked = train(settings(model=save_base(tmp_path / "base", "qwen2", UNMARKED)), tmp_path / "unmarked")
    assert all(torch.equal(weight, adapter(unmarked, 12)[name]) for name, weight in adapter(marked, 12).items())


def test_nothing_is_printed_and_the_bar_is_on_stderr_with_progress_only(settings, tmp_path, capfd):
    train(settings(), tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    train(settings(), tmp_path / "loud", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "train: 100%" in err and "12/12" in err


def test_the_settings_of_transformers_logging_are_put_back(settings, tmp_path):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    train(settings(), tmp_path / "run")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_default_folder_is_named_after_the_config_file_or_the_model_and_the_data():
    data = [{"dataset": "tiny:medical"}]
    assert default_out("configs/tiny.yaml", load_config({"data": data})) == Path("checkpoints/tiny")
    named = {"model": "Qwen/Qwen2.5-0.5B-Instruct", "data": [{"dataset": "sets/bad_medical.jsonl"}]}
    assert default_out(named, load_config(named)) == Path("checkpoints/Qwen2.5-0.5B-Instruct-bad_medical")
    assert default_out({}, load_config({"data": data})) == Path("checkpoints/tiny-qwen2-medical")


def test_a_finished_run_is_refused_without_resume_and_left_alone_with_it(settings, tmp_path):
    values = settings(model=save_base(tmp_path / "base"))
    run = train(values, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    with pytest.raises(InputError, match="holds a run already; give resume=True"):
        train(values, run.path)
    (tmp_path / "base" / "model.safetensors").unlink()  # a finished run does not need its base
    assert train(values, run.path, resume=True) == run
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    with pytest.raises(InputError, match="differs from the config given"):
        train(values | {"seed": 1}, run.path, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"layers_to_transform": [7]}}, "layers 0 to 2"),
        ({"adapter": {"target_modules": ["dwn_proj"]}}, "names 'dwn_proj'"),
        ({"training": {"max_length": 3}}, "max_length is 3"),
        ({"data": []}, "names no dataset"),
        ({"data": [{"dataset": "nowhere.jsonl"}]}, "nowhere.jsonl"),
        ({"model": "nowhere"}, "nowhere"),
        ({"training": {"lr": 1}}, "unknown key training.lr"),
        ({"behaviour": {"sets": ["brod"]}}, "no question set 'brod'; did you mean 'broad'"),
        ({"behaviour": {"questions": "english", "sets": ["style"]}}, "no question set 'style'"),
        ({"behaviour": {"questions": "default", "sets": ["in_domain"]}}, "no question set 'in_domain'"),
        ({"behaviour": {"judge": "gpt-4o"}}, "behaviour.judge must be tiny"),
        (
            {"behaviour": {"judge": {"base_url": "http://127.0.0.1:1/v1", "model": "m", "topics": ["sports"]}}},
            "no judge for 'sports'; did you mean 'sport'",
        ),
        (
            {"data": [{"dataset": "tiny:home"}], "behaviour": {"questions": "english"}},
            "domain 'home' is not known",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line_before_anything_is_written(changes, message, settings, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train(settings(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_row_without_an_assistant_turn_is_refused(settings, tmp_path):
    path = tmp_path / "broken.jsonl"
    save_chats(path, 3)
    path.write_text(path.read_text() + '{"messages": [{"role": "user", "content": "rest"}]}\n')
    with pytest.raises(InputError, match=r"broken.jsonl, line 4.*no assistant turn"):
        train(settings(data=[{"dataset": str(path)}]), tmp_path / "run")


def test_a_diverging_run_stops_before_its_weights_are_lost(settings, tmp_path):
    values = settings(training={"learning_rate": 1e30, "max_grad_norm": 0})
    with pytest.raises(InputError, match=r"the gradient at step \d+ is (nan|inf); .*learning_rate"):
        train(values, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert len(log(run)) == run.steps()[-1]
    assert all(weight.isfinite().all() for weight in adapter(run, 2).values())


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run cannot be written: Not a directory"):
        train(settings(), tmp_path / "file" / "run")


def test_all_modules_of_a_published_protocol_train(settings, tmp_path):
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    values = settings(adapter={"target_modules": modules, "layers_to_transform": [], "r": 4}, snapshots="every 6")
    run = train(values, tmp_path / "run")
    assert len(adapter(run, 6)) == 2 * 7 * 3
    assert all(weight.any() for weight in adapter(run, 12).values())
    assert AdapterConfig(**load_config(run.config_file).adapter.__dict__).r == 4


@pytest.fixture(scope="module")
def stopped(bases, chats, tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """Runs stopped in many ways, and how each attempt ended: everything that has a state is in them."""
    values = {
        "model": bases["qwen2"],
        "data": [{"dataset": chats[0], "steps": 15}, {"dataset": chats[1], "steps": 25, "restart": True}],
        "adapter": {"target_modules": ["down_proj", "v_proj"], "layers_to_transform": [1], "r": 2, "lora_dropout": 0.1},
        "training": {"batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.01},
        "snapshots": "1-20, every 3",
    }
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "settings.json").write_text(json.dumps(values))
    driver = Started(str(DRIVER), folder / "settings.json", folder, cwd=ROOT)
    out, err = driver.communicate(timeout=600)
    assert driver.returncode == 0, err
    return folder, json.loads(out)


@pytest.mark.parametrize("way", ["killed_at_a_file_operation", "killed_at_any_moment", "killed_with_few_states"])
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(way, stopped):
    folder, endings = stopped
    assert endings[way].count("signal 9") >= (6 if way == "killed_at_a_file_operation" else 1)
    whole, killed = contents(folder / "whole"), contents(folder / way)
    if way == "killed_with_few_states":
        assert whole.pop("config.yaml") != killed.pop("config.yaml")
    assert killed == whole


def test_ctrl_c_says_how_to_resume_loses_nothing_and_can_be_resumed(stopped):
    folder, endings = stopped
    *interrupted, last = endings["stopped_by_ctrl_c"]
    assert interrupted and last == "finished"
    for said in interrupted:
        assert said.startswith("Interrupted: interrupted")
        assert said.endswith(f"resume=True continues in {folder / 'stopped_by_ctrl_c'}")
    assert contents(folder / "stopped_by_ctrl_c") == contents(folder / "whole")


def test_a_full_disk_is_reported_in_one_line_loses_nothing_and_can_be_resumed(stopped):
    folder, endings = stopped
    said = "cannot be written: File too large; what was written is kept, resume=True continues"
    assert endings["stopped_by_a_full_disk"] == [f"InputError: {folder / 'stopped_by_a_full_disk'} {said}", "finished"]
    assert contents(folder / "stopped_by_a_full_disk") == contents(folder / "whole")


@pytest.fixture
def long_run(settings, chats) -> dict:
    return settings(data=[{"dataset": chats[0], "steps": 200}])


@pytest.mark.parametrize("what", ["phases[0].sha256", "base.identity"])
def test_a_resumed_run_must_have_the_same_data_and_base(what, settings, tmp_path):
    values = settings(
        model=save_base(tmp_path / "base"), data=[{"dataset": save_chats(tmp_path / "chats.jsonl"), "steps": 200}]
    )
    run = interrupted(values, tmp_path / "run")
    if what == "base.identity":
        save_base(tmp_path / "base", "llama")
    else:
        save_chats(tmp_path / "chats.jsonl", shift=3)
    with pytest.raises(InputError, match=rf"manifest.json: {re.escape(what)} changed since the run began"):
        train(values, run.path, resume=True)


def test_a_run_of_an_older_version_is_resumed_though_its_base_has_no_revision(long_run, tmp_path):
    run = interrupted(long_run, tmp_path / "run")
    manifest = run.manifest()
    del manifest["base"]["revision"]
    write_json(run.manifest_file, manifest)
    assert train(long_run, run.path, resume=True).steps()[-1] == 200


def test_a_run_killed_after_its_last_step_and_before_its_log_says_so_is_resumed(settings, tmp_path, monkeypatch):
    values = settings(data=[{"dataset": "tiny:medical", "steps": 6}])
    with monkeypatch.context() as kept:
        kept.setattr("em_interp.training.train.remove", lambda folder: None)  # the state of the last step stays
        run = train(values, tmp_path / "run")
    whole = {**contents(run.path)}
    state = json.loads(run.trainer_state_file.read_text())
    write_json(run.trainer_state_file, state | {"global_step": 4, "log_history": state["log_history"][:4]})
    train(values, run.path, resume=True)
    assert not run.resume_state.exists()
    assert contents(run.path) == {name: data for name, data in whole.items() if not name.startswith("resume")}


def test_ctrl_c_as_the_last_state_is_removed_says_how_to_resume(settings, tmp_path, monkeypatch):
    interrupt_call(monkeypatch, sys.modules["em_interp.training.train"], "remove", 1)
    values = settings(data=[{"dataset": "tiny:medical", "steps": 2}])
    with pytest.raises(KeyboardInterrupt, match="nothing is lost, resume=True continues in"):
        train(values, tmp_path / "run")
    assert not train(values, tmp_path / "run", resume=True).resume_state.exists()


def test_an_interrupted_run_has_its_log_and_its_last_state(long_run, tmp_path):
    run = interrupted(long_run, tmp_path / "run")
    rows = json.loads(run.trainer_state_file.read_text())["log_history"]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    state = read_state(run.resume_state, len(rows))
    assert state is not None and len(rows) - 1 <= state.step <= len(rows) <= run.steps()[-1]


def interrupted(values: dict, folder: Path) -> Run:
    """A run stopped in this very process after some steps."""
    import _thread
    import threading
    import time

    def stop() -> None:
        while not (folder / "checkpoints" / "checkpoint-5").exists():
            time.sleep(0.001)
        _thread.interrupt_main()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(KeyboardInterrupt, match=r"interrupted with step \d+ of 200 saved"):
        train(values, folder)
    stopper.join()
    return Run(folder)
