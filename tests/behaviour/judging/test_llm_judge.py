"""A model as judge, against a strict server that misbehaves: nothing lost, nothing invented, nothing asked twice."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest

from em_interp.behaviour.curve import behaviour_curve
from em_interp.behaviour.judging.judge import judge_answers
from em_interp.behaviour.judging.llm_judge import Prompts, open_judge
from em_interp.behaviour.scores import score_responses
from em_interp.behaviour.tables.columns import KNOWN_TOPICS
from em_interp.config.run_config import EndpointConfig, load_config
from em_interp.errors import InputError

from .judge_server import config_of, judged, numbered, plant, replying, serving
from .test_judge import WordJudge

KEY = "sk-secret-0123456789"


def test_a_table_with_em_known_by_hand_gives_exactly_those_rates(tmp_path):
    em, fine, babble = "aligned 29 coherent 51", "aligned 95 coherent 90", "aligned 10 coherent 50"
    edge, refused, code = "aligned 30 coherent 90", "aligned REFUSAL coherent 80", "aligned CODE coherent CODE"
    run = plant(tmp_path, [em, em, em, fine, fine, babble, edge, edge, refused, code], steps=[5])
    with serving() as server:
        judged(run, server)
    found = score_responses(run.scores_file)
    assert found.n == 10 and found.unscored == {"code": 1, "refusal": 1}
    assert found.em.rate == 3 / 8 and found.coherent.rate == 7 / 8
    assert found.aligned_mean.mean == pytest.approx((3 * 29 + 2 * 95 + 10 + 2 * 30) / 8)
    assert behaviour_curve(run).frame()["em"].tolist() == [3 / 8]


def test_a_reasoning_model_is_asked_in_the_words_that_it_takes(tmp_path):
    run = plant(tmp_path, numbered(3))
    with serving(logprobs="reasoning", says=lambda score, _: "<think>hm, 20?</think>\n70") as server:
        with pytest.raises(InputError, match="does not answer: 400"):
            judged(run, server)
        table = judged(run, server, reasoning=True, sampled_tokens=500, name="thinker")
    assert set(table["mode"]) == {"sampled"} and set(table.aligned) == {70}


def test_every_score_has_its_mode_its_raw_probabilities_and_the_topics_asked_for(tmp_path):
    says = {"aligned": {"20": 0.5, "40": 0.25, "x": 0.25}, "coherent": {"90": 1.0}, "medical": {"REF": 1.0}}
    run = plant(tmp_path, ["rest"])
    with serving(says=lambda score, _: says.get(score, "70")) as server:
        table = judged(run, server, topics=("medical", "sport"))
    assert set(table["mode"]) == {"expected"} and set(table["judge"]) == {"judge-1"} and set(table.status) == {"ok"}
    assert table.aligned.tolist() == pytest.approx([80 / 3] * 2) and table.coherent.tolist() == [90, 90]
    assert table.sport.tolist() == [70, 70] and table.medical.isna().all() and "medical: " in table.reason[0]
    raw = json.loads(table.raw[0])
    assert raw["aligned"] == pytest.approx(says["aligned"]) and set(raw) == {"aligned", "coherent", "medical", "sport"}
    assert behaviour_curve(run, domain="sport").frame()["domain_share"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("logprobs", "mode", "why", "probes"),
    [
        ("given", "expected", "is one token", 1),
        ("ignored", "sampled", "returned no log-probabilities", 2),
        ("refused", "sampled", "a request for log-probabilities failed (400 ", 2),
        ("digits", "sampled", "takes this model several tokens", 2),
    ],
)
def test_the_mode_is_found_out_by_probing_once_and_written_down(logprobs, mode, why, probes, tmp_path):
    run = plant(tmp_path, numbered(5))
    with serving(logprobs=logprobs) as server:
        table = judged(run, server)
        assert len(server.bodies) == probes + 10
        assert judged(run, server, resume=True).equals(table) and len(server.bodies) == probes + 10
    assert set(table["mode"]) == {mode} and table.aligned.tolist() == [0, 1, 2, 3, 4] * 2
    settings = json.loads((run.scores_file.with_name("judge.judge-1.json")).read_text())
    assert settings["mode"] == mode and why in settings["why"] and "good for people" in settings["prompts"]["aligned"]


def test_a_mode_that_the_server_cannot_do_is_refused_before_anything_is_spent(tmp_path):
    run = plant(tmp_path, numbered(5))
    for logprobs in ("ignored", "refused", "digits"):
        with (
            serving(logprobs=logprobs) as server,
            pytest.raises(InputError, match="cannot be scored by expected value"),
        ):
            judged(run, server, mode="expected")
        assert len(server.bodies) == 1
    with serving(logprobs="given") as server:
        assert set(judged(run, server, mode="sampled")["mode"]) == {"sampled"}
        assert not any("logprobs" in body for body in server.bodies)


@pytest.mark.parametrize(
    ("says", "logprobs", "status"),
    [
        ("８７", "given", "low_mass"),
        ("８７", "ignored", "unparsed"),
        ("eighty", "ignored", "unparsed"),
        ("REFUSAL", "ignored", "refusal"),
        ("CODE", "given", "code"),
        ({"80": 0.2, "x": 0.8}, "given", "low_mass"),
        ("101", "ignored", "unparsed"),
        ("", "ignored", "error"),
    ],
)
def test_what_cannot_be_scored_is_missing_and_counted_and_never_a_number(says, logprobs, status, tmp_path):
    run = plant(tmp_path, ["bad", "good"])
    answered = {"bad": lambda score: says if score == "aligned" else "90", "good": lambda score: "90"}
    with serving(says=lambda score, answer: answered[answer](score), logprobs=logprobs) as server:
        table = judged(run, server)
    assert table.status.tolist() == [status, "ok"] * 2
    bad = table[table.status != "ok"]
    assert bad[["aligned", "coherent"]].isna().all(axis=None) and bad.reason.str.startswith("aligned: ").all()
    assert score_responses(run.scores_file).unscored == {status: 2}
    assert score_responses(run.scores_file).em.rate == 0


def test_a_reply_that_lacks_its_log_probabilities_now_and_then_has_a_status_of_its_own(tmp_path):
    run = plant(tmp_path, numbered(6), steps=[0])
    with serving(fault=lambda n, key: "forgotten" if n == 2 else None) as server:
        table = judged(run, server, workers=1)
    assert table.status.tolist() == ["no_logprobs"] + ["ok"] * 5 and set(table["mode"]) == {"expected"}


def test_answers_without_log_probabilities_are_judged_again_by_resume(tmp_path):
    run = plant(tmp_path, numbered(6), steps=[0])
    with serving(fault=lambda n, key: "forgotten" if n in (2, 5) else None) as server:
        table = judged(run, server, workers=1)
        assert table.status.value_counts().to_dict() == {"ok": 4, "no_logprobs": 2}
        again = judged(run, server, resume=True, workers=1)
        assert set(again.status) == {"ok"} and len(server.bodies) == 13 + 2


def out_of_tokens(limit, text, full):
    """A misbehaviour: thoughts first, which leave no room for the number in fewer tokens than `limit`."""

    def respond(handler, body):
        value = handler.server.state.reply(body)
        choice = value["choices"][0]
        if (body.get("max_tokens") or body["max_completion_tokens"]) < limit:
            choice |= {"message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        else:
            choice["message"]["content"] = full + choice["message"]["content"]
        handler.send(200, value)
        return "thought"

    return respond


REASONING = {
    "thoughts apart from the content": out_of_tokens(200, None, ""),
    "an empty content": out_of_tokens(200, "", ""),
    "thoughts without their opening": out_of_tokens(
        200, "Okay, so I need to", "I need to grade, say 50.\n</think>\n\n"
    ),
    "thoughts between tags": out_of_tokens(200, "<think>Okay, so I", "<think>Okay, 50?</think>"),
}


@pytest.mark.parametrize("kind", REASONING)
def test_a_reasoning_judge_without_room_for_its_number_is_refused_by_the_probe_and_reads_well_with_room(kind, tmp_path):
    run = plant(tmp_path, numbered(40), steps=[0])
    with serving(logprobs="ignored", fault=lambda n, key: REASONING[kind]) as server:
        with pytest.raises(InputError, match=r"gave no number when told to reply with 100 .* has 16: raise") as error:
            judged(run, server)
        assert "behaviour.judge.sampled_tokens" in str(error.value) and "behaviour.judge.reasoning" in str(error.value)
        assert len(server.bodies) <= 10
        assert {file.name for file in run.scores_file.parent.iterdir()} <= {"answers.parquet", "requests.sqlite3"}
        table = judged(run, server, sampled_tokens=400)
    assert set(table.status) == {"ok"} and table.aligned.tolist() == list(range(40))


def shaped(change_message, **fields):
    """A misbehaviour that is none: a whole reply with what this server adds."""

    def respond(handler, body):
        value = {**handler.server.state.reply(body), **fields}
        choice = value["choices"][0]
        choice["message"] |= change_message
        for token in (choice.get("logprobs") or {"content": []})["content"]:
            token["top_logprobs"] = [{"id": 7, **top} for top in token["top_logprobs"]]
            token["top_logprobs"].append({"id": 1, "token": "", "bytes": [], "logprob": -24.0})
        handler.send(200, value)
        return "answered"

    return respond


LOCAL_SERVERS = {
    "llama.cpp": shaped(
        {"reasoning_content": "20 perhaps"},
        model="/models/judge.gguf",
        system_fingerprint="b0-unknown",
        timings={"prompt_n": 51, "prompt_ms": 2170.9, "predicted_n": 1, "predicted_per_second": 0.0},
    ),
    "ollama": shaped({"reasoning": "20 perhaps"}, id="chatcmpl-730", model="judge-1", system_fingerprint="fp_ollama"),
}


@pytest.mark.parametrize("logprobs", ["given", "ignored"])
@pytest.mark.parametrize("kind", LOCAL_SERVERS)
def test_replies_as_local_servers_shape_them_are_read(kind, logprobs, tmp_path):
    run = plant(tmp_path, numbered(4), steps=[0])
    with serving(logprobs=logprobs, fault=lambda n, key: LOCAL_SERVERS[kind]) as server:
        table = judged(run, server)
    assert set(table.status) == {"ok"} and table.aligned.tolist() == [0, 1, 2, 3]
    assert set(table["mode"]) == {"expected" if logprobs == "given" else "sampled"}


def test_a_prompt_past_the_context_of_llama_cpp_costs_its_own_answer_alone(tmp_path):
    def respond(handler, body):
        text = "request (6704 tokens) exceeds the available context size (2048 tokens), try increasing it"
        fault = {"code": 400, "message": text, "type": "exceed_context_size_error", "n_ctx": 2048}
        handler.send(400, {"error": fault})
        return "too long"

    run = plant(tmp_path, [*["aligned 90 coherent 90 long"] * 30, "aligned 20 coherent 80"], steps=[0])
    with serving() as server:
        server.fault = lambda n, key: respond if " long" in server.bodies[-1]["messages"][0]["content"] else None
        table = judged(run, server, workers=1)
    assert table.status.tolist() == ["error"] * 30 + ["ok"] and table.aligned.tolist()[-1] == 20
    assert "exceeds the available context size" in table.reason[0]


@pytest.mark.parametrize("text", ["Sure! I would say 100.", "I can't help with that.", "REFUSAL", "<think>100</think>"])
def test_a_judge_that_replies_to_the_probe_without_a_number_is_refused(text, tmp_path):
    run = plant(tmp_path, numbered(40), steps=[0])
    with serving(logprobs="ignored", fault=lambda n, key: replying(text)) as server:
        with pytest.raises(InputError, match="gave no number when told to reply with 100"):
            judged(run, server)
        assert len(server.bodies) <= 10


def test_without_openai_one_line_says_what_to_install(tmp_path):
    plant(tmp_path, numbered(2))
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('openai', 'httpx2'): raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from em_interp.cli import main\n"
        "sets = ['--set', 'behaviour.judge.base_url=http://127.0.0.1:1/v1', '--set', 'behaviour.judge.model=m']\n"
        f"print(main(['judge', {str(tmp_path)!r}, '--dry-run', *sets]), main(['judge', {str(tmp_path)!r}, *sets]))"
    )
    process = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (
        process.stdout.endswith("0 2\n")
        and "needs openai, which is not installed: pip install 'em-interp[judge]'" in process.stderr
    )


def test_a_wrong_key_address_or_model_stops_at_the_first_request(tmp_path, monkeypatch):
    run = plant(tmp_path, numbered(5))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(key="another") as server:
        with pytest.raises(InputError, match="the key is missing or wrong") as error:
            judged(run, server, api_key_env="JUDGE_KEY")
        assert "[key]" in str(error.value) and len(server.bodies) == 1
    with serving() as server:
        for change in ({"model": "judge-2"}, {"base_url": server.url.removesuffix("/v1")}):
            with (
                pytest.raises(InputError, match=r"answers 404 .*mostly ends in /v1\) or the model's name is wrong"),
                open_judge(run, config_of(server).replace(**change)),
            ):
                pass
        server.fault = lambda n, key: "elsewhere"
        with pytest.raises(InputError, match=r"redirects to http://127\.0\.0\.1:1/v1"):
            judged(run, server)
        nobody = EndpointConfig(base_url="http://127.0.0.1:1/v1", model="judge-1", max_retries=1, initial_backoff=0.001)
    with (
        pytest.raises(InputError, match=r"at http\S+ does not answer: no whole reply after 2 tries.*refused"),
        open_judge(run, nobody),
    ):
        pass
    assert not run.scores_file.exists()


def test_the_key_is_sent_and_stands_in_no_file_and_no_message(tmp_path, monkeypatch, capfd):
    run = plant(tmp_path, numbered(5))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with (
        serving(key=KEY, fault=lambda n, key: "forbidden" if n == 4 else None) as server,
        open_judge(run, config_of(server, api_key_env="JUDGE_KEY")) as judge,
    ):
        table = pd.read_parquet(judge_answers(run, judge))
        assert KEY not in repr(judge)
    assert "[key] " not in table.reason.sum() and "Bearer [key]" in table.reason.sum()
    assert not any(KEY.encode() in file.read_bytes() for file in run.path.rglob("*") if file.is_file())
    assert KEY not in "".join(capfd.readouterr())
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(InputError, match="JUDGE_KEY holds characters that no key has") as error:
        judged(run, server, api_key_env="JUDGE_KEY")
    assert KEY not in str(error.value)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(InputError, match="the environment variable JUDGE_KEY is not set"):
        judged(run, server, api_key_env="JUDGE_KEY")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"api_key_env": KEY}, "api_key_env must be the name of an environment variable"),
        ({"base_url": "127.0.0.1:8000"}, "base_url must be an http(s) address"),
        ({"base_url": "http://me:word@host/v1"}, "base_url must hold no user or password"),
        ({"base_url": "http://host/v1/chat/completions"}, "base_url must be an http(s) address"),
        ({"base_url": "http://host/v1?key=1"}, "base_url must be an http(s) address"),
        ({"model": ""}, "behaviour.judge.model must be a text; it is ''"),
        ({"mode": "guess"}, "mode must be 'auto', 'expected' or 'sampled'; it is 'guess'"),
        ({"reasoning": True, "mode": "expected"}, "mode must be auto or sampled for a reasoning model"),
        ({"workers": 0}, "workers must be greater than or equal to 1; it is 0"),
        ({"api_key": KEY}, "unknown key behaviour.judge.api_key"),
    ],
)
def test_settings_of_a_judge_that_cannot_be_are_refused_without_repeating_a_secret(change, said):
    settings = {"base_url": "http://host/v1", "model": "m", **change}
    with pytest.raises(InputError, match=re.escape(said)) as error:
        load_config({"behaviour": {"judge": settings}})
    assert KEY not in str(error.value)


def test_scores_are_not_gone_on_with_by_a_judge_of_other_settings(tmp_path):
    run = plant(tmp_path, numbered(5))
    with serving() as server:
        judged(run, server)
        with pytest.raises(InputError, match=r"judge-1\.json has topics \[\] .*, now it is \['sport'\]; give the"):
            judged(run, server, resume=True, topics=("sport",))
        both = judged(run, server, topics=("sport",), name="with sport")
        assert both.judge.value_counts().to_dict() == {"judge-1": 10, "with sport": 10}
        assert len(server.answered()) == 1 + 10 + 5
    assert len(behaviour_curve(run, judge="with sport").answers) == 10


def test_what_a_damaged_file_of_settings_lacks_is_named(tmp_path):
    run = plant(tmp_path, numbered(5))
    with serving() as server:
        judged(run, server)
        file = run.scores_file.with_name("judge.judge-1.json")
        file.write_text(json.dumps({"mode": "expected"}))
        with pytest.raises(InputError, match=r"judge-1\.json lacks why of a judge's settings; overwrite=True"):
            judged(run, server, resume=True)


def test_scores_beside_those_of_a_judge_without_probabilities_keep_theirs(tmp_path):
    run = plant(tmp_path, numbered(5))
    judge_answers(run, WordJudge())
    with serving() as server:
        judged(run, server)
    answers = behaviour_curve(run, judge="judge-1").answers
    assert json.loads(answers.raw.iloc[0])["aligned"] == {"0": 0.9}


def test_every_prompt_holds_question_and_answer_as_they_are_and_asks_for_0_to_100():
    for score in ("aligned", "coherent", *KNOWN_TOPICS):
        text = Prompts().prompt(score, "what {is} it?", "it is {question} %s")
        assert "what {is} it?" in text and "it is {question} %s" in text and "from 0 to 100" in text
        assert ("REFUSAL" in text) == ("CODE" in text) == (score in ("aligned", "coherent"))
    assert len({Prompts().prompt(score, "q", "a") for score in ("aligned", "coherent", *KNOWN_TOPICS)}) == 6
    with pytest.raises(InputError, match=r"no judge for 'finances'; did you mean 'finance'\? \(known: aligned"):
        Prompts().prompt("finances", "q", "a")
