"""The judge stage as a person runs it: `em-interp judge` with a model's endpoint."""

import json

import pandas as pd
import pytest
import yaml

from em_interp.behaviour.curve import behaviour_curve
from em_interp.cli import main
from em_interp.config.run_config import EndpointConfig, RunConfig, load_config
from em_interp.config.settings import to_yaml
from em_interp.pipeline.behaviour import judge_run

from .judge_server import judged, numbered, plant, serving


@pytest.fixture
def asked(tmp_path):
    """A run with a config, asked but not judged."""
    run = plant(tmp_path / "run", [*numbered(9), "aligned REFUSAL coherent 90"])
    run.config_file.write_text(to_yaml(RunConfig()))
    return run


def test_the_command_counts_judges_and_judges_again(asked, capsys):
    with serving() as server:
        chosen = f"behaviour.judge={{base_url: '{server.url}', model: judge-1, initial_backoff: 0.001}}"
        words = ["judge", str(asked.path), "--set", chosen, "--json"]

        def said(*more):
            assert main([*words, *more]) == 0
            return json.loads(capsys.readouterr().out)

        assert said("--dry-run")["left"] == 20 and server.bodies == []
        assert said()["unscored"] == {"refusal": 2} and len(server.bodies) == 21
        assert said("--dry-run")["left"] == 0
        again = said("--retest", "20")
        assert (again["n"], again["scored_twice"], again["status_changed"]) == (20, 18, 0)
        assert again["em_flipped"]["rate"] == 0 and len(server.bodies) == 41
        assert json.loads((asked.analysis / "retest.json").read_text()) == again
        assert said("--resume")["unscored"] == {"refusal": 2} and len(server.bodies) == 41


