"""What is exported does what the adapter does, in every tool that may load it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import em_interp as em
from em_interp.behaviour.sampling.generate import RowAdapters, adapted
from em_interp.config.run_config import AdapterConfig, RunConfig
from em_interp.config.settings import to_yaml
from em_interp.errors import InputError
from em_interp.organisms.bases import load_base
from em_interp.run import Run
from em_interp.training.checkpoints import AdapterWriter
from em_interp.training.export import export_merged, export_packed, export_peft, merge
from em_interp.training.lora import adapter_weights, add_adapter
from em_interp.trajectory.packed import packed_identity, write_packed
from em_interp.utils.files import write_json
from tests.tiny import json_of, refused, unchanged

from .conftest import make_model, save_base

STEPS = {0: 0.0, 1: 1e-5, 5: 0.3}  # the size of B
IDS = torch.tensor([[4, 9, 30, 77, 5, 12], [8, 8, 41, 3, 19, 60]])


def make_run(folder, base, alpha_pattern=True):
    """A rank-4 rsLoRA adapter at four sites, one with an alpha of its own, saved at three steps."""
    config = AdapterConfig(target_modules=("down_proj", "q_proj"), layers_to_transform=(0, 2), r=4, lora_alpha=16)
    loaded = load_base(base, "float32", "cpu")
    model = add_adapter(loaded.model, config, seed=0, base=loaded.name)
    if alpha_pattern:
        model.peft_config["default"].alpha_pattern = {"layers.2.mlp.down_proj": 3}
    writer, rng = AdapterWriter(model), torch.Generator().manual_seed(1)
    for step, size in STEPS.items():
        for name, weight in adapter_weights(model).items():
            if "lora_B" in name:
                weight.data = size * torch.randn(weight.shape, generator=rng)
        writer.save(Run(folder).checkpoint(step))
    write_json(Run(folder).manifest_file, {"base": {"name": loaded.name, "identity": loaded.identity}})
    Run(folder).config_file.write_text(to_yaml(RunConfig(model=base, adapter=config)))
    return folder


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {family: make_run(folder / family, base) for family, base in bases.items()}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A base stored in bfloat16 and a run on it."""
    folder = tmp_path_factory.mktemp("half")
    base = save_base(folder / "base")
    make_model("qwen2").to(torch.bfloat16).save_pretrained(base)
    return base, make_run(folder / "run", base)


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def through_hooks(run, base, step):
    """The reference: the base as it is, ΔW · x added by hooks."""
    model = load_base(base, "float32", "cpu").model
    rows = RowAdapters.of(em.load_trajectory(run), [step] * len(IDS), [1.0] * len(IDS), "cpu")
    with adapted(model, rows):
        return logits(model)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_merged_weights_answer_as_the_adapted_model_does(family, bases, runs, tmp_path):
    said = export_merged(runs[family], 5, tmp_path / "merged")
    wanted = through_hooks(runs[family], bases[family], 5)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)
    assert (logits(load_base(bases[family], "float32", "cpu").model) - wanted).abs().max() > 0.1
    assert said["dtype"] == "float32" and len(said["rounding"]) == 4 and max(said["rounding"].values()) < 1e-6
    assert json.loads((tmp_path / "merged" / "em_interp_merge.json").read_text())["step"] == 5


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks by the old name
@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_peft_and_transformers_load_a_folder_with_its_scale(family, bases, runs, tmp_path):
    from peft import PeftModel

    path, wanted = em.load_trajectory(runs[family]), through_hooks(runs[family], bases[family], 5)
    assert sorted(set(path.scale.values())) == [3 / 2, 16 / 2]  # rsLoRA at rank 4; one alpha by pattern
    export_peft(runs[family], 5, tmp_path / "peft")
    for folder in (tmp_path / "peft", Run(runs[family]).checkpoint(5)):
        through_peft = PeftModel.from_pretrained(load_base(bases[family], "float32", "cpu").model, folder)
        through_transformers = load_base(bases[family], "float32", "cpu").model
        through_transformers.load_adapter(str(folder))
        for model in (through_peft, through_transformers):
            scales = {n: m.scaling["default"] for n, m in model.named_modules() if hasattr(m, "lora_A")}
            assert len(scales) == 4
            for name, scale in scales.items():
                assert scale == next(path.scale[site] for site in path.sites if name.endswith(site))
            torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)


