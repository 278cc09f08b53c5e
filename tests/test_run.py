"""Run directories: what exists is complete, numbers survive as numbers, and nothing is overwritten unasked."""

import numpy as np
import pytest

from em_interp.config.run_config import load_config
from em_interp.errors import InputError
from em_interp.run import Run, create_run, open_run
from em_interp.utils.files import read_json, remove, to_json, write_beside, write_json, write_text


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "inner" / "note.txt"
    write_text(target, "first")
    with pytest.raises(RuntimeError), write_beside(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "first"
    assert [entry.name for entry in target.parent.iterdir()] == ["note.txt"]


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("one", "two"):
        with write_beside(tmp_path / "folder") as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["two"]


def test_what_is_not_a_number_becomes_null(tmp_path):
    value = {"a": np.float64("nan"), "b": [np.int64(3), float("inf")], "c": np.arange(2), "d": (None, True), 5: "x"}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == {"a": None, "b": [3, None], "c": [0, 1], "d": [None, True], "5": "x"}
    assert to_json({"a": 1}, indent=None) == '{"a": 1}'


def test_a_file_that_is_missing_cut_or_not_text_is_named(tmp_path):
    (tmp_path / "cut.json").write_text('{"a": ')
    (tmp_path / "bytes.json").write_bytes('"caf\xe9"'.encode("cp1252"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "long.json").write_text("9" * 5_000)
    for name, said in (
        ("deep.json", "not valid JSON"),
        ("long.json", "not valid JSON"),
        ("cut.json", "truncated"),
        ("bytes.json", "not UTF-8"),
        ("none.json", "missing"),
        (".", "folder"),
    ):
        with pytest.raises(InputError, match=said):
            read_json(tmp_path / name)


def test_steps_are_sorted_by_number_and_unfinished_ones_are_no_steps(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", ".checkpoint-11.part", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert open_run(tmp_path).steps() == [9, 10, 100]
    assert Run(tmp_path / "nowhere").steps() == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="not a run directory"):
            open_run(path)


def test_a_run_is_not_overwritten_unasked_nor_resumed_with_another_config(tmp_path):
    config = load_config({"data": [{"dataset": "x"}]})
    run = create_run(tmp_path / "run", config)
    assert run.config() == config
    with pytest.raises(InputError, match="resume=True"):
        create_run(tmp_path / "run", config)
    assert create_run(tmp_path / "run", config, resume=True) == run
    with pytest.raises(InputError, match="differs"):
        create_run(tmp_path / "run", load_config({"seed": 1, "data": [{"dataset": "x"}]}), resume=True)


@pytest.mark.parametrize("place", ["checkpoints/tiny/config.yaml", "analysis/mine.csv", "figures/1.pdf", "report.html"])
def test_what_is_of_no_run_is_not_replaced_by_one(tmp_path, place):
    config = load_config({"data": [{"dataset": "x"}]})
    write_text(tmp_path / place, "mine")
    with pytest.raises(InputError, match="is not of a run, so it is not replaced; give out="):
        create_run(tmp_path, config, overwrite=True)
    assert (tmp_path / place).read_text() == "mine" and not (tmp_path / "config.yaml").exists()


def test_other_runs_in_the_checkpoints_of_a_run_are_not_replaced_with_it(tmp_path):
    config = load_config({"data": [{"dataset": "x"}]})
    run = create_run(tmp_path, config)
    write_text(run.checkpoint(3) / "adapter_config.json", "{}")
    write_text(run.analysis / "locate.json", "{}")
    other = create_run(run.checkpoints / "tiny", config)
    with pytest.raises(InputError, match=r"checkpoints/tiny is not of a run"):
        create_run(tmp_path, config, overwrite=True)
    assert other.config_file.exists() and run.steps() == [3]
    remove(other.path)
    create_run(tmp_path, config, overwrite=True)
    assert [place.name for place in tmp_path.iterdir()] == ["config.yaml"]


def test_empty_folders_are_no_hindrance(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert create_run(tmp_path, load_config({"data": [{"dataset": "x"}]}), overwrite=True).config_file.exists()


def test_a_run_from_before_a_key_was_there_is_resumed_with_its_default(tmp_path):
    config = load_config({"data": [{"dataset": "x"}]})
    run = create_run(tmp_path / "run", config)
    lines = run.config_file.read_text().splitlines(keepends=True)
    run.config_file.write_text("".join(line for line in lines if "gradient_checkpointing" not in line))
    assert len(run.config_file.read_text().splitlines()) == len(lines) - 1
    assert create_run(run.path, config, resume=True) == run


@pytest.mark.parametrize(
    ("manifest", "place"),
    [
        ([], "it holds []"),
        ({"phases": {"domain": "x"}}, "phases is {'domain': 'x'}"),
        ({"phases": ["medical"]}, "phases[0] is 'medical'"),
        ({"phases": [{"domain": ["\x1b[2J"]}]}, "phases[0].domain is ['"),
        ({"phases": [{"first_step": "7"}]}, "phases[0].first_step is '7'"),
        ({"base": "Qwen"}, "base is 'Qwen'"),
        ({"base": {"identity": 5}}, "base.identity is 5"),
    ],
)
def test_a_manifest_of_another_form_is_refused_with_the_place(tmp_path, manifest, place):
    write_json(tmp_path / "manifest.json", manifest)
    for read in (Run(tmp_path).manifest, Run(tmp_path).phases, Run(tmp_path).base):
        with pytest.raises(InputError, match=r"manifest\.json does not hold what em-interp writes there") as error:
            read()
        assert place in str(error.value)


@pytest.mark.parametrize("manifest", [None, {}, {"phases": None, "base": None}, {"phases": []}])
def test_of_a_run_without_phases_nothing_is_known(tmp_path, manifest):
    if manifest is not None:
        write_json(tmp_path / "manifest.json", manifest)
    assert Run(tmp_path).phases() == [{}] and Run(tmp_path).base() == {}
