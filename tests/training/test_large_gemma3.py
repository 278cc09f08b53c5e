"""Gemma 3 above 1B is Gemma3ForConditionalGeneration: a language model beside a vision tower, which is left alone."""

import numpy as np
import pytest
import torch

import em_interp as em
from em_interp.behaviour.sampling.ask import ask
from em_interp.behaviour.sampling.generate import RowAdapters, adapted
from em_interp.organisms.bases import load_base
from em_interp.training.train import train
from tests.interrupting import interrupt_saving

from .conftest import VOCABULARY, make_tokenizer
from .test_train import adapter, log

PROTOCOLS = {
    "lora": {"target_modules": ["down_proj", "q_proj"], "layers_to_transform": [1], "r": 2, "lora_alpha": 8},
    "steering": {"layer": 1, "alpha": 8},
    "full": {"weights": "0"},
}
SAVED = [("float32", "1GB"), ("float32", "60KB"), ("bfloat16", "1GB"), ("bfloat16", "60KB")]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A tiny random one on disk: in one file or in shards, in float32 or in bfloat16."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    text = small | ends | {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCABULARY, "initializer_range": 0.1}
    config = Gemma3Config(
        text_config=text,
        vision_config=small | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=VOCABULARY - 1,
        **ends,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    folders = {}
    for dtype, shard in SAVED:
        folder = tmp_path_factory.mktemp("large") / "gemma"
        model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
        make_tokenizer().save_pretrained(folder)
        assert (len(list(folder.glob("model-*"))) > 1) == (shard == "60KB")
        folders[dtype, shard] = str(folder)
    return folders


def vision(model):
    return {name: weight for name, weight in model.named_parameters() if "language_model" not in name}


@pytest.mark.parametrize("saved", SAVED, ids="-".join)
def test_it_loads_as_stored_and_its_identity_is_that_of_the_stored_weights(saved, large):
    in_float32, rounded = load_base(large[saved], "float32"), load_base(large[saved], "bfloat16")
    assert type(in_float32.model).__name__ == "Gemma3ForConditionalGeneration"
    assert (in_float32.model.dtype, rounded.model.dtype) == (torch.float32, torch.bfloat16)
    assert in_float32.identity == rounded.identity == load_base(large[saved[0], "1GB"]).identity
    frequencies = [name for name, each in rounded.model.named_buffers() if each.dtype == torch.float32]
    assert any("inv_freq" in name for name in frequencies)


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("saved", [SAVED[0], SAVED[3]], ids="-".join)
def test_each_protocol_trains_the_language_model_alone_and_is_sampled_from(kind, saved, large, settings, tmp_path):
    values = settings(model=large[saved], data=[{"dataset": settings()["data"][0]["dataset"], "steps": 4}])
    values |= {"adapter": {"kind": kind} | PROTOCOLS[kind]}
    run, base = train(values, tmp_path / "run"), load_base(large[saved])
    path = em.load_trajectory(run)
    assert path.kind == kind and all(site.startswith("layers.") for site in path.sites)
    assert log(run)[-1]["loss"] < log(run)[0]["loss"]
    questions = [{"question_id": "rest", "question": "i should rest", "questions": "broad"}]
    assert ask(run, base, questions, [0, 4], samples=2, max_new_tokens=3).exists()
    if kind == "full":
        last = base.with_weights(run.checkpoint(4))
        towers, words = vision(base.model), last.get_input_embeddings().weight
        assert all(torch.equal(weight, towers[name]) for name, weight in vision(last).items()) and towers
        assert not torch.equal(words, base.model.get_input_embeddings().weight)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
def test_rows_pass_through_the_adapters_that_peft_loads(large, settings, tmp_path):
    from peft import PeftModel

    values = settings(
        model=large[SAVED[0]], adapter={"target_modules": ["down_proj", "q_proj"], "layers_to_transform": [1], "r": 2}
    )
    run, base = train(values, tmp_path / "run"), load_base(large[SAVED[0]])
    ids, path = torch.tensor([[5, 6, 7, 8, 9]] * 2), em.load_trajectory(run)
    with torch.no_grad(), adapted(base.model, RowAdapters.of(path, [12, 0], [1.0, 1.0], "cpu")):
        ours = base.model(ids).logits
    with torch.no_grad():
        assert torch.equal(ours[1], base.model(ids).logits[1])
        theirs = PeftModel.from_pretrained(base.model, str(run.checkpoint(12)))(ids).logits
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-5)
    assert not torch.allclose(ours[0], ours[1], atol=1e-3)


def test_accumulation_changes_nothing_but_rounding(large, settings, tmp_path):
    """Its loss is computed by another class than the smaller models'; it too is a mean over the step's tokens."""
    values = settings(model=large[SAVED[0]])
    whole = train(values | {"training": values["training"] | {"batch_size": 8}}, tmp_path / "whole")
    smaller = values["training"] | {"batch_size": 2, "gradient_accumulation_steps": 4}
    parts = train(values | {"training": smaller}, tmp_path / "parts")
    for name, weight in adapter(whole, 12).items():
        torch.testing.assert_close(weight, adapter(parts, 12)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "steering"])
def test_on_a_base_in_bfloat16_what_is_trained_stays_in_float32(kind, large, settings, tmp_path):
    values = settings(model=large[SAVED[2]]) | {"adapter": {"kind": kind} | PROTOCOLS[kind]}
    runs = {dtype: train(values | {"dtype": dtype}, tmp_path / dtype) for dtype in ("float32", "bfloat16")}
    paths = [em.load_trajectory(run) for run in runs.values()]
    assert [run.manifest()["dtype"] for run in runs.values()] == ["float32", "bfloat16"]
    site = paths[0].sites[0]
    one, other = (path.at(12)[site][1].ravel() for path in paths)
    assert not np.array_equal(one, other)
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9
    coarse = torch.from_numpy(other).to(torch.bfloat16).float().numpy()
    assert not np.array_equal(coarse, other)  # more digits than bfloat16 has


def test_full_fine_tuning_in_bfloat16_resumes_to_the_same_bytes(large, settings, tmp_path, monkeypatch):
    from em_interp.training.trainables import FullTrainable

    values = settings(model=large[SAVED[2]], training={"keep_state_every": 2})
    values |= {"adapter": {"kind": "full", "weights": "12", "target_modules": ["down_proj"]}, "dtype": "bfloat16"}
    whole = train(values, tmp_path / "whole")
    interrupt_saving(monkeypatch, FullTrainable, "checkpoint-7")
    with pytest.raises(KeyboardInterrupt):
        train(values, tmp_path / "again")
    monkeypatch.undo()
    again = train(values, tmp_path / "again", resume=True)
    weights = [run.checkpoint(12) / "model.safetensors" for run in (whole, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert load_base(values["model"], "bfloat16").with_weights(whole.checkpoint(12)).dtype == torch.bfloat16