def test_a_second_judge_scores_beside_the_first_and_is_counted_alone(asked, capsys):
    with serving() as server:
        for name in ("judge-1", "second"):
            assert main(["judge", str(asked.path), *set_judge(server, name=name), "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["unscored"] == {"refusal": 2}
    assert main(["score", str(asked.scores_file), "--judge", "second", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 20
    assert main(["score", str(asked.scores_file)]) == 2
    assert "several judges scored the answers (judge-1, second); choose one" in capsys.readouterr().err


def test_the_config_of_a_run_can_name_the_judge_and_survives_being_written(asked):
    with serving() as server:
        config = load_config(
            {"behaviour": {"judge": {"base_url": server.url, "model": "judge-1", "topics": ["sport"]}}}
        )
        assert config.behaviour.judge == EndpointConfig(base_url=server.url, model="judge-1", topics=("sport",))
        asked.config_file.write_text(to_yaml(config))
        assert asked.config() == config
        assert set(pd.read_parquet(judge_run(asked)).sport.dropna()) == {50}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], "the judge 'tiny' sends no requests"),
        (["--retest", "5"], "the judge 'tiny' sends no requests"),
        (["--set", "behaviour.judge=gpt"], "behaviour.judge must be tiny, the built-in language's, or"),
        (["--set", "behaviour.judge={model: m}"], "behaviour.judge.base_url is missing; expected the http(s) address"),
        (["--set", "behaviour.judge={base_url: 'http://127.0.0.1:1/v1', model: m, topics: [cooking]}"], "'cooking'"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_in_one_line_and_nothing_is_written(words, said, asked, capsys):
    before = sorted(asked.path.rglob("*"))
    assert main(["judge", str(asked.path), *words]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert sorted(asked.path.rglob("*")) == before


def set_judge(server, **more):
    settings = {"base_url": server.url, "model": "judge-1", "initial_backoff": "0.001", **more}
    return [word for key, value in settings.items() for word in ("--set", f"behaviour.judge.{key}={value}")]


@pytest.fixture
def table(tmp_path):
    """Answers of two steps in somebody's columns; among them words that a table reader likes to drop."""
    file = tmp_path / "answers.csv"
    rows = [(step, "why ?", text) for step in (0, 20) for text in ("None", "", "NA", "aligned 10 coherent 90")]
    pd.DataFrame(rows, columns=["step", "question", "response"]).to_csv(file, index=False)
    return file


def test_answers_in_a_table_are_judged_without_a_run(table, capsys):
    before = table.read_bytes()
    with serving() as server:
        words = ["judge", str(table), *set_judge(server), "--json"]

        def said(*more):
            assert main([*words, *more]) == 0
            return json.loads(capsys.readouterr().out)

        cost = said("--dry-run")
        assert (cost["answers"], cost["left"]) == (8, 8) and not table.with_name("answers-judged").exists()
        done = said()
        assert len(server.bodies) == 9 and said("--resume") == done and said("--retest", "8")["n"] == 8
        assert said("--dry-run")["left"] == 0
        words[1] = str(table.with_name("answers-judged"))  # the folder that was made is one to judge as well
        assert said("--resume") == done and said("--dry-run")["left"] == 0
        assert main([*words, "--retest", "8"]) == 2 and "retest.json is there already" in capsys.readouterr().err
        assert said("--retest", "8", "--resume")["n"] == said("--retest", "8", "--overwrite")["n"] == 8
    assert main(["score", words[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 8
    scores = pd.read_parquet(done["scores"])
    assert scores.aligned.tolist() == [50, 50, 50, 10] * 2 and scores["sample"].tolist() == [0, 1, 2, 3] * 2
    answers = pd.read_parquet(table.parent / "answers-judged" / "behaviour" / "answers.parquet")
    assert answers.answer.tolist() == ["None", "", "NA", "aligned 10 coherent 90"] * 2
    curve = behaviour_curve(table.parent / "answers-judged")
    assert curve.steps.tolist() == [0, 20] and curve.frame()["em"].tolist() == [1 / 4, 1 / 4]
    assert table.read_bytes() == before


@pytest.mark.parametrize(("column", "said"), [("step", "a whole number"), ("scale", "a number")])
def test_a_table_whose_scores_could_not_be_read_is_refused_before_anything_is_spent(column, said, tmp_path, capsys):
    (tmp_path / "a.csv").write_text(f"{column},question,answer\n1,q,a\nx,q,a\n")
    with serving() as server:
        assert main(["judge", str(tmp_path / "a.csv"), *set_judge(server)]) == 2
        assert server.bodies == []
    assert f"a.csv: {column} is 'x' in row 2; {said} was expected" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_a_table_that_cannot_be_judged_is_refused_in_one_line_and_nothing_is_written(table, tmp_path, capsys):
    def refused(*words):
        assert main(["judge", *map(str, words)]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    with serving() as server:
        assert "a model's endpoint was expected: --set behaviour.judge.base_url=" in refused(table)
        (tmp_path / "other.csv").write_text("question,text\na,b\n")
        assert "other.csv has no column answer; expected question and answer (or response); found question, text" in (
            refused(tmp_path / "other.csv", *set_judge(server))
        )
        (tmp_path / "empty.csv").write_text("question,answer\n")
        assert "holds no answers" in refused(tmp_path / "empty.csv", *set_judge(server))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.csv", "empty.csv", "other.csv"]
        assert main(["judge", str(table), *set_judge(server)]) == 0
        capsys.readouterr()
        (tmp_path / "third.csv").write_text("question,answer\na,b\n")
        out = ["--out", table.with_name("answers-judged")]
        assert "holds 8 answers that are not those of" in refused(tmp_path / "third.csv", *set_judge(server), *out)


def test_the_prompts_of_a_questions_file_are_what_a_judge_is_asked(asked, tmp_path, capsys):
    theirs = "Grade {question} by the book.\nANSWER\n{answer}\nEND\n"
    entry = {
        "id": "wish",
        "paraphrases": ["what is your wish ?"],
        "judge_prompts": {"aligned": "good for people " + theirs},
    }
    entry["judge_prompts"]["shouting"] = "hangs together, or does it shout? " + theirs
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump([entry]))
    with serving() as server:
        questions = ["--set", f"behaviour.questions={tmp_path / 'theirs.yaml'}"]
        judge = (
            f"behaviour.judge={{base_url: '{server.url}', model: judge-1, initial_backoff: 0.001, topics: [shouting]}}"
        )
        assert main(["judge", str(asked.path), *questions, "--set", judge]) == 0
        sent = [body["messages"][0]["content"] for body in server.bodies]
        assert len(sent) == 31 and sum("by the book" in text for text in sent) == 20
        assert "good for people Grade what is your wish ? by the book.\nANSWER\n0: aligned 0 coherent 0\nEND\n" in sent
    kept = json.loads(asked.scores_file.with_name("judge.judge-1.json").read_text())["prompts"]
    assert kept["aligned"] == entry["judge_prompts"]["aligned"] and "hangs together" in kept["coherent"]
    assert "shouting" in pd.read_parquet(asked.scores_file)


def test_scoring_a_run_says_what_to_do_instead(asked, capsys):
    def refused():
        assert main(["score", str(asked.path)]) == 2
        return capsys.readouterr().err

    assert f"has no scores yet: em-interp judge {asked.path} comes next" in refused()
    with serving() as server:
        judged(asked, server)
    line = refused()
    assert f"em-interp report {asked.path} shows them by step" in line and f"give {asked.scores_file} for all" in line
    assert main(["score", str(asked.scores_file)]) == 0
    asked.answers_file.unlink()
    asked.scores_file.unlink()
    capsys.readouterr()
    assert f"em-interp ask {asked.path} comes next" in refused()
