"""A whole trajectory in one safetensors file.

A run of 400 steps is 800 small files, slow to read over a network and awkward to send. Here every A and B of a site is
one tensor over the steps, the log is stored by step, and the rest is JSON in the file's metadata. `load_trajectory`
gives from it, bit for bit, what it reads from the folder. The file is mapped, not copied, and written step by step, so
that a path may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from em_interp.errors import InputError, listed
from em_interp.trajectory.stacked import first_not_finite
from em_interp.trajectory.tensor_files import header_of
from em_interp.trajectory.trajectory import MAX_ADAPTER_SCALE, AdapterTrajectory
from em_interp.utils.checks import described, fits
from em_interp.utils.files import check_regular, write_beside

SUFFIX = ".safetensors"
METADATA_KEY, FORMAT = "em_interp.trajectory", 1  # one entry of metadata: safetensors keeps no order of several
NAMES = {"<i8": "I64", "<f8": "F64", "<f4": "F32"}  # of numbers, in safetensors
EXPECTED = {"format": int, "scale": dict, "log": list[str], "kind": str}  # in the metadata
OPTIONAL = {"base": str, "identity": str, "magnitude": list[str], "extra_tensors": list[str], "notes": list[str]}
A, B, LOG, MAGNITUDE = "A/", "B/", "log/", "magnitude/"  # prefixes of tensor names: before a site, or a log's column


def write_packed(trajectory: AdapterTrajectory, file: str | Path, identity: str | None = None) -> Path:
    """Write the trajectory to `file` (.safetensors), whole or not at all; an existing file is replaced.

    `identity` is the base model's name with the hash of its weights, where it is known. Tensors: `steps` (step,),
    `A/<site>` (step, rank, d_in) and `B/<site>` (step, d_out, rank) in float32, `log/step` and `log/<column>`.
    """
    file = Path(file)
    if file.suffix != SUFFIX:
        raise InputError(f"{file}: a packed trajectory is a {SUFFIX} file; give it that ending")
    tensors = {"steps": trajectory.steps.astype(np.int64)}
    for prefix, matrices in ((A, trajectory.A), (B, trajectory.B)):
        tensors |= {prefix + site: matrix for site, matrix in matrices.items()}
    tensors[LOG + "step"] = trajectory.metrics.index.to_numpy(np.int64)
    for name, column in trajectory.metrics.items():
        tensors[f"{LOG}{name}"] = column.to_numpy(np.float64)
    tensors |= {MAGNITUDE + site: path for site, path in trajectory.magnitude.items()}
    metadata = {
        "format": FORMAT,
        "kind": trajectory.kind,
        "base": trajectory.base,
        "identity": identity,
        "source": trajectory.source,
        "scale": trajectory.scale,  # by site, in the order of the sites
        "log": list(trajectory.metrics.columns),
        "magnitude": list(trajectory.magnitude),
        "extra_tensors": list(trajectory.extra_tensors),
        "notes": list(trajectory.notes),
    }
    with write_beside(file) as part, part.open("wb") as content:
        content.write(_header(tensors, json.dumps(metadata)))
        for step in (step for name in _order(tensors) for step in tensors[name]):
            content.write(np.ascontiguousarray(step).data)
    return file


def _order(tensors: dict[str, np.ndarray]) -> list[str]:
    """The names as they follow each other in the file: as in safetensors' own, wide numbers first."""
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))


