"""What benchmarks/hostile.py and benchmarks/kills.py share: commands in forked processes, and runs to try them on."""

import gc
import importlib
import io
import os
import pkgutil
import re
import shutil
import sqlite3
import sys
import traceback
import warnings
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONFIG = """\
model: tiny-qwen2
data: [{dataset: "tiny:medical", steps: 6}]
adapter: {layers_to_transform: [1], lora_alpha: 16}
training: {batch_size: 4, gradient_accumulation_steps: 1, learning_rate: 2e-3}
behaviour: {steps: every 2, scales: [1], samples: 1, max_new_tokens: 6}
"""


def import_all():
    """Everything that commands import, before the first fork."""
    import em_interp
    from em_interp.cli.app import GROUPS

    for module in pkgutil.walk_packages(em_interp.__path__, "em_interp."):
        if module.name != "em_interp.__main__":
            importlib.import_module(module.name)
    for name in (*(f"em_interp.cli.{group}" for group in GROUPS), "plotly.graph_objects", "pyarrow.parquet"):
        importlib.import_module(name)
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
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "w"), "utf-8", "backslashreplace", write_through=True)
            for number in (1, 2)
        )
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
    """Every file below by its path; a manifest without the commit, which others may make meanwhile.

    Of a request cache its rows: the pages of SQLite lie in the order in which replies arrived.
    """
    held = {}
    for file in (file for file in sorted(folder.rglob("*")) if file.is_file()):
        data = rows_of(file) if file.suffix == ".sqlite3" else file.read_bytes()
        if file.name.endswith("manifest.json"):
            data = re.sub(rb'"git_commit": "\w+"', b"", data)
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
