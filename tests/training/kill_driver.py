"""Trains one run undisturbed, and then again in child processes that are stopped in various ways until it is finished.

python kill_driver.py SETTINGS.json FOLDER trains FOLDER/whole and a folder for each of `WAYS`, and prints what each
attempt ended with. One process imports torch and forks the attempts, which are real processes all the same.
"""

import gc
import json
import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from em_interp.errors import InputError
from em_interp.training.train import train

POINTS = iter([2, 5, 9, 13, 24, 55])


def attempt(values: dict, out: Path, prepare: Callable[[], None]) -> str:
    """Train in a child after `prepare`; how the child ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        prepare()
        os.write(writer, trained(values, out).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    return f"signal {status & 0x7F}" if status & 0x7F else said


def trained(values: dict, out: Path) -> str:
    """What the training of this process ended with; Ctrl-C between its end and here comes too late to count."""
    try:
        try:
            train(values, out, resume=True)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except InputError as error:
        return f"InputError: {error}"
    except KeyboardInterrupt as error:
        return f"{type(error).__name__}: {error}" if str(error) else "finished"
    return "finished"


def killed_at_a_file_operation(values: dict, out: Path) -> str:
    """SIGKILL just before the next so many operations on the run's files: while it is set up, and later."""
    left = next(POINTS, 0)  # at the end of the list 0, which is never reached

    def hook(event: str, given: tuple) -> None:
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(given[0]).startswith(str(out)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    return attempt(values, out, lambda: sys.addaudithook(hook))


def killed_at_any_moment(values: dict, out: Path) -> str:
    """SIGKILL at a moment drawn after a few more steps were saved."""
    return attempt(values, out, some_steps_later(out, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def killed_with_few_states(values: dict, out: Path) -> str:
    """The same, with the state kept at every seventh step only."""
    few = values | {"training": values["training"] | {"keep_state_every": 7}}
    return killed_at_any_moment(few, out)


def stopped_by_ctrl_c(values: dict, out: Path) -> str:
    """SIGINT at such a moment."""
    return attempt(values, out, some_steps_later(out, lambda: signal.raise_signal(signal.SIGINT)))


def stopped_by_a_full_disk(values: dict, out: Path) -> str:
    """No file may grow beyond a size that the log reaches in mid-run; afterwards there is room again."""
    limit = resource.RLIM_INFINITY if out.exists() else 9_000
    return attempt(values, out, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


def some_steps_later(out: Path, stop: Callable[[], None]) -> Callable[[], None]:
    """Prepares a process to `stop` within 20 ms of its own time after a checkpoint some steps from now.

    The clock is the process's own, so that the moment does not depend on what else the machine does.
    """
    saved = (int(path.name[11:]) for path in (out / "checkpoints").glob("checkpoint-*"))
    target, delay = max(saved, default=0) + random.randint(4, 10), random.uniform(0.0005, 0.02)

    def prepare() -> None:
        waiting = [target]

        def hook(event: str, given: tuple) -> None:
            name = str(given[1]).rpartition("checkpoint-")[2] if event == "os.rename" else ""
            if name.isdigit() and waiting and int(name) >= target:
                waiting.clear()
                signal.setitimer(signal.ITIMER_VIRTUAL, delay)

        signal.signal(signal.SIGVTALRM, lambda number, frame: stop())
        sys.addaudithook(hook)

    return prepare


WAYS = (
    killed_at_a_file_operation,
    killed_at_any_moment,
    killed_with_few_states,
    stopped_by_ctrl_c,
    stopped_by_a_full_disk,
)


def endings(way: Callable[[dict, Path], str], values: dict, out: Path) -> list[str]:
    """What each attempt ended with; the last one finished."""
    said: list[str] = []
    while "finished" not in said:
        said.append(way(values, out))
    return said


if __name__ == "__main__":
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared between processes, and a kill leaves it held
    random.seed(0)
    settings, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    train(settings, folder / "whole")
    gc.freeze()  # the Trainer collects garbage when it starts; spare the children what is loaded by now
    print(json.dumps({way.__name__: endings(way, settings, folder / way.__name__) for way in WAYS}))
