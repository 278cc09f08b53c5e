"""What benchmarks/hostile.py and benchmarks/kills.py share: commands in forked processes, and runs to try them on.

A process that has imported everything once forks for each case: the child has its own address space, session, limits,
folder and output, calls the command line's main, and can be killed as any process can.
"""

import faulthandler
import functools
import gc
import importlib
import io
import os
import pkgutil
import re
import resource
import shutil
import signal
import sqlite3
import sys
import time
import traceback
import warnings
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from threading import RLock

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # for what the tests have: files as others write them, and a server
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONFIG = """\
model: tiny-qwen2
data: [{dataset: "tiny:medical", steps: 6}]
adapter: {layers_to_transform: [1], lora_alpha: 16}
training: {batch_size: 4, gradient_accumulation_steps: 1, learning_rate: 2e-3}
behaviour: {steps: every 2, scales: [1], samples: 1, max_new_tokens: 6}
"""
LATE = ("openai", "gguf", "pyarrow.parquet", "plotly.graph_objects", "plotly.validator_cache")  # what stages import


def import_all():
    """Everything that commands import, before the first fork."""
    import typer

    import em_interp
    from em_interp.cli.app import GROUPS

    for module in pkgutil.walk_packages(em_interp.__path__, "em_interp."):
        if module.name != "em_interp.__main__":
            importlib.import_module(module.name)
    for name in (*(f"em_interp.cli.{group}" for group in GROUPS), *LATE):
        importlib.import_module(name)
    typer.main.get_command = functools.cache(typer.main.get_command)  # the same commands for each child
    did("locate", "--help")
    gc.collect()
    gc.freeze()  # what is never looked at again is never copied for a child


def forked(work, folder):
    """The id of a process that does `work` and ends with its exit code; its output goes to files in `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not have
        pid = os.fork()
    if pid:
        return pid
    code = 98
    try:
        os.setsid()
        own_progress_locks()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "w"), "utf-8", "backslashreplace", write_through=True)
            for number in (1, 2)
        )
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable(2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid, seconds):
    """The exit code of a forked process, negative where a signal ended it; what it used; and whether it hung.

    One that still runs after `seconds` hangs: SIGABRT ends it, and makes it say where.
    """
    end, pause = time.monotonic() + seconds, 0.002
    while not (done := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)
            end = float("inf")
        time.sleep(pause)
        pause = min(1.3 * pause, 0.05)
    return os.waitstatus_to_exitcode(done[1]), done[2], end == float("inf")


def own_progress_locks():
    """Locks of this process for progress bars; tqdm's are shared with all that fork, and a kill leaves them held."""
    from tqdm import tqdm

    kinds = [tqdm]
    for kind in kinds:
        kind.set_lock(RLock())
        kinds += kind.__subclasses__()


def called(words):
    """The exit code of a command."""
    from em_interp.cli import main

    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def did(*words):
    """A command that has to succeed, without what it prints."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = called(words)
    assert code == 0, out.getvalue()


def write(path, data):
    """A file with these bytes, or this text with halves of characters as they are; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else str(data).encode("utf-8", "surrogatepass"))
    return path


def contents(folder):
    """Every file below by its path, without where the folder is, without durations, and without the commit.

    Of a request cache its rows: the pages of SQLite lie in the order in which replies arrived.
    """
    held = {}
    for file in (file for file in sorted(folder.rglob("*")) if file.is_file()):
        data = rows_of(file) if file.suffix == ".sqlite3" else file.read_bytes()
        if file.name.endswith("manifest.json"):
            data = re.sub(rb'"git_commit": "\w+"', b"", data)
        if file.name in ("summary.json", "seconds.json"):
            data = re.sub(rb'"(\w+)": [\d.]+', rb"\1", data)
        if isinstance(data, bytes):
            data = data.replace(str(folder.resolve()).encode(), b".")
        held[str(file.relative_to(folder))] = data
    return held


def rows_of(file):
    """The requests in a cache with their replies, sorted."""
    with closing(sqlite3.connect(file)) as database:
        return sorted(database.execute("SELECT request, reply, sha256 FROM replies"))


def make_run(folder):
    """A whole run of seconds with its config beside it, asked, judged, located and aligned."""
    config = write(folder / "tiny.yaml", CONFIG)
    here = Path.cwd()
    os.chdir(folder)
    try:
        did("train", config.name, "--out", "run")
        for stage in ("ask", "judge", "locate", "align"):
            did(stage, "run")
    finally:
        os.chdir(here)


def copy(source, target, *without):
    """A copy of a folder without what these patterns name; returns it."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without)))


def make_stock(stock):
    """A whole run with everything that is made of it, a killed one, checkpoints alone, a packed path and bases."""
    stock.mkdir(parents=True)
    make_run(stock)
    run = stock / "run"
    did("prefer", run, "--steps", "0,2", "--out", run)
    did("report", run, "--figures", "html")
    did("mechanism", run, "--size", "quick", "--analyses", "patching,logit_lens")
    make_parts(stock)


def make_parts(stock):
    """What kinds of cases need besides a run."""
    from em_interp.organisms.bases import local_copy

    run = stock / "run"
    did("export", run, "--format", "packed", "--out", stock / "packed.safetensors")
    for step in (0, 2, 5):
        shutil.copytree(run / f"checkpoints/checkpoint-{step}", stock / f"adapters/checkpoint-{step}")
    shutil.copy(run / "trainer_state.json", stock / "adapters/checkpoint-5/trainer_state.json")
    copy(run, stock / "half", "behaviour", "analysis", "report.html", "figures")
    make_half(stock / "half", stock / "tiny.yaml")
    shutil.copytree(local_copy("tiny-qwen2"), stock / "base")
    make_gguf(stock)


def make_half(half, config):
    """A run that was interrupted while it saved step 4, as a kill leaves it."""
    import em_interp as em
    from em_interp.training.checkpoints import AdapterWriter

    save = AdapterWriter.save

    def stop(self, folder):
        if folder.name == "checkpoint-4":
            raise KeyboardInterrupt
        save(self, folder)

    AdapterWriter.save = stop
    try:
        em.train(config, half, overwrite=True)
    except KeyboardInterrupt:
        pass
    finally:
        AdapterWriter.save = save


def make_gguf(stock):
    """A small Llama in a GGUF file, as the tests write it."""
    from tests.organisms.gguf_files import random_llama, write_gguf

    write_gguf(random_llama(), stock / "base.gguf", "Q8_0")
