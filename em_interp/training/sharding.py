"""A base that is too large for one GPU, spread over those of several processes (PyTorch's FSDP2).

Only the frozen weights are spread: each process keeps its part of every layer and gathers the layer when it is used.
What is trained is small and stays whole in every process, so that checkpoints, optimizer and resume are those of an
unspread run. accelerate's own FSDP is not used: it exchanges the parameters for others after the optimizer has been
made, and would leave the snapshots with the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.training.adapter import Weights


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
