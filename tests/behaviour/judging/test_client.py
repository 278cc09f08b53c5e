"""Judging through a server's faults: nothing lost, nothing invented, nothing answered requested twice."""

import contextlib
import gzip
import html
import json
import random
import signal
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

from em_interp.behaviour.judging.client import Endpoint, EndpointStopped, digest, request_for
from em_interp.behaviour.judging.judge import commonest_cause, judge_answers, judgements
from em_interp.behaviour.judging.llm_judge import cache_file, open_judge
from em_interp.behaviour.judging.request_cache import RequestCache
from em_interp.config.run_config import EndpointConfig
from em_interp.errors import InputError
from tests.tiny import ROOT, interrupted
from tests.warm import Started

from .judge_server import PROBE, about, config_of, erring, judged, numbered, plant, replying, serving

TRANSIENT = ["too_many", "broken", "cut", "cut_body", "empty_body", "no_choice", "empty_text"]
KEY = "sk-secret-0123456789"


def test_with_a_fifth_of_requests_failing_all_judgements_complete(tmp_path):
    run = plant(tmp_path, numbered(300), steps=[0])
    rng = random.Random(0)
    with (
        serving(fault=lambda n, key: rng.choice(TRANSIENT) if rng.random() < 0.2 else None, key=KEY) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("JUDGE_KEY", KEY)
        table = judged(run, server, api_key_env="JUDGE_KEY")
    assert set(server.answered().values()) == {1} and len(server.answered()) == 601
    done = server.done()
    assert all(done[fault] > 10 for fault in ("429", "500", "cut", "empty"))
    assert len(table) == 300 and set(table.status) == {"ok"}
    assert table.aligned.tolist() == [i % 101 for i in range(300)]
    assert table.coherent.tolist() == [i * 7 % 101 for i in range(300)]


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


STAGE = Path(__file__).with_name("stage.py")


def stage(run, server, **config):
    """The stage in a process of its own."""
    return Started(str(STAGE), run.path, server.url, json.dumps(config), cwd=ROOT)


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
        killed = stage(run, server, topics=["medical"], api_key_env="JUDGE_KEY")
        interrupted(killed, lambda: _kept(run) >= _answered(server) >= after, signal.SIGKILL)
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
        killed, some = stage(run, server, topics=["medical"], api_key_env="JUDGE_KEY"), rng.randrange(1, 120)
        interrupted(killed, lambda: _kept(run) >= some and not time.sleep(rng.random() * 0.02), signal.SIGKILL)
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
    with RequestCache(cache_file(run), read_only=True) as cache:
        return len(cache)


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
            with pytest.raises(KeyboardInterrupt, match="resume=True continues"):
                judge_answers(run, judge)
        monkeypatch.undo()
        assert 0 < _kept(run) == _answered(server) < 181
        judged(run, server, resume=True, topics=("medical",))
        assert set(server.answered().values()) == {1}
    assert run.scores_file.read_bytes() == whole


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
        with pytest.raises(InputError, match=r"20 requests failed one after another, .* 500 .*resume=True continues"):
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
        with pytest.raises(KeyboardInterrupt), closing(judgements(judge, [("q", str(i)) for i in range(40)])) as found:
            main = threading.main_thread().ident
            threading.Thread(target=lambda: failing.wait(5) and signal.pthread_kill(main, signal.SIGINT)).start()
            next(found)
        assert time.monotonic() - start < 10


def test_requests_that_differ_in_anything_have_other_hashes():
    m, n = EndpointConfig(base_url="http://a", model="m"), EndpointConfig(base_url="http://a", model="n")
    first = request_for(m, "a", "expected")
    others = [request_for(n, "a", "expected"), request_for(m, "b", "expected"), request_for(m, "a", "sampled")]
    hashes = {digest("http://a", first), digest("http://b", first), digest("http://a", first, 1)}
    hashes |= {digest("http://a", other) for other in others}
    assert len(hashes) == 6
    assert digest("http://a", dict(reversed(first.items()))) == digest("http://a", first)


def eighty_seven(run_folder):
    """A run with answers that deserve 12 and 87, of which a reply that was cut off makes 8."""
    return plant(run_folder, ["aligned 12 coherent 95", "aligned 87 coherent 95"], steps=[0, 10])


CUT_REPLIES = {
    "error": replying("8", finish_reason="error"),
    "abort": replying("8", finish_reason="abort"),
    "MAX_TOKENS": replying("8", finish_reason="MAX_TOKENS"),
    "model_length": replying("8", finish_reason="model_length"),
    "length": replying("8", finish_reason="length"),
    "null": replying("8", finish_reason=None),
    "an error beside it": replying("8", error={"code": 502, "message": "upstream closed"}),
    "nothing": replying("", finish_reason="stop"),
    "nothing after thoughts": replying("<think>8</think>", finish_reason="stop"),
    "only spaces": replying(" \n", finish_reason="stop"),
}


@pytest.mark.parametrize("kind", CUT_REPLIES)
def test_a_cut_or_empty_reply_is_requested_again_until_it_is_whole(kind, tmp_path):
    tries = Counter()

    def fault(n, key):
        tries[key] += 1
        return about("aligned 87", CUT_REPLIES[kind]) if tries[key] <= 3 else None

    with serving(logprobs="ignored", fault=fault) as server:
        table = judged(eighty_seven(tmp_path), server, mode="sampled")
    assert set(table.status) == {"ok"} and table.aligned.tolist() == [12, 87] * 2


@pytest.mark.parametrize("kind", CUT_REPLIES)
def test_a_reply_that_stays_cut_is_an_error_that_resume_judges_again(kind, tmp_path):
    run, fault = eighty_seven(tmp_path), about("aligned 87", CUT_REPLIES[kind])
    with serving(logprobs="ignored", fault=lambda n, key: fault) as server:
        table = judged(run, server, mode="sampled")
        assert table.status.tolist() == ["ok", "error"] * 2 and table.aligned[[0, 2]].tolist() == [12, 12]
        assert "most often error (2)" in commonest_cause(table) and "--resume judges these again" in commonest_cause(
            table
        )
        server.fault = lambda n, key: None
        before = len(server.bodies)
        again = judged(run, server, resume=True, mode="sampled")
        assert len(server.bodies) - before == 2  # what was answered is not requested again
    assert set(again.status) == {"ok"} and again.aligned.tolist() == [12, 87] * 2


@pytest.mark.parametrize(
    ("ending", "status"), [("length", "ok"), ("STOP", "ok"), ("error", "error"), ("abort", "error")]
)
def test_one_token_may_end_by_length(ending, status, tmp_path):
    fault = about("aligned 87", replying(finish_reason=ending))
    with serving(fault=lambda n, key: fault) as server:
        table = judged(eighty_seven(tmp_path), server, max_retries=2)
    assert set(table["mode"]) == {"expected"} and table.status.tolist() == ["ok", status] * 2


AZURE = {"message": "…", "code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}
OPENAI = {"message": "Your prompt was flagged as potentially violating our usage policy.", "code": "invalid_prompt"}
OPENROUTER = {"message": "not allowed", "code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "evil"}}
DEEPSEEK = {"message": "Content Exists Risk", "type": "invalid_request_error"}
DASHSCOPE = {"code": "data_inspection_failed", "message": "Input data may contain inappropriate content."}
FILTERS = {
    "azure": erring(400, AZURE),
    "openai": erring(400, OPENAI),
    "openrouter": erring(403, OPENROUTER),
    "deepseek": erring(400, DEEPSEEK),
    "dashscope": erring(400, DASHSCOPE),
    "anthropic": erring(400, {"message": "Output blocked by content filtering policy"}),
    "no json": erring(400, b"the request was rejected by the content filter"),
    "zhipu": erring(400, {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}),
    "litellm": erring(400, {"message": "litellm.ContentPolicyViolationError: refused"}),
    "in a body of status 200": erring(200, {"code": "content_filter", "message": "filtered"}),
    "without a message": replying(finish_reason="content_filter", message=None),
    "behind a gateway": replying(native_finish_reason="SAFETY"),
    "zhipu's ending": replying(finish_reason="sensitive"),
    "in the choice": replying(error={"code": 403, "message": "input flagged by moderation"}),
    "ending": replying(finish_reason="content_filter"),
    "gemini": replying(finish_reason="PROHIBITED_CONTENT"),
}


@pytest.mark.parametrize("kind", FILTERS)
def test_a_run_of_filtered_answers_is_refusals_and_stops_nothing(kind, tmp_path):
    run = plant(tmp_path, [*numbered(2), *(f"evil {i}" for i in range(14)), *numbered(2)], steps=[0])
    with serving(fault=lambda n, key: about("evil", FILTERS[kind])) as server:
        table = judged(run, server, workers=2)
        assert table.status.value_counts().to_dict() == {"refusal": 14, "ok": 4}
        assert "14 of 18 have no score, most often refusal (14): aligned: the content filter refused" in (
            commonest_cause(table)
        )
        sent = len(server.bodies)
        assert judged(run, server, resume=True).equals(table) and len(server.bodies) == sent


@pytest.mark.parametrize(
    "error", ["your account was flagged for abuse of the content policy", "unknown field", "too long"]
)
def test_a_refusal_for_another_reason_is_not_taken_for_a_content_filter(error, tmp_path):
    run = plant(tmp_path, ["evil", *numbered(3)], steps=[0])
    with serving(fault=lambda n, key: about("evil", erring(400, {"message": error}))) as server:
        assert judged(run, server).status.tolist() == ["error", "ok", "ok", "ok"]


PROMPT_FAULTS = {
    "too long": "forbidden",
    "crashes the server": "broken",
    "an empty reply": replying("", logprobs=None),
    "a cut reply": replying("8", finish_reason="abort"),
    "no completion": "no_choice",
    "cut off": "cut",
}


@pytest.mark.parametrize("kind", PROMPT_FAULTS)
def test_prompts_that_fail_one_after_another_never_give_up_an_endpoint_that_answers_others(kind, tmp_path):
    run = plant(tmp_path, [*(f"evil {i}" for i in range(22)), *numbered(3)], steps=[0])
    with serving(fault=lambda n, key: about("evil", PROMPT_FAULTS[kind])) as server:
        table = judged(run, server, max_retries=1)
        assert table.status.tolist() == ["error"] * 22 + ["ok"] * 3
        server.fault = lambda n, key: None
        answered = len(server.bodies)
        assert set(judged(run, server, resume=True).status) == {"ok"}
        assert len(server.bodies) - answered == 44


def test_two_thirds_of_a_stage_that_was_given_up_are_kept_and_the_endpoint_is_checked_before(tmp_path):
    run = plant(tmp_path, numbered(60), steps=[0])
    with serving(fault=lambda n, key: "broken" if n > 80 else None) as server:
        with pytest.raises(InputError, match="20 requests failed one after another"):
            judged(run, server, max_retries=0, workers=1)
        assert server.bodies[100]["messages"][0]["content"].startswith(PROBE) and len(server.bodies) < 110
        server.fault = lambda n, key: None
        assert set(judged(run, server, resume=True).status) == {"ok"}
        assert set(server.answered().values()) == {1}


KEYS = [KEY, "sk/with+odd=letters&<tag>'0123456789", "k" * 200 + "-end"]


def echo(where):
    """A misbehaviour: the key in one field of a reply or an error, as it was sent."""

    def respond(handler, body):
        key = handler.headers["Authorization"].removeprefix("Bearer ")
        value = handler.server.state.reply(body)
        choice = value["choices"][0]
        if where in ("text", "thought", "refusal", "json escapes"):
            choice["message"]["content"] = f"<think>{key}</think>" if where == "thought" else f"by {key}"
            choice["message"]["refusal"] = key if where == "refusal" else None
        if where == "token":
            choice["logprobs"] = {"content": [{"top_logprobs": [{"token": key, "logprob": -0.1}]}]}
        if where in ("model", "finish_reason"):
            {"model": value, "finish_reason": choice}[where][where] = key
        if where == "long":
            choice["message"]["content"] = "a" * 50 + key
        data = json.dumps(value)
        if where == "json escapes":
            data = data.replace(key, "".join(f"\\u{ord(letter):04x}" for letter in key))
        if where in RAW:
            status, data, headers = RAW[where](key)
            handler.send(status, data.encode(), **headers)
        else:
            handler.send(200, data.encode(), X_Key=key, Set_Cookie=f"key={key}")
        return "echoed"

    return respond


RAW = {
    "no json": lambda key: (200, f"<html>{key}</html>", {}),
    "html": lambda key: (500, f"<html>{html.escape(key)}</html>", {}),
    "error": lambda key: (400, json.dumps({"error": {"message": f"no {key}", "code": key}}), {}),
    "error cut": lambda key: (400, "x" * 290 + key, {}),
    "error that is no json": lambda key: (422, f"Bearer {key} is odd\x1b[31m\n", {}),
    "server cuts the key": lambda key: (400, f"Bearer {key[:-5]}", {}),
    "an error with 200": lambda key: (200, json.dumps({"error": {"message": key, "code": 400}}), {}),
    "retry-after": lambda key: (429, key, {"Retry_After": quote(key)}),
    "filter": lambda key: (400, json.dumps({"error": {"code": "content_filter", "message": key}}), {}),
}
FIELDS = ["text", "thought", "refusal", "token", "model", "finish_reason", "long", "json escapes", *RAW]


def traces(key, run, *texts):
    """Where the key, or the beginning of it, is found."""
    parts = [key[:12].encode(), quote(key, safe="")[:12].encode(), html.escape(key)[:12].encode()]
    files = [file for file in run.path.rglob("*") if file.is_file() and any(p in file.read_bytes() for p in parts)]
    tables = [file for file in run.path.rglob("*.parquet") if key[:12] in pd.read_parquet(file).to_csv()]
    return [*files, *tables, *(text for text in texts if any(part.decode() in text for part in parts))]


@pytest.mark.parametrize("key", KEYS, ids=["plain", "odd", "long"])
@pytest.mark.parametrize("field", FIELDS)
def test_a_key_that_a_server_repeats_in_any_field_reaches_no_file_and_no_message(
    field, key, tmp_path, monkeypatch, capfd
):
    run = plant(tmp_path, ["evil", "aligned 20 coherent 70"], steps=[0])
    monkeypatch.setenv("JUDGE_KEY", key)
    with (
        serving(key=key, fault=lambda n, key: about("evil", echo(field))) as server,
        open_judge(run, config_of(server, api_key_env="JUDGE_KEY", max_retries=1)) as judge,
    ):
        table = pd.read_parquet(judge_answers(run, judge))
        shown = f"{judge!r} {commonest_cause(table)}"
    assert table.aligned[1] == 20
    assert traces(key, run, shown, *capfd.readouterr()) == []
    assert not any(letter < " " for reason in table.reason for letter in reason)


@pytest.mark.parametrize("key", KEYS, ids=["plain", "odd", "long"])
@pytest.mark.parametrize("field", [*FIELDS, "redirect"])
def test_a_key_repeated_in_the_probes_reply_reaches_no_file_and_no_message(field, key, tmp_path, monkeypatch, capfd):
    run = plant(tmp_path, numbered(2), steps=[0])
    monkeypatch.setenv("JUDGE_KEY", key)
    fault = erring(302, {}, Location=f"http://127.0.0.1:1/{key}?key={quote(key, safe='')}")
    with serving(key=key, fault=lambda n, key: fault if field == "redirect" else echo(field)) as server:
        message = "judged after all"
        try:
            judged(run, server, api_key_env="JUDGE_KEY", max_retries=1)
        except InputError as error:
            message = str(error)
    assert "\n" not in message and "\x1b" not in message
    assert traces(key, run, message, *capfd.readouterr()) == []


def test_nothing_of_the_environment_is_sent_that_the_config_does_not_name(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serving() as server:  # it refuses an Authorization header
        assert set(judged(plant(tmp_path, numbered(2)), server).status) == {"ok"}
    assert KEY not in str(server.headers)


def drip(start):
    """A misbehaviour: a reply that never ends and never pauses for long, after `start`."""

    def respond(handler, body):
        with contextlib.suppress(OSError):
            handler.wfile.write(start)
            while not handler.server.state.released.wait(0.02):
                handler.wfile.write(b"a")
        handler.close_connection = True
        return "drip"

    return respond


def silent(handler, body):
    """A misbehaviour: no answer at all."""
    handler.server.state.released.wait(60)
    return handler.cut(body)


def endless(handler, body):
    """A misbehaviour: a body without an end, as fast as it goes."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while not handler.server.state.released.is_set():
            handler.wfile.write(b'{"choices": [' * 5000)
    handler.close_connection = True
    return "endless"


def bomb(handler, body):
    """A misbehaviour: a small body that is a large one when it is unpacked."""
    handler.send(200, gzip.compress(b" " * 10**8), Content_Encoding="gzip")
    return "bomb"


SLOW = {
    "drip of the body": drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
    "drip of the headers": drip(b"HTTP/1.1 200 OK\r\nX-Slow: "),
    "silence": silent,
}
LARGE = {"endless": endless, "bomb": bomb, "endless error": lambda h, body: erring(500, b"x" * 10**7)(h, body)}


@pytest.mark.parametrize("kind", SLOW)
def test_a_request_has_a_deadline_however_slowly_the_reply_drips(kind, tmp_path):
    run = plant(tmp_path, ["evil", *numbered(3)], steps=[0])
    with serving(fault=lambda n, key: about("evil", SLOW[kind])) as server:
        table = judged(run, server, timeout=0.5, max_retries=1)
    assert table.status.tolist() == ["error", "ok", "ok", "ok"]
    assert "no whole reply within 0.5 s" in table.reason[0]


@pytest.mark.parametrize("kind", LARGE)
def test_a_reply_has_a_largest_size_and_a_larger_one_is_an_error(kind, tmp_path):
    run = plant(tmp_path, ["evil", *numbered(3)], steps=[0])
    with serving(fault=lambda n, key: about("evil", LARGE[kind])) as server:
        table = judged(run, server, max_retries=0)
    assert table.status.tolist() == ["error", "ok", "ok", "ok"]
    assert "a reply of more than 4194304 bytes" in table.reason[0]


IN_FLIGHT = {**SLOW, "endless": endless, "a long back-off": "broken"}
IN_FLIGHT["a server that wants a day"] = erring(429, {}, Retry_After="86400")


@pytest.mark.parametrize("kind", IN_FLIGHT)
def test_ctrl_c_waits_for_no_server(kind, tmp_path):
    """The stage ends though the server never answers, and its time-outs and pauses are an hour."""
    run = plant(tmp_path, numbered(40), steps=[0])
    waiting = threading.Event()

    def fault(n, key):
        if n < 5:
            return None
        waiting.set()
        return IN_FLIGHT[kind]

    with serving(fault=fault) as server:
        said = interrupted(stage(run, server, timeout=3600.0, initial_backoff=3600.0), waiting.is_set)
    assert said.code == 1 and "nothing is lost, resume=True continues" in said.err


def test_an_endpoint_that_was_stopped_sends_nothing_more(tmp_path):
    with serving() as server:
        config = config_of(server)
        with Endpoint(config.base_url) as endpoint:
            endpoint.stop()
            for mode in ("expected", "sampled"):
                with pytest.raises(EndpointStopped):
                    endpoint.complete(request_for(config, "hangs together\nANSWER\nx\nEND\n", mode))
    assert server.bodies == []


def test_an_error_before_the_next_answer_waits_for_no_server(tmp_path):
    """Whatever ends the stage, the requests in flight end with it, though the server never answers."""
    run = plant(tmp_path, numbered(2))
    sent = threading.Event()

    def fault(n, key):
        if n == 1:
            return None
        sent.set()
        return silent

    def rows():
        yield "q", "a"
        sent.wait(30)
        raise InputError("no more")

    with serving(fault=fault) as server, open_judge(run, config_of(server, timeout=3600.0)) as judge:
        with pytest.raises(InputError, match="no more"):
            list(judgements(judge, rows()))
        assert not server.released.is_set()