def test_the_number_type_of_the_base_is_kept_and_the_rounding_error_is_reported(half, tmp_path):
    base, run = half
    path, before = em.load_trajectory(run), AutoModelForCausalLM.from_pretrained(base, dtype="auto").state_dict()
    said = {step: export_merged(run, step, tmp_path / str(step)) for step in (1, 5)}
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "5", dtype="auto").state_dict()
    for name, weight in after.items():
        assert weight.dtype == torch.bfloat16
        site = next((site for site in path.sites if name.endswith(f"{site}.weight")), None)
        if site is None:
            assert torch.equal(weight, before[name])
            continue
        A, B = path.at(5)[site]
        whole = before[name].float() + torch.from_numpy(path.scale[site] * (B @ A))
        assert torch.equal(weight, whole.to(torch.bfloat16))
    assert 0 < max(said[5]["rounding"].values()) < 0.01
    assert min(said[1]["rounding"].values()) > 0.5  # so small a change is mostly gone
    exact = export_merged(run, 1, tmp_path / "exact", dtype="float32")
    assert exact["dtype"] == "float32" and max(exact["rounding"].values()) < 0.01


def test_the_tokenizer_comes_along(bases, runs, tmp_path):
    export_merged(runs["qwen2"], 5, tmp_path / "merged")
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (bases["qwen2"], tmp_path / "merged")]
    chat = [{"role": "user", "content": "should i rest"}]
    one, other = (t.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for t in tokenizers)
    assert one == other
    assert tokenizers[0].eos_token_id == tokenizers[1].eos_token_id


def test_at_step_0_nothing_is_added(bases, runs, tmp_path):
    said = export_merged(runs["qwen2"], 0, tmp_path / "merged")
    assert set(said["rounding"].values()) == {0.0}
    merged, base = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tmp_path / "merged", bases["qwen2"]))
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_a_packed_file_can_be_merged_and_knows_its_base(bases, runs, tmp_path):
    file = export_packed(runs["qwen2"], tmp_path / "p.safetensors")["file"]
    assert packed_identity(file) == load_base(bases["qwen2"]).identity
    one = export_merged(file, 5, tmp_path / "a", base=bases["qwen2"])
    other = export_merged(runs["qwen2"], 5, tmp_path / "b")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1] and one["base"] == other["base"]
    with pytest.raises(InputError, match=r"p\.safetensors were trained on qwen2@\w+; the base given is llama@"):
        export_merged(file, 5, tmp_path / "c", base=bases["llama"])


@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_the_identity_of_the_base_is_known_wherever_in_the_run_the_source_points(place, runs, bases, tmp_path):
    source, other = Path(runs["qwen2"]) / place, save_base(tmp_path / "qwen2")
    change(other)
    with pytest.raises(InputError, match=r"were trained on qwen2@\w+; the base given is qwen2@"):
        export_merged(source, 5, tmp_path / "out", base=other)
    file = export_packed(source, tmp_path / "p.safetensors")["file"]
    assert packed_identity(file) == load_base(bases["qwen2"]).identity


