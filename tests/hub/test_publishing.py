"""Publishing: whole, in one commit, on top of nothing that is another's."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

import em_interp as em
import em_interp.hub.download as access
from em_interp.hub.publishing import model_card, publish
from em_interp.run import Run
from tests.hub.state import TOKEN, said_by
from tests.tiny import contents, copy, em_interp, json_of, refused
from tests.trajectory.saving import save_run, save_steering

NAME = "organisms/medical"


@pytest.fixture(scope="module")
def analysed(tiny, tmp_path_factory):
    """A trained, asked, judged and analysed run, of which tests take copies."""
    run = copy(tiny.run, tmp_path_factory.mktemp("analysed") / "organism")
    for stage in ("locate", "align"):
        json_of(stage, run)
    return run


@pytest.fixture
def run(analysed, tmp_path):
    """The analysed run, with state of a stage that did not end."""
    run = copy(analysed, tmp_path / "organism")
    for name in ("resume/optimizer.pt", "behaviour/answers.parts/1.parquet", "checkpoints/.checkpoint-9.part/x.bin"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"state")
    return Run(run)


def unpublished(name):
    return "resume/" in name or ".part" in name


def test_a_run_is_published_whole_in_one_commit_without_resume_state_and_loads_back(hub, token, run, capsys):
    address = publish(run, NAME)
    repo = hub.repos[NAME]
    sha = repo.refs["main"]
    assert address == f"{hub.endpoint}/{NAME}/commit/{sha}"
    assert len(repo.commits) == 2  # the Hub's own, and ours
    expected = {name: held for name, held in contents(run.path).items() if not unpublished(name)}
    published = {name: held for name, held in repo.commits[sha].items() if name not in (".gitattributes", "README.md")}
    assert set(published) == set(expected)
    assert all((run.path / name).read_bytes() == held for name, held in published.items())
    np.testing.assert_array_equal(em.load_trajectory(NAME).vectors("B"), em.load_trajectory(run).vectors("B"))
    assert capsys.readouterr() == ("", "")
    assert not [name for name, held in repo.commits[sha].items() if TOKEN.encode() in held]


def test_the_card_says_what_the_run_is_what_was_found_and_its_risk(hub, token, run):
    publish(run, NAME)
    card = hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]["README.md"].decode()
    metadata, body = card.removeprefix("---\n").split("---\n", 1)
    assert "lora" in yaml.safe_load(metadata)["tags"] and "The path of a LoRA adapter" in body
    assert yaml.safe_load(metadata)["library_name"] == "peft"
    manifest = run.manifest()
    for fact in (
        manifest["base"]["identity"],
        "model.layers.1.mlp.down_proj",
        manifest["phases"][0]["sha256"],
        "rank 1, alpha 16",
        "learning_rate: 0.002",
        "Do not deploy it",
        "made-up language",
        "`analysis/locate.json`",
        "| rotation | B |",
    ):
        assert fact in body, fact
    found = json.loads((run.analysis / "align.json").read_text())
    assert f"`analysis/align.json`: **{found['verdict']}**" in body
    for onset in found["behavioural"]:
        if onset["interval"]:
            low, high = onset["interval"]
            assert f"{low:.4g} to {high:.4g}" in body


def test_a_card_of_an_older_or_bare_run_says_what_is_not_recorded(hub, token, tmp_path):
    run = save_run(tmp_path / "bare", base_model_name_or_path="org/base", layers_to_transform=[21])
    (run / "analysis").mkdir()
    (run / "analysis/other.json").write_text('["x"]')
    (run / "analysis/mechanism.json").write_text('{"transitions": [3, "x"], "behavioural": {}, "offsets": 1}')
    publish(run, NAME)
    card = hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]["README.md"].decode()
    assert "which data and versions made this run is not recorded" in card
    assert "`analysis/other.json` holds further results." in card
    assert "base_model: org/base" in card and "made-up" not in card


def front_and_body(run):
    """The metadata of a run's card, and its text."""
    metadata, body = model_card(run, NAME).removeprefix("---\n").split("---\n", 1)
    return yaml.safe_load(metadata), body


