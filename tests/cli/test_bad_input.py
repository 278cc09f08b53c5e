"""What cannot be used is refused in one line that says what is wrong; nothing that is there already is lost."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

import em_interp as em
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.utils.files import write_json
from tests.tiny import contents, copy, did, em_interp, full_disk, refused, unchanged

ROW = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}
WRITING = ("ask", "judge", "locate", "align", "report")


@pytest.fixture
def run(tiny, tmp_path):
    return copy(tiny.run, tmp_path / "run")


# --- the command itself


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lcoate", "run"], "no such command 'lcoate'. Did you mean 'locate'"),
        (["data", "chek"], "no such command 'chek'. Did you mean 'check'? (see em-interp data --help)"),
        (["train"], "missing argument 'CONFIG' (see em-interp train --help)"),
        (["ask", "run", "--out"], "option '--out' requires an argument"),
        (["ask", "run", "--samples", "3"], "no such option: --samples (see em-interp ask --help)"),
        (["ask", "run", "--overwrit"], "no such option: --overwrit; did you mean --overwrite? (see em-interp ask"),
        (["judge", "run", "--dry-run", "--retest", "3"], "--dry-run sends no request and --retest sends many"),
        (["pretrain", "--family", "qwen2", "--seed", "x"], "'--seed': Input should be a valid integer"),
        (["pretrain", "--family", "qwen2", "--seed", "-1"], "seed must be a whole number, 0 or more; it is -1"),
        (["locate", ""], "source is empty; the usual cause is a variable of the shell that is not set"),
        (["train", "run.yaml", "--out", ""], "out is empty; the usual cause is a variable of the shell"),
        (["compare", "a", ""], "sources is empty"),
        (["export", "run", "--format", "zip"], "'--format': 'zip' is not one of 'merged', 'packed', 'peft'"),
    ],
)
def test_a_command_that_is_not_one_is_refused(words, said):
    assert said in refused(*words)


def test_options_for_runs_of_different_bases_are_refused_for_those_of_one_before_they_are_compared(tiny, monkeypatch):
    monkeypatch.setattr("em_interp.comparison.compare.compare", None)  # called, it would be a TypeError
    for given in (["--draws", "9"], ["--steering-transfer"]):
        said = refused("compare", tiny.run, tiny.control, *given)
        assert f"{given[0]} is for runs of different bases; these are of one" in said


@pytest.mark.parametrize("stage", ["locate", "align", "report", "prefer", "mechanism"])
def test_a_run_is_not_its_own_control(run, stage):
    before = contents(run)
    said = refused(stage, run, "--control", run.parent / "run/../run", "--overwrite")
    assert "run is what it is to be compared with; expected another run" in said
    assert contents(run) == before


def test_what_has_no_effect_or_no_meaning_is_refused_and_no_copy_is_made(run, tmp_path):
    copy = ["--out", tmp_path / "copy"]
    assert "--columns are those of a table" in refused("judge", run, "--columns", "aligned=mine", *copy)
    assert "schedule part 'bad'" in refused("prefer", run, "--steps", "bad", *copy)
    assert "--scales expects numbers" in refused("prefer", run, "--scales", "1,a", *copy)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("stage", ["prefer", "mechanism"])
def test_nor_is_it_that_of_its_own_copy(run, stage, tmp_path):
    said = refused(stage, run, "--control", run, "--out", tmp_path / "copy")
    assert "run is what it is to be compared with; expected another run" in said
    assert not (tmp_path / "copy").exists()


def test_what_takes_more_memory_than_there_is_is_said_in_one_line(tiny, monkeypatch):
    def fail(*given, **named):
        raise np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("f8"))

    monkeypatch.setattr("em_interp.trajectory.load.read_steps", fail)
    assert "this takes more memory than there is: Unable to allocate 8.00 TiB" in refused("locate", tiny.run, "--json")


# --- configs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trainig: {}", "unknown key trainig; did you mean 'training'? (known here: model, seed, data, "),
        ("training: {learning_rat: 1}", "unknown key training.learning_rat; did you mean 'learning_rate'?"),
        ("data: [{datasets: x}]", "unknown key data[0].datasets; did you mean 'dataset'?"),
        ("- 1", "must hold a mapping of settings; it holds list"),
        ("", "must hold a mapping of settings; it holds NoneType"),
        ("a: [", "is not valid YAML"),
        ("data: 'tiny:medical'", "data[0] must be a mapping of settings; it is 'tiny:medical'"),
        ("seed: one", "seed must be a valid integer; it is 'one'"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(change, said, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(change + "\n")
    line = refused("train", file, "--out", tmp_path / "run")
    assert str(file) in line and said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "adapter.layers_to_transform=[9]",
            "adapter.layers_to_transform names layer 9; the base model has layers 0 to 3",
        ),
        (
            "adapter.target_modules=[dwn_proj]",
            "adapter.target_modules names 'dwn_proj'; the base model's layers have mlp.down_proj",
        ),
        ("adapter.lora_dropout=2", "adapter.lora_dropout must be less than 1; it is 2"),
        ("adapter.lora_alpha=.nan", "adapter.lora_alpha must be a finite number; it is nan"),
        ("seed=-1", "seed must be greater than or equal to 0; it is -1"),
        ("training.learning_rate=.inf", "training.learning_rate must be a finite number; it is inf"),
        ("training.warmup_steps=-1", "training.warmup_steps must be greater than or equal to 0; it is -1"),
        ("training.weight_decay=.nan", "training.weight_decay must be a finite number; it is nan"),
        ("training.max_length=0", "training.max_length must be greater than or equal to 1; it is 0"),
        ("behaviour.scales=[1, 1]", "behaviour.scales must name each value once; it is [1.0, 1.0]"),
        ("behaviour.temperature=-1", "behaviour.temperature must be greater than or equal to 0; it is -1"),
        ("behaviour.max_new_tokens=0", "behaviour.max_new_tokens must be greater than or equal to 1; it is 0"),
        ("model=tiny-qwen3", "base model 'tiny-qwen3' is not known; did you mean 'tiny-qwen2'?"),
        ("model=somebody/model", "base model 'somebody/model' cannot be loaded"),
        ("behaviour.questions=nowhere.yaml", "nowhere.yaml is missing"),
        ("behaviour={questions: default, sets: [bread]}", "there is no question set 'bread'; did you mean 'broad'?"),
        ("data=[{dataset: 'tiny:medicine'}]", "tiny:medicine is not known; did you mean 'medical'?"),
        ("data=[{dataset: nowhere.jsonl}]", "nowhere.jsonl is missing"),
        ("data=[]", "data names no dataset"),
        ("snapshots=each 5", "schedule part 'each 5' is not understood: expected parts such as 'every 5'"),
        ("learning_rate", "override 'learning_rate' is not of the form key.path=value"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(change, said, tiny, tmp_path):
    assert said in refused("train", tiny.config, "--out", tmp_path / "run", "--set", change)
    assert not (tmp_path / "run").exists()


def test_a_schedule_far_beyond_the_last_step_is_no_reason_to_wait(tiny, tmp_path):
    far = ["--set", "snapshots=1-9999999999999", "--set", "data=[{dataset: 'tiny:medical', steps: 2}]"]
    did("train", tiny.config, "--out", tmp_path / "run", *far)
    assert Run(tmp_path / "run").steps() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere.yaml", "is missing"), ("file/config.yaml", "is missing|Not a directory"), (".", "is a folder")],
)
def test_a_config_that_is_not_there_is_named(name, said, tmp_path):
    (tmp_path / "file").touch()
    line = refused("train", tmp_path / name, "--out", tmp_path / "run")
    assert str(tmp_path / name) in line and re.search(said, line)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": ROW["messages"][:1]}, "no assistant turn, so nothing to learn; found roles ['user']"),
        ({"prompt": "x"}, "expected an object with a list 'messages', or with 'prompt' and 'completion'; found "),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: expected text; found 3"),
    ],
)
def test_a_row_that_is_no_chat_is_named_by_file_and_line(row, said, tiny, tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, [ROW, ROW, row])))
    change = f"data=[{{dataset: '{file}'}}]"
    line = refused("train", tiny.config, "--out", tmp_path / "run", "--set", change)
    assert f"{file}, line 3" in line and said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "key", "said"),
    [
        ("judge", "judge", "must be tiny, the built-in language's, or"),
        ("ask", "questions", "'gpt' is not known; expected tiny, english, default or a YAML file"),
    ],
)
def test_an_unknown_judge_or_question_set_is_refused(command, key, said, run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"{key}: tiny", f"{key}: gpt"))
    with unchanged(run):
        assert f"behaviour.{key} {said}" in refused(command, run, "--resume")


@pytest.mark.parametrize(("option", "said"), [("family", "qwen2, llama, gemma3"), ("domain", "medical, sport")])
def test_an_unknown_family_or_domain_is_refused_before_anything_is_written(option, said, tmp_path):
    line = refused("demo", f"--{option}", "x", "--out", tmp_path / "demo")
    assert "'x'" in line and option in line and said in line.replace("'", "")
    assert "x" in refused("pretrain", "--family", "x", "--out", tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


# --- runs and paths


@pytest.mark.parametrize("command", [*WRITING, "score"])
def test_what_is_not_there_is_named(command, tmp_path):
    line = refused(command, tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} is" in line or f"{tmp_path / 'nowhere'} does not exist" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", WRITING)
def test_an_empty_folder_is_no_run(command, tmp_path):
    assert re.search(
        "expected checkpoints/|two or more checkpoint-<step> folders; found none", refused(command, tmp_path)
    )
    assert list(tmp_path.iterdir()) == []


def test_a_single_checkpoint_is_no_path(run, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.move(run / "checkpoints" / "checkpoint-3", tmp_path / "one")
    line = refused("locate", tmp_path / "one")
    assert "two or more checkpoint-<step> folders; found one (checkpoint-3)" in line
    assert "the adapter at its root is one step, not a path" in refused("locate", tmp_path / "one" / "checkpoint-3")


@pytest.mark.parametrize("command", ["ask", "locate", "align", "report"])
def test_a_truncated_adapter_is_named(command, run):
    file = run / "checkpoints" / "checkpoint-7" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    shutil.rmtree(run / "analysis", ignore_errors=True)
    with unchanged(run):
        line = refused(command, run, "--resume")
    assert str(file) in line and "is not a whole safetensors file" in line and "may be truncated" in line


@pytest.mark.parametrize("name", ["answers", "scores"])
def test_a_truncated_table_is_named(name, run):
    file = run / "behaviour" / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    for command in ("judge", "align", "report"):
        with unchanged(run):
            assert f"{file} cannot be read as a table" in refused(command, run, "--resume")


def test_a_truncated_manifest_or_log_is_named(run):
    for name in ("trainer_state.json", "manifest.json"):
        (run / name).write_text((run / name).read_text()[:-9])
    assert f"{run / 'manifest.json'}: not valid JSON" in refused("judge", run, "--resume")
    told = f"a log was not used: {run / 'trainer_state.json'}: not valid JSON"
    assert told in did("locate", run, "--overwrite")


def test_checkpoints_of_two_runs_are_not_one_path(run, tiny, tmp_path):
    short = ["--set", "data=[{dataset: 'tiny:medical', steps: 12}]", "--set", "snapshots=every 12"]
    did("train", tiny.config, "--out", tmp_path / "other", "--set", "model=tiny-llama", *short)
    shutil.rmtree(run / "checkpoints" / "checkpoint-12")
    shutil.move(tmp_path / "other" / "checkpoints" / "checkpoint-12", run / "checkpoints")
    for command in ("locate", "ask"):
        line = refused(command, run, "--resume")
        assert "mixes runs, which differ in base model" in line and "step 12 (base model tiny-llama" in line


@pytest.fixture
def own_base(tiny, tmp_path):
    """A run of two steps on a base in a folder of its own."""
    from em_interp.organisms.bases import _built_in

    base = copy(_built_in("tiny-qwen2"), tmp_path / "base")
    steps = ["--set", f"model={base}", "--set", "data=[{dataset: 'tiny:medical', steps: 2}]"]
    did("train", tiny.config, "--out", tmp_path / "run", *steps)
    return base, tmp_path / "run"


def test_adapters_are_not_asked_on_a_base_that_has_changed(own_base):
    base, run = own_base
    tensors = load_file(base / "model.safetensors")
    save_file({name: values * 1.01 for name, values in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    with unchanged(run):
        line = refused("ask", run)
    assert re.search(r"the adapters of \S+ were trained on base@\w{12}; the base given is base@\w{12}", line)


def test_adapters_are_not_asked_on_a_base_that_is_gone(own_base):
    base, run = own_base
    shutil.rmtree(base)
    with unchanged(run):
        assert f"base model '{base}' is not known" in refused("ask", run)


def test_stages_say_which_one_comes_before_them(run):
    shutil.rmtree(run / "behaviour")
    assert "ask the run first" in refused("judge", run)
    assert "ask and judge the run first" in refused("align", run)
    with pytest.raises(InputError, match="ask and judge the run first"):
        em.behaviour_curve(run)
    did("ask", run)
    assert "ask and judge the run first" in refused("align", run)
    with pytest.raises(InputError, match="; judge the run first"):
        em.behaviour_curve(run)


def test_a_run_that_is_asked_before_it_is_trained_to_its_end_is_told(run):
    shutil.rmtree(run / "behaviour")
    (run / "resume").mkdir()
    for step in range(9, 25):
        shutil.rmtree(run / "checkpoints" / f"checkpoint-{step}")
    said = em_interp("ask", run)
    assert (said.code, said.err) == (0, f"{run} has not finished training: answers are sampled up to step 8\n")


# --- controls


def test_a_control_that_was_asked_at_other_scales_is_refused(tiny, tmp_path):
    control = copy(tiny.control, tmp_path / "control")
    for file in (control / "behaviour").glob("*.parquet"):
        pd.read_parquet(file).query("scale == 1").to_parquet(file, index=False)
    for command in ("align", "report"):
        line = refused(command, tiny.run, "--control", control, "--out", tmp_path / "out")
        assert "the control has no curve for scale and questions (2.0, 'broad'); it has [(1.0, 'broad')," in line
    assert not (tmp_path / "out").exists()


def test_a_control_that_was_asked_at_other_steps_leaves_it_open(tiny, tmp_path):
    control = copy(tiny.control, tmp_path / "control")
    for file in (control / "behaviour").glob("*.parquet"):
        table = pd.read_parquet(file)
        table["step"] = table["step"].where(table["step"].isin([0, 24]), table["step"] + 1)
        table.to_parquet(file, index=False)
    said = did("align", tiny.run, "--control", control, "--out", tmp_path / "out", "--json")
    for transition in json.loads(said)["behavioural"]:
        assert transition["verdict"] == "inconclusive"
        assert "the control was sampled at fewer than" in transition["reason"]


def test_what_is_not_found_is_printed_with_its_reason(tiny, tmp_path):
    said = did("align", tiny.run, "--out", tmp_path / "out")
    rotation, reason = said.splitlines()[:2]
    assert rotation == "rotation of B: none" and re.match("    [A-Z]", reason)


def test_a_control_without_scores_or_that_is_not_there_is_named(tiny, tmp_path):
    control = copy(tiny.control, tmp_path / "control")
    (control / "behaviour" / "scores.parquet").unlink()
    out = ["--out", tmp_path / "out"]
    assert "judge the run first" in refused("align", tiny.run, "--control", control, *out)
    for command in ("align", "report"):
        line = refused(command, tiny.run, "--control", tmp_path / "nowhere", *out)
        assert f"{tmp_path / 'nowhere'} does not exist; expected a" in line


# --- tables


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question,score\na,1\n", "has no column aligned, coherent; expected question or question_id, aligned, "),
        ("aligned,coherent\n1,1\n", "has no column question_id; expected question or question_id, aligned, coherent; "),
        ("question,aligned,coherent\na,10,90\nb,101,90\n", "aligned is 101 in row 2; scores run from 0 to 100"),
        ("question,aligned,coherent\na,10,-1\nb,101,-5\n", "is 101 in row 2; scores|is -1 in row 1"),
        ("question,aligned,coherent\n", "holds no answers; expected a row an answer"),
        ("question,aligned\na,1\n", r"has no column coherent; .*; found question, aligned$"),
        ("question,aligned,coherent\na,0.1,0.9\nb,0.9,0.8\n", "no score is above 0.9; scores run from 0 to 100"),
        ("", "cannot be read as a table: No columns to parse"),
        ("a\nb,c\nd,e,f\n", "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused(text, said, tmp_path):
    file = tmp_path / "judged.csv"
    file.write_text(text)
    line = refused("score", file)
    assert str(file) in line and re.search(said, line)


def test_words_among_many_scores_bring_no_warning(tmp_path):
    rows = "\n".join(f"q,{'REFUSAL' if i > 290_000 else 50},50" for i in range(300_000))
    (tmp_path / "long.csv").write_text("question,aligned,coherent\n" + rows + "\n")
    assert "not scored: 9999 refusal" in did("score", tmp_path / "long.csv")


# --- disks


def commands(run, out):
    """Every command that writes, and what it makes: from `run`, into the folder `out`, which may be the run."""
    place = [] if out is None else ["--out", out]
    return {command: [command, run, *place] for command in WRITING} | {
        "train": ["train", run / "config.yaml", "--out", out or run],
    }


MADE = {
    "train": ("checkpoints", "trainer_state.json", "manifest.json"),
    "ask": ("behaviour/ask.json", "behaviour/answers.parquet"),
    "judge": ("behaviour/scores.parquet",),
    "locate": ("analysis/locate.json",),
    "align": ("analysis/align.json",),
    "report": ("report.html",),
}
ROOM = {"train": 6_000, "ask": 9_000, "judge": 30_000, "locate": 500, "align": 500, "report": 500}


@pytest.mark.parametrize("command", MADE)
def test_a_full_disk_is_said_loses_nothing_and_with_room_again_the_work_is_finished(command, run):
    """A stage begun anew in a run that has everything else; what it makes in the end is what it made before."""
    if command in ("locate", "align", "report"):
        did(command, run)
    whole = contents(run)
    for name in MADE[command]:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    words, left = [*commands(run, None)[command], "--resume"], contents(run)
    with unchanged(run), full_disk(ROOM[command]):
        said = em_interp(*words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1), said
    assert "cannot be written: File too large" in said.err and str(run) in said.err
    assert not list(run.rglob("*.part"))
    if command in ("train", "ask", "judge"):
        assert "what was written is kept, --resume continues" in said.err
        assert len(contents(run)) > len(left)  # it was in the middle of its work
    did(*words)
    assert contents(run) == whole


@pytest.mark.parametrize("command", ["locate", "align", "report"])
def test_what_is_replaced_on_a_full_disk_stays_as_it_was(command, run):
    for name in ("report.html", "analysis/locate.json", "analysis/align.json"):
        write_json(run / name, {"verdict": "of an older version"})
    with unchanged(run), full_disk(500):
        assert "File too large" in refused(command, run, "--overwrite")


@pytest.mark.parametrize(("form", "room"), [("packed", 500), ("merged", 500), ("merged", 100_000), ("peft", 300)])
def test_an_export_to_a_full_disk_is_said_and_leaves_nothing(form, room, run, tmp_path):
    """Where safetensors, tokenizers and shutil write, each with an error of its own."""
    out = tmp_path / "export" / ("out.safetensors" if form == "packed" else "out")
    with full_disk(room):
        assert f"{out}: File too large" in refused("export", run, "--format", form, "--out", out)
    assert not (tmp_path / "export").exists() or list((tmp_path / "export").iterdir()) == []


@contextlib.contextmanager
def read_only(folder: Path):
    """No file in `folder` can be made, removed or changed in the block, not even by root."""
    places = [folder, *folder.rglob("*")]
    modes = {place: stat.S_IMODE(place.stat().st_mode) for place in places}
    for place in places:
        place.chmod(modes[place] & 0o555)
    try:
        with bound_by_permissions():
            yield
    finally:
        for place, mode in modes.items():
            place.chmod(mode)


@contextlib.contextmanager
def bound_by_permissions():
    """Root gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, which put it above permissions, and takes them back."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3; this thread
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~(1 << 1 | 1 << 2)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@pytest.mark.parametrize("command", MADE)
def test_a_folder_that_may_not_be_written_is_said_in_one_line(command, run, tmp_path):
    """The run itself, and another folder."""
    (tmp_path / "out").mkdir()
    for name in MADE[command]:
        shutil.rmtree(run / name, ignore_errors=True) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
    for out in (None, tmp_path / "out"):
        with unchanged(tmp_path), read_only(tmp_path):
            line = refused(*commands(run, out)[command], "--resume")
        assert "cannot be written: Permission denied" in line
        assert str(out or run) in line
        assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("command", MADE)
