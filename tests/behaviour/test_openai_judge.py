"""A model as judge, against a strict server that misbehaves: nothing lost, nothing invented, nothing asked twice."""

import json
import re

import pandas as pd
import pytest

from em_interp.behaviour.curve import behaviour_curve
from em_interp.behaviour.judge import judge_answers
from em_interp.behaviour.judge_checks import dry_run, rejudge
from em_interp.behaviour.llm_judge import open_judge
from em_interp.behaviour.scores import score_responses
from em_interp.config import EndpointConfig, load_config
from em_interp.errors import InputError

from .judge_server import config_of, judged, numbered, plant, serving
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
        ("refused", "sampled", "refused a request for log-probabilities", 2),
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
        ("", "ignored", "unparsed"),
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


def test_a_wrong_key_address_or_model_stops_at_the_first_request(tmp_path, monkeypatch):
    run = plant(tmp_path, numbered(5))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(key="another") as server:
        with pytest.raises(InputError, match="the key is missing or wrong") as error:
            judged(run, server, api_key_env="JUDGE_KEY")
        assert "***" in str(error.value) and len(server.bodies) == 1
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
        pytest.raises(InputError, match=r"at http\S+ does not answer: no reply after 2 tries.*refused"),
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
    assert "*** " not in table.reason.sum() and "Bearer ***" in table.reason.sum()
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


def test_a_dry_run_counts_requests_and_tokens_and_sends_and_writes_nothing(tmp_path):
    run = plant(tmp_path, [*numbered(10), "twin", "twin"])
    with serving() as server:
        cost = dry_run(run, config_of(server, topics=("medical",), api_key_env="NOT_SET"))
        assert (cost.answers, cost.requests, cost.kept, cost.left, cost.mode) == (24, 33, 0, 33, "auto")
        assert server.bodies == [] and [file.name for file in run.answers_file.parent.iterdir()] == ["answers.parquet"]
        judged(run, server, topics=("medical",))
        sent = [body["messages"][0]["content"] for body in server.bodies[1:]]
        assert len(sent) == cost.left and cost.input_tokens == sum(-(-len(text) // 4) for text in sent)
        assert cost.output_tokens == 33 * 16
        after = dry_run(run, config_of(server, topics=("medical", "sport")))
        assert (after.kept, after.left, after.output_tokens, after.mode) == (33, 11, 11, "expected")
        assert "11 requests to be sent for 24 answers (33 of 44 answered already)" in after.sentence()


def test_a_sample_judged_again_says_how_far_the_judge_agrees_with_itself(tmp_path):
    run = plant(tmp_path, [f"{i}" for i in range(50)], steps=[0])
    second = []

    def says(score, answer):
        if score == "coherent":
            return "80"
        return "35" if answer in second else "25" if int(answer) < 25 else "60"

    with serving(says=says) as server:
        with open_judge(run, config_of(server)) as judge:
            before = judge_answers(run, judge).read_bytes()
            second += ["0", "1", "2"]
            found = rejudge(run, judge, 50)
            assert (found.n, found.status_changed, found.flipped.rate) == (50, 0, 3 / 50)
            assert found.difference("aligned") == pytest.approx(3 * 10 / 50) and found.difference("coherent") == 0
            sent = len(server.bodies)
            assert rejudge(run, judge, 50).to_dict() == found.to_dict() and len(server.bodies) == sent == 201
            assert rejudge(run, judge, 10, seed=1).n == 10 and len(server.bodies) == sent
        assert run.scores_file.read_bytes() == before
        with (
            open_judge(run, config_of(server, name="other")) as judge,
            pytest.raises(InputError, match="no scores of other"),
        ):
            rejudge(run, judge)


def test_scores_are_not_gone_on_with_by_a_judge_of_other_settings(tmp_path):
    run = plant(tmp_path, numbered(5))
    with serving() as server:
        judged(run, server)
        with pytest.raises(InputError, match=r"judge\.judge-1\.json has other topics .*give the judge another name"):
            judged(run, server, resume=True, topics=("sport",))
        both = judged(run, server, topics=("sport",), name="with sport")
        assert both.judge.value_counts().to_dict() == {"judge-1": 10, "with sport": 10}
        assert len(server.answered()) == 1 + 10 + 5
    assert len(behaviour_curve(run, judge="with sport").answers) == 10


def test_scores_beside_those_of_a_judge_without_probabilities_keep_theirs(tmp_path):
    run = plant(tmp_path, numbered(5))
    judge_answers(run, WordJudge())
    with serving() as server:
        judged(run, server)
    answers = behaviour_curve(run, judge="judge-1").answers
    assert json.loads(answers.raw.iloc[0])["aligned"] == {"0": 0.9}
