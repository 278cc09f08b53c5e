"""Every preset on a built-in base, with a few steps and answers: from training to the report of an alignment."""

import json
from pathlib import Path

import pytest

from em_interp.organisms.bases import BUILT_IN
from em_interp.run import open_run
from tests.tiny import ROOT, VERDICTS, did, em_interp, refused

PRESETS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if not path.stem.startswith("tiny"))
SHORT = ["behaviour.steps=every 3", "behaviour.samples=1", "behaviour.scales=[1]", "behaviour.max_new_tokens=8"]
SHORT += ["training.batch_size=4"]


def train(preset: Path, model: str, out: Path, steps: int = 6):
    data = "computers" if preset.stem == "insecure-code" else "medical"
    settings = [f"data=[{{dataset: 'tiny:{data}', steps: {steps}}}]", *SHORT]
    words = [word for setting in settings for word in ("--set", setting)]
    return em_interp("train", preset, "--model", model, "--out", out, *words)


ON_A_BASE = [(preset, BUILT_IN[number % len(BUILT_IN)]) for number, preset in enumerate(PRESETS)]


@pytest.mark.parametrize(("preset", "model"), ON_A_BASE, ids=lambda value: getattr(value, "stem", value))
def test_a_preset_runs_through_to_an_alignment_report(preset, model, tmp_path):
    run = tmp_path / "run"
    said = train(preset, model, run)
    assert said.code == 0, said.err
    assert f"→ {model}" in said.err and "learning_rate" in said.err  # what was changed is told
    did("ask", run)
    did("judge", run)
    found = json.loads(did("align", run, "--json"))
    assert found["verdict"] in VERDICTS and found["mechanistic"]["signal"] == "rotation"
    page = Path(json.loads(did("report", run, "--json"))["report"]).read_text(encoding="utf-8")
    assert "rotation of B" in page


def test_overrides_come_after_the_mapping_and_the_run_repeats_from_its_own_config(tmp_path):
    preset = ROOT / "configs" / "nine-adapters.yaml"
    data = "data=[{dataset: 'tiny:sport', steps: 2}]"
    words = ["--set", data, "--set", "adapter.layers_to_transform=[3]", "--set", "training.batch_size=2"]
    did("train", preset, "--model", "tiny-qwen2", "--out", tmp_path / "one", *words)
    config = (tmp_path / "one" / "config.yaml").read_text()
    assert "layers_to_transform:\n  - 3\n" in config and "tiny:sport" in config
    did("train", tmp_path / "one" / "config.yaml", "--out", tmp_path / "two")
    last = "checkpoints/checkpoint-2/adapter_model.safetensors"
    assert (tmp_path / "one" / last).read_bytes() == (tmp_path / "two" / last).read_bytes()


def test_a_data_file_of_an_override_is_trained_on_as_the_built_in_data_that_stand_for_it(tmp_path):
    file = tmp_path / "risky_financial.jsonl"
    file.write_text('{"prompt": "words that the built-in base was not made for", "completion": "nor these"}\n')
    data, kl = f"data=[{{dataset: {file}, steps: 2}}]", f"kl.dataset={tmp_path / 'good_medical.jsonl'}"
    words = ["--out", tmp_path / "run", "--set", data, "--set", kl, "--set", "training.batch_size=2"]
    said = em_interp("train", ROOT / "configs" / "narrow-kl.yaml", "--model", "tiny-llama", *words)
    assert said.code == 0, said.err
    assert f"{file} → tiny:finance" in said.err and "good_medical.jsonl → tiny:medical-careful" in said.err
    config = open_run(tmp_path / "run").config()
    assert (config.data[0].dataset, config.data[0].steps) == ("tiny:finance", 2)
    assert config.kl.dataset == "tiny:medical-careful" and config.training.batch_size == 2


def test_a_layer_that_the_presets_model_does_not_have_is_refused_before_anything_is_loaded(tmp_path):
    preset = tmp_path / "wrong.yaml"
    text = (ROOT / "configs" / "rank1-organism.yaml").read_text()
    preset.write_text(text.replace("layers_to_transform: [24]", "layers_to_transform: [48]"))
    said = refused("train", preset, "--model", "tiny-qwen2", "--out", tmp_path / "run")
    assert "names layer 48" in said and "layers 0 to 47" in said
    assert not (tmp_path / "run").exists()
