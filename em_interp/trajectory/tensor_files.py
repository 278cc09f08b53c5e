"""Tensors of a file as numpy arrays, without torch: safetensors, and what `torch.save` wrote.

A torch file is a zip of raw storages and a pickle that says how tensors lie in them. Unpickling can run any code, so
this pickle is read by an unpickler that knows tensors, numbers and text and refuses every other name. Its opcodes are
checked before it is read, and no more numbers are made than the file has bytes: some opcodes claim any amount of
memory.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from em_interp.errors import InputError, one_line
from em_interp.layouts import PICKLED_FILE
from em_interp.utils.files import STAND_INS, check_regular, read_bytes, refuse_file_types

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # by their names in safetensors
STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2"}
MAX_PICKLE_BYTES = 2**24  # of the pickle alone; the numbers lie beside it
LARGE_FILE = 2**24  # bytes, beyond which a file's end is looked for before all of it is read
MISTAKEN = STAND_INS | {  # how a file begins that cannot be read, and what it is
    b"\x80\x02\x8a\nl\xfc\x9cf\xf9 j\xa8p\x19": "in torch.save's format of before 1.6; save it anew",
}
_OPCODES = set(  # those that torch.save needs for tensors, numbers, text and containers
    """PROTO FRAME STOP MARK POP POP_MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE
    BUILD BINPERSID NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES
    SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM
    SETITEMS""".split()  # noqa: SIM905
)


def read_safetensors(file: Path) -> dict[str, Float32[np.ndarray, ...]]:
    """Every tensor of a safetensors file in float32, by name and read-only; the library checks the header.

    Raises InputError naming the file that is missing, truncated, no safetensors file, or holds integers.
    """
    from safetensors import SafetensorError, deserialize

    content = _read(file)
    try:
        refuse_file_types(file, content, {b"pk\x03\x04": f"a file of torch.save; its name should be {PICKLED_FILE}"})
        deserialize(content)
    except SafetensorError as error:
        raise _not_whole(file, content, "safetensors", error) from None
    begin, entries = header_of(content)
    return {key: _to_float32(content, begin, entries[key], key, file) for key in sorted(entries)}


def header_of(content: bytes | np.ndarray) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where the numbers of a whole safetensors file begin, and what its header says of each tensor."""
    begin = 8 + int.from_bytes(bytes(content[:8]), "little")
    entries: dict[str, dict[str, Any]] = json.loads(bytes(content[8:begin]))
    entries.pop("__metadata__", None)
    return begin, entries


def read_torch(file: Path) -> Any:
    """What torch saved, with numpy arrays for tensors.

    Raises InputError naming the file that is missing, truncated, or holds anything but tensors and plain values.
    """
    content = _read(file)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1 or any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{file} is not a file that torch.save wrote: expected one data.pkl, not compressed")
            return _TensorUnpickler(archive, pickles[0], len(content)).load()
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        raise _not_whole(file, content, "torch", error) from None
    except Exception as error:  # a pickle may break in any way
        reason = one_line(str(error))
        raise InputError(f"{file} is not a plain torch file of tensors, numbers and text: {reason}") from None


def _read(file: Path) -> bytes:
    if not file.exists():
        raise InputError(f"{file} is missing; the checkpoint is not complete")
    check_regular(file)
    if file.stat().st_size > LARGE_FILE:
        _check_end(file)
    content = read_bytes(file, limit=math.inf)
    refuse_file_types(file, content, MISTAKEN)
    return content


def _check_end(file: Path) -> None:
    """Raise InputError where a file is not as long as its header says: one with holes may claim any size."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "np"):
                return
        zipfile.ZipFile(file).close()
    except (SafetensorError, zipfile.BadZipFile, OSError) as error:
        size, kind = file.stat().st_size, "safetensors" if file.suffix == ".safetensors" else "torch"
        raise InputError(f"{file} ({size} bytes) is not a whole {kind} file ({one_line(str(error))})") from None


def _not_whole(file: Path, content: bytes, kind: str, error: Exception) -> InputError:
    reason = one_line(str(error))
    return InputError(f"{file} ({len(content)} bytes) is not a whole {kind} file ({reason}); it may be truncated")


def _to_float32(content: bytes, begin: int, entry: dict[str, Any], key: str, file: Path) -> np.ndarray:
    """A tensor of a file whose header ends at `begin`: a view of the content where that is float32."""
    if entry["dtype"] not in DTYPES:
        raise InputError(f"{file}: {key} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
    first, last = (begin + offset for offset in entry["data_offsets"])
    flat = _decoded(memoryview(content)[first:last], DTYPES[entry["dtype"]])
    return flat.astype(np.float32, copy=False).reshape(entry["shape"])


def _decoded(data: bytes | memoryview, dtype: str) -> Float[np.ndarray, " number"]:
    """Raw numbers as an array; bfloat16 (`<u2`) is the upper half of a float32."""
    flat = np.frombuffer(data, dtype=dtype)
    return (flat.astype(np.uint32) << 16).view(np.float32) if dtype == "<u2" else flat


class _TensorUnpickler(pickle.Unpickler):
    """Reads tensors, numbers, text and containers; any other name in the pickle is an error before it is looked up."""

    def __init__(self, archive: zipfile.ZipFile, name: str, size: int) -> None:
        if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
        content = archive.read(name)
        _check_opcodes(content)
        super().__init__(io.BytesIO(content))
        self.archive, self.folder, self.left = archive, name.removesuffix("data.pkl"), size
        self.storages: dict[tuple[str, str], np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """One of the names that a tensor needs."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _contiguous_view,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: `("storage", its type, the name of its file, device, how many numbers)`."""
        _, kind, key, _, count = pid
        if (kind, key) not in self.storages:
            name = f"{self.folder}data/{key}"
            self.left -= self.archive.getinfo(name).file_size
            if self.left < 0:
                raise pickle.UnpicklingError("its storages are larger than the file")
            self.storages[kind, key] = _decoded(self.archive.read(name), STORAGES[kind])
        flat = self.storages[kind, key]
        if len(flat) != count:
            raise pickle.UnpicklingError(f"a storage holds {len(flat)} numbers instead of {count}")
        return flat


def _check_opcodes(content: bytes) -> None:
    """Raise UnpicklingError for an opcode that tensors do not need, and for a memo larger than the pickle."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"its pickle has the opcode {opcode.name}, which is no part of a tensor")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"its pickle has a memo of {argument} entries in {len(content)} bytes")


def _contiguous_view(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A tensor stored without gaps."""
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(found != expected for found, expected, size in zip(stride, dense, shape, strict=True) if size > 1):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} has strides {stride}; expected it to be contiguous")
    return storage[offset : offset + math.prod(shape)].reshape(shape)
