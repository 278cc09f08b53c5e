"""Several processes that train one adapter together: how many there are, and that they begin and fail as one.

Whatever starts them (`em-interp train --processes`, torchrun, accelerate launch) says so in their environment. A
launcher that starts one process where several were asked for does it without a word; that is an error here.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.config import RunConfig
from em_interp.errors import InputError
from em_interp.training.lora import Weights

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
    batch, accumulation = config.training.batch_size, config.training.gradient_accumulation_steps
    if accumulation % count:
        rows = batch * accumulation // count
        shared = f"; batch_size {rows} with gradient_accumulation_steps {count} makes the same step"
        hint = "" if batch * accumulation % count else shared
        raise InputError(
            f"training.gradient_accumulation_steps is {accumulation}, which {count} processes cannot share "
            f"equally{hint}"
        )
    dropout = getattr(config.adapter, "lora_dropout", 0)
    if count > 1 and dropout:
        raise InputError(
            f"adapter.lora_dropout is {dropout}; with {count} processes it must be 0, because what is "
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


# --------
# Starting several processes on this machine that train together, and ending them together.


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


# --------
# A base that is too large for one GPU, spread over those of several processes (PyTorch's FSDP2).
# Only the frozen weights are spread: each process keeps its part of every layer and gathers the layer when it is
# used. What is trained is small and stays whole in every process, so that checkpoints, optimizer and resume are
# those of an unspread run. accelerate's own FSDP is not used: it exchanges the parameters for others after the
# optimizer has been made, and would leave the snapshots with the old ones.


def shard(model: Any, trained: Weights) -> None:
    """Spread the parameters of `model` over the processes, all but those `trained`."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for weight in trained.values():
        weight.data = weight.data.to(device)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for part in (*inner.get_decoder().layers, model):
        fully_shard(part, ignored_params=set(trained.values()))
    model._is_accelerate_prepared = True  # accelerate is to leave it as it is: no DDP around it


class AverageGradients(TrainerCallback):
    """What DDP does for a model that is not spread: before each step the gradients become their mean over processes."""

    def __init__(self, trained: Iterable[torch.nn.Parameter]) -> None:
        self.trained = list(trained)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Exchange them all at once."""
        gradients = [weight.grad for weight in self.trained if weight.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients]) / args.world_size
        torch.distributed.all_reduce(together)
        for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
