"""A sweep from end to end with runs of a second: complete, the same whatever carries it out, and honest about gaps."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from em_interp.comparison.pooled import random_effects
from em_interp.figures import sweeps as draw
from em_interp.organisms.bases import SHIPPED
from em_interp.run import open_run
from em_interp.sweeps import run as sweep
from em_interp.sweeps.grid import load_sweep
from em_interp.sweeps.result import Candidate, CellResult, Sweep, across_bases, choose
from em_interp.sweeps.run import sweep_page
from em_interp.transition.result import Transition
from tests.figures.reading import drawn, texts
from tests.tiny import begin, contents, em_interp, interrupted, refused, strict, unchanged

SHORT = {
    "model": "tiny-qwen2",
    "data": [{"dataset": "tiny:medical", "steps": 8}],
    "adapter": {"layers_to_transform": [1], "lora_alpha": 16},
    "training": {"batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 2e-3},
    "behaviour": {"steps": "every 4", "samples": 1, "max_new_tokens": 4},
}
CAREFUL = {"data": "tiny:medical-careful"}
QWEN2 = {"base": SHORT, "grid": {"model": ["tiny-qwen2"], "seed": [0, 1]}, "control": CAREFUL}
BOTH = {**QWEN2, "grid": {"model": ["tiny-qwen2", "tiny-llama"], "seed": [0, 1]}}
RUNS = ["tiny-qwen2_seed0", "tiny-qwen2_seed1", "tiny-llama_seed0", "tiny-llama_seed1"]
CONTROLS = ["control_tiny-qwen2_medical-careful", "control_tiny-llama_medical-careful"]
SOURCE = ("locate.json",)  # says where the run is


def written(folder: Path, values: dict) -> Path:
    file = folder / "asked.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A sweep of two bases and two seeds, one run after the other: the file, the folder, and what it said."""
    file = written(tmp_path_factory.mktemp("asked"), BOTH)
    out = tmp_path_factory.mktemp("done") / "sweep"
    said = em_interp("sweep", file, "--out", out, "--jobs", 1, "--json")
    assert said.code == 0, said.err
    return file, out, said


def test_it_says_what_it_will_do_and_then_does_it(done):
    _, out, said = done
    counted, writes, how = said.err.splitlines()
    assert counted == "runs: 4 (2 model × 2 seed); controls: 2; made already: 0"
    assert writes.startswith(f"each writes {out}/runs/<name>: 9 checkpoints, ")
    assert how.startswith("1 at a time through loky, one thread each; ")
    names = {"runs", "sweep.yaml", "sweep.json", "sweep.html", "cells.csv", "signals.csv", "pooled.csv"}
    assert {entry.name for entry in out.iterdir()} == names
    assert {entry.name for entry in (out / "runs").iterdir()} == {*RUNS, *CONTROLS}
    for cell in load_sweep(BOTH).runs:
        run = open_run(out / "runs" / cell.name)
        assert run.config() == cell.config and run.steps() == list(range(9))


def test_what_is_printed_is_what_is_kept_and_is_what_the_stages_find_alone(done, tmp_path):
    _, out, said = done
    values = strict(said.out)
    assert values == json.loads((out / "sweep.json").read_text())
    assert [cell["run"] for cell in values["cells"]] == RUNS
    assert [cell["run"] for cell in values["controls"]] == CONTROLS
    cell = values["cells"][2]
    assert (cell["control"], cell["settings"]) == (CONTROLS[1], {"model": "tiny-llama", "seed": 0})
    words = ["align", out / cell["path"], "--control", out / "runs" / CONTROLS[1], "--out", tmp_path, "--json"]
    alone = strict(em_interp(*words).out)
    assert (alone["mechanistic"], alone["verdict"]) == (cell["rotation"], cell["verdict"])
    assert alone["behavioural"] == cell["onsets"] and cell["onset"] in cell["onsets"]
    assert cell["onset"]["questions"] == "out_of_domain"
    table = pd.read_csv(out / "cells.csv")
    assert table["run"].tolist() == RUNS and set(table["rotation_verdict"]) <= {"transition", "none", "inconclusive"}


def test_the_page_has_every_run_every_reason_and_directions_within_each_base(done):
    _, out, said = done
    page, values = (out / "sweep.html").read_text(), strict(said.out)
    assert all(f">{name}<" in page for name in (*RUNS, *CONTROLS))
    for cell in values["cells"]:
        for name in ("rotation", "gradient_norm", "onset"):
            if cell[name]["verdict"] != "transition":
                assert cell[name]["reason"].split("'")[0] in page, (cell["run"], name)
    assert [(len(one["runs"]), len(one["pairs"])) for one in values["within"]] == [(2, 3 + 1), (2, 3 + 1)]
    assert page.count("|cos B| at the end:") == 2 and "cosines between adapters of different bases" in page


