"""Several processes train the adapter that one does, and begin, fail and end as one."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from transformers import TrainerControl, TrainerState, TrainingArguments

from em_interp.config import Schedule, load_config
from em_interp.errors import InputError
from em_interp.organisms.bases import load_base
from em_interp.run import Run
from em_interp.training import distributed as launching
from em_interp.training.checkpoints import AdapterWriter, Snapshots
from em_interp.training.distributed import Processes, join, launch, launched
from em_interp.training.lora import add_adapter
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import Example
from em_interp.training.train import train
from em_interp.training.trainer import Batches
from tests.tiny import copy, refused, strict

from .test_train import adapter, contents, log

STEPS = 60
DRIVER = Path(__file__).with_name("together.py")
PROGRAM = [sys.executable, "-m", "em_interp.cli"]


@pytest.fixture(scope="module")
def config(bases, chats, tmp_path_factory) -> Path:
    """Each step has two micro-batches: one process takes both, of two each takes one."""
    values = {
        "model": bases["qwen2"],
        "data": [{"dataset": chats[0], "steps": STEPS}],
        "adapter": {"target_modules": ["down_proj"], "layers_to_transform": [1], "lora_alpha": 16},
        "training": {"batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.01},
    }
    path = tmp_path_factory.mktemp("several") / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def alone(config) -> Run:
    """The run as one process makes it."""
    return train(config, config.parent / "alone")


@pytest.fixture(scope="module")
def broken(config) -> tuple[Run, int, str]:
    """A run of two processes of which the second is killed; the exit code, and what was said."""
    run = Run(config.parent / "broken")
    command = [*PROGRAM, "train", config, "--out", run.path, "--processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        second: list[psutil.Process] = []
        while parent.poll() is None and not (second and run.checkpoint(3).exists()):
            second = second or [child for child in children_of(parent) if child.environ().get("RANK") == "1"]
            time.sleep(0.002)
        second[0].kill()
        out, err = parent.communicate(timeout=120)
    assert out == ""
    return run, parent.returncode, err


def children_of(parent: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(parent.pid).children()


def same_training(run: Run, other: Run) -> bool:
    ours, theirs = contents(run.path), contents(other.path)
    ours.pop("manifest.json"), theirs.pop("manifest.json")  # these say how many processes there were
    return ours == theirs


def test_when_one_process_is_killed_all_end_with_one_line_that_says_how_to_go_on(broken):
    run, code, said = broken
    assert code == 2
    assert said.startswith("em-interp: another process of this training has ended, so all do; step ")
    assert said.endswith(f" is saved, --resume goes on in {run.path}\n") and said.count("\n") == 1
    assert run.manifest()["processes"] == 2
    assert 3 <= run.steps()[-1] < STEPS


def test_what_two_processes_began_one_ends_with_the_bytes_of_one(broken, config, alone):
    run = Run(copy(broken[0].path, config.parent / "taken-over"))
    train(config, run.path, resume=True)
    assert same_training(run, alone)


@pytest.fixture(scope="module")
def spread(config, bases) -> Path:
    """A config of a run whose base is spread over two processes."""
    values = yaml.safe_load(config.read_text())
    values["model"] = bases["gemma3"]
    values["data"][0]["steps"] = 8
    values["adapter"] = {"target_modules": ["q_proj", "down_proj"], "r": 2}
    values["training"] |= {"shard": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 4}
    path = config.with_name("spread.yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def together(broken, config, spread) -> tuple[Run, Run, str]:
    """What two processes of torchrun leave: the broken run finished, a run of a spread base, and what they printed."""
    finished, other = Run(copy(broken[0].path, config.parent / "together")), Run(config.parent / "spread")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", DRIVER]
    words = ["train", config, "--out", finished.path, "--resume", "--processes", "2", "--json"]
    done = subprocess.run([*torchrun, spread, other.path, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return finished, other, done.stdout


def test_two_processes_train_the_adapters_of_one_write_each_once_and_speak_once(together, alone):
    run, _, said = together
    assert strict(said) == {"run": str(run.path), "steps": list(range(STEPS + 1))}
    assert same_training(run, alone)
    assert [row["step"] for row in log(run)] == list(range(1, STEPS + 1))


def test_a_base_spread_over_two_processes_is_halved_and_trains_the_adapters_of_a_whole_one(together, spread):
    before, after = json.loads(spread.with_name("spread.json").read_text())
    assert after < 0.6 * before
    values = yaml.safe_load(spread.read_text())
    values["training"] |= {"shard": False, "gradient_checkpointing": False}
    whole, run = train(values, spread.with_name("whole")), together[1]
    assert run.steps() == whole.steps()
    for step in (0, 1, 8):
        for name, weight in adapter(whole, step).items():
            torch.testing.assert_close(adapter(run, step)[name], weight, rtol=0, atol=1e-6)


def test_a_single_process_of_accelerate_where_two_were_asked_for_is_refused(config):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += [*PROGRAM[1:], "train", config, "--out", config.parent / "silent"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "em-interp: accelerate launch was asked for several processes; it started one" in done.stderr
    assert not (config.parent / "silent").exists()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_processes_share_the_rows_of_each_step(count, settings):
    config = load_config(settings(training={"batch_size": 3, "gradient_accumulation_steps": 4}))
    plan = make_plan(config, {config.data[0].dataset: 40})
    examples = {plan.dataset(1): {row: Example([row + 1], [row + 1]) for row in range(40)}}
    shares = [Batches(plan, 5, 3, examples, Processes(rank, count)) for rank in range(count)]
    seen = [torch.cat([share[i]["input_ids"] for i in range(len(share))]) for share in shares]
    seen = [rows.reshape(plan.steps - 5, 12 // count) for rows in seen]
    assert np.array_equal(torch.cat(seen, 1).numpy() - 1, plan.rows[5:])


def test_only_the_first_process_saves_checkpoints(settings, tmp_path):
    config = load_config(settings())
    model = add_adapter(load_base(config.model).model, config.adapter, 0, "base")
    for first in (False, True):
        snapshots = Snapshots(tmp_path / str(first), Schedule("every 1"))
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
        state = TrainerState(max_steps=3, is_world_process_zero=first)
        snapshots.on_train_begin(arguments, state, TrainerControl(), model=model)
        assert (tmp_path / str(first) / "checkpoint-0").exists() == first


def test_an_adapter_that_is_not_whole_is_refused_instead_of_saved_in_part(settings):
    config = load_config(settings())
    model = add_adapter(load_base(config.model).model, config.adapter, 0, "base")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.distributed.fsdp.fully_shard(model)
        with pytest.raises(InputError, match="not whole in this process"):
            AdapterWriter(model)
    finally:
        torch.distributed.destroy_process_group()


def test_what_cannot_be_shared_is_refused_before_any_process_starts(config):
    said = refused("train", config, "--out", config.parent / "no", "--processes", 3)
    assert "training.gradient_accumulation_steps is 2, which 3 processes cannot share equally" in said
    said = refused(
        "train", config, "--out", config.parent / "no", "--processes", 2, "--set", "adapter.lora_dropout=0.1"
    )
    assert "with 2 processes it must be 0" in said
    said = refused("train", config, "--out", config.parent / "no", "--set", "training.shard=true")
    assert "training.shard spreads the base model over several processes; one runs" in said
    full = ("--set", "adapter={kind: full}", "--set", "training.shard=true")
    assert "full fine-tuning trains all of it" in refused("train", config, "--processes", 2, *full)
    assert not (config.parent / "no").exists()


@pytest.mark.parametrize(
    ("environment", "asked", "message"),
    [
        ({}, 2, "2 processes were asked for; one runs"),
        ({}, 0, "0 processes were asked for; one runs"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, 2, "2 processes were asked for; the launcher says there are 4"),
        ({"ACCELERATE_USE_FSDP": "true"}, None, "shard the model with FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, None, "shard the model with DeepSpeed"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, None, "MPI started 2 processes that each train alone"),
    ],
)
def test_a_launch_that_would_do_something_else_is_refused(environment, asked, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        join(asked)


def test_alone_where_no_launcher_speaks(monkeypatch):
    assert join() == launched() == Processes(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched() == Processes(1, 3)


def script(first: str, second: str) -> list[str]:
    """A command that does `first` where it is the first of two processes, and else `second`."""
    code = f"import os, signal, sys, time\nif os.environ['RANK'] == '0':\n    {first}\nelse:\n    {second}\n"
    return [sys.executable, "-c", code]


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
WAITS = "time.sleep(60)"


def test_processes_that_end_well_end_well_together():
    launch(script("time.sleep(0.2)", "pass"), 2)


@pytest.mark.parametrize(("first", "second", "code"), [("sys.exit(3)", WAITS, 3), ("sys.exit(2)", "sys.exit(1)", 2)])
def test_what_the_first_process_ends_with_is_what_all_end_with(first, second, code, monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 0.3)
    with pytest.raises(SystemExit) as stop:
        launch(script(first, second), 2)
    assert stop.value.code == code


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (WAITS, KILLED, "process 1 of 2 was ended by SIGKILL, so all were ended"),
        (WAITS, "sys.exit(1)", "process 1 of 2 ended with exit code 1, so all were ended"),
        (KILLED, "time.sleep(0.1); sys.exit(2)", "process 0 of 2 was ended by SIGKILL, so all were ended"),
    ],
)
def test_a_first_process_that_could_not_speak_is_spoken_for(first, second, said, monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 0.3)
    with pytest.raises(InputError, match=said):
        launch(script(first, second), 2)


def test_when_the_launcher_is_killed_nobody_trains_on_behind_its_back(tmp_path):
    child = (
        "import os, time\nfrom pathlib import Path\n"
        "from em_interp.training.distributed import stay_with_launcher\n"
        f"stay_with_launcher()\nPath({str(tmp_path)!r}, os.environ['RANK']).touch()\ntime.sleep(60)\n"
    )
    code = (
        f"import sys\nfrom em_interp.training.distributed import launch\nlaunch([sys.executable, '-c', {child!r}], 2)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while len([*tmp_path.iterdir()]) < 2:
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    start = time.monotonic()
    with launcher.stderr as held:  # by the processes, too: it ends when they have ended
        assert held.read() == b""
    assert time.monotonic() - start < 30
    launcher.wait()


def test_ctrl_c_goes_to_the_first_process_which_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 0.3)
    first = f"signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); open({str(tmp_path / 'up')!r}, 'w'); {WAITS}"

    def interrupting(duration: float) -> None:
        time_sleep(duration)
        if (tmp_path / "up").exists():
            (tmp_path / "up").unlink()
            raise KeyboardInterrupt

    time_sleep = time.sleep
    monkeypatch.setattr(launching.time, "sleep", interrupting)
    with pytest.raises(SystemExit) as stop:
        launch(script(first, WAITS), 2)
    assert stop.value.code == 130


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_gradient_checkpointing_computes_layers_twice_and_changes_no_adapter(family, settings, tmp_path):
    runs, calls = {}, {}
    for on in (False, True):
        with counted_calls() as count:
            training = {"training": {"gradient_checkpointing": on, "gradient_accumulation_steps": 2, "batch_size": 2}}
            runs[on] = train(settings(family, **training), tmp_path / str(on))
        calls[on] = len(count)
    assert calls[True] > 1.5 * calls[False]
    for name, weight in adapter(runs[True], 12).items():
        torch.testing.assert_close(weight, adapter(runs[False], 12)[name], rtol=0, atol=1e-6)


@contextlib.contextmanager
def counted_calls():
    """A list that grows with every call of a linear module."""
    calls: list[int] = []

    def count(module, inputs, output) -> None:
        if isinstance(module, torch.nn.Linear):
            calls.append(1)

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