def change(base):
    """Other weights of equal shapes in the folder of a base."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.get_input_embeddings().weight.data += 1
    model.save_pretrained(base)


def test_the_same_weights_under_another_name_are_merged(runs, bases, tmp_path):
    renamed = shutil.copytree(bases["qwen2"], tmp_path / "renamed")
    said = export_merged(runs["qwen2"], 5, tmp_path / "out", base=str(renamed))
    assert said["base"].startswith("renamed@")


def test_a_run_that_names_no_base_says_where_the_name_belongs(runs, tmp_path):
    run = Run(shutil.copytree(runs["qwen2"], tmp_path / "run"))
    for file in (run.config_file, run.manifest_file):
        file.unlink()
    for step in run.steps():
        file = run.checkpoint(step) / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(InputError, match=r"run does not say .*; expected base_model_name_or_path in .*; give base="):
        export_merged(run.path, 5, tmp_path / "out")


def test_an_unknown_number_type_is_refused_in_one_line(runs, tmp_path):
    for name in ("fp16", "int8", "Tensor"):
        with pytest.raises(
            InputError, match=rf"dtype '{name}' is not known.*\(known: auto, float32, bfloat16, float16\)"
        ):
            export_merged(runs["qwen2"], 5, tmp_path / "out", dtype=name)


def test_a_chat_template_with_the_date_is_exported_as_it_is_stored(runs, bases, tmp_path):
    base = shutil.copytree(bases["qwen2"], tmp_path / "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    export_merged(runs["qwen2"], 5, tmp_path / "merged", base=str(base))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template


def test_an_export_of_another_step_or_run_is_not_taken_for_the_one_that_is_asked_for(runs, tmp_path):
    run, other = runs["qwen2"], runs["llama"]
    for what in ("peft", "merged"):
        words = ["export", run, "--format", what, "--out", tmp_path / what]
        json_of(*words, "--step", 1)
        with unchanged(tmp_path):
            said = refused(*words, "--step", 5, "--resume")
            assert f"{what} holds step 1 of {run}" in said and f"not step 5 of {run}; give --overwrite" in said
            assert "not step 1 of" in refused("export", other, *words[2:], "--step", 1, "--resume")
        assert json_of(*words, "--step", 5, "--overwrite")["step"] == 5
    with pytest.raises(InputError, match=r"in float32, not step 5 of .* in bfloat16"):
        export_merged(run, 5, tmp_path / "merged", dtype="bfloat16", resume=True)
    file = export_packed(run, tmp_path / "p.safetensors")["file"]
    with pytest.raises(
        InputError, match=rf"holds 3 steps \(0 to 5\) of {run}, not 3 steps \(0 to 5\) of {other}; give"
    ):
        export_packed(other, file, resume=True)


def test_of_a_trainers_checkpoint_only_the_adapter_is_exported_for_peft(runs, tmp_path):
    run = Run(shutil.copytree(runs["qwen2"], tmp_path / "run"))
    for name in ("optimizer.pt", "rng_state.pth", "README.md"):
        (run.checkpoint(5) / name).write_bytes(b"much")
    folder = Path(export_peft(run.path, 5, tmp_path / "peft")["folder"])
    assert {file.name for file in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    for again in ({"resume": True}, {"overwrite": True}):
        assert export_peft(run.path, 5, folder, **again)["step"] == 5


@pytest.mark.parametrize("inside, source, place", [("", ".", ".."), ("checkpoints", "..", "../..")])
def test_what_is_exported_from_within_a_run_is_written_beside_it(inside, source, place, runs, tmp_path, monkeypatch):
    run = shutil.copytree(runs["qwen2"], tmp_path / "mine")
    monkeypatch.chdir(run / inside)
    assert Path(export_packed(source)["file"]) == Path(place) / "mine-packed.safetensors"
    assert Run(Path(source)).name == "mine" and (tmp_path / "mine-packed.safetensors").is_file()


def test_an_adapter_that_was_pickled_is_exported_for_peft(runs, tmp_path):
    run = Run(shutil.copytree(runs["qwen2"], tmp_path / "run"))
    for step in run.steps():
        file = run.checkpoint(step) / "adapter_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    folder = Path(export_peft(run.path, 5, tmp_path / "peft")["folder"])
    assert {file.name for file in folder.iterdir()} == {"adapter_model.bin", "adapter_config.json"}
    assert export_peft(run.path, 5, folder, resume=True)["step"] == 5


def test_an_adapter_of_mlx_is_merged_and_not_exported_for_peft(runs, bases, tmp_path):
    path, folder = em.load_trajectory(runs["qwen2"]), tmp_path / "mlx"
    sites = [site for site in path.sites if path.scale[site] == 8]
    folder.mkdir()
    settings = {"rank": 4, "scale": 8.0}
    write_json(folder / "adapter_config.json", {"fine_tune_type": "lora", "lora_parameters": settings, "model": "q"})
    for step in (1, 5):
        pairs = {site: path.at(step)[site] for site in sites}
        tensors = {f"model.{site}.lora_a": np.ascontiguousarray(A.T) for site, (A, B) in pairs.items()}
        tensors |= {f"model.{site}.lora_b": np.ascontiguousarray(B.T) for site, (A, B) in pairs.items()}
        save_numpy(tensors, folder / f"{step:07}_adapters.safetensors")
    with pytest.raises(
        InputError, match=r"0000005_adapters.safetensors is an adapter of MLX, which PEFT does not read"
    ):
        export_peft(folder, 5, tmp_path / "peft")
    export_merged(folder, 5, tmp_path / "merged", base=bases["qwen2"])
    export_merged(runs["qwen2"], 5, tmp_path / "wanted")
    merged, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "wanted"))
    for site in sites:
        assert torch.equal(merged[f"model.{site}.weight"], wanted[f"model.{site}.weight"])


def test_a_step_that_was_not_saved_and_another_base_are_refused_in_one_line(runs, bases, tmp_path):
    run, out = runs["qwen2"], tmp_path / "out"
    with unchanged(run):
        for what in ("merged", "peft"):
            said = refused("export", run, "--format", what, "--step", 3, "--out", out)
            assert said == "em-interp: step 3 was not saved; the nearest saved steps are 0, 1, 5\n"
        said = refused("export", run, "--format", "merged", "--base", bases["llama"], "--out", out)
        assert "were trained on qwen2@" in said and "the base given is llama@" in said
        assert "--step has no meaning with --format packed" in refused("export", run, "--format", "packed", "--step", 1)
        assert "--base has no meaning with --format peft" in refused("export", run, "--format", "peft", "--base", "x")
        assert "no such" not in refused("export", tmp_path / "nothing", "--format", "packed")
    assert not out.exists()


def test_an_adapter_of_other_shapes_or_sites_changes_no_weight(runs):
    path = em.load_trajectory(runs["qwen2"])
    for model, said in (
        (make_model("qwen2", hidden=64), r"is 64 → 32, the model's module 128 → 64; .* another base"),
        (make_model("qwen2", layers=2), r"layers\.2\.mlp\.down_proj' is not in the model"),
    ):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with pytest.raises(InputError, match=said):
            merge(model, path, 5)
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_what_is_no_lora_adapter_cannot_be_merged(tmp_path, runs):
    path = em.load_trajectory(runs["qwen2"])
    file = write_packed(replace(path, kind="steering"), tmp_path / "s.safetensors")
    with pytest.raises(InputError, match="kind 'steering'; only a LoRA adapter is merged"):
        export_merged(file, 5, tmp_path / "out")


def test_the_command_reports_what_was_written_and_replaces_nothing_without_resume(runs, tmp_path):
    run = runs["qwen2"]
    for what, out in (("packed", "p.safetensors"), ("peft", "peft"), ("merged", "merged")):
        values = json_of("export", run, "--format", what, "--out", tmp_path / out)
        assert str(tmp_path / out) in values.values()
        words = ["export", run, "--format", what, "--out", tmp_path / out]
        assert "is there already; give --resume" in refused(*words)
        with unchanged(tmp_path):
            assert json_of(*words, "--resume") == values
        assert json_of(*words, "--overwrite") == values
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    np.testing.assert_array_equal(em.load_trajectory(tmp_path / "p.safetensors").steps, [*STEPS])


@pytest.mark.parametrize(("what", "own"), [("peft", "adapter_config.json"), ("merged", "config.json")])
def test_only_an_earlier_export_is_overwritten_and_no_other_folder(what, own, runs, tmp_path):
    run, mine = runs["qwen2"], tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (mine / own).write_text("{}")
    words = ["export", run, "--format", what]
    with unchanged(mine), unchanged(run):
        for folder in (mine, run, Run(run).checkpoint(1)):
            for word in ("--resume", "--overwrite"):
                assert f"{folder} is no earlier export of this kind" in refused(*words, word, "--out", folder)
    for word in ("--resume", "--overwrite"):
        (tmp_path / word).mkdir()
        json_of(*words, word, "--out", tmp_path / word)
        assert any((tmp_path / word).iterdir())


def test_only_a_packed_file_is_overwritten_and_no_other_weights(bases, runs, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((Path(bases["qwen2"]) / "model.safetensors").read_bytes())
    with unchanged(tmp_path):
        said = refused("export", runs["qwen2"], "--format", "packed", "--out", file, "--overwrite")
    assert f"{file} is no earlier export" in said


def test_what_is_no_lora_adapter_is_not_exported_for_peft(runs, tmp_path):
    step = Run(tmp_path / "run").checkpoints
    for number in (0, 1):
        (step / f"checkpoint-{number}").mkdir(parents=True)
        (step / f"checkpoint-{number}" / "steering_vector.pt").touch()
    said = refused("export", tmp_path / "run", "--format", "peft", "--out", tmp_path / "out")
    assert "checkpoint-1 holds a steering vector; only a LoRA adapter is exported for PEFT" in said
    file = export_packed(runs["qwen2"], tmp_path / "p.safetensors")["file"]
    assert "is one packed file" in refused("export", file, "--format", "peft", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
