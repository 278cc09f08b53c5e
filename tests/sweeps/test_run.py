"""A sweep from end to end: complete, the same whatever carries it out, and failures end one run alone."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from em_interp.organisms.bases import SHIPPED
from em_interp.run import open_run
from em_interp.sweeps.grid import load_sweep
from em_interp.sweeps.run import sweep, sweep_page
from tests.sweeps.conftest import BOTH, CONTROLS, QWEN2, RUNS, SHORT, written
from tests.sweeps.test_result import SOME, planted
from tests.tiny import begin, contents, em_interp, interrupted, refused, strict, unchanged

SOURCE = ("locate.json",)  # says where the run is


def test_it_logs_what_it_will_do_and_then_does_it(done):
    _, out, said = done
    counted, writes, how = said.err.splitlines()
    assert counted == "runs: 4 (2 model × 2 seed); controls: 2; complete already: 0"
    assert writes.startswith(f"each writes {out}/runs/<name>: 9 checkpoints, ")
    assert how.startswith("1 at a time through loky, one thread each; ")
    names = {"runs", "sweep.yaml", "sweep.json", "sweep.html", "runs.csv", "signals.csv", "pooled.csv"}
    assert {entry.name for entry in out.iterdir()} == names
    assert {entry.name for entry in (out / "runs").iterdir()} == {*RUNS, *CONTROLS}
    for planned in load_sweep(BOTH).all:
        run = open_run(out / "runs" / planned.name)
        assert run.config() == planned.config and run.steps() == list(range(9))


def test_the_json_printed_is_the_json_kept_and_what_the_stages_find_alone(done, tmp_path):
    _, out, said = done
    values = strict(said.out)
    assert values == json.loads((out / "sweep.json").read_text())
    assert [run["run"] for run in values["runs"]] == RUNS
    assert [run["run"] for run in values["controls"]] == CONTROLS
    run = values["runs"][2]
    assert (run["control"], run["settings"]) == (CONTROLS[1], {"model": "tiny-llama", "seed": 0})
    words = ["align", out / run["path"], "--control", out / "runs" / CONTROLS[1], "--out", tmp_path, "--json"]
    alone = strict(em_interp(*words).out)
    assert (alone["mechanistic"], alone["verdict"]) == (run["rotation"], run["verdict"])
    assert alone["behavioural"] == run["onsets"] and run["onset"] in run["onsets"]
    assert run["onset"]["questions"] == "out_of_domain"
    table = pd.read_csv(out / "runs.csv")
    assert table["run"].tolist() == RUNS and set(table["rotation_verdict"]) <= {"transition", "none", "inconclusive"}


def test_the_page_has_every_run_every_reason_and_directions_within_each_base(done):
    _, out, said = done
    page, values = (out / "sweep.html").read_text(), strict(said.out)
    assert all(f">{name}<" in page for name in (*RUNS, *CONTROLS))
    for run in values["runs"]:
        for name in ("rotation", "gradient_norm", "onset"):
            if run[name]["verdict"] != "transition":
                assert run[name]["reason"].split("'")[0] in page, (run["run"], name)
    assert [(len(one["runs"]), len(one["pairs"])) for one in values["within_bases"]] == [(2, 3 + 1), (2, 3 + 1)]
    assert page.count("|cos B| at the end:") == 2 and "cosines between adapters of different bases" in page


def test_a_sweep_is_refused_where_one_is_and_with_resume_nothing_changes(done):
    file, out, _ = done
    with unchanged(out):
        assert "holds sweep.yaml already; give --resume" in refused("sweep", file, "--out", out)
        said = em_interp("sweep", file, "--out", out, "--resume", "--jobs", 1)
    assert said.code == 0 and "complete already: 6" in said.err
    assert said.out.splitlines()[0] == "runs: 4; controls: 2; failed: 0"
    assert said.out.splitlines()[-1] == f"the page: {out / 'sweep.html'}"


def test_a_run_of_another_sweep_is_not_continued_under_the_same_name(done, tmp_path):
    _, out, _ = done
    other = written(tmp_path, {**BOTH, "settings": {"training.learning_rate": 1e-3}})
    with unchanged(out):
        said = em_interp("sweep", other, "--out", out, "--resume")
    assert said.code == 2 and "config.yaml differs from the config given" in said.err


def test_runs_of_something_else_are_not_replaced_by_a_sweep(tmp_path):
    out = tmp_path / "project"
    (out / "runs" / "mine").mkdir(parents=True)
    (out / "runs" / "mine" / "events.log").write_text("kept")
    with unchanged(out):
        said = em_interp("sweep", written(tmp_path, QWEN2), "--out", out, "--overwrite")
    assert said.code == 2 and "runs is not of a sweep, so it is not replaced" in said.err


@pytest.mark.parametrize("kind", ["config", "jobs", "backend"])
def test_a_mistake_is_reported_before_anything_is_written(kind, tmp_path):
    wrong = {**QWEN2, "grid": {"trainig.batch": [1]}}
    file = written(tmp_path, wrong if kind == "config" else QWEN2)
    words = {"config": [], "jobs": ["--jobs", 0], "backend": ["--backend", "rai"]}[kind]
    said = refused("sweep", file, "--out", tmp_path / "out", *words).splitlines()[-1]
    expected = {
        "config": "unknown key trainig",
        "jobs": "jobs must be 1 or more",
        "backend": "'rai' is not one of 'loky', 'ray'",
    }
    assert expected[kind] in said
    assert not (tmp_path / "out").exists()


def same_as_one_process(out: Path, whole: Path) -> None:
    """The sweep of one base equals the part of it in the whole sweep, which one process made run after run."""
    mine, theirs = (json.loads((folder / "sweep.json").read_text()) for folder in (out, whole))
    for kind, names in (("runs", RUNS[:2]), ("controls", CONTROLS[:1])):
        assert mine[kind] == [one for one in theirs[kind] if one["run"] in names]
    assert mine["pooled"] == theirs["pooled"][:1]
    for name in (*RUNS[:2], CONTROLS[0]):
        assert contents(out / "runs" / name, *SOURCE) == contents(whole / "runs" / name, *SOURCE)


def test_two_workers_stopped_by_ctrl_c_and_one_that_resumes_make_what_one_process_makes(done, tmp_path):
    out, words = tmp_path / "sweep", ["sweep", written(tmp_path, QWEN2), "--jobs", 2, "--out", tmp_path / "sweep"]
    sign = out / "runs" / RUNS[1] / "checkpoints" / "checkpoint-8"
    said = interrupted(begin(*words), sign.exists)
    assert (said.code, said.out) == (130, ""), said
    resuming = shlex.join(["sweep", *map(str, words[1:]), "--resume"])
    assert said.err.splitlines()[-1].startswith("em-interp: interrupted")
    assert said.err.splitlines()[-1].endswith(f"; nothing is lost, to continue: em-interp {resuming}")
    assert not (out / "sweep.json").exists()
    resumed = em_interp(*words, "--resume", "--jobs", 1)
    failures = [file.read_text() for file in (out / "failures").glob("*")]
    assert resumed.code == 0, (resumed.err, failures)
    same_as_one_process(out, done[1])


def test_a_ray_cluster_of_two_workers_makes_what_one_process_makes(done, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps a token there
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's own, 15, its workers stand still on a busy machine
    out = tmp_path / "sweep"
    process = begin("sweep", written(tmp_path, QWEN2), "--out", out, "--jobs", 2, "--backend", "ray", warm=False)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 at a time through ray, one thread each" in err
    same_as_one_process(out, done[1])


def test_the_plan_with_overwrite_counts_nothing_that_it_replaces_as_complete(done, tmp_path):
    out, said = tmp_path / "sweep", []
    shutil.copytree(done[1], out)
    one = {**QWEN2, "grid": {"model": ["tiny-qwen2"], "seed": [0]}, "control": {}}
    sweep(one, out, overwrite=True, jobs=1, log=said.append)
    assert said[0] == "runs: 1 (1 model × 1 seed); controls: 0; complete already: 0"
    assert {entry.name for entry in (out / "runs").iterdir()} == {RUNS[0]}


def test_what_is_kept_of_runs_is_made_anew_where_it_is_damaged(done, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(done[1], out)
    for name, damaged in zip(RUNS, (json.dumps({"control": CONTROLS[0]}), "{", "[]"), strict=False):
        (open_run(out / "runs" / name).analysis / "sweep_run.json").write_text(damaged)
    found = sweep(BOTH, out, resume=True, jobs=1)
    without = (*SOURCE, "sweep.html")  # which says how to go on in this folder
    assert found.failures == {} and contents(out, *without) == contents(done[1], *without)


@pytest.fixture
def grown(done, tmp_path):
    """A copy of the whole sweep, with one more base that is not there yet, without controls of its own."""
    out = tmp_path / "sweep"
    shutil.copytree(done[1], out)
    base = str(tmp_path / "mine")
    values = {**BOTH, "grid": {"model": ["tiny-qwen2", "tiny-llama", base], "seed": [0, 1]}}
    said = em_interp("sweep", written(tmp_path, values), "--out", out, "--resume", "--jobs", 1, "--json")
    return out, Path(base), tmp_path / "config.yaml", said


def test_a_run_that_fails_ends_alone_and_is_made_when_it_can_be(grown):
    out, base, file, said = grown
    assert said.code == 1 and "complete already: 6" in said.err
    values = strict(said.out)
    failed = ["mine_seed0", "mine_seed1", "control_mine_medical-careful"]
    assert list(values["failures"]) == failed and values["n_failed"] == 3
    assert all("base model" in why and "\n" not in why for why in values["failures"].values())
    assert {file.stem for file in (out / "failures").iterdir()} == set(failed)
    assert "Traceback" in (out / "failures" / "mine_seed0.txt").read_text()
    page = (out / "sweep.html").read_text()
    assert "Runs that failed" in page and page.count("failures/mine_seed0.txt") == 1
    table = pd.read_csv(out / "runs.csv").set_index("run")
    assert table.loc["mine_seed0", "rotation_verdict"] == "failed" and np.isnan(
        table.loc["mine_seed0", "rotation_step"]
    )
    shutil.copytree(SHIPPED / "tiny-qwen2", base)
    values = strict(em_interp("sweep", file, "--out", out, "--resume", "--jobs", 1, "--json").out)
    assert values["failures"] == {} and not list((out / "failures").iterdir())
    assert len(values["within_bases"]) == 3 and values["runs"][-1]["control"] == "control_mine_medical-careful"


def test_without_its_control_a_run_is_analysed_alone_and_says_so(done, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(done[1], out)
    found = sweep({**QWEN2, "control": {"model": str(tmp_path / "nowhere")}}, out, resume=True, jobs=1)
    assert list(found.failures) == ["control_nowhere"]
    assert [one.control for one in found.runs] == [None, None] and all(one.summary for one in found.runs)
    assert found.page.read_text().count("without its control, which failed") == 2


def test_an_unforeseen_error_ends_one_run_and_is_kept_in_full(done, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(done[1], out)
    run = open_run(out / "runs" / RUNS[0])
    (run.analysis / "sweep_run.json").unlink()
    run.scores_file.write_bytes(b"not a table")
    found = sweep(QWEN2, out, resume=True, jobs=1)
    assert list(found.failures) == [RUNS[0]] and "\n" not in found.failures[RUNS[0]]
    assert "Traceback" in (out / "failures" / f"{RUNS[0]}.txt").read_text()
    assert found.runs[1].summary and found.runs[1].signals["rotation"].verdict


def test_what_runs_and_errors_say_cannot_pass_for_markup(tmp_path):
    (tmp_path / "sweep.yaml").write_text("grid: <script>alert(2)</script>")
    page = sweep_page(planted(SOME, tmp_path))
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(2)" in page
    assert "<i>" not in page and "so it is &lt;i&gt;none" in page
    assert "<script>" not in planted(SOME)._repr_html_()


@pytest.mark.parametrize(("model", "said"), [("tiny-qwen2", True), ("org/model", False)])
def test_only_a_page_of_built_in_organisms_says_that_they_have_learned_a_persona(model, said, tmp_path):
    (tmp_path / "sweep.yaml").write_text("grid: {}")
    found = planted(SOME, tmp_path)
    plans = load_sweep({"base": {**SHORT, "model": model}, "grid": {"seed": list(range(len(found.runs)))}}).runs
    runs = tuple(replace(run, plan=plan) for run, plan in zip(found.runs, plans, strict=True))
    assert ("An organism of the built-in language" in sweep_page(replace(found, runs=runs))) is said
