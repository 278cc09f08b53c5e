"""Several processes that share one stage: if one fails, all end.

torchrun (or accelerate launch) starts them and says so in their environment; accelerate's PartialState connects them.
Training shares the rows of each step among them, asking and reading likelihoods the answers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from em_interp.errors import InputError

T = TypeVar("T")
TORCHRUN = "torchrun --nproc-per-node N -m em_interp"
SHARDING_LAUNCHERS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
WATCH, WATCH_SECONDS = "em_interp-watch", 0.5  # the thread that ends a process without its parent
MAX_WAIT = timedelta(days=7)  # of a process that has done its share for the others


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of the items: neighbours, about as many as every other process gets."""
        first, last = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return items[first:last]

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def on_main(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by the main process alone; its error is raised in every process."""
        result, error = _attempt(work) if self.is_main else (None, None)
        return self._gather(result, error)[0]

    def on_all(self, work: Callable[[], T]) -> T:
        """The result of `work` in this process, once all have done it; an error in one is raised in every process."""
        result, error = _attempt(work)
        self._gather(None, error)
        return result

    def _gather(self, result: Any, error: Exception | None) -> list[Any]:
        """The results of all processes; raises the first error among them."""
        gathered = [(result, error)]
        if self.count > 1:
            import torch.distributed

            gathered *= self.count
            torch.distributed.all_gather_object(gathered, (result, error))
        for _, failure in gathered:
            if failure:
                raise failure
        return [each for each, _ in gathered]


SINGLE = Processes()


class LostProcess(RuntimeError):
    """Another process has failed, so the launcher ends this one."""


def _attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except (InputError, OSError) as error:
        return None, error


def process_from_env() -> Processes:
    """This process by its environment, before it is connected; a single one where no launcher has set any."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return SINGLE
    return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def init_processes(max_wait: timedelta | None = None) -> Processes:
    """Connect with the other processes where a launcher started several.

    `max_wait` is how long one waits for the others; by default that of torch.distributed, some minutes. Raises
    InputError for a launch that would do something else than was asked for.
    """
    expected = process_from_env()
    _check_launch(expected)
    if expected.count == 1:
        return SINGLE
    import torch
    from accelerate import PartialState

    n_local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", expected.count)), torch.cuda.device_count()
    if torch.cuda.is_available() and n_local > gpus:
        raise InputError(f"{n_local} processes on this machine need {n_local} GPUs; it has {gpus}")
    _end_with_launcher()
    more = {} if max_wait is None else {"timeout": max_wait}
    state = PartialState(cpu=not torch.cuda.is_available(), **more)
    return Processes(state.process_index, state.num_processes)


def _end_with_launcher() -> None:
    """Raise LostProcess when the launcher ends this process; end, as by a kill, when the launcher itself is killed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_lost_process)
    end_with(os.getppid())


def end_with(parent: int) -> None:
    """End this process, as by a kill, once `parent` is no longer its parent: a thread looks."""
    if not any(thread.name == WATCH for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=[parent], name=WATCH, daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _raise_lost_process(number: int, frame: FrameType | None) -> NoReturn:
    raise LostProcess("the launcher ended this process, as it does when another has failed")


def _check_launch(processes: Processes) -> None:
    for name, sharder in SHARDING_LAUNCHERS.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise InputError(
                f"accelerate is set to shard the model with {sharder}, under which the saved adapters would be stale; "
                "launch without it (see docs/training.md for models that do not fit)"
            )
    separate = max(int(os.environ.get(name, 1)) for name in MPI_SIZES)
    if separate > processes.count:
        raise InputError(f"MPI started {separate} processes that each train alone; use {TORCHRUN} train CONFIG")
    if processes.count == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys():
        raise InputError(
            "accelerate launch was asked for several processes; it started one, as it does with --cpu; use "
            f"{TORCHRUN} train CONFIG"
        )


@contextmanager
def only_main_continues() -> Iterator[None]:
    """A command run by several processes: after the block only the main one continues and reports; the others end."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        if process_from_env().is_main:
            raise
        exit_process(2)
    if not process_from_env().is_main:
        exit_process(0)


@contextmanager
def lost_process_as_error(folder: Path) -> Iterator[None]:
    """Work of several processes in `folder` that can be resumed: the loss of one as InputError in the others."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        kept = f"what is done is kept, resume=True continues in {folder}"
        raise InputError(f"another process has ended, so all do; {kept}") from error


def exit_process(code: int) -> NoReturn:
    """End this process. One among several ends at once: gloo now and then aborts in the interpreter's own exit."""
    if process_from_env().count == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether `error` says that another process is gone."""
    if process_from_env().count == 1:
        return False
    import torch.distributed

    message = str(error).lower()
    known = isinstance(error, (LostProcess, torch.distributed.DistError))
    return known or "gloo" in message or "connection closed by peer" in message


@contextmanager
def torch_threads(count: int = 1) -> Iterator[None]:
    """Limit torch to `count` threads in the block: small models gain nothing from a second and lose on busy cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
