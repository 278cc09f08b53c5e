"""Several processes that train one adapter together: how many there are, and that they begin and fail as one.

Whatever starts them (`em-interp train --processes`, torchrun, accelerate launch) says so in their environment. A
launcher that starts one process where several were asked for does it without a word; that is an error here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from em_interp.config import RunConfig
from em_interp.errors import InputError

T = TypeVar("T")
Shared = tuple[Any, Exception | None]  # what a work came to, or what it failed with
_SHARDERS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
LAUNCHER = "EM_INTERP_LAUNCHER"  # in the environment: the process that started this one and ends it with the others
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` comes to in the first process, given to all when all are here; its error is raised in all."""
        return self._gather(_attempt(work) if self.leads else (None, None))[0][0]

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` comes to in this process, once it is done in all; an error in any of them is raised in all."""
        result, error = _attempt(work)
        self._gather((None, error))
        return result

    def _gather(self, mine: Shared) -> list[Shared]:
        """What each process has, or the first error among them."""
        everyones = [mine]
        if self.count > 1:
            import torch.distributed

            everyones = [mine] * self.count
            torch.distributed.all_gather_object(everyones, mine)
        for _, error in everyones:
            if error:
                raise error
        return everyones


ALONE = Processes()


def _attempt(work: Callable[[], Any]) -> Shared:
    try:
        return work(), None
    except (InputError, OSError) as error:
        return None, error


def launched() -> Processes:
    """Which of how many processes this one is, by its environment; alone where that says nothing."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def join(asked: int | None = None) -> Processes:
    """Meet the other processes, if a launcher started several; this one stays until it ends.

    Raises InputError where fewer or more run than were `asked` for, or a launcher is to do what cannot be done here.
    """
    here = launched()
    stay_with_launcher()
    _check_launch(here, asked)
    if here.count > 1:
        _connect(here)
    return here


def stay_with_launcher() -> None:
    """End this process, as a kill would, when `em-interp train --processes` is gone: nobody else would end it."""
    if LAUNCHER not in os.environ:
        return
    launcher = int(os.environ[LAUNCHER])

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_shares(config: RunConfig, count: int) -> None:
    """Raise InputError where `count` processes cannot take equal shares of the config's steps, or of its model."""
    if config.training.shard and count == 1:
        raise InputError("training.shard spreads the base model over several processes; one runs (see --processes)")
    if config.training.shard and config.adapter.kind == "full":
        raise InputError("training.shard spreads a frozen base model; full fine-tuning trains all of it")
    batch, accumulation = config.training.batch_size, config.training.accumulation
    if accumulation % count:
        shared = f"; batch_size {batch * accumulation // count} with accumulation {count} makes the same step"
        hint = "" if batch * accumulation % count else shared
        raise InputError(f"training.accumulation is {accumulation}, which {count} processes cannot share equally{hint}")
    dropout = getattr(config.adapter, "dropout", 0)
    if count > 1 and dropout:
        raise InputError(
            f"adapter.dropout is {dropout}; with {count} processes it must be 0, because what is "
            "dropped would depend on how the rows are shared"
        )


def _check_launch(here: Processes, asked: int | None) -> None:
    environment = os.environ
    for name, what in _SHARDERS.items():
        if environment.get(name, "").lower() in ("1", "true"):
            raise InputError(
                f"accelerate is set to shard the model with {what}, under which the saved adapters would be stale; "
                "launch without it (see docs/training.md for models that do not fit)"
            )
    if asked is not None and asked != here.count:
        raise InputError(f"{asked} processes were asked for; {_running(here)}")
    apart = max(int(environment.get(name, 1)) for name in _MPI_SIZES)
    if apart > here.count:
        raise InputError(f"MPI started {apart} processes that each train alone; use torchrun or train --processes")
    if here.count == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= environment.keys():
        raise InputError(
            "accelerate launch was asked for several processes; it started one, as it does with --cpu; "
            "use em-interp train --processes N, or torchrun"
        )


def _running(here: Processes) -> str:
    return "one runs" if here.count == 1 else f"the launcher says there are {here.count}"


def _connect(here: Processes) -> None:
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        place, there = int(os.environ.get("LOCAL_RANK", here.rank)), torch.cuda.device_count()
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", here.count))
        if beside > there:
            raise InputError(f"{beside} processes on this machine need {beside} GPUs; it has {there}")
        torch.cuda.set_device(place)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    found = torch.distributed.get_world_size()
    if found != here.count:
        raise InputError(f"the launcher says there are {here.count} processes; {found} have met")


@contextmanager
def first_speaks() -> Iterator[None]:
    """The commands of all processes as one: those after the first end here, and leave it to the first to speak."""
    if launched().leads:
        yield
        return
    try:
        yield
    except (InputError, KeyboardInterrupt):
        leave(2)
    leave(0)


def leave(code: int) -> NoReturn:
    """End this process. One among several ends at once: gloo now and then aborts in the interpreter's own exit."""
    if launched().count == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_lost(error: RuntimeError) -> bool:
    """Whether `error` says that another process is gone."""
    if launched().count == 1:
        return False
    import torch.distributed

    words = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or "gloo" in words or "connection closed by peer" in words
