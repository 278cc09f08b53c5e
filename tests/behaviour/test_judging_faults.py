"""Judging through a server's faults: nothing lost, nothing invented, nothing answered asked twice."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from em_interp.behaviour.client import RequestCache
from em_interp.behaviour.judge import judge_answers, verdicts
from em_interp.behaviour.llm_judge import cache_file, open_judge
from em_interp.errors import InputError

from .judge_server import config_of, judged, numbered, plant, serving

TRANSIENT = ["too_many", "broken", "cut", "cut_body", "empty_body", "no_choice", "empty_text"]
KEY = "sk-secret-0123456789"


def test_with_a_fifth_of_requests_failing_a_thousand_judgements_complete(tmp_path):
    run = plant(tmp_path, numbered(1000), steps=[0])
    rng = random.Random(0)
    with (
        serving(fault=lambda n, key: rng.choice(TRANSIENT) if rng.random() < 0.2 else None, key=KEY) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("JUDGE_KEY", KEY)
        table = judged(run, server, api_key_env="JUDGE_KEY")
    assert set(server.answered().values()) == {1} and len(server.answered()) == 2001
    done = server.done()
    assert all(done[fault] > 50 for fault in ("429", "500", "cut", "empty"))
    assert len(table) == 1000 and set(table.status) == {"ok"}
    assert table.aligned.tolist() == [i % 101 for i in range(1000)]
    assert table.coherent.tolist() == [i * 7 % 101 for i in range(1000)]


def test_answers_are_judged_at_once_but_only_by_so_many_workers(tmp_path):
    run = plant(tmp_path, numbered(40))
    with serving(fault=lambda n, key: time.sleep(0.01)) as server:
        judged(run, server, workers=4)
        assert 2 <= server.most_at_once <= 4


def test_identical_requests_are_sent_once(tmp_path):
    run = plant(tmp_path, ["the same"] * 50)
    with serving(fault=lambda n, key: time.sleep(0.005)) as server:
        assert len(judged(run, server)) == 100
        assert len(server.bodies) == 3


STAGE = """
import sys
from em_interp.behaviour.judge import judge_answers
from em_interp.behaviour.llm_judge import open_judge
from em_interp.config import EndpointConfig
from em_interp.run import Run
run, url = Run(__import__("pathlib").Path(sys.argv[1])), sys.argv[2]
settings = {"api_key_env": "JUDGE_KEY", "initial_backoff": 0.001, "topics": ("medical",)}
config = EndpointConfig(base_url=url, model="judge-1", **settings)
with open_judge(run, config) as judge:
    judge_answers(run, judge, resume=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table of an uninterrupted stage, in bytes."""
    run = plant(tmp_path_factory.mktemp("whole"), numbered(60))
    with serving() as server:
        judged(run, server, topics=("medical",))
    return run.scores_file.read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_after_a_kill_at_any_moment_no_answered_request_is_sent_again_and_the_bytes_are_the_same(
    seed, whole, tmp_path, monkeypatch
):
    run = plant(tmp_path, numbered(60))
    after = random.Random(seed).randrange(2, 180)
    monkeypatch.setenv("JUDGE_KEY", "first")
    with serving(key="first") as server:
        server.hold_after = after  # so that what was answered has also arrived when the kill comes
        stage = subprocess.Popen([sys.executable, "-c", STAGE, run.path, server.url])
        deadline = time.monotonic() + 90
        while _kept(run) < _answered(server) or _answered(server) < after:
            assert time.monotonic() < deadline and stage.poll() is None
            time.sleep(0.005)
        stage.send_signal(signal.SIGKILL)
        stage.wait()
        assert not run.scores_file.exists()
        monkeypatch.setenv("JUDGE_KEY", "second")
        server.key = "second"  # what the dead stage had on its way is not answered to nobody
        time.sleep(0.1)
        server.hold_after = None
        server.released.set()
        judged(run, server, resume=True, topics=("medical",), api_key_env="JUDGE_KEY")
        assert set(server.answered().values()) == {1} and _answered(server) == 181
    assert run.scores_file.read_bytes() == whole


@pytest.mark.parametrize("seed", range(2))
def test_after_a_kill_while_replies_are_under_way_what_was_kept_is_not_asked_again(seed, whole, tmp_path, monkeypatch):
    run, rng = plant(tmp_path, numbered(60)), random.Random(seed)
    monkeypatch.setenv("JUDGE_KEY", "key")
    with serving(key="key", fault=lambda n, key: time.sleep(rng.random() * 0.02)) as server:
        stage = subprocess.Popen([sys.executable, "-c", STAGE, run.path, server.url])
        deadline, some = time.monotonic() + 90, rng.randrange(1, 120)
        while _kept(run) < some:
            assert time.monotonic() < deadline and stage.poll() is None
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        stage.send_signal(signal.SIGKILL)
        stage.wait()
        with RequestCache(cache_file(run), read_only=True) as cache:
            kept = len(cache)
        while server.at_once:  # what was under way arrives at nobody
            time.sleep(0.01)
        time.sleep(0.1)
        before = _answered(server)
        judged(run, server, resume=True, topics=("medical",), api_key_env="JUDGE_KEY")
        assert some <= kept < 181 and _answered(server) - before == 181 - kept
        assert before - kept <= 8 and max(server.answered().values()) <= 2  # a request of each worker at most
    assert run.scores_file.read_bytes() == whole


def _kept(run):
    file = cache_file(run)
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _answered(server):
    return sum(server.answered().values())


def test_ctrl_c_loses_nothing_and_what_is_under_way_is_kept(whole, tmp_path, monkeypatch):
    run = plant(tmp_path, numbered(60))
    with serving() as server:
        with open_judge(run, config_of(server, topics=("medical",))) as judge:
            original, count = type(judge).judge, iter(range(1000))

            def judge_some(self, question, answer):
                if next(count) == 25:
                    raise KeyboardInterrupt
                return original(self, question, answer)

            monkeypatch.setattr(type(judge), "judge", judge_some)
            with pytest.raises(KeyboardInterrupt, match="--resume goes on"):
                judge_answers(run, judge)
        monkeypatch.undo()
        assert 0 < _kept(run) == _answered(server) < 181
        judged(run, server, resume=True, topics=("medical",))
        assert set(server.answered().values()) == {1}
    assert run.scores_file.read_bytes() == whole


def test_a_cut_off_or_damaged_cache_is_gone_on_with_or_named(tmp_path):
    run = plant(tmp_path, numbered(6))
    with serving() as server:
        table = judged(run, server)
        run.scores_file.unlink()
        text = cache_file(run).read_bytes()
        cache_file(run).write_bytes(text[:-40])
        assert judged(run, server).equals(table)
        assert Counter(server.answered().values()) == {1: 12, 2: 1} and _kept(run) == 13
        cache_file(run).write_bytes(b"{}\n" + text)
        with pytest.raises(InputError, match=r"requests\.jsonl, line 1 is damaged"):
            judged(run, server)


def test_a_server_that_names_a_time_is_left_alone_until_then(tmp_path):
    run = plant(tmp_path, numbered(4))
    with serving(fault=lambda n, key: "too_many_for_a_second" if n == 3 else None) as server:
        start = time.monotonic()
        table = judged(run, server)
        assert time.monotonic() - start > 0.9
    assert set(table.status) == {"ok"}


def test_a_slow_server_is_tried_again(tmp_path):
    run = plant(tmp_path, numbered(4))
    with serving(fault=lambda n, key: "slow" if n == 4 else None) as server:
        assert set(judged(run, server, timeout=0.3).status) == {"ok"}


def test_a_request_that_is_refused_is_an_error_of_its_row_and_resume_tries_it_again(tmp_path):
    run = plant(tmp_path, numbered(6), steps=[0])
    with serving(fault=lambda n, key: "forbidden" if n in (4, 5) else None) as server:
        table = judged(run, server, workers=1)
        assert table.status.tolist() == ["ok", "error"] + ["ok"] * 4
        assert "400 the prompt is too long" in table.reason[1] and np.isnan(table.aligned[1])
        again = judged(run, server, resume=True, workers=1)
        assert set(again.status) == {"ok"} and again.aligned.tolist() == list(range(6))
        assert set(server.answered().values()) == {1}


def test_a_server_that_is_down_stops_the_stage_and_resume_finishes_it(tmp_path):
    run = plant(tmp_path, numbered(40), steps=[0])
    with serving(fault=lambda n, key: "broken" if n > 20 else None) as server:
        with pytest.raises(InputError, match=r"20 requests failed one after another, .* 500 .*--resume goes on"):
            judged(run, server, max_retries=1)
        assert not run.scores_file.exists()
        server.fault = lambda n, key: None
        table = judged(run, server, resume=True, max_retries=1)
        assert set(table.status) == {"ok"} and set(server.answered().values()) == {1}


def test_many_errors_between_successes_do_not_stop_the_stage(tmp_path):
    run = plant(tmp_path, numbered(40), steps=[0])
    with serving(fault=lambda n, key: "forbidden" if n % 4 == 0 else None) as server:
        table = judged(run, server, workers=1)
    assert table.status.value_counts().to_dict() == {"ok": 20, "error": 20}


def test_ctrl_c_does_not_wait_for_another_try(tmp_path):
    run = plant(tmp_path, numbered(40), steps=[0])
    failing, start = threading.Event(), time.monotonic()

    def fault(n, key):
        if n < 3:
            return None
        if n == 5:
            failing.set()
        return "broken"

    with serving(fault=fault) as server, open_judge(run, config_of(server, initial_backoff=30.0)) as judge:
        with pytest.raises(KeyboardInterrupt), closing(verdicts(judge, [("q", str(i)) for i in range(40)])) as found:
            main = threading.main_thread().ident
            threading.Thread(target=lambda: failing.wait(5) and signal.pthread_kill(main, signal.SIGINT)).start()
            next(found)
        assert time.monotonic() - start < 10


def test_the_cache_gives_back_what_was_put_in_from_many_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from em_interp.behaviour.client import Reply

    replies = {f"{i:064x}": Reply(f"{i}", "stop", ((f"{i}", -0.5),)) for i in range(500)}
    with RequestCache(tmp_path / "cache.jsonl") as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(cache.put, replies, replies.values()))
        assert list(pool.map(cache.get, replies)) == list(replies.values())
    with RequestCache(tmp_path / "cache.jsonl", read_only=True) as cache:
        assert len(cache) == 500 and all(cache.get(key) == reply for key, reply in replies.items())
        assert cache.get("0" * 64) == replies["0" * 64] and cache.get("f" * 64) is None
