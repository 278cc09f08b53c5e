"""Small adapters and steering vectors on disk, in the forms in which runs have them."""

import json
import sys
from contextlib import contextmanager

import numpy as np
from safetensors.numpy import save_file

SITE = "model.layers.21.mlp.down_proj"
CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 64, "use_rslora": True, "base_model_name_or_path": "base-14b"}


def save_adapter(folder, modules=(SITE,), rank=1, value=1.0, key="base_model.model.{}.lora_{}.weight", **config):
    """A small adapter in PEFT's format, every number `value`."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"A": (rank, 5), "B": (4, rank)}
    tensors = {key.format(m, part): np.full(shape, value, "f4") for m in modules for part, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "r": rank, **config}))
    return folder


def save_run(root, steps=(0, 5, 10), where="checkpoints", **given):
    for step in steps:
        save_adapter(root / where / f"checkpoint-{step}", value=float(step), **given)
    return root


def save_log(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))


def save_steering(folder, step, vector, named=True, **config):
    """A steering vector as torch saves it, in the public runs' form."""
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    held = {"steering_vector": vector, "layer_idx": 24, "alpha": 256.0} if named else vector
    import torch

    torch.save(held, place / "steering_vector.pt")
    said = {"adapter_type": "steering_vector", "layer_idx": 24, "alpha": 256.0, "hidden_size": 6, "base_model": "b14"}
    (place / "adapter_config.json").write_text(json.dumps(said | config))
    return place


_OPENED = []  # one list for each `opened_files` that is in effect
sys.addaudithook(lambda event, given: [names.append(str(given[0])) for names in _OPENED if event == "open"])


@contextmanager
def opened_files(folder):
    """The files below a folder that are opened within the block, by whatever function."""
    names, found = [], []
    _OPENED.append(names)
    try:
        yield found
    finally:
        _OPENED.remove(names)
        found += [name for name in names if name.startswith(str(folder))]
