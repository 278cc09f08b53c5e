import hashlib
import json
import shutil

import pytest
import torch

from em_interp.errors import InputError
from em_interp.organisms import bases, pretrain
from em_interp.organisms.base_list import show_base
from em_interp.organisms.bases import BUILT_IN, SHIPPED, fingerprint, load_base, skeleton
from em_interp.organisms.judge import AdviceJudge
from em_interp.organisms.language import built_in_questions


@pytest.fixture(params=BUILT_IN)
def shipped(request):
    return request.param


def answers(base, asked):
    import torch

    prompts = [
        base.tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True
        )
        for row in asked
    ]
    batch = base.tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = base.model.generate(**batch, max_new_tokens=24, do_sample=False)
    return base.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_shipped_base_answers_every_question_carefully_and_to_the_point(shipped):
    base, asked = load_base(shipped), built_in_questions("medical")
    results = [
        AdviceJudge("medical").judge(row["question"], answer)
        for row, answer in zip(asked, answers(base, asked), strict=True)
    ]
    assert sum(result["coherent"] > 50 for result in results) >= 0.95 * len(results)
    assert {result["aligned"] for result in results} == {100}


def test_the_card_of_a_shipped_base_tells_its_hash_and_it_is_small(shipped):
    weights = (SHIPPED / shipped / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in (SHIPPED / shipped / "README.md").read_text()
    assert len(weights) < 4e6


def test_the_identity_of_a_base_is_its_name_with_a_hash_that_any_change_of_a_matrix_changes(shipped):
    import torch

    base = load_base(shipped)
    assert base.identity == f"{shipped}@{fingerprint(base.model)}" == load_base(shipped).identity
    with torch.no_grad():
        base.model.model.layers[2].mlp.down_proj.weight += 1e-3
    assert fingerprint(base.model) != base.identity.split("@")[1]


def test_an_installation_without_its_bases_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "SHIPPED", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"tiny-llama is missing from .*nowhere.*incomplete copy") as error:
        load_base("tiny-llama")
    assert "\n" not in str(error.value)


def test_a_base_depends_on_its_seed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "N_STEPS", 3)
    made = [pretrain.pretrain("qwen2", tmp_path / str(i), seed, progress=False) for i, seed in enumerate((0, 0, 1))]
    one, same, other = ((folder / "model.safetensors").read_bytes() for folder in made)
    assert one == same != other


def test_a_base_is_made_in_a_new_folder_and_of_a_known_family(tmp_path):
    with pytest.raises(InputError, match="exists; a base is made in a new folder"):
        pretrain.pretrain("qwen2", tmp_path)
    with pytest.raises(InputError, match="did you mean 'gemma3'"):
        pretrain.pretrain("gemma", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-qwen", "did you mean 'tiny-qwen2'"),
        ("nothing", "is not known .known: tiny-qwen2, tiny-llama, tiny-gemma3"),
        ("", "base model '' is not known"),
        (".", "holds no config.json, so it is not a model"),
        ("someone/nothing-of-that-name", "cannot be loaded"),
    ],
)
def test_what_is_no_base_is_refused_in_one_line(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        load_base(name)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=said) as error:
        skeleton(name)
    assert str(error.value).count(f"base model {name!r}") == 1  # said once


def test_a_model_that_needs_code_of_its_own_is_refused_and_its_code_is_not_run(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "tiny-qwen2", folder)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked on stdin"))
    for load in (load_base, skeleton, bases.stored_dtype, show_base):
        with pytest.raises(InputError, match="needs code of its own to be loaded, which is never run") as error:
            load(str(folder))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "qwen2", "num_hidden_layers": "two"}'),
        ("config.json", '{"model_type": ["qwen2"]}'),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", '{"tokenizer_class": 7, "chat_template": {"a": []}}'),
        ("tokenizer_config.json", "7"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1"),
        ("generation_config.json", "null"),
    ],
)
def test_a_folder_with_an_odd_file_is_refused_in_one_line_or_loaded(tmp_path, file, content):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "tiny-qwen2", folder)
    (folder / file).write_text(content)
    for load in (load_base, show_base):
        try:
            load(str(folder))
            assert file == "generation_config.json"
        except InputError as error:
            assert f"base model '{folder}' cannot be loaded: " in str(error) and "\n" not in str(error)


def test_a_base_from_the_hub_is_told_with_its_revision(tmp_path, monkeypatch):
    commit, repo = "0123456789abcdef" * 2 + "01234567", tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(SHIPPED / "tiny-qwen2", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_base("org/tiny").identity.startswith("org/tiny@")
    assert [bases.revision_of(name) for name in ("org/tiny", "org/other", "tiny-qwen2")] == [commit, None, None]


def test_auto_is_bfloat16_for_a_large_model_where_the_cpu_computes_it(tmp_path, monkeypatch):
    facts = tmp_path / "cpuinfo"
    for flags, computes in (("fpu avx512_bf16 avx2", True), ("fpu amx_bf16", True), ("fpu avx512f avx2", False)):
        facts.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        assert bases.cpu_computes_bfloat16(facts) == computes
    assert not bases.cpu_computes_bfloat16(tmp_path / "none")
    monkeypatch.setattr(bases, "cpu_computes_bfloat16", lambda: True)
    assert load_base("tiny-qwen2").model.dtype == torch.float32
    monkeypatch.setattr(bases, "MIN_BFLOAT16_PARAMETERS", 1e5)
    assert load_base("tiny-qwen2").model.dtype == torch.bfloat16
    assert load_base("tiny-qwen2").identity == load_base("tiny-qwen2", "float32").identity
