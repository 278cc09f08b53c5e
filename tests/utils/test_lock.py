import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

import em_interp as em
from em_interp.behaviour.judging.answer_tables import import_answers
from em_interp.behaviour.judging.judge import judge_answers
from em_interp.errors import InputError
from em_interp.run import copy_run
from em_interp.utils.lock import LOCK_FILE, write_lock
from em_interp.utils.stages import Storage
from tests.behaviour.judging.judge_server import numbered, plant

HOLD = """
import sys
from em_interp.utils.lock import write_lock
with write_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that writes in the folder, until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_name_of_the_first_until_that_ends(tmp_path, other):
    with pytest.raises(InputError) as error, write_lock(tmp_path):
        raise AssertionError("two write")
    line = str(error.value)
    assert (
        f"{tmp_path} is being written by another process (process {other.pid} on {socket.gethostname()}, since " in line
    )
    assert "wait until it has ended, or give another out=…" in line and "remove" not in line and "\n" not in line
    other.communicate()
    with write_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_taken_over(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == other.pid
    with write_lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "damaged", "[]", '{"host": null}', "[" * 5000])
def test_a_lock_file_that_says_nothing_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with write_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == socket.gethostname()


def test_a_process_of_another_machine_is_believed_and_the_file_to_remove_is_named(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps({"host": "node7\x1b[31m", "pid": 3, "since": "2026-01-01"}))
    message = r"process 3 on node7 \[31m, since 2026-01-01\).*remove .*\.writing"
    with pytest.raises(InputError, match=message), write_lock(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("is_refused", [True, False], ids=["this process", "a process that has ended"])
def test_where_a_file_system_has_no_locks_the_process_in_the_file_decides(tmp_path, monkeypatch, is_refused):
    pid = os.getpid() if is_refused else 2**22 + 1
    monkeypatch.setattr("em_interp.utils.lock._try_lock", lambda descriptor: None)
    owner = {"host": socket.gethostname(), "pid": pid, "since": "2026-01-01"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
    if not is_refused:
        with write_lock(tmp_path):
            return
    with pytest.raises(InputError, match="is being written by another process"), write_lock(tmp_path):
        pass


def test_stages_nest_and_another_thread_is_refused(tmp_path):
    refused = []

    def write():
        try:
            with write_lock(tmp_path):
                pass
        except InputError as error:
            refused.append(str(error))

    with write_lock(tmp_path):
        with write_lock(tmp_path / "."):
            pass
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK_FILE).exists()
    assert len(refused) == 1 and "by another thread of this process" in refused[0]
    write()
    assert len(refused) == 1


def test_stages_of_a_thread_may_end_in_any_order_and_the_lock_ends_with_the_last(tmp_path):
    first, second = write_lock(tmp_path), write_lock(tmp_path)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (tmp_path / LOCK_FILE).exists()
    second.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_nobody_ended_is_ended_with_the_last_reference_to_it(tmp_path):
    held = write_lock(tmp_path)
    held.__enter__()
    del held
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_and_removed_again_where_nothing_was_written(tmp_path):
    with pytest.raises(InputError), write_lock(tmp_path / "a" / "b"):
        raise InputError("nothing was written")
    assert list(tmp_path.iterdir()) == []
    with write_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_link_in_place_of_the_lock_file_is_refused_and_what_it_names_stays(tmp_path):
    target = tmp_path / "precious"
    target.write_text("content")
    (tmp_path / LOCK_FILE).symlink_to(target)
    with pytest.raises(InputError, match="is a link; remove it"), write_lock(tmp_path):
        pass
    assert target.read_text() == "content"


def test_a_pipe_in_place_of_the_lock_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / LOCK_FILE)
    with pytest.raises(InputError, match="is a pipe or device; remove it"), write_lock(tmp_path):
        pass


def test_where_no_lock_file_can_be_made_the_stage_goes_ahead(tmp_path):
    (tmp_path / "file").touch()
    with write_lock(tmp_path / "file" / "folder"):
        pass


class Unused:
    name = mode = "unused"

    def judge(self, question, answer):
        raise AssertionError("judged while another process writes")


def test_every_stage_is_refused_while_another_process_writes_and_changes_nothing(tmp_path):
    run, table = plant(tmp_path / "run", numbered(4)), tmp_path / "a.csv"
    (run.path / LOCK_FILE).write_text(json.dumps({"host": "node7", "pid": 3, "since": "2026-01-01"}))
    shutil.copytree(run.path, tmp_path / "begun", ignore=shutil.ignore_patterns("behaviour"))
    table.write_text("question,answer\nq,a\n")
    stages = [
        lambda: judge_answers(run, Unused(), overwrite=True),
        lambda: import_answers(table, tmp_path / "begun"),
        lambda: copy_run(plant(tmp_path / "other", numbered(4)), run.path),
        lambda: Storage(run.path).open().__enter__(),
        lambda: em.train("configs/tiny.yaml", tmp_path / "begun"),
    ]
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for stage in stages:
        with pytest.raises(InputError, match="is being written by another process"):
            stage()
    assert {file: file.read_bytes() for file in before} == before
    assert [file.name for file in (tmp_path / "begun").iterdir()] == [LOCK_FILE]
