"""A script in a process of its own, without the seconds that importing torch and transformers takes.

One process for each test process imports them once and forks the rest, which are real processes all the same: they
get signals, are killed, and end with a code.
"""

import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["em_interp.training.trainer", "em_interp.training.lora", "datasets", "openai"])


class Started:
    """`python SCRIPT WORDS` in a folder, with the environment of now and `more` of it; used like a Popen with pipes."""

    def __init__(self, script: str, *words: object, cwd: Path, more: Mapping[str, str] = MappingProxyType({})) -> None:
        self._output = Path(tempfile.mkdtemp())
        given = (script, [str(word) for word in words], cwd, os.environ | more, self._output)
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.join()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has written to stdout and stderr, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired("the script", timeout)
        out, err = ((self._output / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self._output)
        return out, err


def as_ranks(count: int, script: str, *words: object, cwd: Path) -> list[tuple[int | None, str, str]]:
    """The script in processes that find each other as torchrun's do; the exit code, stdout and stderr of each."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    started = [Started(script, *words, cwd=cwd, more=shared | rank) for rank in ranks]
    said = [process.communicate(timeout=300) for process in started]
    return [(process.returncode, *of) for process, of in zip(started, said, strict=True)]


def _run(script: str, words: list[str], cwd: Path, environment: dict[str, str], output: Path) -> None:
    gc.freeze()  # what is loaded by now is the same in every process; nothing looks for garbage in it
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")
