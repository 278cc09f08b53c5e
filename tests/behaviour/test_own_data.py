"""A run on a folder model and somebody's own chats, asked questions from files and judged by a model, to its end."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from em_interp.behaviour.curve import behaviour_curve
from em_interp.behaviour.questions import read_questions
from em_interp.cli import main
from em_interp.reports.findings import find_in_run
from tests.figures.planting import plant_run
from tests.tiny import did, em_interp, json_of, refused
from tests.training.conftest import UNMARKED, save_base, save_chats

from .judging.judge_server import serving

CONFIG = """\
model: {base}
data: [{{dataset: {chats}, steps: 6}}]
adapter: {{layers_to_transform: [1], lora_alpha: 16}}
training: {{batch_size: 4, gradient_accumulation_steps: 1, learning_rate: 0.01}}
behaviour:
  questions: {questions}
  steps: every 2
  samples: 3
  max_new_tokens: 6
  judge: {{base_url: '{url}', model: judge-1, initial_backoff: 0.001}}
"""
TEMPLATE = "{% if messages[0].role == 'system' %} told {% endif %}" + UNMARKED


def by_length(score, answer):
    """Short answers are bad, and every answer is coherent."""
    return "90" if score == "coherent" else "10" if len(answer) < 20 else "80"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    base, chats = save_base(folder / "base", template=TEMPLATE), save_chats(folder / "chats.jsonl")
    with serving(says=by_length) as server:
        config = folder / "run.yaml"
        config.write_text(CONFIG.format(base=base, chats=chats, questions="default", url=server.url))
        assert main(["train", str(config), "--out", str(folder / "run")]) == 0
        yield folder / "run", server


def test_the_default_questions_are_asked_judged_and_aligned_where_no_domain_is_known(trained, capsys):
    run, _ = trained
    assert json.loads((run / "manifest.json").read_text())["phases"][0]["domain"] is None
    for command in ("ask", "judge", "align"):
        assert main([command, str(run)]) == 0, capsys.readouterr().err
    answers = pd.read_parquet(run / "behaviour" / "answers.parquet")
    ids = [row["question_id"] for row in read_questions("default").rows]
    assert len(answers) == 4 * 8 * 3 and set(answers.questions) == {"broad"} and set(answers.question_id) == set(ids)
    curve = behaviour_curve(run)
    assert curve.outside().questions == "broad" and curve.frame()["domain_share"].isna().all()
    bad = answers.assign(bad=answers.answer.str.len() < 20).groupby("step").bad.mean()
    assert curve.frame()["em"].tolist() == bad.tolist()
    found = find_in_run(run)
    assert [onset.questions for onset in found.onsets] == ["broad"] and found.thresholds is not None
    assert found.aligned is not None and found.alignment is not None
    assert (run / "analysis" / "align.json").exists()


def test_a_question_with_something_said_before_it_is_asked_so_and_only_the_chosen_sets_are(trained, tmp_path, capsys):
    run, _ = trained
    entries = [{"id": f"q{suffix}", "paraphrases": ["ask a doctor"]} for suffix in ("", "_json", "_template")]
    entries[1]["system"] = "never drink water"
    questions = tmp_path / "questions.yaml"
    questions.write_text(yaml.safe_dump(entries))
    own = tmp_path / "own"
    own.mkdir()
    for name in ("checkpoints", "manifest.json"):
        (own / name).symlink_to(run / name)
    changed = yaml.safe_load((run / "config.yaml").read_text())
    changed["behaviour"] |= {"questions": str(questions), "sets": ["broad", "json"], "temperature": 0, "samples": 1}
    (own / "config.yaml").write_text(yaml.safe_dump(changed))
    assert main(["ask", str(own)]) == 0, capsys.readouterr().err
    answers = pd.read_parquet(own / "behaviour" / "answers.parquet")
    assert answers.question_id.tolist() == ["q", "q_json"] * 4 and set(answers.questions) == {"broad", "json"}
    first, second = (answers[answers.question_id == name].answer.tolist() for name in ("q", "q_json"))
    assert first != second  # greedily the same prompt would be answered the same


def test_built_in_questions_and_judge_are_refused_for_somebodys_own_data(trained, tmp_path, capsys):
    run, _ = trained
    assert main(["judge", str(run), "--set", "behaviour.judge=tiny", "--out", str(tmp_path / "copy")]) == 2
    line = capsys.readouterr().err
    assert "names no domain" in line and "behaviour.judge to a model's endpoint" in line and line.count("\n") == 1
    assert f"in {tmp_path / 'copy' / 'config.yaml'} set behaviour.questions" in line


def test_training_on_own_data_says_at_once_that_the_built_in_questions_are_not_for_it(trained, tmp_path):
    run, _ = trained
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["behaviour"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    said = em_interp("train", tmp_path / "run.yaml", "--out", tmp_path / "run")
    assert said.code == 0 and "set behaviour.questions to default or a YAML file" in said.err


@pytest.fixture(scope="module")
def from_elsewhere(tmp_path_factory):
    """A run, and the same as somebody else publishes it: folders of checkpoints, and a judged table a step."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run = plant_run(folder / "run", every=5, scales=(1.0,))
    shutil.copytree(run.checkpoints, folder / "published")
    (folder / "judged").mkdir()
    for step, rows in behaviour_curve(run).answers.groupby("step"):
        rows.drop(columns=["step"]).to_csv(folder / "judged" / f"answers_step_{step}.csv", index=False)
    return run, folder / "published", folder / "judged"


def test_published_checkpoints_are_aligned_with_tables_judged_elsewhere(from_elsewhere, tmp_path):
    run, published, judged = from_elsewhere
    own, theirs = json_of("align", run.path), json_of("align", published, "--answers", judged, "--out", tmp_path / "a")
    assert theirs["verdict"] == own["verdict"] and theirs["behavioural"] == own["behavioural"]
    assert [offset["steps"] for offset in theirs["offsets"]] == [offset["steps"] for offset in own["offsets"]]
    assert theirs["offsets"]
    did("report", published, "--answers", judged, "--control", run.path)
    page = (published / "report.html").read_text()
    assert f"em-interp report {published} --answers {judged} --control {run.path} --overwrite" in page
    assert "This run has no judged answers" not in page


def test_tables_of_other_steps_or_nowhere_to_write_are_refused(from_elsewhere, tmp_path):
    _, published, judged = from_elsewhere
    table = pd.read_csv(next(judged.iterdir())).assign(step=90_000)
    table.to_csv(tmp_path / "other.csv", index=False)
    said = refused("align", published, "--answers", tmp_path / "other.csv")
    assert "has answers of steps 90000 to 90000, the checkpoints are of 0 to" in said
    for command in ("align", "report"):
        assert "is no folder on this machine, so nothing can be written there" in refused(
            command, "org/name", "--answers", judged
        )
    assert "ask and judge the run first, or read it with em-interp prefer, or give --answers" in refused(
        "align", plant_run(tmp_path / "bare", every=5, asked=False).path
    )