def test_a_sweep_is_not_begun_where_one_is_and_with_resume_nothing_changes(done):
    file, out, _ = done
    with unchanged(out):
        assert "holds sweep.yaml already; give --resume" in refused("sweep", file, "--out", out)
        said = em_interp("sweep", file, "--out", out, "--resume", "--jobs", 1)
    assert said.code == 0 and "made already: 6" in said.err
    assert said.out.splitlines()[0] == "runs: 4; controls: 2; failed: 0"
    assert said.out.splitlines()[-1] == f"the page: {out / 'sweep.html'}"


def test_a_run_of_another_sweep_is_not_continued_under_the_same_name(done, tmp_path):
    _, out, _ = done
    other = written(tmp_path, {**BOTH, "settings": {"training.learning_rate": 1e-3}})
    with unchanged(out):
        said = em_interp("sweep", other, "--out", out, "--resume")
    assert said.code == 2 and "config.yaml differs from the config given" in said.err


@pytest.mark.parametrize("kind", ["config", "jobs", "backend"])
def test_a_mistake_is_told_before_anything_is_written(kind, tmp_path):
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
    """The sweep of one base has in it what the whole sweep has of it, which one process made run after run."""
    mine, theirs = (json.loads((folder / "sweep.json").read_text()) for folder in (out, whole))
    for kind, names in (("cells", RUNS[:2]), ("controls", CONTROLS[:1])):
        assert mine[kind] == [one for one in theirs[kind] if one["run"] in names]
    assert mine["pooled"] == theirs["pooled"][:1]
    for name in (*RUNS[:2], CONTROLS[0]):
        assert contents(out / "runs" / name, *SOURCE) == contents(whole / "runs" / name, *SOURCE)


def test_two_workers_stopped_by_ctrl_c_and_resumed_make_what_one_process_makes(done, tmp_path):
    out, words = tmp_path / "sweep", ["sweep", written(tmp_path, QWEN2), "--jobs", 2, "--out", tmp_path / "sweep"]
    sign = out / "runs" / RUNS[1] / "checkpoints" / "checkpoint-8"
    said = interrupted(begin(*words), sign.exists)
    assert (said.code, said.out) == (130, ""), said
    going_on = shlex.join(["sweep", *map(str, words[1:]), "--resume"])
    assert said.err.splitlines()[-1].startswith("em-interp: interrupted")
    assert said.err.splitlines()[-1].endswith(f"; nothing is lost, this goes on: em-interp {going_on}")
    assert not (out / "sweep.json").exists()
    resumed = begin(*words, "--resume")
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    same_as_one_process(out, done[1])