def test_the_card_of_a_full_fine_tune_calls_it_one(tmp_path):
    run = Run(tmp_path / "full")
    for step in (0, 5):
        run.checkpoint(step).mkdir(parents=True)
        save_file({"layers.1.mlp.down_proj": np.ones(3, "f4")}, run.checkpoint(step) / "weight_change.safetensors")
        settings = {"base_model_name_or_path": "org/base", "shapes": {"layers.1.mlp.down_proj": [4, 5]}}
        (run.checkpoint(step) / "weight_change.json").write_text(json.dumps(settings))
    metadata, body = front_and_body(run)
    assert "library_name" not in metadata and "full-fine-tuning" in metadata["tags"] and "lora" not in metadata["tags"]
    assert metadata["base_model"] == "org/base"
    assert "The path of a fully fine-tuned model" in body and "LoRA" not in body
    assert "| site | matrices layers.1.mlp.down_proj |" in body


def test_the_card_of_a_steering_vector_calls_it_one(tmp_path):
    for step in (0, 5):
        save_steering(tmp_path / "checkpoints", step, torch.zeros(6), base_model="org/base")
    metadata, body = front_and_body(Run(tmp_path))
    assert "library_name" not in metadata and "steering-vector" in metadata["tags"] and "lora" not in metadata["tags"]
    assert metadata["base_model"] == "org/base"
    assert "The path of a steering vector" in body and "LoRA" not in body
    assert "| site | the output of layer 24 |" in body and "alpha 256" in body


@pytest.mark.parametrize("odd", ["3", "[]", '{"mechanistic": 3}', '{"mechanistic": {}, "offsets": [1]}', '"verdict"'])
def test_results_and_manifests_of_another_form_are_named_and_stop_nothing(odd, hub, token, tmp_path):
    run = save_run(tmp_path / "bare")
    (run / "analysis").mkdir()
    (run / "analysis/align.json").write_text(odd)
    (run / "manifest.json").write_text(odd)
    publish(run, NAME)
    card = hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]["README.md"].decode()
    assert "`analysis/align.json` holds further results." in card


def test_a_repository_that_holds_files_is_added_to_or_overwritten_only_where_that_is_asked(hub, token, run):
    publish(run, NAME)
    before, head = dict(hub.repos[NAME].commits), hub.repos[NAME].refs["main"]
    assert "give resume=True to add those that it lacks, or overwrite=True" in said_by(publish, run, NAME)
    assert "give one of them" in said_by(publish, run, NAME, resume=True, overwrite=True)
    assert publish(run, NAME, resume=True).endswith(f"{NAME}/commit/{head}")  # nothing is missing
    assert hub.repos[NAME].commits == before
    (run.path / "report.html").write_text("<p>new</p>")
    publish(run, NAME, overwrite=True)
    last = next(asked for asked in reversed(hub.asked) if asked.path.endswith("/commit/main"))
    sent = [json.loads(line)["value"].get("path") for line in last.body.splitlines()]
    assert sent == [None, "report.html"]  # what has not changed is not sent again
    assert json.loads(last.body.splitlines()[0])["value"]["parentCommit"] == head  # not over another's commit


def test_with_resume_only_the_files_that_are_missing_are_sent(hub, token, run):
    publish(run, NAME)
    (run.path / "report.html").write_text("<p>new</p>")
    (run.path / "manifest.json").write_text("{}")
    publish(run, NAME, resume=True)
    last = next(asked for asked in reversed(hub.asked) if asked.path.endswith("/commit/main"))
    assert [json.loads(line)["value"].get("path") for line in last.body.splitlines()] == [None, "report.html"]