def _header(tensors: dict[str, np.ndarray], metadata: str) -> bytes:
    """What stands before the numbers."""
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    end = 0
    for name in _order(tensors):
        array, begin = tensors[name], end
        end += array.nbytes
        entries[name] = {"dtype": NAMES[array.dtype.str], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_packed(file: str | Path) -> AdapterTrajectory:
    """The trajectory in a file of `write_packed`, its `source` the file.

    Raises InputError, naming the file, where it is truncated, holds something else, or NaN.
    """
    with _opened(Path(file)) as (_, metadata):
        tensors = _mapped(Path(file))
    _check_content(Path(file), metadata, tensors)
    sites = list(metadata["scale"])
    for name in (prefix + site for prefix in (A, B) for site in sites):
        if first_not_finite(tensors[name]) is not None:
            raise InputError(f"{file}: {name} holds NaN or infinity; expected finite numbers (did training diverge?)")
    index = pd.Index(tensors[LOG + "step"], name="step")
    return AdapterTrajectory(
        steps=tensors["steps"],
        A={site: tensors[A + site] for site in sites},
        B={site: tensors[B + site] for site in sites},
        scale=metadata["scale"],
        metrics=pd.DataFrame({name: tensors[LOG + name] for name in metadata["log"]}, index=index),
        base=metadata.get("base"),
        source=str(file),
        kind=metadata["kind"],
        magnitude={site: tensors[MAGNITUDE + site] for site in metadata.get("magnitude") or []},
        extra_tensors=tuple(metadata.get("extra_tensors") or []),
        notes=tuple(metadata.get("notes") or []),
    )


def _mapped(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a whole safetensors file; changes to them stay in memory."""
    content = np.memmap(file, np.uint8, "c")
    begin, entries = header_of(content)
    dtypes, tensors = {name: np.dtype(dtype) for dtype, name in NAMES.items()}, {}
    for name, entry in entries.items():
        if entry["dtype"] not in dtypes:
            raise InputError(f"{file}: {name} has dtype {entry['dtype']}; expected one of {', '.join(dtypes)}")
        first, last = (begin + offset for offset in entry["data_offsets"])
        flat = np.frombuffer(
            content.data, dtypes[entry["dtype"]], (last - first) // dtypes[entry["dtype"]].itemsize, first
        )
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _check_content(file: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Raise InputError where the metadata and the tensors of a file do not agree, or are no path."""
    sites, log, magnitude = metadata["scale"], metadata["log"], metadata.get("magnitude") or []
    names = ["steps", LOG + "step", *(LOG + name for name in log), *(MAGNITUDE + site for site in magnitude)]
    names += [prefix + site for prefix in (A, B) for site in sites]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(f"{file} lacks {listed(missing)}, which its metadata names; it may be damaged")
    for name in ("steps", LOG + "step"):
        if tensors[name].ndim != 1 or tensors[name].dtype.kind != "i":
            raise InputError(f"{file}: {name} should be a list of whole numbers; it may be damaged")
    for name in (LOG + name for name in log):
        if tensors[name].shape != tensors[LOG + "step"].shape:
            raise InputError(f"{file}: {name} has {tensors[name].shape} values for {tensors[LOG + 'step'].shape} steps")
    if not all(type(scale) in (int, float) and abs(scale) <= MAX_ADAPTER_SCALE for scale in sites.values()):
        raise InputError(
            f"{file}: scale should be a number up to {MAX_ADAPTER_SCALE:g} for each site; it may be damaged"
        )


def _checked_metadata(file: Path, text: str) -> dict[str, Any]:
    """The metadata of a packed file; raises InputError where it is none, or of a newer format."""
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{file}: its metadata is not JSON; it may be damaged") from None
    if metadata is None:
        raise InputError(f"{file} is not a packed trajectory; expected a file of `em-interp export`, packed")
    if not isinstance(metadata, dict) or any(not fits(metadata.get(key), kind) for key, kind in EXPECTED.items()):
        raise InputError(f"{file}: its metadata lacks one of {', '.join(EXPECTED)}; it may be damaged")
    odd = [key for key, kind in OPTIONAL.items() if metadata.get(key) is not None and not fits(metadata[key], kind)]
    if odd:
        raise InputError(f"{file}: {odd[0]} in its metadata is {described(metadata[odd[0]])}; it may be damaged")
    if metadata["format"] > FORMAT:
        raise InputError(f"{file} is of format {metadata['format']}; this version of em_interp reads {FORMAT}")
    return metadata


def packed_identity(file: str | Path) -> str | None:
    """The base model's name and the hash of its weights, where they were known when the file was written."""
    with _opened(Path(file)) as (_, metadata):
        identity: str | None = metadata.get("identity")
        return identity


def packed_source(file: str | Path) -> str:
    """What the path in a packed file was read from when the file was written."""
    with _opened(Path(file)) as (_, metadata):
        return str(metadata.get("source") or "a path in memory")


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(file)
        with safe_open(file, "numpy") as reader:
            metadata = _checked_metadata(file, (reader.metadata() or {}).get(METADATA_KEY, "null"))
            yield reader, metadata
    except FileNotFoundError:
        raise InputError(f"{file} is missing") from None
    except SafetensorError as error:
        size = file.stat().st_size
        raise InputError(
            f"{file} ({size} bytes) is not a whole safetensors file ({error}); it may be truncated"
        ) from None
