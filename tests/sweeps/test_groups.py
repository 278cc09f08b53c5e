"""Runs of a sweep compared across bases: two seeds of one setting, once."""

import shutil
from pathlib import Path

import pandas as pd

from em_interp.sweeps.groups import Candidate, across_bases, choose
from tests.figures.reading import drawn
from tests.sweeps.conftest import RUNS
from tests.tiny import unchanged


def test_a_few_runs_are_compared_across_bases_once(done, tmp_path):
    names = RUNS[0], RUNS[2]
    for name in names:
        shutil.copytree(done[1] / "runs" / name, tmp_path / "runs" / name)
        for file in (tmp_path / "runs" / name / "behaviour").glob("*.parquet"):
            table = pd.read_parquet(file)
            table[table["step"] == table["step"].max()].to_parquet(file)  # fewer texts to read
    seeds = [Candidate(name, name.split("_")[0], "{}", tmp_path / "runs" / name) for name in names]
    found = across_bases(seeds, 19, tmp_path)
    assert found.reason is None and found.lines[0].startswith("2 runs of tiny-qwen2, tiny-llama, ")
    assert [one["name"] for one in found.values["runs"]] == [*names]
    assert len(found.figures()) == 2 and all(map(drawn, found.figures()))
    with unchanged(tmp_path):
        assert across_bases(seeds, 19, tmp_path).lines == found.lines
    file = tmp_path / "across" / "cross_base.json"
    kept = file.read_text()
    file.write_text("{}")
    assert across_bases(seeds, 19, tmp_path).lines == found.lines and file.read_text() == kept
    assert across_bases(seeds[:1], 19, tmp_path) is None
    assert "em-interp compare runs/tiny-qwen2_seed0 runs/tiny-llama_seed0" in across_bases(seeds, 0, tmp_path).lines[0]


def test_across_bases_two_seeds_of_the_first_setting_that_all_have_are_taken():
    runs = [("q", "x"), ("q", "y"), ("q", "y"), ("q", "y"), ("l", "y"), ("l", "z"), ("q", "z")]
    candidates = [Candidate(str(k), base, setting, Path()) for k, (base, setting) in enumerate(runs)]
    assert [one.name for one in choose(candidates)] == ["1", "2", "4"]
    assert choose(candidates[:4] + candidates[5:6]) == []
    lost = across_bases(candidates[:4] + candidates[5:6], 19, Path("nowhere"))
    assert lost.lines == ["not compared: no setting was trained on every base"] and lost.figures() == []