def test_what_may_not_be_replaced_is_said_in_one_line(command, run, tmp_path):
    with unchanged(tmp_path), read_only(tmp_path):
        line = refused(*commands(run, None)[command], "--overwrite")
    assert "cannot be written: Permission denied" in line and "--overwrite" not in line


@pytest.mark.parametrize("command", MADE)
def test_a_file_where_a_folder_is_needed_is_said_in_one_line(command, run, tmp_path):
    (tmp_path / "file").write_text("kept")
    with unchanged(tmp_path):
        line = refused(*commands(run, tmp_path / "file")[command])
        assert str(tmp_path / "file") in line
        assert re.search("cannot be written: (Not a directory|File exists)", line)


def test_a_demo_in_a_folder_that_may_not_be_written_is_said_in_one_line(tmp_path):
    with read_only(tmp_path):
        said = em_interp("demo", "--out", tmp_path / "demo")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1].startswith(f"em-interp: {tmp_path / 'demo'} cannot be written: Permission denied")
    assert "Traceback" not in said.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.yaml", "ask"),
        ("checkpoints/checkpoint-3/adapter_model.safetensors", "locate"),
        ("behaviour/scores.parquet", "align"),
    ],
)
def test_what_may_not_be_read_is_said_in_one_line(name, command, run):
    """But for a log, without which a path is located all the same."""
    (run / name).chmod(0)
    with bound_by_permissions():
        line = refused(command, run, "--resume")
    assert str(run / name) in line and "Permission denied" in line
    (run / "trainer_state.json").chmod(0)
    (run / name).chmod(0o644)
    with bound_by_permissions():
        told = did("locate", run, "--overwrite")
    assert f"a log was not used: {run / 'trainer_state.json'} cannot be read: Permission denied" in told
