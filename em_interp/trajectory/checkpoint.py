"""One saved adapter: a folder with `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from em_interp.errors import InputError
from em_interp.runs import read_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight")
_LANGUAGE_MODEL = re.compile(r"^(?:(?:model|language_model)\.)+")
Kind = Literal["lora", "steering", "full"]  # what was trained: an adapter, a vector, all weights
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Checkpoint:
    """An adapter at one step."""

    weights: Path
    base: str | None
    A: dict[str, Float32[np.ndarray, "rank d_in"]]
    B: dict[str, Float32[np.ndarray, "d_out rank"]]
    scale: dict[str, float]
    kind: Kind = "lora"


def read_checkpoint(folder: Path) -> Checkpoint:
    """The LoRA adapter in `folder`.

    Sites are named from the language model's layers on (`layers.24.mlp.down_proj`), whatever stands before them in a
    file (`base_model.model.model.`, Gemma3's `language_model.`). Raises InputError naming the file that is missing,
    truncated, pickled, or holds something other than LoRA matrices.
    """
    config, weights = _read_config(folder / CONFIG), folder / WEIGHTS
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in read_tensors(weights).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{weights} holds {key}, which is not a lora_A or lora_B matrix; only those are read")
        if tensor.ndim != 2:
            raise InputError(f"{weights}: {key} should be a matrix; its shape is {tensor.shape}")
        modules.setdefault(match["module"], {})[match["part"]] = tensor
    if not modules:
        raise InputError(f"{weights} holds no lora_A and lora_B; the adapter landed on no module")
    A, B, scale = {}, {}, {}
    for module in sorted(modules, key=natural):
        site = _LANGUAGE_MODEL.sub("", module)
        if site in A:
            raise InputError(f"{weights}: two modules would be called {site}; one of them is {module}")
        A[site], B[site] = _pair(modules[module], module, weights)
        scale[site] = _scale(config, module, rank=len(A[site]), weights=weights)
    return Checkpoint(weights, config.get("base_model_name_or_path"), A, B, scale)


def _pair(parts: dict[str, np.ndarray], module: str, weights: Path) -> tuple[np.ndarray, np.ndarray]:
    if set(parts) != {"A", "B"}:
        raise InputError(f"{weights}: {module} has lora_{next(iter(parts))} only; expected lora_A and lora_B")
    A, B = parts["A"], parts["B"]
    if A.shape[0] != B.shape[1]:
        raise InputError(f"{weights}: {module} has lora_A {A.shape} and lora_B {B.shape}; their ranks differ")
    return A, B


def _scale(config: dict[str, Any], module: str, rank: int, weights: Path) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA; both numbers may be set by pattern for this module."""
    expected = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    if expected != rank:
        raise InputError(f"{weights}: {module} has rank {rank}; {CONFIG} beside it says {expected}")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, (int, float)):
        raise InputError(f"{weights.with_name(CONFIG)}: lora_alpha should be a number; it is {alpha!r}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the module's name, from a dot on: PEFT's rule."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} should hold an adapter's settings; it holds {type(config).__name__}")
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
        kind = "DORA" if config.get("use_dora") else config["peft_type"]
        raise InputError(f"{path} describes an adapter of type {kind}; only plain LoRA is read")
    return config


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file in float32. One read of the file; the library checks the header."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())
    except FileNotFoundError:
        raise InputError(_missing(path)) from None
    except SafetensorError as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} ({size} bytes) is not a whole safetensors file ({error}); it may be truncated"
        ) from None
    return {key: _tensor(entry, key, path) for key, entry in entries}


def _tensor(entry: Any, key: str, path: Path) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise InputError(f"{path}: {key} has dtype {entry['dtype']}; expected one of {', '.join(_DTYPES)}")
    flat = np.frombuffer(entry["data"], dtype=_DTYPES[entry["dtype"]])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.astype(np.float32, copy=False).reshape(entry["shape"])


def _missing(weights: Path) -> str:
    there = {entry.name for entry in weights.parent.iterdir()} if weights.parent.is_dir() else set()
    if "adapter_model.bin" in there:
        return f"{weights.parent} has adapter_model.bin, a pickle, which is never opened; expected {WEIGHTS}"
    return f"{weights} is missing; the checkpoint is not complete"


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
