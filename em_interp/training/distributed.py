"""Several processes that train one adapter together: whether they can, and how they share a base and its gradients.

A base that is too large for one GPU can be sharded over those of the processes with PyTorch's FSDP2. accelerate's own
FSDP is not used: it exchanges the parameters after the optimizer has been made, so the saved adapters would be stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from em_interp.config.run_config import RunConfig
from em_interp.errors import InputError
from em_interp.training.lora import Weights
from em_interp.utils.processes import TORCHRUN


def check_process_count(config: RunConfig, count: int) -> None:
    """Raise InputError where `count` processes cannot take equal shares of the config's steps, or of its model."""
    training = config.training
    if training.shard and count == 1:
        raise InputError(
            f"training.shard spreads the base model over several processes; one runs (use {TORCHRUN} train CONFIG)"
        )
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
