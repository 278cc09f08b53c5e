"""A whole trajectory in one safetensors file.

A run of 400 steps is 800 small files, slow to read over a network and awkward to send. Here every A and B of a site is
one tensor over the steps, the log is stored by step, and the rest is JSON in the file's metadata. `load_trajectory`
reads from it, bit for bit, what it reads from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from em_interp.errors import InputError
from em_interp.files import write_beside
from em_interp.trajectory.trajectory import AdapterTrajectory

SUFFIX = ".safetensors"
METADATA_KEY, FORMAT = "em_interp.trajectory", 1  # one entry of metadata: safetensors keeps no order of several
A, B, LOG = "A/", "B/", "log/"  # prefixes of tensor names: before a site, or a column of the log


def write_packed(trajectory: AdapterTrajectory, file: str | Path, identity: str | None = None) -> Path:
    """Write the trajectory to `file` (.safetensors), whole or not at all; an existing file is replaced.

    `identity` is the base model's name with the hash of its weights, where it is known. Tensors: `steps` (step,),
    `A/<site>` (step, rank, d_in) and `B/<site>` (step, d_out, rank) in float32, `log/step` and `log/<column>`.
    """
    from safetensors.numpy import save_file

    file = Path(file)
    if file.suffix != SUFFIX:
        raise InputError(f"{file}: a packed trajectory is a {SUFFIX} file; give it that ending")
    tensors = {"steps": trajectory.steps.astype(np.int64)}
    for prefix, matrices in ((A, trajectory.A), (B, trajectory.B)):
        tensors |= {prefix + site: np.ascontiguousarray(matrix) for site, matrix in matrices.items()}
    tensors[LOG + "step"] = trajectory.metrics.index.to_numpy(np.int64)
    tensors |= {f"{LOG}{name}": column.to_numpy(np.float64) for name, column in trajectory.metrics.items()}
    metadata = {
        "format": FORMAT,
        "kind": trajectory.kind,
        "base": trajectory.base,
        "identity": identity,
        "source": trajectory.source,
        "scale": trajectory.scale,  # by site, in the order of the sites
        "log": list(trajectory.metrics.columns),
    }
    with write_beside(file) as part:
        save_file(tensors, part, {METADATA_KEY: json.dumps(metadata)})
    return file


def read_packed(file: str | Path) -> AdapterTrajectory:
    """The trajectory in a file of `write_packed`, its `source` the file.

    Raises InputError, naming the file, where it is truncated, holds something else, or NaN.
    """
    with _opened(Path(file)) as (reader, metadata):
        tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    sites = list(metadata["scale"])
    for name in (prefix + site for prefix in (A, B) for site in sites):
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"{file}: {name} holds NaN or infinity; expected finite numbers (did training diverge?)")
    index = pd.Index(tensors[LOG + "step"], name="step")
    return AdapterTrajectory(
        steps=tensors["steps"],
        A={site: tensors[A + site] for site in sites},
        B={site: tensors[B + site] for site in sites},
        scale=metadata["scale"],
        metrics=pd.DataFrame({name: tensors[LOG + name] for name in metadata["log"]}, index=index),
        base=metadata["base"],
        source=str(file),
        kind=metadata["kind"],
    )


def packed_identity(file: str | Path) -> str | None:
    """The base model's name and the hash of its weights, where they were known when the file was written."""
    with _opened(Path(file)) as (_, metadata):
        identity: str | None = metadata["identity"]
        return identity


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as reader:
            metadata = json.loads((reader.metadata() or {}).get(METADATA_KEY, "null"))
            if metadata is None:
                raise InputError(f"{file} is not a packed trajectory; expected a file of `em-interp export`, packed")
            if metadata["format"] > FORMAT:
                found = f"{file} is of format {metadata['format']}"
                raise InputError(f"{found}; this version of em_interp reads {FORMAT}")
            yield reader, metadata
    except FileNotFoundError:
        raise InputError(f"{file} is missing") from None
    except SafetensorError as error:
        size = file.stat().st_size
        raise InputError(
            f"{file} ({size} bytes) is not a whole safetensors file ({error}); it may be truncated"
        ) from None
