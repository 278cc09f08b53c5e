"""A learned steering vector at one step: `steering_vector.pt` and `adapter_config.json`, as public runs have them.

The .pt file is torch's: a zip of raw storages and a pickle that says how tensors lie in them. A pickle can run
anything, so this one is read by an unpickler that knows tensors and refuses every other name; torch is not needed.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from em_interp.errors import InputError
from em_interp.runs import read_json
from em_interp.trajectory.checkpoint import CONFIG, Checkpoint

FILE = "steering_vector.pt"
_DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2"}


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
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: `("storage", its type, the name of its file, device, how many numbers)`."""
        _, kind, key, _, count = pid
        flat = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype=_DTYPES[kind])
        if len(flat) != count:
            raise pickle.UnpicklingError(f"a storage holds {len(flat)} numbers instead of {count}")
        if kind == "BFloat16Storage":  # the upper half of a float32
            return (flat.astype(np.uint32) << 16).view(np.float32)
        return flat


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A view of a storage; only one that lies in it without gaps."""
    dense = math.prod(shape)
    whole = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(mine != theirs for mine, theirs, length in zip(stride, whole, shape, strict=True) if length > 1):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} has strides {stride}; expected it to be contiguous")
    return storage[offset : offset + dense].reshape(shape)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data
