"""A seeded part of benchmarks/kills.py: killed or raced stages end with the bytes of undisturbed ones."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from tqdm.auto import tqdm

from tests.tiny import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import kills
from isolated import forked, import_all


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    import_all()
    return kills.Bench(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("stage", ["train", "ask", "judge", "export packed"])
def test_a_stage_killed_at_a_write_point_is_resumed_to_the_same_bytes(stage, bench):
    _, changes, seconds = bench.undisturbed(stage)
    first = ("change", changes // 2)
    for disturbed in ([first, ("seconds", seconds / 3)], [("change", changes)]):
        case = bench.kill(stage, disturbed)
        assert case.wrong == [] and case.codes[0] < 0 and case.codes[-1] == 0


def test_of_stages_that_race_on_one_run_none_is_harmed(bench):
    case = bench.race(("judge", "judge", "judge"), [0.0, 0.0, 0.05])
    assert case.wrong == [] and 0 in case.codes[:3]


SEEDED = ("prefer", "compare", "report with figures")  # of a run that was trained, asked and judged before


def test_every_stage_gives_the_same_bytes_under_another_hash_seed(bench, tmp_path):
    """Here the hash seed is random. The mechanism has a test of its own."""
    command = [sys.executable, "benchmarks/kills.py", "digests", "--stages", ",".join(SEEDED), "--folder", tmp_path]
    found = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "1"}, cwd=ROOT, check=True, capture_output=True)
    assert json.loads(found.stdout) == kills.digests(bench, SEEDED)


def test_a_process_killed_inside_a_progress_bar_does_not_hold_up_the_next(tmp_path, monkeypatch):
    def killed():
        with tqdm.get_lock():
            os.kill(os.getpid(), signal.SIGKILL)

    def next_one():
        return len(list(tqdm([1, 2])))

    tqdm.get_lock()
    monkeypatch.setattr(kills, "MAX_WALL", 60.0)
    for work, code in ((killed, -signal.SIGKILL), (next_one, 2)):
        (place := tmp_path / work.__name__).mkdir()
        assert kills.finish(forked(work, place), place)[0] == code


def test_a_process_that_hangs_is_ended_and_says_where(tmp_path, monkeypatch):
    def hang():
        os.write(begun[1], b"!")
        threading.Event().wait()

    begun = os.pipe()
    (place := tmp_path / "said").mkdir()
    pid = forked(hang, place)
    os.read(begun[0], 1)
    monkeypatch.setattr(kills, "MAX_WALL", 0.0)
    code, said = kills.finish(pid, place)
    assert code == -signal.SIGABRT and "threading.py" in said


def test_the_harness_sees_what_a_kill_damages(bench, monkeypatch):
    whole = {"a": b"1", "b": b"2"}
    assert kills.difference({"a": b"1", "b": b"3", "c": b"", ".writing": b""}, whole) == ["b differs", "c is left over"]
    assert kills.difference({"a": b"1"}, whole) == ["b is missing"]
