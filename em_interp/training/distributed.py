"""Several processes that train one adapter together: they start, fail and end as one.

torchrun (or accelerate launch) starts them and says so in their environment; accelerate's PartialState connects them.
A base that is too large for one GPU can be sharded over those of the processes with PyTorch's FSDP2. accelerate's own
FSDP is not used: it exchanges the parameters after the optimizer has been made, so the saved adapters would be stale.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, TypeVar

from em_interp.config import RunConfig
from em_interp.errors import InputError
from em_interp.training.lora import Weights

T = TypeVar("T")
TORCHRUN = "torchrun --nproc-per-node N -m em_interp train CONFIG"
SHARDING_LAUNCHERS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

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
    """Another process of the training has failed, so the launcher ends this one."""


def _attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except (InputError, OSError) as error:
        return None, error


def launched() -> Processes:
    """This process by its environment, before it is connected; a single one where no launcher has set any."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return SINGLE
    return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def join() -> Processes:
    """Connect with the other processes where a launcher started several.

    Raises InputError for a launch that would train something else than was asked for.
    """
    expected = launched()
    _check_launch(expected)
    if expected.count == 1:
        return SINGLE
    import torch
    from accelerate import PartialState

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", expected.count)), torch.cuda.device_count()
    if torch.cuda.is_available() and here > gpus:
        raise InputError(f"{here} processes on this machine need {here} GPUs; it has {gpus}")
    _end_with_launcher()
    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def _end_with_launcher() -> None:
    """Raise LostProcess when the launcher ends this process; end, as by a kill, when the launcher itself is killed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_lost_process)
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
        raise InputError(f"MPI started {separate} processes that each train alone; use {TORCHRUN}")
    if processes.count == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys():
        raise InputError(
            "accelerate launch was asked for several processes; it started one, as it does with --cpu; use " + TORCHRUN
        )


def check_process_count(config: RunConfig, count: int) -> None:
    """Raise InputError where `count` processes cannot take equal shares of the config's steps, or of its model."""
    training = config.training
    if training.shard and count == 1:
        raise InputError(f"training.shard spreads the base model over several processes; one runs (use {TORCHRUN})")
    if training.shard and config.adapter.kind == "full":
        raise InputError("training.shard spreads a frozen base model; full fine-tuning trains all of it")
    batch, accumulation = training.batch_size, training.gradient_accumulation_steps
    if accumulation % count:
        same = f"; batch_size {batch * accumulation // count} with {count} accumulation steps makes the same step"
        raise InputError(
            f"training.gradient_accumulation_steps is {accumulation}, which {count} processes cannot share equally"
            + ("" if batch * accumulation % count else same)
        )
    dropout = getattr(config.adapter, "lora_dropout", 0)
    if count > 1 and dropout:
        raise InputError(
            f"adapter.lora_dropout is {dropout}; with {count} processes it must be 0, because what is "
            "dropped would depend on how the rows are shared"
        )


@contextmanager
def main_reports() -> Iterator[None]:
    """A command run by several processes: only the main one goes on behind the block and reports; the others end."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        if launched().is_main:
            raise
        leave(2)
    if not launched().is_main:
        leave(0)


def leave(code: int) -> NoReturn:
    """End this process. One among several ends at once: gloo now and then aborts in the interpreter's own exit."""
    if launched().count == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether `error` says that another process is gone."""
    if launched().count == 1:
        return False
    import torch.distributed

    message = str(error).lower()
    known = isinstance(error, (LostProcess, torch.distributed.DistError))
    return known or "gloo" in message or "connection closed by peer" in message


def shard(model: Any, trained: Weights) -> None:
    """Spread the parameters of `model` over the processes, all but those `trained`.

    Each process keeps its part of every layer and gathers the layer when it is used. What is trained is small and
    stays whole in every process, so checkpoints, optimizer and resume are those of a run that is not sharded.
    """
    import torch
    from torch.distributed.fsdp import fully_shard

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for weight in trained.values():
        weight.data = weight.data.to(device)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for part in (*inner.get_decoder().layers, model):
        fully_shard(part, ignored_params=set(trained.values()))
    model._is_accelerate_prepared = True  # accelerate must leave it as it is: no DDP around it


def average_gradients(trained: Iterable[Any], count: int) -> None:
    """Replace each gradient by its mean over `count` processes, as DDP does for a model that is not sharded."""
    import torch

    gradients = [weight.grad for weight in trained if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / count
    torch.distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
