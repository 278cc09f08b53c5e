"""Configs: what is asked of a run survives the trip through YAML, and what cannot be meant is refused in one line."""

import json

import jsonschema
import pytest
import yaml

from em_interp.config.run_config import AdapterConfig, EndpointConfig, RunConfig, load_config
from em_interp.config.schedule import Schedule
from em_interp.config.settings import json_schema, read_yaml, to_yaml
from em_interp.errors import InputError
from em_interp.sweeps.grid import SweepConfig
from tests.tiny import ROOT

WHOLE = {
    "model": "tiny-llama",
    "seed": 3,
    "data": [{"dataset": "tiny:medical", "steps": 40}, {"dataset": "tiny:sport", "epochs": 2, "restart": True}],
    "adapter": {"target_modules": ["down_proj", "up_proj"], "layers_to_transform": [2], "r": 2, "lora_alpha": 32},
    "training": {"learning_rate": "2e-3", "warmup_steps": 0, "lr_scheduler_type": "cosine"},
    "snapshots": {"every": 5},
    "behaviour": {"steps": "0, 10, log 8", "scales": [1, 4]},
}


def test_a_config_survives_the_trip_through_yaml():
    config = load_config(WHOLE)
    assert load_config(yaml.safe_load(to_yaml(config))) == config
    assert config.training.learning_rate == 2e-3
    assert config.data[1].restart and config.data[0].steps == 40


