import sys

import gguf
import numpy as np
import pytest
import torch

from em_interp.errors import InputError
from em_interp.organisms import bases
from em_interp.organisms import gguf as gguf_bases
from em_interp.organisms.base_list import show_base
from em_interp.organisms.presets import layers_and_width
from em_interp.utils.files import read_json
from tests.organisms.gguf_files import TEMPLATE, random_llama, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EM_INTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bases"


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(20, 60)[None]).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_float32_file_is_the_model_it_was_written_from(tmp_path, tied):
    model = random_llama(tied)
    base = bases.load_base(str(write_gguf(model, tmp_path / "tiny.gguf")))
    state = base.model.state_dict()
    assert {name: torch.equal(values, state[name]) for name, values in model.state_dict().items()} == dict.fromkeys(
        state, True
    )
    assert torch.allclose(logits(base.model), logits(model), atol=1e-5)
    assert base.identity == f"tiny.gguf@{bases.fingerprint(model)}"


def test_a_quantised_file_has_the_values_that_its_blocks_stand_for(tmp_path):
    model = random_llama()
    base = bases.load_base(str(write_gguf(model, tmp_path / "tiny.gguf", "Q8_0")))
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, values in base.model.state_dict().items():
        original = model.state_dict()[name].numpy()
        if original.ndim == 2 and "q_proj" not in name and "k_proj" not in name:
            expected = gguf.dequantize(gguf.quantize(original, kind), kind)
            assert np.array_equal(values.numpy(), expected), name
        assert np.abs(values.numpy() - original).max() <= np.abs(original).max() / 127
    off = (logits(base.model) - logits(model)).abs().max() / logits(model).abs().max()
    assert 0 < off < 0.1


def test_template_tokenizer_and_end_token_come_along(tmp_path):
    base = bases.load_base(str(write_gguf(random_llama(), tmp_path / "tiny.gguf")))
    assert base.tokenizer.chat_template == TEMPLATE
    assert base.tokenizer.eos_token == "<end>"
    assert base.model.generation_config.eos_token_id == base.tokenizer.eos_token_id
    ids = base.tokenizer("what is your advice on a headache?")["input_ids"]
    assert ids == bases.load_tokenizer("tiny-llama")("what is your advice on a headache?")["input_ids"]


def test_the_conversion_is_a_plain_model_folder_that_can_be_saved_again(tmp_path):
    base = bases.load_base(str(write_gguf(random_llama(), tmp_path / "tiny.gguf", "Q8_0")))
    base.model.save_pretrained(tmp_path / "again")
    config = read_json(tmp_path / "again" / "config.json")
    assert "quantization_config" not in config
    assert bases.load_base(str(gguf_bases.plain_folder(tmp_path / "tiny.gguf"))).identity.endswith(
        base.identity.split("@")[1]
    )


def test_a_file_is_converted_once_wherever_it_lies(tmp_path, cache, monkeypatch):
    file = write_gguf(random_llama(), tmp_path / "tiny.gguf")
    folder = gguf_bases.plain_folder(file)
    assert folder.parent == cache
    copy = tmp_path / "copy.GGUF"
    copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(gguf_bases, "_convert", lambda *anything: pytest.fail("converted again"))
    assert gguf_bases.plain_folder(copy) == folder


def test_a_file_that_changes_is_another_base(tmp_path):
    file = tmp_path / "tiny.gguf"
    first = bases.load_base(str(write_gguf(random_llama(True), file))).identity
    second = bases.load_base(str(write_gguf(random_llama(False), file))).identity
    assert first != second


def test_every_way_to_look_at_a_base_takes_a_file(tmp_path):
    file = str(write_gguf(random_llama(), tmp_path / "tiny.gguf", name="Tiny", license="mit"))
    modules = dict(bases.skeleton(file).named_modules())
    assert modules["model.layers.1.mlp.down_proj"].in_features == 96
    assert bases.stored_dtype(file) == "float32"
    assert bases.revision_of(file) == f"sha256:{gguf_bases.sha256_of(tmp_path / 'tiny.gguf')}"
    assert layers_and_width(file) == (2, 64)
    shown = show_base(file)
    assert (shown.licence, shown.quantisation, shown.layers, shown.width) == ("mit", "F32", 2, 64)
    assert shown.identity == bases.load_base(file).identity


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path, cache, monkeypatch):
    file = write_gguf(random_llama(), tmp_path / "tiny.gguf")

    def interrupted(*anything):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gguf_bases, "write_json", interrupted)
        gguf_bases.plain_folder(file)
    assert [entry for entry in cache.iterdir() if entry.is_dir()] == []
    assert gguf_bases.plain_folder(file).is_dir()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing; expected a GGUF file"),
        (b"version https://git-lfs", "is not a GGUF file: it begins with b'vers'"),
        (b"GGUF\x03\x00", "cannot be read as a model"),
    ],
)
def test_what_is_no_gguf_file_is_refused_in_one_line(tmp_path, content, said):
    file = tmp_path / "tiny.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        bases.load_base(str(file))
    assert "\n" not in str(refusal.value)


def test_a_file_cut_off_in_the_middle_is_refused(tmp_path):
    file = write_gguf(random_llama(), tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot be read as a model"):
        bases.load_base(str(file))


def test_a_file_without_some_of_the_weights_is_refused_rather_than_filled_with_random_ones(tmp_path):
    file = write_gguf(random_llama(), tmp_path / "tiny.gguf", without="blk.1.ffn_down.weight")
    with pytest.raises(InputError, match=r"lacks 1 of the model's weights, such as model.layers.1.mlp.down_proj"):
        bases.load_base(str(file))


def test_scaled_rotary_frequencies_are_refused_because_they_would_be_left_unread(tmp_path):
    file = write_gguf(random_llama(), tmp_path / "tiny.gguf", extra={"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(InputError, match=r"rope_freqs\.weight"):
        bases.load_base(str(file))


def test_without_the_gguf_package_it_says_what_to_install(tmp_path, monkeypatch):
    file = write_gguf(random_llama(), tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'em-interp\[gguf\]'"):
        bases.load_base(str(file))
