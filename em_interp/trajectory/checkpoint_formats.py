"""The formats of one saved step, read without torch, and how a folder's files tell which one it is.

- `adapter_model.safetensors` (or `.bin`) and `adapter_config.json`: a LoRA adapter, as PEFT writes it; or one file of
  MLX (see `lora_files`).
- `steering_vector.pt` and `adapter_config.json`: a learned steering vector, as the public runs have it.
- `weight_change.safetensors` and `weight_change.json`: full fine-tuning. Of each followed matrix a fixed random
  projection of its change since before training; inner products of projections are those of the changes up to the
  error stated in the JSON, exactly for matrices no larger than the projection.

All become a `Checkpoint`: a steering vector or a projection is B, with A = 1, so that the Gram matrices of B and ΔW
are those of the vector or the change.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from em_interp.errors import InputError, listed
from em_interp.layouts import (
    CHANGE_CONFIG_FILE,
    CHANGE_FILE,
    CONFIG_FILE,
    PICKLED_FILE,
    STEERING_FILE,
    WEIGHTS_FILE,
)
from em_interp.trajectory.checkpoint import Checkpoint, column_checkpoint, natural_key
from em_interp.trajectory.lora_files import read_lora, read_mlx
from em_interp.trajectory.tensor_files import read_safetensors, read_torch
from em_interp.utils.files import read_json

LORA, STEERING, FULL = "LoRA adapter", "steering vector", "step of full fine-tuning"
FORMATS = {WEIGHTS_FILE: LORA, PICKLED_FILE: LORA, STEERING_FILE: STEERING, CHANGE_FILE: FULL}  # the file that tells
FOREIGN = (  # what else a step's folder may hold: a name or its beginning, and what to do about it
    ("pytorch_model_fsdp", "a sharded FSDP checkpoint: save with FSDP's state_dict_type FULL_STATE_DICT"),
    (f"{WEIGHTS_FILE}.index.json", "an adapter in several files: merge them into one adapter_model.safetensors"),
    ("adapter_model-", "an adapter in several files: merge them into one adapter_model.safetensors"),
    ("model.safetensors", "a full model: a path needs adapters, or full fine-tuning saved by em_interp"),
    ("model-", "a full model: a path needs adapters, or full fine-tuning saved by em_interp"),
    ("pytorch_model", "a full model: a path needs adapters, or full fine-tuning saved by em_interp"),
    ("global_step", "DeepSpeed's state without an adapter: save the adapter too (save_pretrained)"),
    ("zero_", "DeepSpeed's state without an adapter: save the adapter too (save_pretrained)"),
)


def format_of(folder: str | Path) -> str | None:
    """What is saved in the folder of a step, such as "LoRA adapter"; None where it is none of FORMATS."""
    if os.path.isfile(folder):
        return LORA
    return next((name for file, name in FORMATS.items() if os.path.isfile(os.path.join(folder, file))), None)


def read_checkpoint(place: Path, expected: str = LORA, adapter: str | None = None) -> Checkpoint:
    """What is saved in the folder, or file, of a step.

    Args:
        place: The folder of the step; for MLX its file.
        expected: The format whose file is called missing where there is none.
        adapter: The adapter to read of a file with several.

    Raises:
        InputError: Naming the file that cannot be used, or what the folder holds instead; and for an adapter by name
            where there can be only one.
    """
    saved = format_of(place)
    if saved is None:
        _check_foreign(place, expected if adapter is None else f"{expected} {adapter!r}")
    kind = saved or expected
    if kind == LORA and not place.is_file():
        return read_lora(place, adapter)
    if adapter not in (None, place.name):  # the folder of an adapter has its name
        raise InputError(f"{place} holds one {kind}, of which none can be chosen; found adapter={adapter!r}")
    if place.is_file():
        return read_mlx(place)
    return read_steering(place) if kind == STEERING else read_weight_change(place)


def _check_foreign(folder: Path, expected: str) -> None:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for beginning, meaning in FOREIGN:
        if any(name.startswith(beginning) for name in names):
            raise InputError(f"{folder} holds {meaning} (found {listed(names)})")
    if CONFIG_FILE not in names and CHANGE_CONFIG_FILE not in names:
        raise InputError(
            f"{folder} holds no {expected}; it holds {listed(names) or 'nothing'}; the usual causes are a save that "
            "was cut off, an adapter that lies deeper, and a link whose target is gone"
        )


def read_steering(folder: Path) -> Checkpoint:
    """The steering vector in `folder`: at site `layers.<n>` B is the vector (d, 1), A is one, scaling is alpha.

    The file holds the vector, of shape (d,) or (d, 1), or a mapping with it as `steering_vector`; `layer_idx` and
    `alpha` are taken from the mapping, else from the config beside it (alpha is 1 where neither names it). Raises
    InputError naming the file that is missing, truncated, holds anything but tensors and plain values, or does not
    agree with the config.
    """
    file, config = folder / STEERING_FILE, read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    saved = read_torch(file)
    settings = {**(config if isinstance(config, dict) else {}), **(saved if isinstance(saved, dict) else {})}
    layer, alpha = settings.get("layer_idx"), settings.get("alpha", 1.0)
    if not isinstance(layer, int) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e30:
        expected = f"layer_idx and alpha in it or in {CONFIG_FILE} beside it"
        raise InputError(f"{file}: expected {expected}; found layer_idx {layer!r} and alpha {alpha!r}")
    vector = saved.get("steering_vector") if isinstance(saved, dict) else saved
    if not isinstance(vector, np.ndarray) or vector.size == 0 or vector.size != max(vector.shape, default=0):
        found = f"an array of shape {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise InputError(f"{file}: expected one vector, alone or as steering_vector; found {found}")
    size = settings.get("hidden_size")
    if size is not None and size != vector.size:
        raise InputError(f"{file} holds a vector of {vector.size} numbers; hidden_size is {size!r}")
    columns = {f"layers.{layer}": vector.reshape(-1, 1).astype(np.float32)}
    return column_checkpoint(file, _text(settings.get("base_model")), columns, float(alpha), "steering")


def read_weight_change(folder: Path) -> Checkpoint:
    """The projected weight change in `folder`: at each site B is the vector (k, 1), A is one, scaling is 1.

    Raises InputError naming the file that is missing, truncated or holds something else.
    """
    file, config = folder / CHANGE_FILE, read_json(folder / CHANGE_CONFIG_FILE)
    vectors = read_safetensors(file)
    for site, vector in vectors.items():
        if vector.ndim != 1:
            raise InputError(f"{file}: {site} should be one vector; its shape is {vector.shape}")
    if not vectors:
        raise InputError(f"{file} holds no vector; the change of one matrix or more was expected")
    base = _text(config.get("base_model_name_or_path")) if isinstance(config, dict) else None
    columns = {site: vectors[site][:, None] for site in sorted(vectors, key=natural_key)}
    return column_checkpoint(file, base, columns, 1.0, "full")


def _text(value: Any) -> str | None:
    """The name of a base; None where it is no text."""
    return value if isinstance(value, str) and value else None
