"""Asking through vLLM: the tables are those of this process, nothing is lost or asked twice, and faults are named."""

import json
import signal
import time

import numpy as np
import pandas as pd
import pytest

from em_interp.behaviour import preference as preference_module
from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.sampling import ask as ask_module
from em_interp.behaviour.sampling.ask import ask
from em_interp.config.run_config import VLLMConfig
from em_interp.errors import InputError
from em_interp.utils.processes import Processes
from tests.interrupting import interrupt_call
from tests.tiny import ROOT, interrupted
from tests.warm import Started

from ..conftest import SITES, make_model, make_trajectory, save_run
from ..sampling.test_ask import PAIRS, QUESTIONS
from .vllm_server import serving

SETTINGS = {"steps": [0, 5, 10], "scales": [1.0, 0.0, 2.0], "samples": 2, "max_new_tokens": 6, "seed": 3}
KEY = "vllm-secret-0123456789"


def servers_of(*states, **changes):
    urls = [state.url for state in states]
    return VLLMConfig(base_url=urls, **{"initial_backoff": 0.001, "workers": 8, "max_loras": 2, **changes})


def asked(run, base, *states, resume=False, config=None, **changes):
    return pd.read_parquet(
        ask(run, base, QUESTIONS, **{**SETTINGS, **changes}, resume=resume, servers=config or servers_of(*states))
    )


@pytest.fixture
def vllm(base):
    with serving(base.model, base.tokenizer) as state:
        yield state
    assert state.complaints == []


def test_greedy_answers_and_log_likelihoods_are_those_of_this_process(run, base, vllm, tmp_path, capsys):
    local = save_run(tmp_path / "local", make_trajectory(SITES))
    greedy = {"samples": 1, "temperature": 0.0}  # scale 0 among them: the base
    here = pd.read_parquet(ask(local, base, QUESTIONS, **{**SETTINGS, **greedy}))
    there = asked(run, base, vllm, **greedy)
    assert there.equals(here) and there.answer.nunique() > 6
    assert "8 greedy answers beside ours: 0 differ, 0.0% of their" in capsys.readouterr().err
    read_preferences(local, base, PAIRS, [0, 5, 10], [1.0, 2.0])
    read_preferences(run, base, PAIRS, [0, 5, 10], [1.0, 2.0], servers=servers_of(vllm))
    here, there = (pd.read_parquet(each.preferences_file) for each in (local, run))
    numbers = ["log_likelihood_aligned", "log_likelihood_misaligned"]
    assert there.drop(columns=numbers).equals(here.drop(columns=numbers))
    np.testing.assert_allclose(there[numbers], here[numbers], rtol=1e-5)
    assert not vllm.adapters and not list(run.answers_file.parent.glob("*.adapters"))


def test_adapters_are_reused_few_are_loaded_and_many_requests_are_in_flight(run, base, vllm):
    table = asked(run, base, vllm)
    assert len(table) == 3 * 3 * 3 * 2 and not table.drop(columns="answer").duplicated().any()
    assert set(vllm.sampled().values()) == {1} and len(vllm.sampled()) == len(table)
    loads = [body["lora_name"] for path, body in vllm.calls if path == "/v1/load_lora_adapter"]
    assert len(loads) - len(set(loads)) <= 7  # the base and those of the comparison before are loaded again
    assert vllm.most_loaded == 2 and 2 < vllm.most_at_once <= 8


def test_two_servers_share_the_answers_through_a_fifth_of_faults(run, base, monkeypatch):
    monkeypatch.setenv("VLLM_KEY", KEY)
    rng = np.random.default_rng(0)
    fault = lambda n, path, body: rng.choice(["cut", "broken", "lost"]) if rng.random() < 0.2 else None  # noqa: E731
    settings = {"key": KEY, "fault": fault}
    with (
        serving(base.model, base.tokenizer, **settings) as one,
        serving(base.model, base.tokenizer, **settings) as two,
    ):
        table = asked(run, base, config=servers_of(one, two, api_key_env="VLLM_KEY", workers=4))
    assert len(table) == 54 and one.sampled() and two.sampled()
    assert set((one.sampled() + two.sampled()).values()) == {1}
    assert KEY not in "".join(path.read_bytes().decode("latin1") for path in run.path.rglob("*") if path.is_file())


def test_a_sampled_answer_depends_on_its_own_seed_alone(run, base, tmp_path):
    tables = []
    for name, workers in (("a", 1), ("b", 8)):
        with serving(base.model, base.tokenizer) as state:
            place = save_run(tmp_path / name, make_trajectory(SITES))
            tables.append(asked(place, base, config=servers_of(state, workers=workers), steps=[10], scales=[1.0]))
    assert tables[0].equals(tables[1])


DRIVER = """
import json, sys
from pathlib import Path
from em_interp.behaviour.sampling.ask import ask
from em_interp.config.run_config import VLLMConfig
from em_interp.run import Run
from tests.behaviour.conftest import Base, build_tokenizer, make_model
from tests.behaviour.sampling.test_ask import QUESTIONS
from tests.behaviour.vllm.test_engine import SETTINGS

base = Base(make_model("qwen2"), build_tokenizer())
servers = VLLMConfig(base_url=sys.argv[2], workers=4, max_loras=2)
ask(Run(Path(sys.argv[1])), base, QUESTIONS, **SETTINGS, servers=servers)
"""


