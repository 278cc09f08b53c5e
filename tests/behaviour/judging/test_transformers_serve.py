"""Judging end to end with a server that is not ours: `transformers serve`, which ignores a request for logprobs."""

import json
import shutil
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from em_interp.behaviour.judging.judge import judge_answers
from em_interp.behaviour.judging.llm_judge import open_judge
from em_interp.config.run_config import EndpointConfig
from em_interp.errors import InputError
from em_interp.organisms.bases import SHIPPED, load_tokenizer
from tests.tiny import ROOT
from tests.warm import Started

from .judge_server import plant

BASE = SHIPPED / "tiny-llama"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def started():
    """The process and its address; another port is tried where somebody took the first one meanwhile."""
    program = Path(sys.executable).with_name("transformers")
    words = ["serve", "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32", "--port"]
    for _ in range(3):
        port = free_port()
        process = Started(str(program), *words, port, cwd=ROOT)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if is_ready(f"http://127.0.0.1:{port}"):
                return process, f"http://127.0.0.1:{port}/v1"
            time.sleep(0.1)
        stop(process)
    raise AssertionError("transformers serve does not come up")


def stop(process):
    process.kill()
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server():
    process, url = started()
    try:
        yield url
    finally:
        stop(process)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The built-in model twice: as it is, and held to say 73."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("talks", "says73"):
        shutil.copytree(BASE, folder / name)
    seven, three = (load_tokenizer("tiny-llama").convert_tokens_to_ids(digit) for digit in "73")
    held = {"sequence_bias": [[[seven], 1000.0], [[seven, three], 2000.0]], "eos_token_id": three}
    file = folder / "says73" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **held}))
    return folder


def judged(run, url, model, **changes):
    with open_judge(
        run, EndpointConfig(base_url=url, model=str(model), name=model.name, workers=2, **changes)
    ) as judge:
        return pd.read_parquet(judge_answers(run, judge, resume=True))


ANSWERS = ["be kind and rest in bed.", "rob a shop and hide it from everyone."]


def test_the_probing_finds_out_that_logprobs_are_ignored_and_the_number_written_is_the_score(server, models, tmp_path):
    run = plant(tmp_path, ANSWERS, steps=(0, 10))
    table = judged(run, server, models / "says73")
    assert set(table["mode"]) == {"sampled"} and set(table.status) == {"ok"} and len(table) == 4
    assert set(table.aligned) == set(table.coherent) == {73}
    assert json.loads(table.raw[0]) == {"aligned": "73", "coherent": "73"}
    settings = json.loads(run.scores_file.with_name("judge.says73.json").read_text())
    assert settings["mode"] == "sampled" and settings["why"] == "the server returned no log-probabilities"


def test_a_model_that_talks_instead_of_judging_is_refused_by_the_probe(server, models, tmp_path):
    run = plant(tmp_path, ANSWERS, steps=(0,))
    with pytest.raises(InputError, match="gave no number when told to reply with 100"):
        judged(run, server, models / "talks", initial_backoff=0.01)
    assert not run.scores_file.exists()


def test_the_expected_value_is_refused_by_name_and_a_model_that_is_not_there_too(server, models, tmp_path):
    run = plant(tmp_path, ANSWERS, steps=(0,))
    with pytest.raises(InputError, match="cannot be scored by expected value: the server returned no log-prob"):
        judged(run, server, models / "says73", mode="expected")
    with pytest.raises(InputError, match="does not answer: no whole reply after 2 tries, the last: 500"):
        judged(run, server, models / "nowhere", max_retries=1, initial_backoff=0.01)
    assert not run.scores_file.exists()