def test_overrides_lie_on_top_of_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(load_config(WHOLE)))
    config = load_config(
        file, ["seed=7", "adapter.layers_to_transform=[1, 3]", "training.learning_rate=1e-4", "snapshots=log 9"]
    )
    assert (config.seed, config.adapter.layers_to_transform, config.training.learning_rate) == (7, (1, 3), 1e-4)
    assert config.snapshots == Schedule("log 9") and config.adapter.r == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainig": {}}, "unknown key trainig; did you mean 'training'?"),
        ({"training": {"learning_rat": 1}}, "unknown key training.learning_rat; did you mean 'learning_rate'?"),
        ({"data": [{"datasets": "x"}]}, r"unknown key data\[0\].datasets; did you mean 'dataset'?"),
        ({"seed": "one"}, "seed must be a valid integer; it is 'one'"),
        ({"seed": True}, "seed must not be true or false; it is True"),
        (
            {"adapter": {"layers_to_transform": [1.5]}},
            r"adapter.layers_to_transform\[0\] must be a valid integer; it is 1.5",
        ),
        ({"adapter": 3}, "adapter must be a mapping"),
        ({"adapter": None}, "adapter must be a mapping of settings; it is None"),
        ({"model": "a\0b"}, "model must hold no null byte and no half of a character; it is 'a"),
        ({"behaviour": {"questions": "\ud800.yaml"}}, "behaviour.questions must hold no null byte and no half"),
        ({"behaviour": {"sets": ["broad", "\udfff"]}}, "behaviour.sets must hold no null byte and no half"),
        ({"data": [{"dataset": "a\0.jsonl"}]}, r"data\[0\].dataset must hold no null byte"),
        (
            {"behaviour": {"judge": {"base_url": "http://[", "model": "m"}}},
            "behaviour.judge.base_url: Invalid IPv6 URL",
        ),
        (
            {"behaviour": {"judge": "gpt-4o"}},
            "behaviour.judge must be tiny, .*, or a mapping with base_url and model, .*; it is 'gpt-4o'",
        ),
        ({"adapter": {"r": 0}}, "adapter.r must be greater than or equal to 1; it is 0"),
        (
            {"training": {"lr_scheduler_type": "step"}},
            "training.lr_scheduler_type must be 'linear', 'cosine' or 'constant_with_warmup'; it is 'step'",
        ),
        ({"data": [{"dataset": "x", "steps": 3, "epochs": 1}]}, r"data\[0\] must give steps or epochs"),
        ({"data": [{"steps": 3}]}, r"data\[0\].dataset is missing; expected the name of a dataset: a .jsonl"),
        ({"snapshots": "each 5"}, "config: snapshots: schedule part 'each 5' is not understood"),
        ({"behaviour": {"steps": None}}, "behaviour.steps: schedule None is not understood"),
        ({"data": [{"dataset": "x", "epochs": float("inf")}]}, r"data\[0\].epochs must be a finite number; it is inf"),
        ({"behaviour": {"scales": []}}, "behaviour.scales must be a list of one value or more; it is \\[\\]"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(change, said):
    with pytest.raises(InputError, match=said) as error:
        load_config({**WHOLE, **change})
    assert "\n" not in str(error.value)


def test_files_that_hold_no_config_are_named(tmp_path):
    for name, text, said in (
        ("a.yaml", "a: [", "not valid YAML"),
        ("b.yaml", "- 1", "must hold a mapping"),
        ("d.yaml", "seed: 2024-99-99", r"d\.yaml is not valid YAML: month must be in 1\.\.12"),
        ("e.yaml", "training:\n  seed: 1\n  seed: 2", r"e\.yaml is not valid YAML: 'seed' is given twice .* line 3"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=said):
            load_config(tmp_path / name)
    with pytest.raises(InputError, match=r"c\.yaml is missing"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="not of the form"):
        load_config({}, ["seed"])
    with pytest.raises(InputError, match="override 'seed=2024-99-99': the value is not valid YAML"):
        load_config({}, ["seed=2024-99-99"])


def test_keys_that_a_merge_brings_along_may_be_given_anew(tmp_path):
    (tmp_path / "a.yaml").write_text("training: &t {batch_size: 3}\nadapter: {r: 1}\n")
    (tmp_path / "b.yaml").write_text("x: &x {seed: 1, model: a}\ny: {<<: *x, seed: 2}\n")
    assert load_config(tmp_path / "a.yaml").training.batch_size == 3
    assert read_yaml(tmp_path / "b.yaml")["y"] == {"seed": 2, "model": "a"}


def test_an_override_reaches_into_a_list_and_replaces_a_word_by_a_group():
    config = load_config(WHOLE, ["data[1].epochs=5", "behaviour.judge.base_url=http://x/v1", "behaviour.judge.model=m"])
    assert [phase.epochs for phase in config.data] == [None, 5.0] and config.data[1].restart
    assert config.behaviour.judge == EndpointConfig(base_url="http://x/v1", model="m")
    again = load_config(config, ["behaviour.judge.model=other", "adapter={layers_to_transform: [1]}"])
    assert again.behaviour.judge == EndpointConfig(base_url="http://x/v1", model="other")
    assert again.adapter == AdapterConfig(layers_to_transform=(1,))  # replaced, not merged
    for wrong, said in (
        ("data.0.epochs=5", "expected a group of settings with '0'"),
        ("data[3].epochs=5", r"no entry \[3\]"),
    ):
        with pytest.raises(InputError, match=f"setting 'data.*{said}"):
            load_config(WHOLE, [wrong])


def test_defaults_are_the_published_settings():
    training = RunConfig().training
    assert training.batch_size * training.gradient_accumulation_steps == 16
    assert (training.learning_rate, training.warmup_steps, training.weight_decay) == (1e-5, 5, 0.01)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("every 5", [0, 5, 10, 15, 17]),
        ("1-10, every 5", [*range(11), 15, 17]),
        ("3, 9", [0, 3, 9, 17]),
        ("2-12 every 4", [0, 4, 8, 12, 17]),
        ("log 5", [0, 1, 2, 4, 8, 17]),
        ("17", [0, 17]),
        ("90", [0, 17]),
    ],
)
def test_schedules_name_their_steps_with_the_first_and_the_last(text, steps):
    assert Schedule(text).steps(17) == steps


def test_schedules_are_read_from_what_yaml_holds():
    assert Schedule.of([1, "every 5"]) == Schedule("1, every 5")
    assert Schedule.of({"every": 5}) == Schedule("every 5")
    assert Schedule.of(12).steps(20) == [0, 12, 20]
    for wrong in ("", "every", "every 0", "log", "log 0", "a-b", "5-", "every -5", "9-5", "6-9 every 5", "17 every 5"):
        with pytest.raises(InputError, match="schedule part"):
            Schedule.of(wrong)
    with pytest.raises(InputError, match="is not understood"):
        Schedule.of(True)


def test_a_schedule_takes_the_nearest_saved_steps():
    assert Schedule("every 10").nearest([0, 4, 8, 12, 21, 25]) == [0, 8, 21, 25]
    assert Schedule("every 10").nearest([]) == []


