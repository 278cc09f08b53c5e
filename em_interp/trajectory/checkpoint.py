"""What is saved of a run at one step: two matrices per site."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

Kind = Literal["lora", "steering", "full", "log"]  # what was trained: an adapter, a vector, all weights; a log alone

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # of torch.compile, FSDP, checkpointing
_BEFORE_MODEL = re.compile(r"^(?:module\.)?(?:base_model\.model\.)*")
_BEFORE_LAYERS = re.compile(r"^(?:(?:model|language_model)\.)+")


@dataclass(frozen=True)
class Checkpoint:
    """An adapter at one step; at each site ΔW = scaling · B · A."""

    file: Path  # with the weights; named in errors
    base: str | None
    A: dict[str, Float32[np.ndarray, "rank d_in"]]
    B: dict[str, Float32[np.ndarray, "d_out rank"]]
    scaling: dict[str, float]  # alpha / rank, or alpha / sqrt(rank) with rsLoRA
    kind: Kind = "lora"
    magnitude: dict[str, Float32[np.ndarray, " d_out"]] = field(default_factory=dict)  # of DoRA
    extra_tensors: tuple[str, ...] = ()  # trained tensors beyond A and B, without which the model is not complete


def column_checkpoint(
    file: Path, base: str | None, B: dict[str, Float32[np.ndarray, "d 1"]], scaling: float, kind: Kind
) -> Checkpoint:
    """A checkpoint of vectors: B is the vector, A is 1."""
    unit = np.ones((1, 1), np.float32)
    return Checkpoint(file, base, dict.fromkeys(B, unit), B, dict.fromkeys(B, scaling), kind)


def module_name(key: str) -> str:
    """The name of a module in the base model, without what PEFT, torch.compile and FSDP put around it."""
    plain = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    return _BEFORE_MODEL.sub("", plain)


def site_name(module: str) -> str:
    """The module's name from the language model's layers on (`layers.24.mlp.down_proj`), without any prefix."""
    return _BEFORE_LAYERS.sub("", module)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 10 after layer 9."""
    return [(int(word), "") if word.isdecimal() and len(word) < 20 else (-1, word) for word in name.split(".")]
