"""Ctrl-C: a stage stopped in the middle says how to go on, and --resume ends with the bytes of one never stopped."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from tests.tiny import Said, begin, contents, copy, did, em_interp, interrupted

LONG = "data=[{dataset: 'tiny:medical', steps: 80}]"


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """Of each stage: where it was stopped, what it said, the folder of one that was not, and words that resume it."""
    folder = tmp_path_factory.mktemp("stopped")
    train, ask, judge = (folder / name for name in ("train", "ask", "judge"))
    copy(tiny.run, judge)
    (judge / "behaviour" / "scores.parquet").unlink()
    answers = pd.read_parquet(judge / "behaviour" / "answers.parquet")
    many = pd.concat([answers.assign(sample=answers["sample"] + 4 * i) for i in range(12)], ignore_index=True)
    many.to_parquet(judge / "behaviour" / "answers.parquet", index=False)  # rules judge tens of thousands a second
    copy(judge, folder / "judge-whole")
    words = {
        "train": ["train", tiny.config, "--set", LONG, "--out", train],
        "ask": ["ask", tiny.run, "--out", ask],
        "judge": ["judge", judge],
    }
    signs = {
        "train": lambda: (train / "checkpoints" / "checkpoint-3").exists(),
        "ask": lambda: (ask / "behaviour" / "answers.parts" / "00000.json").exists(),
        "judge": lambda: any(file.stat().st_size > 10_000 for file in judge.glob("behaviour/scores.*.jsonl")),
    }
    with ThreadPoolExecutor() as pool:
        said = {stage: pool.submit(interrupted, begin(*words[stage]), signs[stage]) for stage in words}
        did(*words["train"][:-1], folder / "train-whole")
        did("judge", folder / "judge-whole")
    whole = {"train": folder / "train-whole", "ask": tiny.run, "judge": folder / "judge-whole"}
    return {stage: (folder / stage, said[stage].result(), whole[stage], words[stage]) for stage in words}


@pytest.mark.parametrize("stage", ["train", "ask", "judge"])
def test_ctrl_c_says_in_one_line_how_to_go_on_and_resume_ends_the_same(stage, stopped):
    folder, said, whole, words = stopped[stage]
    assert (said.code, said.out, said.err.count("\n")) == (130, "", 1), said
    assert said.err.startswith("em-interp: interrupted")
    assert "nothing is lost, --resume goes on in " in said.err and str(folder) in said.err
    assert not list(folder.rglob("*.part"))
    without = ("scores.parquet",) if stage == "ask" else ()
    assert contents(folder) != contents(whole, *without)  # it was in the middle of its work
    did(*words, "--resume")
    assert contents(folder) == contents(whole, *without)


def test_ctrl_c_in_training_tells_how_far_it_came(stopped):
    said = stopped["train"][1].err
    assert "interrupted with step " in said and " of 80 saved; " in said


def test_ctrl_c_where_nothing_has_been_written_says_that_too(tmp_path):
    """Making a base takes minutes and writes at the end. The signal comes to this very process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests were started
    ctrl_c = threading.Timer(1, signal.raise_signal, [signal.SIGINT])
    ctrl_c.start()
    try:
        said = em_interp("pretrain", "--family", "qwen2", "--out", tmp_path / "base")
    finally:
        ctrl_c.join()
        signal.signal(signal.SIGINT, before)
    assert said == Said(130, "", "em-interp: interrupted; nothing is lost, the same command begins again\n")
    assert list(tmp_path.iterdir()) == []
