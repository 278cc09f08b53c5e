"""Several processes train the adapter that one does, and begin, fail and end as one."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from transformers import TrainerControl, TrainerState, TrainingArguments

from em_interp.config.run_config import load_config
from em_interp.config.schedule import Schedule
from em_interp.errors import InputError
from em_interp.organisms.bases import load_base
from em_interp.run import Run
from em_interp.training.checkpoints import AdapterWriter, SaveCheckpoints
from em_interp.training.distributed import check_process_count
from em_interp.training.lora import add_adapter
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import Example
from em_interp.training.train import train
from em_interp.training.trainer import MicroBatches
from em_interp.utils.processes import Processes, init_processes, process_from_env
from tests.tiny import ROOT, copy, refused, strict
from tests.warm import Started

from .test_train import adapter, contents, log

STEPS = 60
DRIVER = Path(__file__).with_name("torchrun_driver.py")
PROGRAM = ["-m", "em_interp"]
FORKED = Path(__file__).with_name("forked_torchrun.py")
TWO = ["--standalone", "--nproc-per-node", "2"]


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
    """A run of two processes of which the second is killed; torchrun's exit code, and stderr."""
    run = Run(config.parent / "broken")
    code, err = stopped(config, run, lambda launcher: workers_of(launcher)[1].kill())
    return run, code, err


def stopped(config: Path, run: Run, stop: Callable[[Started], None]) -> tuple[int, str]:
    """Train in two processes, call `stop` with the launcher once three steps are saved; exit code and stderr."""
    launcher = Started(str(FORKED), *TWO, *PROGRAM, "train", config, "--out", run.path, cwd=ROOT)
    while launcher.poll() is None and not run.checkpoint(3).exists():
        time.sleep(0.002)
    workers, deadline = workers_of(launcher), time.monotonic() + 120
    stop(launcher)
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    out, err = launcher.communicate(timeout=120)
    assert out == ""
    return launcher.returncode, err


def workers_of(launcher: Started) -> list[psutil.Process]:
    """Its processes, by rank."""
    return sorted(psutil.Process(launcher.pid).children(), key=lambda worker: worker.pid)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ours(err: str) -> list[str]:
    """The lines that em-interp wrote; torchrun adds a report of its own."""
    return [line for line in err.splitlines() if line.startswith("em-interp: ")]


def same_training(run: Run, other: Run) -> bool:
    ours, theirs = contents(run.path), contents(other.path)
    ours.pop("manifest.json"), theirs.pop("manifest.json")  # these say how many processes there were
    return ours == theirs


def test_when_one_process_is_killed_all_end_with_one_line_that_says_how_to_resume(broken):
    run, code, err = broken
    assert code == 1  # torchrun's, whatever the processes end with
    [line] = ours(err)
    why = "em-interp: another process has ended, so all do; what is done is kept"
    assert line == f"{why}, --resume continues in {run.path}"
    assert run.manifest()["processes"] == 2
    assert 3 <= run.steps()[-1] < STEPS


def test_ctrl_c_ends_all_processes_with_one_line_that_says_how_to_resume(config):
    run = Run(config.parent / "interrupted")
    code, err = stopped(config, run, lambda launcher: launcher.send_signal(signal.SIGINT))
    assert code == 1
    [line] = ours(err)
    assert line.startswith("em-interp: interrupted with step ")
    command = f"torchrun --nproc-per-node 2 -m em_interp train {config} --out {run.path} --resume"
    assert line.endswith(f" of {STEPS} saved; nothing is lost, to continue: {command}")


def test_when_the_launcher_is_killed_no_process_trains_on(config):
    run = Run(config.parent / "orphaned")
    long = config.with_name("long.yaml")
    values = yaml.safe_load(config.read_text())
    values["data"][0]["steps"] = 100_000
    long.write_text(yaml.safe_dump(values))
    code, err = stopped(long, run, lambda launcher: launcher.kill())
    assert code == -signal.SIGKILL and len(ours(err)) <= 1  # the main process may notice that the other has ended
    assert 3 <= run.steps()[-1] < 100_000


def test_a_run_of_two_processes_is_resumed_by_one_to_the_same_bytes(broken, config, alone):
    run = Run(copy(broken[0].path, config.parent / "taken-over"))
    train(config, run.path, resume=True)
    assert same_training(run, alone)


