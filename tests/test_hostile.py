"""A seeded part of benchmarks/hostile.py: spoilt files of every kind are read or refused in one line, without harm."""

import shutil
import sys
from contextlib import chdir

import pytest

from tests.tiny import ROOT, did

sys.path.append(str(ROOT / "benchmarks"))
import hostile
from hostile_kinds import KINDS
from isolated import import_all, make_parts

SLOW = ("half_run", "questions", "pairs")  # they load a base
CASES = 2  # of each other kind


@pytest.fixture(scope="module")
def stock(tiny, tmp_path_factory):
    """What the cases begin with, of the tiny run."""
    folder = tmp_path_factory.mktemp("stock")
    shutil.copytree(tiny.run, folder / "run")
    shutil.copy(tiny.config, folder / "tiny.yaml")
    with chdir(folder):
        for stage in ("locate", "align"):
            did(stage, "run")
        make_parts(folder)
    import_all()
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_input_is_read_or_refused_in_one_line_and_does_no_harm(kind, stock, tmp_path):
    for seed in range(1 if kind in SLOW else CASES):
        outcome = hostile.attempt(kind, seed, stock, tmp_path / "case")
        assert outcome.wrong == [], f"python benchmarks/hostile.py --case {kind}:{seed} repeats it on another run"


def test_the_harness_sees_what_is_wrong(stock, tmp_path, monkeypatch):
    def bad(words):
        (tmp_path / "case" / "outside" / "precious").write_text("changed")
        print("\x1b[31m")
        raise KeyError("x")

    monkeypatch.setattr(hostile, "command", bad)
    wrong = "; ".join(hostile.attempt("log", 0, stock, tmp_path / "case").wrong)
    for part in ("open outside its folder", "something outside its folder has changed", "control character '\\x1b'"):
        assert part in wrong
    assert "traceback: KeyError: 'x'" in wrong
