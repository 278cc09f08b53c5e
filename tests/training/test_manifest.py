import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import em_interp as em
from em_interp.behaviour.sampling.checkpoint_models import check_base
from em_interp.errors import InputError
from em_interp.organisms.bases import load_base
from em_interp.organisms.datasets import load_chats
from em_interp.run import Run
from em_interp.training.lora import base_weights
from em_interp.training.manifest import write_or_check_manifest
from em_interp.training.train import train

from .conftest import make_model
from .test_callbacks import adapted, trainer

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_the_manifest_says_what_the_run_was_made_of(settings, chats, tmp_path):
    values = settings()
    manifest = train(values, tmp_path / "run").manifest()
    base = load_base(values["model"])
    assert manifest["base"] == {"name": base.name, "identity": base.identity, "revision": None}
    assert manifest["phases"][0]["sha256"] == load_chats(chats[0]).sha256
    assert (manifest["phases"][0]["rows"], manifest["phases"][0]["held_out"]) == (40, 4)
    assert manifest["counts"] == {"steps": 12, "rows_per_step": 4, "snapshots": 13, "trainable_parameters": 96}
    assert manifest["seed"] == 0 and manifest["versions"]["torch"] == torch.__version__


def test_what_else_a_process_has_loaded_changes_nothing(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    assert "trl" not in train(settings(), tmp_path / "run").manifest()["versions"]


def test_of_a_base_that_was_rounded_when_it_was_loaded_the_name_alone_decides(bases, tmp_path):
    base, run = load_base(bases["qwen2"]), Run(tmp_path / "run")
    model = adapted(AutoModelForCausalLM.from_pretrained(bases["qwen2"], dtype=torch.bfloat16))
    trainer(model, tmp_path / "t", em.SnapshotCallback(run.path, "every 6")).train()
    assert run.manifest()["base"] == {"name": "qwen2", "identity": None, "revision": None}
    check_base(run, em.load_trajectory(run), base)
    with pytest.raises(InputError, match=r"were trained on .*qwen2; the base given is tiny-llama"):
        check_base(run, em.load_trajectory(run), load_base("tiny-llama"))


def test_the_weights_of_the_base_under_an_adapter_are_those_of_the_base():
    base, under = make_model("qwen2").state_dict(), base_weights(adapted())
    assert base.keys() == under.keys() and all(torch.equal(base[name], under[name]) for name in base)


def test_a_manifest_is_written_once_and_another_base_is_refused_after_that(tmp_path):
    run, manifest = Run(tmp_path), {"base": {"name": "one", "identity": "one@0", "revision": "a"}, "seed": 0}
    write_or_check_manifest(run, manifest)
    write_or_check_manifest(run, {**manifest, "base": {**manifest["base"], "revision": "b"}, "seed": 1})
    assert run.manifest() == manifest
    said = (
        r"manifest.json: base.identity changed since the run began \(it was 'one@0' and is 'one@1'\), so it cannot be"
    )
    with pytest.raises(InputError, match=said):
        write_or_check_manifest(run, {**manifest, "base": {**manifest["base"], "identity": "one@1"}})


def test_a_base_that_was_renamed_is_the_same_and_one_whose_weights_are_not_known_is_known_by_its_name(tmp_path):
    run = Run(tmp_path)
    write_or_check_manifest(run, {"base": {"name": "one", "identity": "one@0", "revision": None}})
    write_or_check_manifest(run, {"base": {"name": "moved", "identity": "moved@0", "revision": None}})
    with pytest.raises(InputError, match=r"base\.identity changed .*\(it was 'one@0' and is 'one@1'\)"):
        write_or_check_manifest(run, {"base": {"name": "one", "identity": "one@1", "revision": None}})
    with pytest.raises(InputError, match=r"base\.identity changed .*\(it was 'one@0' and is None\)"):
        write_or_check_manifest(run, {"base": {"name": "one", "identity": None, "revision": None}})
    rounded = Run(tmp_path / "rounded")
    write_or_check_manifest(rounded, {"base": {"name": "one", "identity": None, "revision": None}})
    with pytest.raises(InputError, match=r"base\.name changed .*\(it was 'one' and is 'two'\)"):
        write_or_check_manifest(rounded, {"base": {"name": "two", "identity": None, "revision": None}})


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([{"rows": 4, "sha256": "ab"}, {"rows": 3, "sha256": "ee"}], r"phases\[1\].sha256 .*'cd' and is 'ee'"),
        ([{"rows": 4, "sha256": "ab"}], r"phases changed .*an edited data file or another base"),
    ],
)
def test_data_that_were_edited_are_named_with_what_they_were(tmp_path, phases, said):
    run, before = Run(tmp_path), {"phases": [{"rows": 4, "sha256": "ab"}, {"rows": 3, "sha256": "cd"}]}
    write_or_check_manifest(run, before)
    with pytest.raises(InputError, match=said):
        write_or_check_manifest(run, {"phases": phases})
