"""An adapter that PEFT wrote with any of its options is read to PEFT's own change of every weight, or refused."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from em_interp.errors import InputError
from em_interp.trajectory.checkpoint import module_name, site_name
from em_interp.trajectory.lora_files import read_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT asks by the old name
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning"),  # of PEFT, about odd options
]


class Block(torch.nn.Module):
    """The modules of a layer that LoRA may adapt."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)
        self.down_proj = torch.nn.Linear(6, 6, bias=False)


class Model(torch.nn.Module):
    """The names of a language model, and little else."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(9, 6)
        self.model.layers = torch.nn.ModuleDict({number: Block() for number in ("0", "1", "11")})
        self.lm_head = torch.nn.Linear(6, 9, bias=False)
        self.config = {"model_type": "custom", "tie_word_embeddings": False}

    def forward(self, x):
        return self.lm_head(self.model.embed_tokens(x))


KEYS = st.sampled_from(
    ["down_proj", "q_proj", "layers.1.down_proj", "1.q_proj", "^model.layers.1.down_proj", r"layers\.\d.v_proj", "proj",
     r".*\.1\.q_proj", "1.down_proj|q_proj", "model.layers.11.q_proj", "layers.1"]
)  # fmt: skip
TARGETS = st.sampled_from(
    [["down_proj"], ["q_proj", "v_proj"], ["down_proj", "embed_tokens"], ["q_proj", "lm_head"], r".*1\.(q|v)_proj",
     ["layers.1.down_proj", "layers.11.q_proj"]]
)  # fmt: skip
SETTINGS = {
    "use_rslora": st.booleans(),
    "use_dora": st.booleans(),
    "init_lora_weights": st.sampled_from([True, False, "gaussian", "orthogonal", "pissa", "olora", "mica"]),
    "exclude_modules": st.sampled_from([["q_proj"], r".*\.1\..*"]),
    "layers_to_transform": st.sampled_from([1, [0, 1], [1, 11]]),
    "rank_pattern": st.dictionaries(KEYS, st.integers(1, 5), min_size=1, max_size=3),
    "alpha_pattern": st.dictionaries(KEYS, st.integers(1, 9), min_size=1, max_size=3),
    "bias": st.sampled_from(["all", "lora_only"]),
    "lora_bias": st.booleans(),
    "fan_in_fan_out": st.booleans(),
    "modules_to_save": st.sampled_from([["lm_head"], ["embed_tokens"]]),
    "trainable_token_indices": st.just([1, 2]),
    "alora_invocation_tokens": st.just([1]),
    "target_parameters": st.just(["model.layers.0.q_proj.weight"]),
    "use_qalora": st.booleans(),
}


REFUSED = {"init_lora_weights", "target_parameters", "use_qalora"}


@st.composite
def option_sets(draw):
    """Rank, alpha and modules, and up to four other settings."""
    chosen = draw(st.sets(st.sampled_from(sorted(SETTINGS)), max_size=4))
    given = {"r": draw(st.integers(1, 4)), "lora_alpha": draw(st.integers(1, 20)), "target_modules": draw(TARGETS)}
    return given | {name: draw(SETTINGS[name]) for name in sorted(chosen)}


@given(option_sets(), st.sampled_from(["default", "mine", "mine.2"]), st.booleans(), st.booleans(), st.integers(0, 9))
def test_the_change_of_each_weight_is_peft_s_own(tmp_path_factory, options, name, pickled, half, seed):
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(seed)
    try:
        model = get_peft_model(Model(), LoraConfig(**options), adapter_name=name)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.copy_(torch.randn_like(weight))
        model = model.bfloat16() if half else model
        model.save_pretrained(folder, safe_serialization=not pickled, save_embedding_layers=False)
    except Exception:  # what PEFT itself refuses, in many ways
        assume(False)
    place = folder if name == "default" else folder / name
    try:
        read = read_lora(place)
    except InputError as error:
        assert "\n" not in str(error) and options.keys() & REFUSED
        return
    expected = {
        site_name(module_name(key)): layer.get_delta_weight(name).float().detach().numpy()
        for key, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and name in layer.lora_A
    }
    assert set(read.A) == set(expected)
    for site, delta in expected.items():
        made = read.scaling[site] * read.B[site] @ read.A[site]
        tolerance = 0.02 * np.abs(delta).max() if half else 1e-5
        np.testing.assert_allclose(made, delta, atol=tolerance)
    if any(options.get(key) for key in ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")):
        assert read.extra_tensors