@pytest.fixture(scope="module")
def sharded(config, bases) -> Path:
    """A config of a run whose base is sharded over two processes."""
    values = yaml.safe_load(config.read_text())
    values["model"] = bases["gemma3"]
    values["data"][0]["steps"] = 8
    values["adapter"] = {"target_modules": ["q_proj", "down_proj"], "r": 2}
    values["training"] |= {"shard": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 4}
    path = config.with_name("sharded.yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def together(broken, config, sharded) -> tuple[Run, Run, str]:
    """What two processes of torchrun leave: the broken run finished, a run of a sharded base, and what they printed."""
    finished, other = Run(copy(broken[0].path, config.parent / "together")), Run(config.parent / "sharded")
    words = ["train", config, "--out", finished.path, "--resume", "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *TWO]
    done = subprocess.run([*torchrun, DRIVER, sharded, other.path, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return finished, other, done.stdout


def test_two_processes_train_the_adapters_of_one_write_each_once_and_report_once(together, alone):
    run, _, said = together
    assert strict(said) == {"run": str(run.path), "steps": list(range(STEPS + 1))}
    assert same_training(run, alone)
    assert [row["step"] for row in log(run)] == list(range(1, STEPS + 1))


def test_a_base_sharded_over_two_processes_is_halved_and_trains_the_adapters_of_a_whole_one(together, sharded):
    before, after = json.loads(sharded.with_name("sharded.json").read_text())
    assert after < 0.6 * before
    values = yaml.safe_load(sharded.read_text())
    values["training"] |= {"shard": False, "gradient_checkpointing": False}
    whole, run = train(values, sharded.with_name("whole")), together[1]
    assert run.steps() == whole.steps()
    for step in (0, 1, 8):
        for name, weight in adapter(whole, step).items():
            torch.testing.assert_close(adapter(run, step)[name], weight, rtol=0, atol=1e-6)


def test_a_single_process_of_accelerate_where_two_were_asked_for_is_refused(config):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += [*PROGRAM, "train", config, "--out", config.parent / "silent"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "em-interp: accelerate launch was asked for several processes; it started one" in done.stderr
    assert not (config.parent / "silent").exists()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_processes_share_the_rows_of_each_step(count, settings):
    config = load_config(settings(training={"batch_size": 3, "gradient_accumulation_steps": 4}))
    plan = make_plan(config, {config.data[0].dataset: 40})
    examples = {plan.dataset(1): {row: Example([row + 1], [row + 1]) for row in range(40)}}
    shares = [MicroBatches(plan, 5, 3, examples, Processes(rank, count)) for rank in range(count)]
    seen = torch.cat([share[i]["input_ids"] for i in range(len(shares[0])) for share in shares])
    assert np.array_equal(seen.reshape(plan.steps - 5, 12).numpy() - 1, plan.rows[5:])


def test_only_the_first_process_saves_checkpoints(settings, tmp_path):
    config = load_config(settings())
    model = add_adapter(load_base(config.model).model, config.adapter, 0, "base")
    for first in (False, True):
        saver = SaveCheckpoints(tmp_path / str(first), Schedule("every 1"), AdapterWriter(model))
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
        state = TrainerState(max_steps=3, is_world_process_zero=first)
        saver.on_train_begin(arguments, state, TrainerControl())
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


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({}, 3, "training.gradient_accumulation_steps is 2, which 3 processes cannot share equally"),
        ({"training": {"batch_size": 3}}, 3, "; batch_size 2 with 3 accumulation steps makes the same step"),
        ({"adapter": {"lora_dropout": 0.1}}, 2, "with 2 processes it must be 0"),
        ({"training": {"shard": True}}, 1, "training.shard spreads the base model over several processes; one runs"),
        ({"adapter": {"kind": "full"}, "training": {"shard": True}}, 2, "full fine-tuning trains all of it"),
    ],
)
def test_what_processes_cannot_share_is_refused(changes, count, message):
    training = {"batch_size": 2, "gradient_accumulation_steps": 2} | changes.pop("training", {})
    with pytest.raises(InputError, match=message):
        check_process_count(load_config({"training": training, **changes}), count)


def test_a_base_to_be_sharded_by_one_process_is_refused_before_anything_is_written(config):
    said = refused("train", config, "--out", config.parent / "no", "--set", "training.shard=true")
    assert "one runs (use torchrun" in said and not (config.parent / "no").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "shard the model with FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "shard the model with DeepSpeed"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "MPI started 2 processes that each train alone"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, "it started one, as it does with --cpu"),
    ],
)
def test_a_launch_that_would_do_something_else_is_refused(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        init_processes()


def test_without_a_launcher_there_is_one_process(monkeypatch):
    assert init_processes() == process_from_env() == Processes(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert process_from_env() == Processes(1, 3)


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


def test_one_thread_watches_the_launcher_however_often_processes_join():
    code = "import threading\nfrom em_interp.utils.processes import _end_with_launcher\n"
    code += "for _ in range(4): _end_with_launcher()\nprint(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2\n", "")
