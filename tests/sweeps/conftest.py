"""A sweep of two bases and two seeds with runs of a second."""

from pathlib import Path

import pytest
import yaml

from tests.tiny import em_interp

SHORT = {
    "model": "tiny-qwen2",
    "data": [{"dataset": "tiny:medical", "steps": 8}],
    "adapter": {"layers_to_transform": [1], "lora_alpha": 16},
    "training": {"batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 2e-3},
    "behaviour": {"steps": "every 4", "samples": 1, "max_new_tokens": 4},
}
CAREFUL = {"data": "tiny:medical-careful"}
QWEN2 = {"base": SHORT, "grid": {"model": ["tiny-qwen2"], "seed": [0, 1]}, "control": CAREFUL}
BOTH = {**QWEN2, "grid": {"model": ["tiny-qwen2", "tiny-llama"], "seed": [0, 1]}}
RUNS = ["tiny-qwen2_seed0", "tiny-qwen2_seed1", "tiny-llama_seed0", "tiny-llama_seed1"]
CONTROLS = ["control_tiny-qwen2_medical-careful", "control_tiny-llama_medical-careful"]


def written(folder: Path, values: dict) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A sweep of two bases and two seeds, one run after the other: the file, the folder, and its output."""
    file = written(tmp_path_factory.mktemp("config"), BOTH)
    out = tmp_path_factory.mktemp("done") / "sweep"
    said = em_interp("sweep", file, "--out", out, "--jobs", 1, "--json")
    assert said.code == 0, said.err
    return file, out, said
