import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from em_interp.errors import InputError
from em_interp.files import write_json
from em_interp.run import Run
from em_interp.training.checkpoints import StateKeeper, read_state
from em_interp.training.train import train

from .conftest import save_base, save_chats
from .test_train import contents

DRIVER = Path(__file__).with_name("killing.py")


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
    command = [sys.executable, DRIVER, folder / "settings.json", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("way", ["killed_at_a_file_operation", "killed_at_any_moment", "killed_with_few_states"])
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(way, stopped):
    folder, endings = stopped
    assert endings[way].count("signal 9") >= (6 if way == "killed_at_a_file_operation" else 1)
    whole, killed = contents(folder / "whole"), contents(folder / way)
    if way == "killed_with_few_states":
        assert whole.pop("config.yaml") != killed.pop("config.yaml")
    assert killed == whole


def test_ctrl_c_says_how_to_go_on_loses_nothing_and_can_be_resumed(stopped):
    folder, endings = stopped
    *interrupted, last = endings["stopped_by_ctrl_c"]
    assert interrupted and last == "finished"
    for said in interrupted:
        assert said.startswith("KeyboardInterrupt: interrupted ")
        assert said.endswith(f"--resume goes on in {folder / 'stopped_by_ctrl_c'}")
    assert contents(folder / "stopped_by_ctrl_c") == contents(folder / "whole")


def test_a_full_disk_is_said_in_one_line_loses_nothing_and_can_be_resumed(stopped):
    folder, endings = stopped
    said = "cannot be written: File too large; what is there is kept, --resume goes on"
    assert endings["stopped_by_a_full_disk"] == [f"InputError: {folder / 'stopped_by_a_full_disk'} {said}", "finished"]
    assert contents(folder / "stopped_by_a_full_disk") == contents(folder / "whole")


@pytest.fixture
def long_run(settings, chats) -> dict:
    return settings(data=[{"dataset": chats[0], "steps": 200}])


@pytest.mark.parametrize("what", ["phases", "base"])
def test_a_resumed_run_must_have_the_same_data_and_base(what, settings, tmp_path):
    values = settings(
        model=save_base(tmp_path / "base"), data=[{"dataset": save_chats(tmp_path / "chats.jsonl"), "steps": 200}]
    )
    run = interrupted(values, tmp_path / "run")
    if what == "base":
        save_base(tmp_path / "base", "llama")
    else:
        save_chats(tmp_path / "chats.jsonl", shift=3)
    with pytest.raises(InputError, match=rf"manifest.json: {what} changed since the run began"):
        train(values, run.path, resume=True)


def test_a_run_begun_by_an_older_version_is_resumed_though_its_base_has_no_revision(long_run, tmp_path):
    run = interrupted(long_run, tmp_path / "run")
    manifest = run.manifest()
    del manifest["base"]["revision"]
    write_json(run.manifest_file, manifest)
    assert train(long_run, run.path, resume=True).steps()[-1] == 200


def test_an_interrupted_run_has_its_log_and_its_last_state(long_run, tmp_path):
    run = interrupted(long_run, tmp_path / "run")
    rows = json.loads(run.trainer_state_file.read_text())["log_history"]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    state = read_state(run.resume_state)
    assert state is not None and len(rows) - 1 <= state.step <= len(rows) <= run.steps()[-1]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_state_is_passed_over(damage, tmp_path):
    weights = {"a": torch.nn.Parameter(torch.ones(3, 4)), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW(weights.values())
    keeper, kept = StateKeeper(tmp_path, weights, optimizer, every=1), {}
    for step in range(1, 6):
        sum(weight.pow(2).sum() for weight in weights.values()).backward()
        optimizer.step()
        keeper.keep(step)
        kept[step] = {name: weight.detach().clone() for name, weight in weights.items()}
    [latest] = [file for file in tmp_path.iterdir() if load_file(file)["step"] == 5]
    content = bytearray(latest.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[-10] ^= 1
    latest.write_bytes(content)
    state = read_state(tmp_path)
    assert state is not None and state.step == 4
    state.restore(weights, optimizer)
    assert all(torch.equal(weights[name], value) for name, value in kept[4].items())


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
