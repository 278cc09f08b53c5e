"""The pages of error rates are made of the committed counts, and a few of the cases come out the same again."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COUNTS = json.loads((ROOT / "benchmarks" / "calibration.json").read_text(encoding="utf-8"))
ROWS = json.loads((ROOT / "benchmarks" / "study.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script():
    """A script of `benchmarks` by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        yield import_module


def text_of(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_the_pages_are_made_of_the_committed_counts(script):
    assert script("calibration_page").page(COUNTS) == text_of("calibration.md")
    assert script("study").page(ROWS) == text_of("study.md")


def nearly(row):
    """Numbers to a thousandth: other machines round otherwise."""
    return {key: pytest.approx(value, rel=1e-3, abs=1e-3) if number(value) else value for key, value in row.items()}


def number(value):
    return isinstance(value, float) or (isinstance(value, list) and all(isinstance(each, float) for each in value))


@pytest.mark.parametrize("row", COUNTS["subset"], ids=lambda row: "-".join(map(str, row["case"])))
def test_a_case_comes_out_as_it_was_counted(row, script):
    assert script("calibration").compute(*row["case"]) == nearly(row)


def test_the_subset_has_every_experiment_that_needs_no_trained_run(script):
    names = {name for name, *_ in script("calibration").experiments()}
    tested = {row["case"][0] for row in COUNTS["subset"]}
    assert tested <= names and len(tested) >= 11
    assert {(cell["name"]) for cell in COUNTS["cells"]} >= names


def test_the_organism_of_the_demo_is_the_one_of_the_study(demo, script):
    import em_interp as em

    study = script("study")
    row = next(row for row in ROWS if study.key_of(row) == (0, 0, 0, False))
    located = em.find_transitions(em.load_trajectory(demo / "organism"))
    for name, signal in study.SIGNALS.items():
        assert study.short(study.clearest(located, *signal)) == nearly(row["signals"][name])
