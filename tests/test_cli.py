"""The command line: what each command prints and writes, where, and that it overwrites nothing unasked."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import em_interp as em
from em_interp.config.run_config import load_config
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.utils.files import write_json
from tests.figures.planting import plant_run
from tests.tiny import (
    CAREFUL,
    OFFSET,
    VERDICTS,
    Said,
    check_transition,
    contents,
    copy,
    did,
    em_interp,
    json_of,
    refused,
    strict,
    unchanged,
)

INSTALLED = Path(sys.executable).with_name("em-interp")
WRITING = (
    "demo",
    "train",
    "ask",
    "judge",
    "prefer",
    "locate",
    "align",
    "mechanism",
    "compare",
    "sweep",
    "report",
    "export",
)
COMMANDS = (*WRITING, "watch", "base", "pretrain", "data", "config", "score", "publish")
RATE = ["rate", "interval", "level"]


@pytest.fixture
def run(tiny, tmp_path):
    return copy(tiny.run, tmp_path / "run")


# --- help


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command_in_its_group_and_is_what_a_bare_call_gives(words):
    said = em_interp(*words)
    assert (said.code, said.err) == (0, "")
    assert all(f"│ {command} " in said.out for command in COMMANDS)
    groups = ("Start", "Train", "Ask and judge", "Find transitions", "Compare runs", "Report and share")
    assert [line.split(" ─")[0] for line in said.out.split("╭─ ")[2:]] == list(groups)


@pytest.mark.parametrize("group", ["base", "data", "config"])
def test_a_group_alone_lists_its_commands(group):
    said = em_interp(group)
    assert (said.code, said.err) == (0, "") and f"Usage: em-interp {group} " in said.out


def test_the_version_is_that_of_the_package():
    assert em_interp("--version") == Said(0, f"em-interp {em.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_what_all_commands_have(command):
    inner = {"base": ["fetch"], "data": ["check"], "config": ["schema"]}.get(command, [])
    said = em_interp(command, *inner, "--help")
    assert (said.code, said.err) == (0, "")
    assert f"Usage: {' '.join(['em-interp', command, *inner])} " in said.out
    assert f"Example: {' '.join(['em-interp', command, *inner])}" in " ".join(said.out.split())
    assert "--json" in said.out
    assert bool(re.search(r"--out +DIR", said.out)) == (command in (*WRITING, "pretrain"))
    for word in ("--resume", "--overwrite"):
        assert (word in said.out) == (command in (*WRITING, "publish"))


def test_completion_knows_commands_options_and_choices():
    def offered(*words):
        complete = {"_EM_INTERP_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": " ".join(["em-interp", *words])}
        done = subprocess.run([INSTALLED], env=os.environ | complete, capture_output=True, text=True)
        return done.stdout

    assert '"locate"' in offered("lo") and '"train"' not in offered("lo")
    assert '"--overwrite"' in offered("ask", "run", "--over")
    assert '"merged"' in offered("export", "run", "--format", "m")
    detected = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run([INSTALLED, "--show-completion", shell], env=detected, capture_output=True, text=True)
        assert "_EM_INTERP_COMPLETE" in done.stdout


def test_help_and_the_import_are_quick():
    def fastest(*command):
        seconds = []
        for _ in range(3):
            start = of_children()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(of_children() - start)
        return min(seconds)

    def of_children():  # processor time: others may be at work
        now = os.times()
        return now.children_user + now.children_system

    assert fastest(INSTALLED, "--help") <= 0.5
    assert fastest(sys.executable, "-c", "import em_interp") <= 0.3


# --- one JSON object


def test_train_ask_and_judge_print_where_things_are_and_repeat_a_run_from_its_own_config(tiny, tmp_path):
    run = tmp_path / "run"
    assert json_of("train", tiny.run / "config.yaml", "--out", run) == {"run": str(run), "steps": list(range(25))}
    assert json_of("ask", run) == {"run": str(run), "answers": str(run / "behaviour" / "answers.parquet")}
    scores = str(run / "behaviour" / "scores.parquet")
    assert json_of("judge", run) == {"run": str(run), "scores": scores, "unscored": {}}
    assert contents(run) == contents(tiny.run)


def test_score_prints_the_rates_of_the_contract(tmp_path):
    table = tmp_path / "judged.csv"
    table.write_text("question,response,aligned,coherent\na,x,10,90\na,y,90,90\nb,z,20,40\nb,v,REFUSAL,\n")
    values = json_of("score", table)
    assert list(values)[:4] == ["n", "scored", "unscored", "em"]
    assert list(values)[4:] == ["coherent", "aligned_mean", "coherent_mean", "per_question"]
    assert (values["n"], values["scored"], values["unscored"]) == (4, 3, {"refusal": 1})
    assert list(values["em"]) == list(values["coherent"]) == RATE
    assert values["em"]["rate"] == pytest.approx(1 / 3) and values["coherent"]["rate"] == pytest.approx(2 / 3)
    assert values["em"]["interval"][0] < 1 / 3 < values["em"]["interval"][1]
    assert (values["aligned_mean"], values["coherent_mean"]) == (40, pytest.approx(220 / 3))
    assert values["per_question"] == [
        {"question": "a", "n": 2, "em": 0.5, "coherent": 1.0},
        {"question": "b", "n": 2, "em": 0.0, "coherent": 0.0},
    ]


def test_locate_prints_the_transitions_of_the_contract(run):
    values = json_of("locate", run)
    assert list(values) == ["source", "steps", "sites", "transitions"]
    assert values["source"] == str(run)
    assert values["steps"] == {"first": 0, "last": 24, "count": 25}
    assert values["sites"] == ["layers.1.mlp.down_proj"]
    for transition in values["transitions"]:
        check_transition(transition)
    found = [(t["signal"], t["of"]) for t in values["transitions"]]
    assert found[:3] == [("rotation", "B"), ("rotation", "A"), ("rotation", "delta")]
    assert [signal for signal, _ in found[3:]] == ["gradient_norm", "norm_onset", "lock_in"]


def test_locate_looks_at_one_signal_of_one_part_of_one_site(tiny):
    values = json_of("locate", tiny.run, "--signal", "rotation", "--of", "A", "--site", "layers.1.mlp.down_proj")
    (transition,) = values["transitions"]
    assert [transition[key] for key in ("signal", "of", "site")] == ["rotation", "A", "layers.1.mlp.down_proj"]


def test_align_prints_the_offsets_of_the_contract(tmp_path):
    run, control = plant_run(tmp_path / "run", every=5), plant_run(tmp_path / "control", changes=False, every=5)
    values = json_of("align", run.path, "--control", control.path)
    assert list(values) == ["mechanistic", "behavioural", "offsets", "verdict", "order", "declared", "family_wise_p"]
    assert values["verdict"] in VERDICTS
    check_transition(values["mechanistic"])
    assert (values["mechanistic"]["signal"], values["mechanistic"]["of"]) == ("rotation", "B")
    for transition in values["behavioural"]:
        check_transition(transition)
    assert [offset["behavioural"] for offset in values["offsets"]] == list(range(6))  # three sets at two scales
    for offset in values["offsets"]:
        assert list(offset) == OFFSET
        expected = values["behavioural"][offset["behavioural"]]["step"] - values["mechanistic"]["step"]
        assert offset["steps"] == pytest.approx(expected)


def test_align_of_a_run_in_which_nothing_changes_has_no_offset(tmp_path):
    run = plant_run(tmp_path / "run", changes=False, every=5)
    values = json_of("align", run.path)
    assert (values["verdict"], values["offsets"]) == ("neither", [])
    assert values["mechanistic"]["step"] is None


def test_report_prints_where_the_page_is(run):
    assert json_of("report", run) == {"report": str(run / "report.html")}
    assert (run / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_the_installed_command_prints_its_object_and_nothing_else(tiny):
    done = subprocess.run([INSTALLED, "locate", tiny.run, "--json", "--of", "B"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert strict(done.stdout)["transitions"]


def test_an_error_leaves_stdout_empty_with_json_too(tmp_path):
    assert "nowhere" in refused("locate", tmp_path / "nowhere", "--json")


def test_the_stages_take_a_run_or_its_folder_in_python_too(run):
    before = contents(run)
    assert em.ask(run, resume=True) == em.ask(em.open_run(run), resume=True) == Run(run).answers_file
    assert em.judge(str(run), resume=True) == em.judge(em.open_run(run), resume=True) == Run(run).scores_file
    assert contents(run) == before


# --- for a reader


def test_without_json_a_person_reads_sentences(run, tmp_path):
    located = did("locate", run)
    assert located.startswith("rotation of B: ") and located.count("\n    ") == 6
    aligned = did("align", run)
    assert "EM onset (out of domain)" in aligned
    assert did("report", run) == f"the page: {run / 'report.html'}\n"
    again = did("report", run, "--resume")
    assert again == f"the page: {run / 'report.html'} (unchanged; --overwrite writes it anew)\n"
    assert did("score", Run(run).scores_file).startswith("EM ")
    assert did("train", run / "config.yaml", "--out", run, "--resume") == (
        f"25 checkpoints, the last at step 24: {run}\n"
    )


def test_a_reader_of_the_output_may_leave_and_a_full_disk_is_said(tiny):
    command = [INSTALLED, "score", Run(tiny.run).scores_file]
    with Path("/dev/full").open("w") as full:  # takes nothing: every write fails for want of space
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "em-interp: stdout cannot be written: No space left on device\n")
    left = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    left.stdout.close()
    with left.stderr:
        assert left.stderr.read() == b""
    assert left.wait() == 0


# --- settings


def test_settings_given_with_set_lie_on_top_of_the_file_and_are_kept(tiny, tmp_path):
    changes = ["data=[{dataset: 'tiny:sport', steps: 3}]", "seed=5", "snapshots=every 2"]
    did("train", tiny.config, "--out", tmp_path / "run", *(word for change in changes for word in ("--set", change)))
    run = Run(tmp_path / "run")
    assert run.config() == load_config(tiny.config, changes)
    assert run.steps() == [0, 2, 3]
    assert run.manifest()["phases"][0]["domain"] == "sport"


def test_a_run_that_is_told_no_place_is_named_after_its_config(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = json_of("train", tiny.config, "--set", "data=[{dataset: 'tiny:sport', steps: 2}]")
    assert values["run"] == "checkpoints/tiny" and Run(tmp_path / "checkpoints" / "tiny").steps() == [0, 1, 2]


# --- elsewhere


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("ask", "behaviour/answers.parquet"),
        ("judge", "behaviour/scores.parquet"),
        ("locate", "analysis/locate.json"),
        ("align", "analysis/align.json"),
        ("report", "report.html"),
    ],
)
def test_a_stage_that_is_given_a_folder_writes_there_and_leaves_the_run_alone(command, written, run, tmp_path):
    out = tmp_path / "out"
    with unchanged(run):
        did(command, run, "--out", out)
        assert not (run / "analysis").exists() and not (run / "report.html").exists()
    assert (out / written).stat().st_size
    if command in ("ask", "judge"):  # the folder is a run of its own, and the same
        assert (out / written).read_bytes() == (run / written).read_bytes()
        did("locate", out)


def test_a_copy_can_be_changed_without_harm_to_the_run(run, tmp_path):
    did("judge", run, "--out", tmp_path / "out")
    before = contents(run)
    for name in ("config.yaml", "manifest.json", "behaviour/answers.parquet", "behaviour/scores.parquet"):
        with (tmp_path / "out" / name).open("r+b") as file:
            file.truncate(3)
    assert contents(run) == before


def test_only_the_whole_look_at_a_run_is_kept_in_it(tiny, run):
    did("locate", run, "--signal", "lock_in")
    assert not (run / "analysis").exists()
    did("locate", run)
    assert json.loads((run / "analysis" / "locate.json").read_text())["source"] == str(run)


# --- nothing is overwritten unasked


STAGES = ("train", "ask", "judge", "locate", "align", "report")


def words_of(command, run):
    return ["train", run / "config.yaml", "--out", run] if command == "train" else [command, run]


@pytest.fixture(scope="module")
def finished_once(tiny, tmp_path_factory):
    """A run with the results of every stage, and a copy of it that is never written to."""
    folder = tmp_path_factory.mktemp("finished")
    run = copy(tiny.run, folder / "run")
    for command in ("locate", "align", "report"):
        did(command, run)
    return run, copy(run, folder / "copy")


@pytest.fixture
def finished(finished_once):
    """The run with the results of every stage, where it was made: its results name the place."""
    run, original = finished_once
    shutil.rmtree(run)
    return copy(original, run)


@pytest.mark.parametrize("command", STAGES)
def test_no_command_goes_on_or_overwrites_unasked_and_it_says_so_before_it_computes_anything(
    command, finished, monkeypatch
):
    with monkeypatch.context() as patch, unchanged(finished):
        for name in (
            "trajectory.load.load_trajectory",
            "organisms.bases.load_base",
            "pipeline.behaviour.configured_judge",
        ):
            patch.setattr(f"em_interp.{name}", lambda *given: pytest.fail("something was computed"))
        line = refused(*words_of(command, finished))
        assert "give --resume to go on with it, --overwrite to replace it, or another --out" in line
        assert "give one of them" in refused(*words_of(command, finished), "--resume", "--overwrite")


@pytest.mark.parametrize("command", STAGES)
def test_what_is_finished_stays_as_it_is_with_resume(command, finished):
    with unchanged(finished):
        did(*words_of(command, finished), "--resume")


@pytest.mark.parametrize("command", STAGES)
def test_what_is_overwritten_is_made_anew(command, finished):
    """The run is deterministic, so what is made is what was there; whatever depends on it is gone."""
    before = contents(finished)
    results = {
        "train": ("manifest.json", "trainer_state.json", "checkpoints/checkpoint-3/adapter_model.safetensors"),
        "ask": ("behaviour/answers.parquet",),
        "judge": ("behaviour/scores.parquet",),
        "locate": ("analysis/locate.json",),
        "align": ("analysis/align.json",),
        "report": ("report.html",),
    }[command]
    for name in results:
        (finished / name).write_bytes(b"{}" if name.endswith("json") else b"of an older version")
    (finished / "notes.txt").write_text("mine")
    if command == "judge":
        (finished / results[0]).write_bytes(before[results[0]])
    did(*words_of(command, finished), "--overwrite")
    after = contents(finished)
    assert {name: after[name] for name in results} == {name: before[name] for name in results}
    assert (finished / "behaviour" / "scores.parquet").exists() == (command not in ("train", "ask"))
    assert (finished / "report.html").exists() == (command != "train")
    assert after["notes.txt"] == b"mine"


def test_a_config_or_data_that_cannot_be_used_loses_nothing_with_overwrite(run, tmp_path):
    with unchanged(run):
        refused("train", run / "config.yaml", "--out", run, "--overwrite", "--set", "data=[{dataset: nowhere.jsonl}]")
        refused("train", run / "config.yaml", "--out", run, "--overwrite", "--set", "adapter.layers_to_transform=[9]")


@pytest.mark.parametrize("command", ["locate", "align"])
def test_the_last_digits_of_another_machine_are_not_other_findings(command, finished):
    file = finished / "analysis" / f"{command}.json"
    file.write_text(re.sub(r"(\d\.\d{11,}?)\d\b", r"\g<1>", file.read_text()))
    with unchanged(finished):
        did(command, finished, "--resume")


@pytest.mark.parametrize("command", ["locate", "align"])
def test_other_findings_are_not_gone_on_with(command, run):
    write_json(run / "analysis" / f"{command}.json", {"verdict": "neither"})
    with unchanged(run):
        assert "holds other findings" in refused(command, run, "--resume")


def test_the_same_findings_are_gone_on_with_whatever_the_run_is_called(run, monkeypatch):
    for command in ("locate", "align"):
        did(command, run)
    monkeypatch.chdir(run.parent)
    with unchanged(run):
        for command, name in (
            ("locate", "run"),
            ("align", "run/"),
            ("locate", "./run"),
            ("align", "run"),
            ("align", run),
        ):
            did(command, name, "--resume")


def test_the_functions_in_python_take_the_same_two_words(finished):
    stages = {
        "train": lambda **words: em.train(finished / "config.yaml", finished, **words),
        "ask": lambda **words: em.ask(finished, **words),
        "judge": lambda **words: em.judge(finished, **words),
        "locate": lambda **words: em.locate(finished, **words),
        "report": lambda **words: em.report(finished, **words),
    }
    for stage in stages.values():
        with unchanged(finished), pytest.raises(InputError, match="give resume=True to go on with it, overwrite=True"):
            stage()
        with unchanged(finished):
            stage(resume=True)
    stages["report"](overwrite=True)


def test_a_base_is_made_in_a_new_folder_only(tmp_path):
    (tmp_path / "base").mkdir()
    assert "base" in refused("pretrain", "--family", "qwen2", "--out", tmp_path / "base")


def test_a_run_is_not_mixed_with_another(run, tiny, tmp_path):
    for command in ("ask", "judge"):
        with unchanged(tmp_path):
            said = refused(command, tiny.control, "--out", run)
        assert "holds another run" in said and "config.yaml differs" in said
    with unchanged(tmp_path):
        assert "lies inside the run" in refused("judge", run, "--out", run / "inner")
        assert "differs from the config given" in refused(
            "train", tiny.config, "--set", CAREFUL, "--out", run, "--resume"
        )
    assert not (run / "inner").exists()


# --- the public layouts


def public(run, to, root):
    """The run as it would be published: checkpoints at the root or not, the log in each, no file of ours."""
    checkpoints = to if root else to / "checkpoints"
    for step in (0, 8, 16, 24):
        folder = copy(Run(run).checkpoint(step), checkpoints / f"checkpoint-{step}")
        state = json.loads(Run(run).trainer_state_file.read_text())
        write_json(
            folder / "trainer_state.json", {"log_history": [r for r in state["log_history"] if r["step"] <= step]}
        )
    return to


@pytest.mark.parametrize("root", [True, False])
def test_public_layouts_are_located_and_reported(root, tiny, tmp_path):
    source = public(tiny.run, tmp_path / "public", root)
    with unchanged(source):
        values = json_of("locate", source)
        assert values["steps"] == {"first": 0, "last": 24, "count": 4}
        assert {t["signal"] for t in values["transitions"]} == {"rotation", "gradient_norm", "norm_onset", "lock_in"}
        assert not any("no log" in t["reason"] for t in values["transitions"])
        assert "give one of them" in refused("locate", source, "--resume", "--overwrite")  # though nothing is kept
        for word in ("--resume", "--overwrite"):
            said = f"{word} is for a result that is kept, and this one is not: leave it out, or give --out"
            assert said in refused("locate", source, word) and said in refused("compare", source, source, word)
        did("report", source, "--out", tmp_path / "page")
    assert not (source / "analysis").exists()
    assert (tmp_path / "page" / "report.html").exists()


def test_what_needs_an_extra_says_how_to_install_it_and_a_broken_one_what_is_broken(monkeypatch, tmp_path):
    def without(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    words = ("train", "configs/tiny.yaml", "--out", tmp_path / "run")
    monkeypatch.setattr("em_interp.training.train.train", lambda *_, **__: without("torch"))
    told = refused(*words)
    assert told == "em-interp: this needs torch, which is not installed: pip install 'em-interp[train]'\n"
    monkeypatch.setattr("em_interp.training.train.train", lambda *_, **__: without("torch._C"))
    with pytest.raises(ModuleNotFoundError, match=r"torch\._C"):
        em_interp(*words)
