"""What may be saved at one step, read without torch: a LoRA adapter, a steering vector, or a projected weight change.

A checkpoint folder holds one of three:

- `adapter_model.safetensors` and `adapter_config.json`: a LoRA adapter, as PEFT writes it.
- `steering_vector.pt` and `adapter_config.json`: a learned steering vector, as the public runs have it. The .pt file is
  a zip of raw storages and a pickle that says how tensors lie in them. Unpickling can run any code, so this pickle is
  read by an unpickler that knows tensors and refuses every other name.
- `weight_change.safetensors` and `weight_change.json`: full fine-tuning. Of each followed matrix a fixed random
  projection of its change since before training; inner products of projections are those of the changes up to the
  error stated in the JSON, exactly for matrices no larger than the projection.

All three become a `Checkpoint`: a steering vector or a projection is B, with A = 1, so that the Gram matrices of B and
ΔW are those of the vector or the change.
"""

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

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
STEERING_FILE = "steering_vector.pt"
CHANGE_FILE, CHANGE_CONFIG_FILE = "weight_change.safetensors", "weight_change.json"
Kind = Literal["lora", "steering", "full"]  # what was trained: an adapter, a vector, all weights

_LORA_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.\w+)?\.weight")
_BEFORE_LAYERS = re.compile(r"^(?:(?:model|language_model)\.)+")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # by their names in safetensors
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2"}


@dataclass(frozen=True)
class Checkpoint:
    """An adapter at one step; at each site ΔW = scaling · B · A."""

    file: Path  # with the weights; named in errors
    base: str | None
    A: dict[str, Float32[np.ndarray, "rank d_in"]]
    B: dict[str, Float32[np.ndarray, "d_out rank"]]
    scaling: dict[str, float]  # alpha / rank, or alpha / sqrt(rank) with rsLoRA
    kind: Kind = "lora"


def read_lora(folder: Path) -> Checkpoint:
    """The LoRA adapter in `folder`.

    Sites are named from the language model's layers on (`layers.24.mlp.down_proj`), whatever stands before them in a
    file (`base_model.model.model.`, Gemma3's `language_model.`). Raises InputError naming the file that is missing,
    truncated, pickled, or holds something other than LoRA matrices.
    """
    config, file = _read_config(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in _read_tensors(file).items():
        match = _LORA_KEY.fullmatch(key)
        if match is None:
            raise InputError(f"{file} holds {key}, which is not a lora_A or lora_B matrix; only those are read")
        if tensor.ndim != 2:
            raise InputError(f"{file}: {key} should be a matrix; its shape is {tensor.shape}")
        modules.setdefault(match["module"], {})[match["matrix"]] = tensor
    if not modules:
        raise InputError(f"{file} holds no lora_A and lora_B; the adapter matched no module")
    A, B, scaling = {}, {}, {}
    for module in sorted(modules, key=natural_key):
        site = _BEFORE_LAYERS.sub("", module)
        if site in A:
            raise InputError(f"{file}: two modules would be called {site}; one of them is {module}")
        A[site], B[site] = _matched_pair(modules[module], module, file)
        scaling[site] = _scaling(config, module, rank=len(A[site]), file=file)
    return Checkpoint(file, config.get("base_model_name_or_path"), A, B, scaling)


def read_steering(folder: Path) -> Checkpoint:
    """The steering vector in `folder`: at site `layers.<n>` B is the vector (d, 1), A is one, scaling is alpha.

    The file holds the vector, or a mapping with it as `steering_vector`; `layer_idx` and `alpha` are taken from the
    mapping, else from the config beside it (alpha is 1 where neither names it). Raises InputError naming the file that
    is missing, truncated, holds anything but tensors and plain values, or does not agree with the config.
    """
    file, config = folder / STEERING_FILE, read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    saved = _read_torch_file(file)
    settings = {**(config if isinstance(config, dict) else {}), **(saved if isinstance(saved, dict) else {})}
    layer, alpha = settings.get("layer_idx"), settings.get("alpha", 1.0)
    if not isinstance(layer, int) or not isinstance(alpha, (int, float)):
        expected = f"layer_idx and alpha in it or in {CONFIG_FILE} beside it"
        raise InputError(f"{file}: expected {expected}; found layer_idx {layer!r} and alpha {alpha!r}")
    vector = saved.get("steering_vector") if isinstance(saved, dict) else saved
    if not isinstance(vector, np.ndarray) or vector.ndim == 0 or vector.size != vector.shape[-1]:
        found = f"an array of shape {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise InputError(f"{file}: expected one vector, alone or as steering_vector; found {found}")
    size = settings.get("hidden_size")
    if size is not None and size != vector.size:
        raise InputError(f"{file} holds a vector of {vector.size} numbers; hidden_size is {size!r}")
    columns = {f"layers.{layer}": vector.reshape(-1, 1).astype(np.float32)}
    return _as_columns(file, settings.get("base_model"), columns, float(alpha), "steering")


def read_weight_change(folder: Path) -> Checkpoint:
    """The projected weight change in `folder`: at each site B is the vector (k, 1), A is one, scaling is 1.

    Raises InputError naming the file that is missing, truncated or holds something else.
    """
    file, config = folder / CHANGE_FILE, read_json(folder / CHANGE_CONFIG_FILE)
    vectors = _read_tensors(file)
    for site, vector in vectors.items():
        if vector.ndim != 1:
            raise InputError(f"{file}: {site} should be one vector; its shape is {vector.shape}")
    if not vectors:
        raise InputError(f"{file} holds no vector; the change of one matrix or more was expected")
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    columns = {site: vectors[site][:, None] for site in sorted(vectors, key=natural_key)}
    return _as_columns(file, base, columns, 1.0, "full")


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 10 after layer 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in name.split(".")]


