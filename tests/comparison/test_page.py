"""Comparing runs on disk: the agreement of their steps, the page, the files, and the command."""

import json
from html import escape

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.run import open_run
from tests.comparison.planting import adapter
from tests.figures.planting import TURN, plant_run
from tests.tiny import contents, did, json_of, refused

KEYS = ["base", "sites", "level", "runs", "same_start", "pairs", "angles", "direction_onset", "agreements", "sentence"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three runs that turn at TURN and one in which nothing changes; all have judged answers."""
    folder = tmp_path_factory.mktemp("seeds")
    return [plant_run(folder / f"seed{k}", changes=k < 3, seed=k, every=3).path for k in range(4)]


@pytest.fixture(scope="module")
def compared(seeds):
    return em.compare(seeds)


def test_the_planted_step_is_in_the_pooled_interval_and_the_run_without_one_is_counted(compared):
    turns = next(one for one in compared.agreements if one.signal == "rotation")
    low, high = turns.pooled.interval
    assert low <= TURN <= high
    assert turns.counts["none"] == 1
    assert "over 3 of 4 runs" in compared.sentence() and "1 with none" in compared.sentence()
    assert "given twice" not in compared.sentence()
    assert [one.signal for one in compared.agreements] == ["rotation", "gradient_norm", "norm_onset", "onset"]


def test_the_same_runs_give_the_same_numbers_however_they_are_given(compared, seeds):
    opened = [open_run(seeds[0]), em.load_trajectory(seeds[1]), str(seeds[2]), seeds[3]]
    assert em.compare(opened).pairs.equals(compared.pairs)


def test_a_run_compared_with_itself_is_identical_and_says_so(seeds):
    found = em.compare([seeds[0], seeds[0]])
    assert len(set(found.names)) == 2 and all("seed0" in name for name in found.names)
    np.testing.assert_allclose(found.pairs["value"], 1, atol=1e-6)
    np.testing.assert_allclose(found.angles["degrees"], 0, atol=1e-6)
    assert "|cos B| at the end: 1; the pair is beyond chance" in found.sentence()
    assert "are one run given twice: equal to the bit" in found.sentence()


def test_a_comparison_shows_itself_and_nothing_in_it_can_pass_for_markup(compared):
    html = compared._repr_html_()
    assert "transition is at" in html and ".plot(" in html
    hostile = em.compare([adapter(1, name="<b onclick=x>"), adapter(2, name="</script>")], permutations=9)
    assert "<b onclick" not in hostile._repr_html_()
    assert "4 runs of tiny-qwen2" in repr(compared)


def test_the_command_prints_the_words_and_writes_nothing_unasked(seeds, compared):
    before = [contents(run) for run in seeds]
    assert did("compare", *seeds).strip() == compared.sentence()
    assert [contents(run) for run in seeds] == before


def test_json_is_one_object_with_every_part(seeds):
    values = json_of("compare", *seeds[:2])
    assert list(values) == KEYS
    assert [run["name"] for run in values["runs"]] == ["seed0", "seed1"]
    assert {row["measure"] for row in values["pairs"]} == {"B", "A", "delta", "composition"}
    assert len(values["direction_onset"]) == 2 * 3


def test_out_gets_the_page_the_json_and_every_table_and_is_not_overwritten_unasked(seeds, tmp_path):
    out = tmp_path / "out"
    said = did("compare", *seeds[:2], "--out", out)
    assert said.endswith(f"the page: {out / 'comparison.html'}\n")
    assert list(json.loads((out / "comparison.json").read_text())) == KEYS
    assert len(pd.read_csv(out / "pairs.csv")) == 4
    names = {file.stem for file in out.glob("*.csv")}
    assert names == {"pairs", "angles", "steps", "direction_onset", "plane", "transitions", "agreement"}
    before = contents(out)
    assert "give --resume" in refused("compare", *seeds[:2], "--out", out)
    did("compare", *seeds[:2], "--out", out, "--resume")
    assert contents(out) == before
    assert "holds other findings" in refused("compare", *seeds[1:3], "--out", out, "--resume")
    assert contents(out) == before
    did("compare", *seeds[1:3], "--out", out, "--overwrite")
    assert contents(out) != before


def test_the_page_holds_every_figure_and_needs_nothing_from_outside(compared):
    from em_interp.comparison.page import comparison_page

    page = comparison_page(compared)
    drawn = compared.figures()
    assert page.count('<div class="plot"') == len(drawn) == 11
    assert "<script src" not in page and "Comparison of runs" in page
    assert all(escape(line, quote=False).replace("'", "&#39;") in page for line in compared.sentence().splitlines())


def test_bad_input_to_the_command_is_one_line(seeds, tmp_path):
    assert "two runs or more" in refused("compare", seeds[0])
    assert "does not exist" in refused("compare", seeds[0], tmp_path / "nowhere")
