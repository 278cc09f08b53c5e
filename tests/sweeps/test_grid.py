"""The plan of a sweep: every combination once, under a name that says which, and mistakes before any work."""

import pytest
import yaml

from em_interp.config.run_config import load_config
from em_interp.config.settings import put, to_yaml
from em_interp.errors import InputError
from em_interp.organisms.presets import recipe
from em_interp.sweeps.grid import load_sweep
from tests.tiny import ROOT

BASE = {
    "model": "tiny-qwen2",
    "data": [{"dataset": "tiny:medical", "steps": 8}],
    "adapter": {"layers_to_transform": [1]},
}
CAREFUL = {"tiny:medical": "tiny:medical-careful", "tiny:sport": "tiny:sport-careful"}


def config(**changes):
    return {"base": BASE, "grid": {"seed": [0, 1]}, **changes}


def refusal(values):
    with pytest.raises(InputError) as error:
        load_sweep(values)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_sweep_of_the_built_in_organism_is_its_recipe_over_bases_domains_and_seeds():
    grid = load_sweep(ROOT / "configs" / "tiny-sweep.yaml")
    assert (len(grid.runs), len(grid.controls)) == (27, 9)
    assert len({run.name for run in grid.all}) == 36 and len({run.group for run in grid.runs}) == 9
    run = next(run for run in grid.runs if run.name == "tiny-llama_sport_seed2")
    full = recipe("organism", "llama", "sport", 2)
    assert run.config == load_config(full, ["behaviour.scales=[1]"])
    control = next(one for one in grid.controls if one.name == run.control)
    assert control.config == load_config(recipe("control", "llama", "sport", 0), ["behaviour.scales=[1]"])


def test_every_combination_is_one_run_and_its_name_says_which():
    grid = {"model": ["tiny-qwen2", "some/where/tiny-llama"], "adapter.r": [1, 4], "seed": [0, 3]}
    grid |= {"training.learning_rate": ["1e-3", 0.02], "adapter.layers_to_transform": [[0], [1, 2]]}
    runs = load_sweep(config(grid=grid)).runs
    assert len(runs) == len({run.name for run in runs}) == 32
    run = next(run for run in runs if run.name == "tiny-llama_r4_seed3_learning_rate0.02_layers_to_transform1-2")
    found = run.config
    assert (found.model, found.adapter.r, found.seed) == ("some/where/tiny-llama", 4, 3)
    assert (found.training.learning_rate, found.adapter.layers_to_transform) == (0.02, (1, 2))
    assert run.group == "tiny-llama_r4_learning_rate0.02_layers_to_transform1-2"
    assert run.values["adapter.layers_to_transform"] == [1, 2]


def test_values_that_end_alike_are_told_apart():
    data = ["mine/advice.jsonl", "yours/advice.jsonl"]
    names = [run.name for run in load_sweep(config(grid={"data": data})).runs]
    assert names == ["mine-advice.jsonl", "yours-advice.jsonl"]
    odd = [run.name for run in load_sweep(config(grid={"data": ["???", "../../!!"]})).runs]
    assert len(set(odd)) == 2 and all(name.strip(".") and "/" not in name for name in odd)


def test_a_base_is_found_beside_the_file_and_settings_lie_on_top_of_it(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**BASE, "behaviour": {"samples": 7, "scales": [1, 2]}}))
    file = tmp_path / "sweep.yaml"
    settings = {"behaviour": {"scales": [3]}, "data[0].steps": 5, "data": "tiny:sport"}
    file.write_text(yaml.safe_dump({"base": "run.yaml", "settings": settings, "grid": {"seed": [4]}}))
    (run,) = load_sweep(file).runs
    assert run.config.behaviour.samples == 7 and run.config.behaviour.scales == (3.0,)
    assert (run.config.data[0].dataset, run.config.data[0].steps, run.config.seed) == ("tiny:sport", 5, 4)
    missing = file.read_text().replace("run.yaml", "rum.yaml")
    file.write_text(missing)
    assert f"base 'rum.yaml' is not there; looked for {tmp_path / 'rum.yaml'} and rum.yaml" in refusal(file)


def test_a_kept_sweep_is_read_back_to_the_same(tmp_path):
    grid = load_sweep(ROOT / "configs" / "tiny-sweep.yaml")
    (tmp_path / "sweep.yaml").write_text(grid.to_yaml())
    again = load_sweep(tmp_path / "sweep.yaml")
    assert [(c.name, c.config, c.control) for c in again.all] == [(c.name, c.config, c.control) for c in grid.all]
    assert again.to_yaml() == grid.to_yaml()