def _as_columns(
    file: Path, base: str | None, B: dict[str, Float32[np.ndarray, "d 1"]], scaling: float, kind: Kind
) -> Checkpoint:
    one = np.ones((1, 1), np.float32)
    return Checkpoint(file, base, dict.fromkeys(B, one), B, dict.fromkeys(B, scaling), kind)


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(f"{file} should hold an adapter's settings; it holds {type(config).__name__}")
    if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
        kind = "DORA" if config.get("use_dora") else config["peft_type"]
        raise InputError(f"{file} describes an adapter of type {kind}; only plain LoRA is read")
    return config


def _matched_pair(matrices: dict[str, np.ndarray], module: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
    if set(matrices) != {"A", "B"}:
        raise InputError(f"{file}: {module} has lora_{next(iter(matrices))} only; expected lora_A and lora_B")
    A, B = matrices["A"], matrices["B"]
    if A.shape[0] != B.shape[1]:
        raise InputError(f"{file}: {module} has lora_A {A.shape} and lora_B {B.shape}; their ranks differ")
    return A, B


def _scaling(config: dict[str, Any], module: str, rank: int, file: Path) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA; both numbers may be set by pattern for this module."""
    expected = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    if expected != rank:
        raise InputError(f"{file}: {module} has rank {rank}; {CONFIG_FILE} beside it says {expected}")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, (int, float)):
        raise InputError(f"{file.with_name(CONFIG_FILE)}: lora_alpha should be a number; it is {alpha!r}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the module's name, from a dot on: PEFT's rule."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file in float32. One read of the file; the library checks the header."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(file.read_bytes())
    except FileNotFoundError:
        if file.with_name("adapter_model.bin").is_file():
            expected = f"expected {file.name}"
            raise InputError(
                f"{file.parent} has adapter_model.bin, a pickle, which is never opened; {expected}"
            ) from None
        raise InputError(f"{file} is missing; the checkpoint is not complete") from None
    except SafetensorError as error:
        size = file.stat().st_size
        raise InputError(
            f"{file} ({size} bytes) is not a whole safetensors file ({error}); it may be truncated"
        ) from None
    return {key: _to_float32(entry, key, file) for key, entry in entries}


def _to_float32(entry: Any, key: str, file: Path) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise InputError(f"{file}: {key} has dtype {entry['dtype']}; expected one of {', '.join(_DTYPES)}")
    flat = _decoded(entry["data"], _DTYPES[entry["dtype"]])
    return flat.astype(np.float32, copy=False).reshape(entry["shape"])


def _decoded(data: bytes, dtype: str) -> np.ndarray:
    """Raw numbers as an array; bfloat16 (`<u2`) is the upper half of a float32."""
    flat = np.frombuffer(data, dtype=dtype)
    return (flat.astype(np.uint32) << 16).view(np.float32) if dtype == "<u2" else flat


def _read_torch_file(file: Path) -> Any:
    """What torch saved, with numpy arrays for tensors."""
    if not file.is_file():
        raise InputError(f"{file} is missing; the checkpoint is not complete")
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1 or any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{file} is not a file that torch.save wrote: expected one data.pkl, not compressed")
            return _TensorUnpickler(archive, pickles[0]).load()
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        size = file.stat().st_size
        raise InputError(f"{file} ({size} bytes) is not a whole torch file ({error}); it may be truncated") from None
    except Exception as error:  # a pickle may break in any way
        raise InputError(f"{file} is not a plain torch file of tensors, numbers and text: {error}") from None


class _TensorUnpickler(pickle.Unpickler):
    """Reads tensors, numbers, text and containers; any other name in the pickle is an error before it is looked up."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        """One of the names that a tensor needs."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _contiguous_view,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: `("storage", its type, the name of its file, device, how many numbers)`."""
        _, kind, key, _, count = pid
        flat = _decoded(self.archive.read(f"{self.folder}data/{key}"), _STORAGES[kind])
        if len(flat) != count:
            raise pickle.UnpicklingError(f"a storage holds {len(flat)} numbers instead of {count}")
        return flat


def _contiguous_view(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A tensor that lies in a storage without gaps."""
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(found != expected for found, expected, size in zip(stride, dense, shape, strict=True) if size > 1):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} has strides {stride}; expected it to be contiguous")
    return storage[offset : offset + math.prod(shape)].reshape(shape)
