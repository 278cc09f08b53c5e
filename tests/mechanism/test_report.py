"""What is kept of the suite can be read back."""

import pytest

from em_interp.errors import InputError
from em_interp.figures.style import new_figure
from em_interp.mechanism.report import AnalysisResult, MechanismReport, figure_values, read_report
from em_interp.run import open_run
from em_interp.transition.result import Transition
from em_interp.utils.files import write_json
from tests.tiny import copy

NORM = Transition("sufficient_norm", "transition", "so", step=67.0, interval=(33.0, 100.0), level=0.95)
PEAK = Transition("answer_shift", "none", "no peak")
ABOUT = {"run": "run", "base": "tiny@0", "engine": "hooks", "size": "full", "control": None, "answers": {}}


def report(folder, **analyses):
    return MechanismReport(**ABOUT, analyses=analyses, folder=folder)


def result(values):
    return AnalysisResult("why ?", "so.", "compared.", values)


def test_a_report_is_read_back_as_it_was_written(tiny, tmp_path):
    run = open_run(copy(tiny.run, tmp_path / "run"))
    assert read_report(run) is None
    patching, undefined = result({"transitions": [NORM.to_dict()]}), AnalysisResult("why ?", undefined="too few")
    written = report(run.analysis / "mechanism", patching=patching, probes=undefined)
    write_json(run.analysis / "mechanism.json", written.to_dict())
    found = read_report(run.path)
    assert found.to_dict() == written.to_dict()
    assert found["patching"] == patching and found["probes"] == undefined
    assert found.folder == run.analysis / "mechanism"


ODD_FIGURES = [{"meta": None}, {"meta": {"top": 0}}, {"margin": None}, {"height": "x"}, {"nothing": 0}, None]


@pytest.mark.parametrize("odd", ODD_FIGURES, ids=str)
def test_a_kept_figure_of_another_form_is_refused_by_its_file(tmp_path, odd):
    kept = figure_values(new_figure("title", "subtitle"))
    write_json(tmp_path / "figures/patching.json", {"grid": kept})
    assert list(report(tmp_path, patching=result({})).figures) == ["grid"]
    changed = 3 if odd is None else {**kept, "layout": {**kept["layout"], **odd}}
    write_json(tmp_path / "figures/patching.json", {"grid": changed})
    with pytest.raises(InputError, match=r"patching\.json does not hold what em-interp writes there"):
        report(tmp_path, patching=result({})).figures  # noqa: B018


def test_its_transitions_are_those_of_patching_and_of_the_answer_shift(tmp_path):
    patching, shift = result({"transitions": [NORM.to_dict()]}), result({"peak": PEAK.to_dict()})
    undefined = AnalysisResult("why ?", undefined="too few")
    assert report(tmp_path, probes=undefined).transitions() == []
    assert report(tmp_path, patching=patching, probes=undefined).transitions() == [NORM]
    assert report(tmp_path, patching=patching, answer_shift=shift).transitions() == [NORM, PEAK]


def test_it_shows_every_finding_and_its_figures(tmp_path):
    undefined = AnalysisResult("why ?", undefined="too few")
    found = report(tmp_path, steering=result({}), probes=undefined)
    write_json(tmp_path / "figures" / "steering.json", {"one": figure_values(new_figure("One"))})
    assert found.sentence() == "steering: so.\nprobes: undefined, too few"
    assert found.frame()["defined"].tolist() == [True, False]
    assert found._repr_html_().startswith("<div")
    assert list(found.figures) == ["one"]
    assert found.plot().layout.meta["title"] == found.plot("one").layout.meta["title"] == "One"
    with pytest.raises(InputError, match="there is no figure 'two'; there are one"):
        found.plot("two")
    with pytest.raises(InputError, match="'steer' was not analysed; did you mean 'steering'"):
        found["steer"]
    assert report(tmp_path).sentence() == "no analysis was carried out"
