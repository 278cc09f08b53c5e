import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from em_interp.reports.findings import find_in_run
from em_interp.sweeps.jobs import summary
from tests.figures.planting import ONSET, plant_run

SWEEP = """
import os, sys, time
from pathlib import Path
from em_interp.sweeps.jobs import workers

def work(name):
    Path(name).write_text(str(os.getpid()))
    time.sleep(60)

with workers("loky", 2) as do:
    do(work, [("first",), ("second",)], "runs")
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_the_workers_of_a_killed_sweep_end_with_it(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SWEEP]
    sweep = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    files = [tmp_path / name for name in ("first", "second")]
    assert wait(lambda: all(file.exists() and file.read_text() for file in files), 60)
    workers = [int(file.read_text()) for file in files]
    sweep.kill()
    sweep.wait(30)
    ended = wait(lambda: not any(map(is_running, workers)), 10)  # a second, on a machine that is not busy
    for pid in filter(is_running, workers):
        os.kill(pid, signal.SIGKILL)
    assert ended


@pytest.mark.parametrize("called", ["broad", "all"])
def test_the_onset_of_a_run_is_that_of_align_whatever_its_questions_are_called(called, tmp_path):
    """`questions: default` is the set `broad`, and a set without a name is `all`."""
    run = plant_run(tmp_path / "run", every=8)
    for file in (run.answers_file, run.scores_file):
        table = pd.read_parquet(file)
        table[table["questions"] == "out_of_domain"].assign(questions=called).to_parquet(file, index=False)
    findings = find_in_run(run)
    found = summary(findings)
    assert found["onset"]["verdict"] == "transition" and found["onset"]["questions"] == called
    assert found["onset"]["step"] == pytest.approx(ONSET, abs=16)  # the spacing of the answers
    assert found["onset"] == findings.alignment.family.declared[-1].to_dict()
    assert found["offset"]["steps"] == pytest.approx(found["onset"]["step"] - found["rotation"]["step"])
    assert found["final"]["em"]["rate"] > 0.3