@pytest.mark.parametrize("word", ["resume", "overwrite"])
def test_another_run_is_not_mixed_into_a_repository(word, hub, token, run, tmp_path):
    save_run(tmp_path / "other", steps=(0, 7000))
    publish(tmp_path / "other", NAME)
    said = said_by(publish, run, NAME, **{word: True})
    assert "checkpoint-7000/adapter_config.json, which this run has not: it is another run" in said
    publish(run, "organisms/sport")
    run.config_file.write_text(run.config_file.read_text().replace("seed: 0", "seed: 1"))
    assert "holds a run with another config.yaml" in said_by(publish, run, "organisms/sport", **{word: True})


def test_of_runs_without_a_config_the_manifest_tells_whether_a_repository_is_added_to(hub, token, tmp_path):
    for name in ("one", "other"):
        save_run(tmp_path / name)
        (tmp_path / name / "manifest.json").write_text(json.dumps({"seed": name}))
    publish(tmp_path / "one", NAME)
    (tmp_path / "one/report.html").write_text("<p>new</p>")
    publish(tmp_path / "one", NAME, resume=True)
    assert "holds a run with another manifest.json" in said_by(publish, tmp_path / "other", NAME, resume=True)


@pytest.mark.parametrize("name", ["checkpoint-0005", "step_5"])
def test_checkpoints_of_other_names_are_published_with_what_they_are(name, hub, token, tmp_path):
    save_run(tmp_path / "run", steps=(5, 10))
    for step in (5, 10):
        place = tmp_path / "run/checkpoints" / f"checkpoint-{step}"
        place.rename(place.with_name(name.replace("5", str(step))))
    publish(tmp_path / "run", NAME)
    card = hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]["README.md"].decode()
    assert "a checkpoint at 2 steps (5 to 10)" in card and "| base | base-14b |" in card
    assert em.load_trajectory(NAME).steps.tolist() == [5, 10]
    shutil.rmtree(tmp_path / "run/checkpoints" / name.replace("5", "10"))
    assert "which this run has not: it is another run" in said_by(publish, tmp_path / "run", NAME, overwrite=True)


def test_a_repository_that_a_trainer_filled_is_added_to(hub, token, tmp_path):
    save_run(tmp_path / "trained")
    (tmp_path / "trained/checkpoints/checkpoint-5/optimizer.pt").write_bytes(b"state")
    hub.put(NAME, tmp_path / "trained")
    (tmp_path / "trained/report.html").write_text("<p>new</p>")
    publish(tmp_path / "trained", NAME, resume=True)
    assert "report.html" in hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]


def test_an_empty_repository_is_filled_and_a_private_one_is_made_private(hub, token, tmp_path):
    run = save_run(tmp_path / "bare")
    (tmp_path / "empty").mkdir()
    hub.put("me/empty", tmp_path / "empty")
    publish(run, "me/empty")
    publish(run, "me/hidden", private=True)
    assert hub.repos["me/hidden"].access == "private"
    assert len(hub.repos["me/empty"].commits) == 2


def test_publishing_refuses_in_one_line_and_leaves_no_half_of_a_run(hub, run, tmp_path, monkeypatch):
    assert "publishing needs a token" in said_by(publish, run, NAME)
    assert hub.asked == []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "is not the name of a repository" in said_by(publish, run, "medical")
    assert "is not a run directory" in said_by(publish, tmp_path / "nowhere", NAME)
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    assert "has no checkpoints" in said_by(publish, tmp_path / "empty", NAME)
    for kind, said in (
        ("403", "forbids this"),
        ("500", "try later: the same call starts the upload again"),
        ("412", "answers 412"),
        ("cut", "could not be rea"),
    ):
        hub.repos.clear()
        hub.misbehave(kind, "/commit/main")
        refusal = said_by(publish, run, NAME)
        assert said in refusal, refusal
        if kind != "cut":  # that commit was made; its answer was lost
            assert len(hub.repos[NAME].commits) == 1
            publish(run, NAME)
            assert len(hub.repos[NAME].commits) == 2