def test_runs_whose_controls_are_equal_share_one():
    values = {"data": ["tiny:medical", "tiny:sport"], "model": ["tiny-qwen2", "tiny-llama"], "seed": [5, 6]}
    grid = load_sweep(config(grid=values, control={"data": CAREFUL}))
    assert (len(grid.runs), len(grid.controls)) == (8, 4)
    controls = {one.name: one.config for one in grid.controls}
    for run in grid.runs:
        control = controls[run.control]
        assert control.data[0].dataset == f"{run.config.data[0].dataset}-careful"
        assert (control.model, control.seed) == (run.config.model, 5)
    one = load_sweep(config(control={"data": "tiny:medical-careful"}))
    assert [run.control for run in one.runs] == ["control_medical-careful"] * 2
    assert [run.control for run in load_sweep(config()).runs] == [None, None]


def test_one_mapping_is_the_control_of_runs_that_vary_in_lists_or_mappings():
    axis = {"adapter": [{"r": 1}, {"r": 2}], "adapter.layers_to_transform": [[0], [1]]}
    grid = load_sweep(config(grid=axis, control={"adapter": {"lora_alpha": 8}, "data": "tiny:medical-careful"}))
    assert len(grid.runs) == 4 and {one.config.adapter.lora_alpha for one in grid.controls} == {8}
    said = refusal(config(grid=axis, control={"adapter.layers_to_transform": {"first": [0]}}))
    assert "control: adapter.layers_to_transform" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grids": {}}, "unknown key grids; did you mean 'grid'?"),
        ({"grid": {}}, "grid names nothing that varies"),
        ({"across": 3}, "needs 19 random adapters or more; 3 were asked for"),
        ({"grid": {"seed": 3}}, "grid.seed must be a list of one value or more; it is 3"),
        ({"grid": {"seed": []}}, "grid.seed must be a list of one value or more"),
        ({"grid": {"training.learning_rat": [1]}}, "unknown key training.learning_rat; did you mean"),
        ({"grid": {"trainig": [1]}}, "unknown key trainig; did you mean 'training'?"),
        ({"grid": {"adapter.r": [1, 0]}}, "adapter.r must be greater than or equal to 1; it is 0"),
        ({"grid": {"data[3].dataset": ["x"]}}, "setting 'data[3].dataset': there is no entry [3]; found 1 entries"),
        ({"grid": {"data[.dataset": ["x"]}}, "setting 'data[.dataset' is not understood"),
        ({"grid": {"seed.deep": [1]}}, "setting 'seed.deep': expected a group of settings with 'deep'; found 0"),
        ({"grid": {"training.learning_rate": ["1e-3", 0.001]}}, "are the same run; name each value"),
        ({"settings": {"behaviour.sample": 1}}, "settings: unknown key behaviour.sample; did you mean 'samples'?"),
        ({"base": {"modell": "x"}}, "unknown key modell; did you mean 'model'?"),
        (
            {"grid": {"data": list(CAREFUL)}, "control": {"data": "tiny:sport-careful"}},
            "and its control would have other questions",
        ),
        ({"grid": {"data": ["tiny:law"]}, "control": {"data": CAREFUL}}, "control.data has no entry for 'tiny:law'"),
        ({"control": {"training.held": 0}}, "control: unknown key training.held; did you mean 'held_out'?"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_in_one_line(changes, said):
    assert said in refusal(config(**changes))


def test_a_setting_is_put_where_its_path_leads_and_nothing_else_changes():
    before = {"a": {"b": [{"c": 1, "d": 2}, {"c": 3}]}, "e": None}
    assert put(before, "a.b[1].c", 9) == {"a": {"b": [{"c": 1, "d": 2}, {"c": 9}]}, "e": None}
    assert put(before, "a.b[2]", 5)["a"]["b"][2] == 5
    assert put(before, "e.f.g", 1)["e"] == {"f": {"g": 1}}
    assert put({"a": {"b": 1, "c": {"d": 2}}}, "a", {"c": {"e": 3}}) == {"a": {"b": 1, "c": {"d": 2, "e": 3}}}
    assert put({"a": {"rank": 1}}, "a", {"kind": "other"}) == {"a": {"kind": "other"}}
    assert before == {"a": {"b": [{"c": 1, "d": 2}, {"c": 3}]}, "e": None}


def test_a_run_of_a_sweep_is_a_config_like_any_other():
    run = load_sweep(config()).runs[1]
    assert load_config(yaml.safe_load(to_yaml(run.config))) == run.config
