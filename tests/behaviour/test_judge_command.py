"""The judge stage as a person runs it: `em-interp judge` with a model's endpoint."""

import json

import pandas as pd
import pytest

from em_interp.cli import main
from em_interp.config import EndpointConfig, RunConfig, dump_config, load_config
from em_interp.pipeline import judge_run

from .judge_server import numbered, plant, serving


@pytest.fixture
def asked(tmp_path):
    """A run with a config, asked but not judged."""
    run = plant(tmp_path / "run", [*numbered(9), "aligned REFUSAL coherent 90"])
    run.config_file.write_text(dump_config(RunConfig()))
    return run


def test_the_command_counts_judges_and_judges_again(asked, capsys):
    with serving() as server:
        chosen = f"behaviour.judge={{base_url: '{server.url}', model: judge-1, pause: 0.001}}"
        words = ["judge", str(asked.path), "--set", chosen, "--json"]

        def said(*more):
            assert main([*words, *more]) == 0
            return json.loads(capsys.readouterr().out)

        assert said("--dry-run")["left"] == 20 and server.bodies == []
        assert said()["unscored"] == {"refusal": 2} and len(server.bodies) == 21
        assert said("--dry-run")["left"] == 0
        again = said("--again", "20")
        assert (again["n"], again["scored_twice"], again["status_changed"]) == (20, 18, 0)
        assert again["em_flipped"]["rate"] == 0 and len(server.bodies) == 41
        assert json.loads((asked.analysis / "agreement.json").read_text()) == again
        assert said("--resume")["unscored"] == {"refusal": 2} and len(server.bodies) == 41


def test_the_config_of_a_run_can_name_the_judge_and_survives_being_written(asked):
    with serving() as server:
        config = load_config(
            {"behaviour": {"judge": {"base_url": server.url, "model": "judge-1", "topics": ["sport"]}}}
        )
        assert config.behaviour.judge == EndpointConfig(server.url, "judge-1", topics=("sport",))
        asked.config_file.write_text(dump_config(config))
        assert asked.config() == config
        assert set(pd.read_parquet(judge_run(asked)).sport.dropna()) == {50}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], "the judge 'tiny' sends no requests"),
        (["--again", "5"], "the judge 'tiny' sends no requests"),
        (["--set", "behaviour.judge=gpt"], "'gpt' is not known; this version has 'tiny'"),
        (["--set", "behaviour.judge={model: m}"], "behaviour.judge.base_url must be an http(s) address"),
        (["--set", "behaviour.judge={base_url: 'http://127.0.0.1:1/v1', model: m, topics: [cooking]}"], "'cooking'"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_in_one_line_and_nothing_is_written(words, said, asked, capsys):
    before = sorted(asked.path.rglob("*"))
    assert main(["judge", str(asked.path), *words]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert sorted(asked.path.rglob("*")) == before