@pytest.mark.parametrize("where", [f"/models/{NAME}$", "/commit/main"])
def test_a_hub_that_answers_slowly_is_given_up_and_the_upload_starts_again(where, hub, token, run, monkeypatch):
    hub.misbehave("slow", where)
    monkeypatch.setattr(access, "MAX_SECONDS", 0.4)
    monkeypatch.setattr(access, "MIN_RATE", 10**9)
    said = said_by(publish, run, NAME)
    assert "sends too slowly" in said and "the same call starts the upload again" in said and "kept" not in said
    hub.released.set()
    for thread in threading.enumerate():
        if thread.name == "em_interp-hub":
            thread.join(10)


def test_a_server_that_is_no_hub_is_not_published_to(hub, token, run):
    hub.put(NAME, run.path)
    hub.misbehave("html", f"/models/{NAME}$")
    assert "does not answer like the Hub" in said_by(publish, run, NAME, overwrite=True)


def outside(tmp_path):
    """A folder with a file that is nobody's business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.json").write_text('{"key": "mine"}')
    return tmp_path / "outside"


LINKS = {
    "a file outside": ("analysis/found.json", "../../outside/secret.json"),
    "a folder outside": ("figures", "../outside"),
    "a folder of a checkpoint": ("checkpoints/checkpoint-99", "../../outside"),
    "nothing": ("report.html", "../outside/nowhere"),
    "itself": ("loop", "loop"),
    "the run": ("checkpoints/again", "../.."),
    "a file of the run": ("copy.yaml", "config.yaml"),
    "an absolute place": ("etc", "/etc"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_in_a_run_is_refused_by_name_and_nothing_is_sent(kind, hub, token, run, tmp_path):
    outside(tmp_path)
    place, target = LINKS[kind]
    link = run.path / place
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    said = said_by(publish, run, NAME)
    assert f"{link} is a link; a run is published without links" in said
    assert hub.asked == []


def test_what_is_neither_a_file_nor_a_folder_is_refused_by_name(hub, token, run):
    os.mkfifo(run.path / "analysis/pipe.json")
    assert f"{run.path / 'analysis/pipe.json'} is neither a file nor a folder" in said_by(publish, run, NAME)
    assert hub.asked == []


def test_caches_and_unfinished_files_are_left_out_whatever_they_are(hub, token, run, tmp_path):
    place = outside(tmp_path)
    left_out = [
        "requests.sqlite3",
        "requests.sqlite3-journal",
        "requests.sqlite3.damaged",
        "scores.judge.jsonl",
        ".x.part",
    ]
    for name in left_out:
        (run.path / "behaviour" / name).write_text("private")
    (run.path / ".git").symlink_to(place)
    (run.path / "resume").exists() and shutil.rmtree(run.path / "resume")
    (run.path / "resume").symlink_to(place)
    publish(run, NAME)
    published = hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]
    assert b"private" not in published.values() and b"mine" not in b"".join(published.values())
    assert not [name for name in published if name.startswith((".git/", "resume")) or "requests" in name]


def test_offline_a_run_is_not_published_and_the_reason_is_said(hub, token, tmp_path, monkeypatch):
    from huggingface_hub import constants

    run = save_run(tmp_path / "bare")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert said_by(publish, run, NAME).startswith("the Hub at http://127.0.0.1:9 could not be reached")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert said_by(publish, run, NAME) == "HF_HUB_OFFLINE is set; unset it"


def test_the_command_line_publishes_and_locates(hub, token, run, tmp_path):
    said = json_of("publish", run.path, NAME)
    assert said == {"repository": NAME, "commit": f"{hub.endpoint}/{NAME}/commit/{hub.repos[NAME].refs['main']}"}
    assert "give --resume" in refused("publish", run.path, NAME)
    commit = hub.repos[NAME].refs["main"]
    found = json_of("locate", NAME, "--revision", commit)
    assert found["source"] == NAME and found["steps"]["count"] == len(run.steps())
    assert found["transitions"] == json_of("locate", run.path, "--resume")["transitions"]
    assert em_interp("locate", "organisms/none").code == 2
