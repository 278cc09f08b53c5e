import json

import pytest

from em_interp.organisms.bases import SHIPPED
from tests.behaviour.conftest import make_trajectory, save_run
from tests.tiny import did, em_interp, refused, strict


@pytest.fixture
def run(tmp_path):
    """A folder of checkpoints of rank 9 on a built-in base."""
    trajectory = make_trajectory({"layers.0.mlp.down_proj": (384, 128)}, rank=9)
    object.__setattr__(trajectory, "base", "tiny-qwen2")
    return save_run(tmp_path / "run", trajectory, identity=None)


@pytest.fixture
def python(tmp_path):
    """The Python of an environment with vLLM, which writes down how it was started."""
    command = tmp_path / "bin" / "python"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho $VLLM_ALLOW_RUNTIME_LORA_UPDATING $@ > {tmp_path / 'started'}\nexit $CODE\n")
    command.chmod(0o755)
    command.with_name("vllm").touch()
    return command


def test_the_command_serves_the_base_as_it_is_here_with_room_for_the_adapters(run, python, tmp_path, monkeypatch):
    words = ("serve", run.path, "--python", python, "--port", 8123, "--print", "--json", "--", "--max-num-seqs", "4")
    values = strict(did(*words))
    words = values["command"]
    assert words[:3] == [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert options["--model"] == str(SHIPPED / "tiny-qwen2")
    assert options["--served-model-name"] == "tiny-qwen2" and options["--dtype"] == "float32"
    ending = "--enable-lora --lora-target-modules down_proj --max-lora-rank 16 --max-loras 8 --max-num-seqs 4"
    assert " ".join(words).endswith(ending)
    assert values["base_url"] == "http://127.0.0.1:8123/v1"
    assert values["environment"] == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    monkeypatch.setenv("CODE", "0")
    assert em_interp("serve", run.path, "--python", python).code == 0
    assert (tmp_path / "started").read_text().startswith(f"True {' '.join(words[1:7])}")
    monkeypatch.setenv("CODE", "3")
    assert "vLLM's server ended with exit code 3" in em_interp("serve", run.path, "--python", python).err


def test_checkpoints_of_another_trainer_are_served(run, python):
    for checkpoint in run.checkpoints.iterdir():
        checkpoint.rename(run.path / checkpoint.name)
    run.checkpoints.rmdir()
    assert "--max-lora-rank 16" in did("serve", run.path, "--python", python, "--print")


def test_an_environment_without_vllm_and_adapters_that_it_does_not_serve_are_refused(run, python, tmp_path):
    assert "no Python with vLLM is named" in refused("serve", run.path)
    assert "expected that of an environment with vLLM" in refused("serve", run.path, "--python", tmp_path / "python")
    nameless = make_trajectory({"layers.0.mlp.down_proj": (384, 128)})
    object.__setattr__(nameless, "base", None)
    nowhere = save_run(tmp_path / "nowhere", nameless, None)
    assert "nowhere does not say on which base it was trained" in refused("serve", nowhere.path, "--python", python)
    large = save_run(tmp_path / "large", make_trajectory({"layers.0.mlp.down_proj": (384, 128)}, rank=600), None)
    for file in large.path.rglob("adapter_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "tiny-qwen2"}))
    assert "adapters of up to rank 512; these have 600" in refused("serve", large.path, "--python", python)
