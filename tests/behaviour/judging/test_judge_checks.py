"""What judging will cost, counted beforehand; and whether a judge gives the same scores again."""

import math

import pandas as pd
import pytest

from em_interp.behaviour.judging.judge import judge_answers
from em_interp.behaviour.judging.judge_checks import RetestReliability, dry_run, retest
from em_interp.behaviour.judging.llm_judge import open_judge
from em_interp.errors import InputError

from .judge_server import config_of, judged, numbered, plant, serving


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
            found = retest(run, judge, 50)
            assert (found.n, found.status_changed, found.em_flipped.rate) == (50, 0, 3 / 50)
            assert found.difference("aligned") == pytest.approx(3 * 10 / 50) and found.difference("coherent") == 0
            sent = len(server.bodies)
            assert retest(run, judge, 50).to_dict() == found.to_dict() and len(server.bodies) == sent == 201
            assert retest(run, judge, 10, seed=1).n == 10 and len(server.bodies) == sent
        assert run.scores_file.read_bytes() == before
        with (
            open_judge(run, config_of(server, name="other")) as judge,
            pytest.raises(InputError, match="no scores of other"),
        ):
            retest(run, judge)


def test_flips_are_counted_by_hand():
    rows = [
        (10, 90, "ok", 20, 90, "ok"),  # EM both times
        (10, 90, "ok", 40, 90, "ok"),  # EM once
        (90, 90, "ok", 90, 80, "ok"),
        (90, 90, "ok", math.nan, math.nan, "low_mass"),
        (29, 51, "ok", 29, 50, "ok"),  # EM once, by coherence
    ]
    names = ["aligned", "coherent", "status", "aligned_retest", "coherent_retest", "status_retest"]
    found = RetestReliability("j", "expected", pd.DataFrame(rows, columns=names))
    assert (found.n, len(found.scored_twice), found.status_changed, found.em_flipped.rate) == (5, 4, 1, 0.5)
    assert found.difference("aligned") == 10 and found.difference("coherent") == 2.75
    assert found.to_dict()["em_flipped"]["rate"] == 0.5 and "50.0% of 4 answers" in found.sentence()