def test_after_a_kill_no_answer_is_lost_or_asked_twice(run, base, vllm, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    vllm.hold_after = 20
    killed = Started(str(driver), run.path, vllm.url, cwd=ROOT)
    interrupted(killed, lambda: _kept(run) >= 20, signal.SIGKILL)
    assert not run.answers_file.exists() and len(vllm.sampled()) == 20 and vllm.adapters  # left behind
    vllm.released.set()
    while vllm.at_once:  # what the killed process had asked reaches nobody, and is not counted as answered
        time.sleep(0.02)
    vllm.hold_after = None
    table = asked(run, base, vllm, resume=True)
    assert len(table) == 54 and len(vllm.sampled()) == 54 and set(vllm.sampled().values()) == {1}
    assert not vllm.adapters


def test_ctrl_c_keeps_what_has_come(run, base, vllm, monkeypatch):
    calls = interrupt_call(monkeypatch, ask_module, "write_json", 5)
    with pytest.raises(KeyboardInterrupt, match="nothing is lost, resume=True continues"):
        asked(run, base, vllm)
    assert not run.answers_file.exists() and not vllm.at_once
    table = asked(run, base, vllm, resume=True)
    again = sum(vllm.sampled().values()) - len(vllm.sampled())
    assert len(table) == 54 and again <= 8 + len(calls[4][1])  # in flight, or not written


def _kept(run):
    parts = run.answers_file.with_name("answers.parts").glob("[0-9]*.json")
    return sum(len(json.loads(part.read_text())) for part in parts)


def test_an_adapter_that_does_not_land_is_an_error(run, base):
    with (
        serving(base.model, base.tokenizer, lands=False) as state,
        pytest.raises(InputError, match=r"through the adapter of step \d+ as the base does: .* 0 nats a token"),
    ):
        asked(run, base, state)
    assert not run.answers_file.exists() and not state.sampled()


@pytest.mark.parametrize("scales", [[1.0], [0.0, 1.0]])
def test_an_adapter_that_does_not_land_is_an_error_where_the_first_part_read_is_the_base(
    run, base, monkeypatch, scales
):
    monkeypatch.setattr(preference_module, "ROWS", 1)  # a part is one step and scale: step 0 is the first, where B is 0
    with (
        serving(base.model, base.tokenizer, lands=False) as state,
        pytest.raises(InputError, match=r"through the adapter of step \d+ as the base does"),
    ):
        read_preferences(run, base, PAIRS, [0, 5, 10], scales, servers=servers_of(state))
    assert not run.preferences_file.exists()


def test_servers_are_compared_once_at_all_steps_that_are_read(run, base, vllm, monkeypatch, capsys):
    monkeypatch.setattr(preference_module, "ROWS", 1)
    read_preferences(run, base, PAIRS, [0, 5, 10], servers=servers_of(vllm))
    assert capsys.readouterr().err.count("8 greedy answers beside ours: 0 differ") == 1


def test_an_adapter_that_is_scaled_wrongly_is_an_error(run, base):
    with (
        serving(base.model, base.tokenizer, factor=0.25) as state,
        pytest.raises(
            InputError, match=r"another base and a wrong scaling|does not sample from the models of this run"
        ),
    ):
        asked(run, base, state)


def test_another_base_is_an_error(run, base):
    with (
        serving(make_model("qwen2", seed=5), base.tokenizer) as state,
        pytest.raises(InputError, match="another base"),
    ):
        asked(run, base, state)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"max_lora_rank": 0}, "LoRA rank 1 is greater than max_lora_rank 0.*em-interp serve RUN starts one"),
        ({"max_model_len": 10}, "sequences of up to 10 tokens; this run needs"),
        ({"key": KEY}, "401 Unauthorized: None: the key is missing or wrong"),
        ({"fault": lambda n, path, body: "broken"}, "no whole reply after 2 tries, the last: 503 overloaded"),
    ],
)
def test_what_a_server_cannot_do_is_said_in_a_line(run, base, settings, said):
    with (
        serving(base.model, base.tokenizer, **settings) as state,
        pytest.raises(InputError, match=said) as raised,
    ):
        asked(run, base, config=servers_of(state, max_retries=1))
    assert "\n" not in str(raised.value) and not run.answers_file.exists()


def test_no_server_is_an_error_that_says_how_to_start_one(run, base):
    config = VLLMConfig(base_url="http://127.0.0.1:1/v1", max_retries=0)
    with pytest.raises(InputError, match=r"does not answer: .* em-interp serve RUN starts one"):
        asked(run, base, config=config)


def test_a_key_that_the_server_echoes_is_in_no_message(run, base, monkeypatch):
    monkeypatch.setenv("VLLM_KEY", KEY)
    with (
        serving(base.model, base.tokenizer, key=KEY, fault=lambda n, path, body: "broken") as state,
        pytest.raises(InputError, match=r"the key was \[key\]"),
    ):
        asked(run, base, config=servers_of(state, api_key_env="VLLM_KEY", max_retries=0))


def test_answers_of_this_process_are_not_continued_by_servers(run, base, vllm):
    ask(run, base, QUESTIONS, **SETTINGS)
    with pytest.raises(InputError, match="begun with other engine"):
        asked(run, base, vllm, resume=True)


def test_several_processes_do_not_share_the_work_of_servers(run, base, monkeypatch):
    for module in (ask_module, preference_module):
        monkeypatch.setattr(module, "init_processes", lambda wait: Processes(1, 2))
    said = "vLLM servers are given their work by one process"
    with pytest.raises(InputError, match=said):
        ask(run, base, QUESTIONS, **SETTINGS, servers=VLLMConfig())
    with pytest.raises(InputError, match=said):
        read_preferences(run, base, PAIRS, [0, 5], servers=VLLMConfig())
    assert not run.answers_file.parent.exists()
