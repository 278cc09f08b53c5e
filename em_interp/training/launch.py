"""Starting several processes on this machine that train together, and ending them together."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

from em_interp.errors import InputError
from em_interp.training.processes import LAUNCHER

GRACE = 10.0  # seconds in which the others may notice that one has ended

Child = subprocess.Popen[bytes]


def launch(command: Sequence[str], count: int) -> None:
    """Run `command` in `count` processes that can find each other, and wait for all of them.

    The first process says what is to be said. When one fails, all end: SystemExit with its exit code, or InputError
    where it could say nothing itself. Ctrl-C goes to the first, which keeps what is there and says how to go on.
    """
    before = signal.signal(signal.SIGTERM, _terminated)
    children = _start(command, count)
    try:
        failed = _first_failure(children)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
        signal.signal(signal.SIGTERM, before)
    if failed is None:
        return
    if children[0].returncode < 0:
        said = f"process {failed} of {count} {_ending(children[failed])}, so all were ended"
        raise InputError(f"{said}; nothing saved is lost, --resume goes on")
    raise SystemExit(children[0].returncode or 1)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _start(command: Sequence[str], count: int) -> list[Child]:
    cores = os.cpu_count() or 1
    shared = {"OMP_NUM_THREADS": str(max(1, cores // count)), "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), LAUNCHER: str(os.getpid())}
    return [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C comes here alone
        )
        for rank in range(count)
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_failure(children: list[Child]) -> int | None:
    """The rank of the process that brought the others down, after these had time to notice; None if all ended well."""
    deadline = math.inf
    while True:
        codes = [child.poll() for child in children]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed and deadline == math.inf:
            deadline = time.monotonic() + GRACE
        if None not in codes or time.monotonic() > deadline:
            killed = [rank for rank in failed if (codes[rank] or 0) < 0]
            return min(killed or failed, default=None)
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:
            children[0].send_signal(signal.SIGINT)


def _ending(child: Child) -> str:
    code = child.returncode
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
