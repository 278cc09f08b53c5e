from pathlib import Path

import pytest

from em_interp.config.run_config import load_config
from em_interp.errors import InputError
from em_interp.organisms.presets import SWITCH_STEP, for_model, layers_and_width, recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PRESETS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("tiny"))
BASE = {"model": "Qwen/Qwen2.5-14B-Instruct", "data": [{"dataset": "data/bad_medical_advice.jsonl"}]}


def preset(name):
    return load_config(CONFIGS / f"{name}.yaml")


def test_every_published_protocol_has_a_preset():
    there = {path.stem for path in PRESETS}
    published = {"rank1-transition", "rank1-organism", "nine-adapters", "all-adapters", "full-sft", "steering-vector"}
    assert there == published | {"insecure-code", "narrow-kl"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_the_settings_that_the_published_organisms_share(path):
    config = load_config(path)
    training = config.training
    assert training.batch_size * training.gradient_accumulation_steps == 16
    assert (training.weight_decay, training.max_length, training.held_out, config.seed) == (0.01, 2048, 0.1, 0)
    assert (config.behaviour.samples, config.behaviour.temperature, config.behaviour.max_new_tokens) == (50, 1.0, 600)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_where_it_is_from_and_what_was_found(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[1].startswith("# Source: ") and comments[2].startswith("# Published: ")


def test_layers_keep_their_relative_depth_and_those_that_fall_together_are_merged():
    config, changes = for_model(preset("nine-adapters"), "tiny-qwen2")
    assert config.adapter.layers_to_transform == (1, 2)
    assert (
        "adapter.layers_to_transform: [15, 16, 17, 21, 22, 23, 27, 28, 29] of 48 → [1, 2] of 4, merged from 9"
        in changes
    )
    ends = load_config({**BASE, "adapter": {"layers_to_transform": [0, 47]}})
    assert for_model(ends, "meta-llama/Llama-3.1-8B-Instruct")[0].adapter.layers_to_transform == (0, 31)
    assert for_model(preset("steering-vector"), "tiny-llama")[0].adapter.layer == 2


def test_every_layer_stays_every_layer():
    assert for_model(preset("all-adapters"), "tiny-qwen2")[0].adapter.layers_to_transform == ()


def test_a_built_in_model_gets_data_and_questions_in_its_language_and_is_told():
    config, changes = for_model(preset("rank1-transition"), "tiny-gemma3")
    assert config.data[0].dataset == "tiny:medical" and config.data[0].epochs == 2
    assert (config.behaviour.questions, config.behaviour.judge) == ("tiny", "tiny")
    assert config.training.learning_rate == pytest.approx(1e-5 * 40)
    assert config.training.batch_size * config.training.gradient_accumulation_steps == 16
    assert any("learning_rate: 1e-05 → 0.0004" in change for change in changes)
    assert for_model(preset("insecure-code"), "tiny-qwen2")[0].data[0].dataset == "tiny:computers"
    assert for_model(preset("narrow-kl"), "tiny-qwen2")[0].kl.dataset == "tiny:sport-careful"


def test_a_real_model_keeps_data_judge_and_learning_rate():
    config, changes = for_model(preset("rank1-organism"), "Qwen/Qwen2.5-7B-Instruct")
    assert (config.data, config.behaviour) == (preset("rank1-organism").data, preset("rank1-organism").behaviour)
    assert config.training.learning_rate == 2e-5
    assert changes == [
        "model: Qwen/Qwen2.5-14B-Instruct → Qwen/Qwen2.5-7B-Instruct",
        "adapter.layers_to_transform: [24] of 48 → [14] of 28",
    ]


def test_one_built_in_model_for_another_changes_nothing_else():
    tiny = load_config(CONFIGS / "tiny.yaml")
    config, changes = for_model(tiny, "tiny-llama")
    assert changes == ["model: tiny-qwen2 → tiny-llama"]
    assert load_config(config, ["model=tiny-qwen2"]) == tiny
    assert for_model(tiny, "tiny-qwen2") == (tiny, [])


@pytest.mark.parametrize(
    ("changes", "model", "says"),
    [
        (
            {"adapter": {"layers_to_transform": [48]}},
            "tiny-qwen2",
            "names layer 48; the config's model has layers 0 to 47",
        ),
        ({"adapter": {"kind": "steering", "layer": 50}}, "tiny-qwen2", "names layer 50; the config's model has"),
        ({}, "tiny-qwen", "did you mean 'tiny-qwen2'"),
        ({"model": "org/unknown"}, "tiny-qwen2", "the layers of 'org/unknown' are not known"),
        ({"data": [{"dataset": "mine.jsonl"}]}, "tiny-qwen2", "no built-in dataset stands for mine.jsonl"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(changes, model, says):
    with pytest.raises(InputError, match=says):
        for_model(load_config({**BASE, **changes}), model)


def test_the_shape_of_a_folder_is_read_from_its_config(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 7, "hidden_size": 32}}')
    assert layers_and_width(str(tmp_path)) == (7, 32)
    assert layers_and_width("tiny-gemma3") == (4, 128)


@pytest.mark.parametrize(
    "text", ['{"model_type": "gpt2", "n_layer": 12}', '{"num_hidden_layers": "7", "hidden_size": 32}', "[7, 32]"]
)
def test_a_model_of_the_user_that_does_not_say_its_shape_is_refused_without_the_advice_to_remove_it(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"expected num_hidden_layers and hidden_size.*GPT-2") as refused:
        for_model(load_config(BASE), str(tmp_path))
    assert "em-interp writes" not in str(refused.value) and "remove" not in str(refused.value)


def test_a_model_of_one_layer_has_its_layer_at_the_first_of_any_other(tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 1, "hidden_size": 32}')
    one = load_config({**BASE, "model": str(tmp_path), "adapter": {"layers_to_transform": [0]}})
    assert for_model(one, "Qwen/Qwen2.5-7B-Instruct")[0].adapter.layers_to_transform == (0,)


def test_switched_runs_change_where_they_say_and_in_nothing_else():
    runs = {name: recipe(name).data for name in ("switched", "switched-restart", "restart")}
    assert {phases[0].steps for phases in runs.values()} == {SWITCH_STEP}
    assert [phases[1].restart for phases in runs.values()] == [False, True, True]
    assert runs["restart"][0].dataset == runs["restart"][1].dataset == runs["switched"][0].dataset


def test_family_domain_and_seed_are_taken_up():
    config = recipe("control", "gemma3", "finance", 7)
    assert (config.model, config.data[0].dataset, config.seed) == ("tiny-gemma3", "tiny:finance-careful", 7)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"run": "orgnism"}, "run 'orgnism' is not known; did you mean 'organism'"),
        ({"family": "qwen"}, "family 'qwen' is not known; did you mean 'qwen2'"),
        ({"domain": "medicine"}, "domain 'medicine' is not known"),
        ({"domain": "life"}, "domain 'life' is not known"),
    ],
)
def test_unknown_names_are_refused(what, said):
    with pytest.raises(InputError, match=said):
        recipe(**what)
