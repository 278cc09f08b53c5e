"""Ctrl-C and SIGTERM at any time: one line with the command that continues, which ends with the same bytes."""

import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from tests.tiny import ROOT, Said, begin, contents, copy, did, em_interp, interrupted

LONG = "data=[{dataset: 'tiny:medical', steps: 80}]"
STAGES = ("train", "ask", "judge")
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def last_command(line):
    """The words of the command that a line about an interruption ends with."""
    program, *words = shlex.split(re.split("to (?:continue|begin again): ", line)[1])
    assert program == "em-interp"
    return words


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Of each stage: a run in which it was not interrupted. Judging has twelve times the answers of the others."""
    folder = tmp_path_factory.mktemp("whole")
    judge = copy(tiny.run, folder / "judge")
    (judge / "behaviour" / "scores.parquet").unlink()
    answers = pd.read_parquet(judge / "behaviour" / "answers.parquet")
    many = pd.concat([answers.assign(sample=answers["sample"] + 4 * i) for i in range(12)], ignore_index=True)
    many.to_parquet(judge / "behaviour" / "answers.parquet", index=False)  # rules judge tens of thousands a second
    copy(judge, folder / "unjudged")
    did("judge", judge)
    did("train", tiny.config, "--set", LONG, "--out", folder / "train")
    return {"train": folder / "train", "ask": tiny.run, "judge": judge, "unjudged": folder / "unjudged"}


@pytest.fixture(scope="module")
def stopped(tiny, whole, tmp_path_factory):
    """Of each signal and stage: the folder in which it was interrupted, and what it said."""
    return {number: stop_each(number, tiny, whole, tmp_path_factory.mktemp(number.name)) for number in EXIT_CODES}


def stop_each(number, tiny, whole, folder):
    train, ask, judge = (folder / name for name in STAGES)
    copy(whole["unjudged"], judge)
    words = {
        "train": ["train", tiny.config, "--set", LONG, "--out", train],
        "ask": ["ask", tiny.run, "--out", ask],
        "judge": ["judge", judge],
    }
    signs = {
        "train": lambda: (train / "checkpoints" / "checkpoint-3").exists(),
        "ask": lambda: any((ask / "behaviour" / "answers.parts").glob("*.json")),
        "judge": lambda: any(file.stat().st_size > 10_000 for file in judge.glob("behaviour/scores.*.jsonl")),
    }
    with ThreadPoolExecutor() as pool:
        said = {stage: pool.submit(interrupted, begin(*words[stage]), signs[stage], number) for stage in STAGES}
    return {stage: (folder / stage, said[stage].result()) for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
def test_the_line_names_the_command_that_goes_on_and_that_ends_the_same(number, stage, stopped, whole):
    folder, said = stopped[number][stage]
    assert (said.code, said.out, said.err.count("\n")) == (EXIT_CODES[number], "", 1), said
    assert said.err.startswith("em-interp: interrupted")
    assert "; nothing is lost, to continue: em-interp " in said.err and said.err.endswith(" --resume\n")
    assert not list(folder.rglob("*.part"))
    without = ("scores.parquet",) if stage == "ask" else ()
    assert contents(folder) != contents(whole[stage], *without)  # it was in the middle of its work
    did(*last_command(said.err))
    assert contents(folder) == contents(whole[stage], *without)


@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: number.name)
def test_an_interruption_of_training_says_how_far_it_came(number, stopped):
    said = stopped[number]["train"][1].err
    assert "interrupted with step " in said and " of 80 saved; " in said


def test_where_nothing_has_been_written_the_same_command_begins_again(tmp_path):
    """Making a base takes minutes and writes at the end."""
    words = ["pretrain", "--family", "qwen2", "--out", str(tmp_path / "base")]
    said = interrupted(begin(*words), (tmp_path / ".base.part").exists)
    line = f"em-interp: interrupted; nothing is lost, to begin again: em-interp {shlex.join(words)}\n"
    assert said == Said(130, "", line)
    assert list(tmp_path.iterdir()) == []


EARLY = """
import os, signal, sys

module, number, *words = sys.argv[1:]
places = [module]

def hook(event, given):
    if event == "import" and given[0] in places:
        places.clear()
        os.kill(os.getpid(), getattr(signal, number))

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(hook)
from em_interp.cli import main
sys.argv = ["em-interp", *words]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("typer", signal.SIGINT),
        ("em_interp.errors", signal.SIGTERM),
        ("em_interp.config.run_config", signal.SIGINT),
        ("em_interp.config.run_config", signal.SIGTERM),
        ("numpy", signal.SIGTERM),
        ("torch", signal.SIGTERM),
        ("peft", signal.SIGINT),
    ],
)
def test_a_signal_while_modules_are_imported_is_explained_too(module, number, tiny, tmp_path):
    words = ["train", str(tiny.config), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", EARLY, module, number.name, *words], cwd=ROOT, capture_output=True, text=True
    )
    parsed = module not in ("typer", "em_interp.errors")
    command = f"em-interp {shlex.join(words)}"
    how = f"to continue: {command} --resume" if parsed else f"to begin again: {command}"
    assert done.stderr == f"em-interp: interrupted; nothing is lost, {how}\n"
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (EXIT_CODES[number], "", [])


def test_a_signal_after_all_work_is_done_is_explained_too(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("em_interp.cli._print", lambda result: signal.raise_signal(signal.SIGTERM))
    said = em_interp("ask", tiny.run, "--out", tmp_path / "out")
    assert (said.code, said.out) == (143, "")
    assert said.err.endswith(f"ask {tiny.run} --out {tmp_path / 'out'} --resume\n")
    monkeypatch.undo()
    assert "the answers: " in did(*last_command(said.err))


def test_an_overwriting_command_goes_on_with_resume_once_the_old_run_is_gone(tiny, tmp_path, monkeypatch):
    run = copy(tiny.run, tmp_path / "run")
    words = ["train", tiny.config, "--out", run, "--overwrite"]
    for place, word in (("training.train._prepare", "--overwrite"), ("training.trainer.run_plan", "--resume")):
        with monkeypatch.context() as patch:
            patch.setattr(f"em_interp.{place}", lambda *given: signal.raise_signal(signal.SIGTERM))
            line = em_interp(*words).err
        assert last_command(line) == ["train", str(tiny.config), "--out", str(run), word]
    did(*last_command(line))
    made = contents(run)
    assert made == {name: held for name, held in contents(tiny.run).items() if name in made}


def test_the_handlers_of_the_process_are_as_they_were(tiny):
    before = [signal.getsignal(number) for number in EXIT_CODES]
    did("score", Path(tiny.run) / "behaviour" / "scores.parquet")
    assert [signal.getsignal(number) for number in EXIT_CODES] == before


def test_ctrl_c_that_is_ignored_from_the_start_stays_ignored(tiny):
    """As of a command in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("em_interp.cli._print", lambda result: signal.raise_signal(signal.SIGINT) or 0)
            assert em_interp("score", Path(tiny.run) / "behaviour" / "scores.parquet").code == 0
    finally:
        signal.signal(signal.SIGINT, before)
