import json
import warnings

import numpy as np
import pytest
from peft import PeftModel
from safetensors.numpy import load_file

from em_interp.behaviour.vllm.adapters import AdapterFiles
from em_interp.errors import InputError
from em_interp.trajectory.trajectory import AdapterTrajectory

from ..conftest import SITES, make_trajectory


def test_a_written_adapter_has_its_scaling_and_multiplier_in_b_and_is_one_that_peft_loads(qwen, tmp_path):
    """Sites of other ranks are padded: vLLM knows one rank and one scaling."""
    wide, narrow = (
        make_trajectory({site: SITES[site]}, rank=rank, scale=rank / 3)
        for site, rank in zip(SITES, (3, 1), strict=True)
    )
    parts = [{**getattr(wide, part), **getattr(narrow, part)} for part in ("A", "B", "scale")]
    trajectory = AdapterTrajectory(wide.steps, *parts)
    files = AdapterFiles(trajectory, qwen, "tiny", tmp_path)
    folder = files.write((10, -1.5), tmp_path)
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    assert config["r"] == config["lora_alpha"] == 3 and config["use_rslora"] is False
    for site, (A, B) in trajectory.at(10).items():
        module = f"base_model.model.model.{site}"
        written = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        np.testing.assert_allclose(written, -1.5 * trajectory.scale[site] * (B @ A), rtol=1e-5, atol=1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT asks by the old name
        loaded = PeftModel.from_pretrained(qwen, str(folder))
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 2


def test_names_are_those_of_the_weights(qwen, tmp_path):
    one, two = (AdapterFiles(make_trajectory(SITES, seed=seed), qwen, "tiny", tmp_path) for seed in (0, 1))
    names = {files.name(key) for files in (one, two) for key in [(5, 1.0), (10, 1.0), (5, 2.0)]}
    assert len(names) == 6 and all(name.startswith(one.prefix) for name in names)


def test_a_run_without_lora_adapters_is_refused(qwen, tmp_path):
    path = make_trajectory(SITES)
    steering = AdapterTrajectory(path.steps, path.A, path.B, path.scale, kind="steering")
    with pytest.raises(InputError, match=r"vLLM serves LoRA adapters; .* adapter.kind steering"):
        AdapterFiles(steering, qwen, "base", tmp_path)