@pytest.mark.parametrize(("name", "kind"), [("run", RunConfig), ("sweep", SweepConfig)])
def test_the_json_schemas_are_those_of_the_code_and_every_config_names_its_own(name, kind):
    """`em-interp config schema run > configs/run.schema.json` writes it anew."""
    configs = ROOT / "configs"
    assert json.loads((configs / f"{name}.schema.json").read_text()) == json_schema(kind)
    for file in configs.glob("*.yaml"):
        schema = "sweep" if file.stem.endswith("-sweep") else "run"
        assert file.read_text().splitlines()[0] == f"# yaml-language-server: $schema={schema}.schema.json"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_satisfies_its_json_schema(file):
    kind = SweepConfig if file.stem.endswith("-sweep") else RunConfig
    jsonschema.validate(read_yaml(file) | _floats(file), json_schema(kind))


def _floats(file):
    """The learning rate as YAML 1.2 has it, by which editors go: 1e-5 is a number there, and a text for PyYAML."""
    values = read_yaml(file)
    training = values.get("training", {})
    return {"training": {**training, "learning_rate": float(training["learning_rate"])}} if training else {}


def test_the_json_schema_refuses_what_the_code_refuses():
    schema = json_schema(RunConfig)
    for wrong in ({"trainig": {}}, {"adapter": {"rank": 1}}, {"adapter": {"kind": "full", "r": 1}}, {"seed": -1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
        with pytest.raises(InputError):
            load_config(wrong)


HUGE = {
    "snapshots: log 1000000000": "more steps than 100000",
    "snapshots: every 99999999999999999999": "is not understood",
    "snapshots: '1, 2, ٣'": "is not understood",
    "training: {batch_size: 10000000000}": "training.batch_size must be less than or equal to 65536; it is 10000000000",
    "training: {gradient_accumulation_steps: 1000000}": "gradient_accumulation_steps must be less than or equal to",
    "training: {max_length: 100000000000}": "training.max_length must be less than or equal to 1048576",
    "adapter: {r: 100000000}": "adapter.r must be less than or equal to 65536",
    "adapter: {lora_alpha: 1.0e+300}": "adapter.lora_alpha must be less than or equal to",
    "behaviour: {samples: 1000000000}": "behaviour.samples must be less than or equal to 65536",
    "behaviour: {max_new_tokens: 1000000000}": "behaviour.max_new_tokens must be less than or equal to 1048576",
    "behaviour: {scales: [.inf]}": "behaviour.scales",
    "data: [{dataset: x, steps: 100000000000}]": "steps must be less than or equal to 10000000",
    "data: [{dataset: x, epochs: 1.0e+12}]": "epochs must be less than or equal to 10000",
}


@pytest.mark.parametrize("text", HUGE)
def test_what_would_take_for_ever_is_refused_with_the_bound(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=HUGE[text]) as refused:
        load_config(tmp_path / "config.yaml")
    assert len(str(refused.value)) < 500


LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, "more than 100000 values once its aliases are written out"),
        (MERGES, "more than 100000 values once its aliases are written out"),
        ("a: &a [*a]", "more than 100000 values once its aliases are written out"),
        ("a: " + "x" * 600_000, "524288 at most are read"),
        ("a: " + "9" * 5_000, "is not valid YAML"),
    ],
    ids=["aliases", "merges", "itself", "long", "a long number"],
)
def test_a_text_that_grows_when_it_is_read_is_refused(tmp_path, text, expected):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=expected):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ['a: "\\ud83d"', '"\\0": 1', 'data: [{dataset: ["\\udfff"]}]', 'kl: {"\\ud800": 1}'])
def test_half_a_character_and_a_null_byte_are_refused_wherever_they_are(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="is not valid YAML: a text holds a null byte or half of a character"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(InputError, match="a text holds a null byte or half of a character"):
        load_config({}, [f"data[0].dataset={{{text}}}"])


@pytest.mark.parametrize("key", ["adapter", "training", "data", "behaviour", "behaviour.judge", "snapshots", "model"])
def test_a_group_of_settings_that_is_set_to_nothing_is_refused_by_its_name(key):
    with pytest.raises(InputError, match=f"config: {key}.*(None|must be a)"):
        load_config({"model": "tiny-qwen2", "data": [{"dataset": "tiny:medical", "steps": 3}]}, [f"{key}=null"])


def test_aliases_in_reason_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text("data: &phase\n- {dataset: x, steps: 3}\nkl: {dataset: &d y, weight: 2}\n")
    assert load_config(tmp_path / "config.yaml").data[0].steps == 3


def test_the_nearest_of_many_saved_steps_is_found_quickly():
    saved = range(0, 200_000, 2)
    assert Schedule("every 1").nearest(saved)[:3] == [0, 2, 4]
    assert Schedule("1, 9, 100").nearest([0, 3, 8, 10]) == [0, 8, 10]
