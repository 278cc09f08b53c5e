"""One saved adapter: a folder with `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes it."""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from em_interp.errors import InputError
from em_interp.files import read_json

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


# --------
# A learned steering vector at one step: `steering_vector.pt` and `adapter_config.json`, as public runs have them.
# The .pt file is torch's: a zip of raw storages and a pickle that says how tensors lie in them. A pickle can run
# anything, so this one is read by an unpickler that knows tensors and refuses every other name; torch is not needed.


FILE = "steering_vector.pt"
_TORCH_DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2"}


def read_steering(folder: Path) -> Checkpoint:
    """The steering vector in `folder` as a checkpoint: at site `layers.<n>`, B the vector (d, 1), A one, scale alpha.

    The file holds the vector, or a mapping with it as `steering_vector`; `layer_idx` and `alpha` are taken from the
    mapping, else from the config beside it (alpha is 1 where neither names it). Raises InputError naming the file that
    is missing, truncated, holds anything but tensors and plain values, or does not agree with the config.
    """
    file, config = folder / FILE, read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    held = _read_torch(file)
    said = {**(config if isinstance(config, dict) else {}), **(held if isinstance(held, dict) else {})}
    layer, alpha = said.get("layer_idx"), said.get("alpha", 1.0)
    if not isinstance(layer, int) or not isinstance(alpha, (int, float)):
        expected = f"layer_idx and alpha in it or in {CONFIG} beside it"
        raise InputError(f"{file}: expected {expected}; found layer_idx {layer!r} and alpha {alpha!r}")
    vector = _vector(held.get("steering_vector") if isinstance(held, dict) else held, file)
    size = said.get("hidden_size")
    if size is not None and size != len(vector):
        raise InputError(f"{file} holds a vector of {len(vector)} numbers; hidden_size is {size!r}")
    site = f"layers.{layer}"
    one = np.ones((1, 1), np.float32)
    B, scale = {site: vector[:, None]}, {site: float(alpha)}
    return Checkpoint(file, said.get("base_model"), {site: one}, B, scale, "steering")


def _vector(held: Any, file: Path) -> Float32[np.ndarray, " d"]:
    if not isinstance(held, np.ndarray) or held.ndim == 0 or held.size != held.shape[-1]:
        found = f"an array of shape {held.shape}" if isinstance(held, np.ndarray) else type(held).__name__
        raise InputError(f"{file}: expected one vector, alone or as steering_vector; found {found}")
    return held.reshape(-1).astype(np.float32)


def _read_torch(file: Path) -> Any:
    """What torch saved, with numpy arrays for tensors."""
    if not file.is_file():
        raise InputError(f"{file} is missing; the checkpoint is not complete")
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(inside) != 1 or any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{file} is not a file that torch.save wrote: expected one data.pkl, not compressed")
            return _Tensors(archive, inside[0]).load()
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        size = file.stat().st_size
        raise InputError(f"{file} ({size} bytes) is not a whole torch file ({error}); it may be truncated") from None
    except Exception as error:  # a pickle may break in any way
        raise InputError(f"{file} is not a plain torch file of tensors, numbers and text: {error}") from None


class _Tensors(pickle.Unpickler):
    """Reads tensors, numbers, text and containers; any other name in the pickle is an error before it is looked up."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        """One of the names that a tensor needs."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _strided,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _TORCH_DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: `("storage", its type, the name of its file, device, how many numbers)`."""
        _, kind, key, _, count = pid
        flat = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype=_TORCH_DTYPES[kind])
        if len(flat) != count:
            raise pickle.UnpicklingError(f"a storage holds {len(flat)} numbers instead of {count}")
        if kind == "BFloat16Storage":  # the upper half of a float32
            return (flat.astype(np.uint32) << 16).view(np.float32)
        return flat


def _strided(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A view of a storage; only one that lies in it without gaps."""
    dense = math.prod(shape)
    whole = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(mine != theirs for mine, theirs, length in zip(stride, whole, shape, strict=True) if length > 1):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} has strides {stride}; expected it to be contiguous")
    return storage[offset : offset + dense].reshape(shape)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data


# --------
# Full fine-tuning at one step: of each followed matrix, a projection of its change since before training.
# `weight_change.safetensors` holds a vector a matrix, by site; `weight_change.json` beside it says of what and how
# well. The vectors are fixed random projections of ΔW: their inner products are those of ΔW up to the stated
# relative error, exactly for matrices no larger than the projection. As a path B is the vector and A is one, so that
# the Gram matrix of B, and of ΔW, is that of the weights' change.


CHANGE_FILE, CHANGE_CONFIG = "weight_change.safetensors", "weight_change.json"


def read_weight_change(folder: Path) -> Checkpoint:
    """The projected change in `folder`: at each site B the vector (k, 1), A one, scale 1.

    Raises InputError naming the file that is missing, truncated or holds something else.
    """
    file, said = folder / CHANGE_FILE, read_json(folder / CHANGE_CONFIG)
    vectors = read_tensors(file)
    for site, vector in vectors.items():
        if vector.ndim != 1:
            raise InputError(f"{file}: {site} should be one vector; its shape is {vector.shape}")
    if not vectors:
        raise InputError(f"{file} holds no vector; the change of one matrix or more was expected")
    base = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    one = np.ones((1, 1), np.float32)
    B = {site: vector[:, None] for site, vector in sorted(vectors.items(), key=lambda item: natural(item[0]))}
    return Checkpoint(file, base, dict.fromkeys(B, one), B, dict.fromkeys(B, 1.0), "full")