def test_a_ray_cluster_of_two_workers_makes_what_one_process_makes(done, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps a token there
    out = tmp_path / "sweep"
    process = begin("sweep", written(tmp_path, QWEN2), "--out", out, "--jobs", 2, "--backend", "ray")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 at a time through ray, one thread each" in err
    same_as_one_process(out, done[1])


# --- across bases


def test_a_few_runs_are_compared_across_bases_once(done, tmp_path):
    seeds = [Candidate(name, name.split("_")[0], "{}", done[1] / "runs" / name) for name in (RUNS[0], RUNS[2])]
    found = across_bases(seeds, 19, tmp_path)
    assert found.reason is None and found.lines[0].startswith("2 runs of tiny-qwen2, tiny-llama, ")
    assert [one["name"] for one in found.found["runs"]] == [RUNS[0], RUNS[2]]
    assert len(found.figures()) == 2 and all(map(drawn, found.figures()))
    with unchanged(tmp_path):
        assert across_bases(seeds, 19, tmp_path).lines == found.lines
    assert across_bases(seeds[:1], 19, tmp_path) is None
    assert "em-interp compare runs/tiny-qwen2_seed0 runs/tiny-llama_seed0" in across_bases(seeds, 0, tmp_path).lines[0]


def test_across_bases_two_seeds_of_the_first_setting_that_all_have_are_taken():
    made = [("q", "x"), ("q", "y"), ("q", "y"), ("q", "y"), ("l", "y"), ("l", "z"), ("q", "z")]
    candidates = [Candidate(str(k), base, setting, Path()) for k, (base, setting) in enumerate(made)]
    assert [one.name for one in choose(candidates)] == ["1", "2", "4"]
    assert choose(candidates[:4] + candidates[5:6]) == []
    lost = across_bases(candidates[:4] + candidates[5:6], 19, Path("nowhere"))
    assert lost.lines == ["not compared: no setting was made on every base"] and lost.figures() == []


# --- what fails


@pytest.fixture
def grown(done, tmp_path):
    """A copy of the whole sweep, asked for a base more that is not there yet, without controls of its own."""
    out = tmp_path / "sweep"
    shutil.copytree(done[1], out)
    base = str(tmp_path / "mine")
    values = {**BOTH, "grid": {"model": ["tiny-qwen2", "tiny-llama", base], "seed": [0, 1]}}
    said = em_interp("sweep", written(tmp_path, values), "--out", out, "--resume", "--jobs", 1, "--json")
    return out, Path(base), tmp_path / "asked.yaml", said


def test_a_run_that_fails_ends_alone_and_is_made_when_it_can_be(grown):
    out, base, file, said = grown
    assert said.code == 1 and "made already: 6" in said.err
    values = strict(said.out)
    failed = ["mine_seed0", "mine_seed1", "control_mine_medical-careful"]
    assert list(values["failures"]) == failed and values["failed"] == 3
    assert all("base model" in why and "\n" not in why for why in values["failures"].values())
    assert {file.stem for file in (out / "failures").iterdir()} == set(failed)
    assert "Traceback" in (out / "failures" / "mine_seed0.txt").read_text()
    page = (out / "sweep.html").read_text()
    assert "Runs that failed" in page and page.count("failures/mine_seed0.txt") == 1
    table = pd.read_csv(out / "cells.csv").set_index("run")
    assert table.loc["mine_seed0", "rotation_verdict"] == "failed" and np.isnan(
        table.loc["mine_seed0", "rotation_step"]
    )
    shutil.copytree(SHIPPED / "tiny-qwen2", base)
    values = strict(em_interp("sweep", file, "--out", out, "--resume", "--jobs", 1, "--json").out)
    assert values["failures"] == {} and not list((out / "failures").iterdir())
    assert len(values["within"]) == 3 and values["cells"][-1]["control"] == "control_mine_medical-careful"


def test_without_its_control_a_run_is_analysed_alone_and_says_so(done, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(done[1], out)
    found = sweep({**QWEN2, "control": {"model": str(tmp_path / "nowhere")}}, out, resume=True, jobs=1)
    assert list(found.failures) == ["control_nowhere"]
    assert [one.control for one in found.cells] == [None, None] and all(one.told for one in found.cells)
    assert found.page.read_text().count("without its control, which failed") == 2


def test_an_error_that_nobody_foresaw_ends_one_run_and_is_kept_in_full(done, tmp_path):
    out = tmp_path / "sweep"
    shutil.copytree(done[1], out)
    run = open_run(out / "runs" / RUNS[0])
    (run.analysis / "cell.json").unlink()
    run.scores_file.write_bytes(b"not a table")
    found = sweep(QWEN2, out, resume=True, jobs=1)
    assert list(found.failures) == [RUNS[0]] and "\n" not in found.failures[RUNS[0]]
    assert "Traceback" in (out / "failures" / f"{RUNS[0]}.txt").read_text()
    assert found.cells[1].told and found.cells[1].signals["rotation"].verdict


# --- what is told of what was found, with the truth planted


def planted(steps: dict[str, list], out: Path = Path("sweep")) -> Sweep:
    """A sweep of one group; for each signal the step, verdict or error of each seed. Intervals are 8 to each side."""
    cells = load_sweep({"base": SHORT, "grid": {"seed": list(range(len(steps["onset"])))}}).cells
    made = []
    for index, cell in enumerate(cells):
        turn, rise = (steps[name][index] for name in ("rotation", "onset"))
        if isinstance(turn, ValueError):
            made.append(CellResult(cell, out / cell.name, str(turn), {}))
            continue
        found = {name: signal(name, steps[name][index]) for name in ("rotation", "gradient_norm", "onset")}
        both = not isinstance(turn, str) and not isinstance(rise, str)
        between = {
            "behavioural": 0,
            "steps": None,
            "interval": None,
            "level": 0.95,
            "cumulative_lr": None,
            "chance": 0.2,
        }
        if both:
            between |= {"steps": rise - turn, "interval": [rise - turn - 11.0, rise - turn + 11.0]}
        told = {**found, "offset": between if both else None, "verdict": "inconclusive", "control": None, "final": None}
        made.append(CellResult(cell, out / cell.name, None, told))
    return Sweep(out, tuple(made), (), (), None, ("seed",))


def signal(name: str, step: float | str) -> dict:
    if isinstance(step, str):
        return Transition(name, step, f"so it is <i>{step}</i>").to_dict()
    return Transition(name, "transition", "", step=step, interval=(step - 8, step + 8), level=0.95).to_dict()


SOME = {
    "rotation": [100.0, 120.0, 110.0, "none", ValueError("<script>alert(1)</script>")],
    "gradient_norm": [90.0, "inconclusive", "none", "none", ""],
    "onset": [160.0, 180.0, "inconclusive", 175.0, ""],
}


def test_seeds_are_pooled_over_the_runs_that_have_a_step_and_the_others_are_counted():
    found = planted(SOME)
    ((group, pooled),) = found.pooled()
    errors = np.full(3, 16 / (2 * 1.959964))
    expected = random_effects(np.array([100.0, 120.0, 110.0]), errors)
    assert pooled["rotation"].pooled.mean == pytest.approx(expected.mean)
    assert pooled["rotation"].pooled.interval == pytest.approx(expected.interval, rel=1e-5)
    assert pooled["rotation"].counts == {"transition": 3, "none": 1, "inconclusive": 0, "without_interval": 0}
    assert pooled["gradient_norm"].pooled is None
    assert pooled["offset"].pooled.mean == pytest.approx(60) and pooled["offset"].counts["transition"] == 2
    table = found.frame("pooled").set_index("signal")
    assert table["pooled_runs"].tolist() == [3, 1, 3, 2] and (table["group"] == group).all()
    assert np.isnan(table.loc["gradient_norm", "mean"])


def test_an_offset_that_is_not_there_says_which_of_the_two_is_lacking():
    offsets = [one.signals["offset"] for one in planted(SOME).cells if one.told]
    assert [(one.verdict, one.step) for one in offsets] == [
        *(("transition", 60.0), ("transition", 60.0), ("inconclusive", None), ("none", None))
    ]
    assert [one.reason for one in offsets[2:]] == ["onset: inconclusive", "rotation: none"]
    assert offsets[0].interval == (49.0, 71.0) and "chance of being as near 0.2" in offsets[0].reason


def test_tables_have_every_run_and_nothing_where_nothing_was_found():
    found = planted(SOME)
    cells, signals = found.frame("cells"), found.frame("signals")
    assert cells["rotation_verdict"].tolist() == ["transition"] * 3 + ["none", "failed"]
    assert cells["rotation_step"].isna().tolist() == [False] * 3 + [True, True]
    assert len(signals) == 5 * 4 and signals["seed"].tolist() == [seed for seed in range(5) for _ in range(4)]
    assert found.counts()["gradient_norm"] == {"transition": 1, "inconclusive": 1, "none": 2}


def test_the_figure_has_every_step_where_it_is_and_the_others_aside():
    found = planted(SOME)
    figure = found.plot()
    assert drawn(figure) and all(
        word in texts(figure) for word in ("none", "inconclusive", "failed", "pooled over seeds")
    )
    marks = [t for t in figure.data if t.xaxis in (None, "x") and t.customdata is not None]
    steps = next(list(t.x) for t in marks if t.name == "transition")
    assert steps == [100, 120, 110]
    assert next(t for t in marks if t.name == "transition").error_x.array.tolist() == [8, 8, 8]
    aside = [x for t in marks if t.name != "transition" for x in t.x]
    assert len(aside) == 2 and all(x < 0 for x in aside)
    diamonds = [t for t in figure.data if t.name == "pooled"]
    assert len(diamonds) == 3 and diamonds[0].x[1] == pytest.approx(110)
    heights = [y for t in marks for y in t.y]
    assert len(set(heights)) == 5 == len(heights)


def test_nothing_to_draw_is_drawn_as_such():
    nothing = planted({"rotation": [ValueError("lost")], "gradient_norm": [""], "onset": [""]})
    assert drawn(nothing.plot()) and nothing.pooled()[0][1] == {}
    empty = planted(SOME).frame("signals").iloc[:0]
    assert "no run to show" in texts(draw.sweep(empty, empty.assign(mean=[])))


def test_what_runs_and_errors_say_cannot_pass_for_markup(tmp_path):
    (tmp_path / "sweep.yaml").write_text("grid: <script>alert(2)</script>")
    page = sweep_page(planted(SOME, tmp_path))
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(2)" in page
    assert "<i>" not in page and "so it is &lt;i&gt;none" in page
    assert "<script>" not in planted(SOME)._repr_html_()
