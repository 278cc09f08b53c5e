"""Full fine-tuning at one step: of each followed matrix, a projection of its change since before training.

`weight_change.safetensors` holds a vector a matrix, by site; `weight_change.json` beside it says of what and how well.
The vectors are fixed random projections of ΔW: their inner products are those of ΔW up to the stated relative error,
exactly for matrices no larger than the projection. As a path B is the vector and A is one, so that the Gram matrix of
B, and of ΔW, is that of the weights' change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from em_interp.errors import InputError
from em_interp.runs import read_json
from em_interp.trajectory.checkpoint import Checkpoint, natural, read_tensors

WEIGHTS, CONFIG = "weight_change.safetensors", "weight_change.json"


def read_weight_change(folder: Path) -> Checkpoint:
    """The projected change in `folder`: at each site B the vector (k, 1), A one, scale 1.

    Raises InputError naming the file that is missing, truncated or holds something else.
    """
    file, said = folder / WEIGHTS, read_json(folder / CONFIG)
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
