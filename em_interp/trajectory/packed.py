"""A whole trajectory in one file: what a folder of checkpoints holds of the path, in one safetensors.

A run of 400 steps is 800 small files, slow to read over a network and awkward to send. Here every A and B of a site is
one tensor over the steps, the log is there as it is by step, and the rest is JSON in the file's metadata. What
`load_trajectory` reads from it is, bit for bit, what it reads from the folder.
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
KEY, FORMAT = "em_interp.trajectory", 1  # of the metadata; one entry, for safetensors keeps no order of several
A, B, LOG = "A/", "B/", "log/"  # before the name of a site, or of a column of the log


def write_packed(trajectory: AdapterTrajectory, file: str | Path, identity: str | None = None) -> Path:
    """Write the trajectory to `file` (.safetensors), whole or not at all; one that is there is replaced.

    `identity` is the base model's name with the hash of its weights, where it is known. Tensors: `steps` (step,),
    `A/<site>` (step, rank, d_in) and `B/<site>` (step, d_out, rank) in float32, `log/step` and `log/<column>`.
    """
    from safetensors.numpy import save_file

    file = Path(file)
    if file.suffix != SUFFIX:
        raise InputError(f"{file}: a packed trajectory is a {SUFFIX} file; give it that ending")
    tensors = {"steps": trajectory.steps.astype(np.int64)}
    for prefix, parts in ((A, trajectory.A), (B, trajectory.B)):
        tensors |= {prefix + site: np.ascontiguousarray(part) for site, part in parts.items()}
    tensors[LOG + "step"] = trajectory.metrics.index.to_numpy(np.int64)
    tensors |= {f"{LOG}{name}": column.to_numpy(np.float64) for name, column in trajectory.metrics.items()}
    said = {
        "format": FORMAT,
        "kind": trajectory.kind,
        "base": trajectory.base,
        "identity": identity,
        "source": trajectory.source,
        "scale": trajectory.scale,  # by site, in the order of the sites
        "log": list(trajectory.metrics.columns),
    }
    with write_beside(file) as part:
        save_file(tensors, part, {KEY: json.dumps(said)})
    return file


def read_packed(file: str | Path) -> AdapterTrajectory:
    """The trajectory in a file of `write_packed`, its `source` the file.

    Raises InputError, naming the file, where it is truncated, holds something else, or NaN.
    """
    with _opened(Path(file)) as (held, said):
        return _trajectory(Path(file), said, {name: held.get_tensor(name) for name in held.keys()})  # noqa: SIM118


def packed_identity(file: str | Path) -> str | None:
    """The base model's name and the hash of its weights, where they were known when the file was written."""
    with _opened(Path(file)) as (_, said):
        identity: str | None = said["identity"]
        return identity


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and what its metadata say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as held:
            said = json.loads((held.metadata() or {}).get(KEY, "null"))
            if said is None:
                raise InputError(f"{file} is no packed trajectory; expected a file of `em-interp export --what packed`")
            if said["format"] > FORMAT:
                raise InputError(f"{file} is of format {said['format']}; this version of em_interp reads {FORMAT}")
            yield held, said
    except FileNotFoundError:
        raise InputError(f"{file} is missing") from None
    except SafetensorError as error:
        size = file.stat().st_size
        raise InputError(
            f"{file} ({size} bytes) is not a whole safetensors file ({error}); it may be truncated"
        ) from None


def _trajectory(file: Path, said: dict[str, Any], tensors: dict[str, np.ndarray]) -> AdapterTrajectory:
    sites = list(said["scale"])
    for name in (prefix + site for prefix in (A, B) for site in sites):
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"{file}: {name} holds NaN or infinity; expected finite numbers (did training diverge?)")
    index = pd.Index(tensors[LOG + "step"], name="step")
    return AdapterTrajectory(
        steps=tensors["steps"],
        A={site: tensors[A + site] for site in sites},
        B={site: tensors[B + site] for site in sites},
        scale=said["scale"],
        metrics=pd.DataFrame({name: tensors[LOG + name] for name in said["log"]}, index=index),
        base=said["base"],
        source=str(file),
        kind=said["kind"],
    )
