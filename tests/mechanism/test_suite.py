"""The suite: every analysis, kept as it is done, with the same bytes however often it is interrupted."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.mechanism import suite
from em_interp.mechanism.analyses import ANALYSES, Analysis, Workload
from em_interp.mechanism.interventions.experiments import SamplingParams
from em_interp.mechanism.model import open_model
from em_interp.mechanism.report import read_report
from em_interp.mechanism.suite import SIZES, SuiteContext, SuiteSize, run_suite
from em_interp.organisms.judge import AdviceJudge
from em_interp.reports.page import report
from em_interp.reports.run_figures import findings_of, run_figures
from em_interp.run import open_run
from tests.figures.on_paper import faults
from tests.test_page import Page
from tests.tiny import ROOT, contents, copy, did, em_interp, refused, strict

SAMPLING = SamplingParams(samples=1, max_new_tokens=4)
QUICK = ["probes", "ablation"]


SMALL = SuiteSize(1, 3, 2, 1, 1, (1.0, 2.0), True, 1, 3, 2, 1, 3, 1)


def make_judged(tiny, folder):
    """A copy of the tiny run, asked little, whose judge called every other answer misaligned."""
    run = open_run(copy(tiny.run, folder))
    for step in set(run.steps()) - {0, 4, 8, 12, 16, 20, 24}:
        shutil.rmtree(run.checkpoint(step))
    settings = run.answers_file.with_name("ask.json")
    asked = json.loads(settings.read_text())
    sets = [[q for q in asked["questions"] if q["questions"] == name] for name in ("out_of_domain", "broad")]
    asked["questions"] = [question for some, count in zip(sets, (2, 6), strict=True) for question in some[:count]]
    settings.write_text(json.dumps(asked))
    ids = {question["question_id"] for question in asked["questions"]}
    for file in (run.answers_file, run.scores_file):
        table = pd.read_parquet(file)
        table = table[table["question_id"].isin(ids)].reset_index(drop=True)
        if file == run.scores_file:
            table = table.assign(aligned=np.where(table["sample"] % 2, 10.0, 90.0), coherent=90.0, status="ok")
        table.to_parquet(file, index=False)
    return run


@pytest.fixture
def judged(tiny, tmp_path):
    return make_judged(tiny, tmp_path / "judged")


@pytest.fixture(scope="module")
def every(tiny, tmp_path_factory):
    """A run with every analysis, and the report; never written to again."""
    run = make_judged(tiny, tmp_path_factory.mktemp("every") / "judged")
    return run, analysed(run, control=open_run(tiny.control), transfer=run)


def analysed(run, analyses=None, engine="hooks", **more):
    model, settings = open_model(run, engine=engine), {"size": SMALL, "sampling": SAMPLING} | more
    return run_suite(model, AdviceJudge("medical"), analyses=analyses, **settings)


def test_every_analysis_is_carried_out_and_said_in_words(every, tmp_path):
    judged, found = every
    assert strict((judged.analysis / "mechanism.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    assert list(found.analyses) == list(ANALYSES)
    assert (found.control, found.engine, found.size) == ("control", "hooks", "custom")
    done = {name for name, one in found.analyses.items() if one.undefined is None}
    assert done == set(ANALYSES) - {"answer_shift"}, {name: one.undefined for name, one in found.analyses.items()}
    assert "ask at more steps" in found["answer_shift"].undefined
    for name in done:
        assert found[name].finding.endswith(".") and found[name].control.endswith(".")
    np.testing.assert_allclose(found["transfer"].values["cosine"]["answers"], 1)  # its own direction
    page = Page(report(judged, out=tmp_path / "page.html"))
    for name, one in found.analyses.items():
        assert ANALYSES[name].question in page.words
        assert " ".join((one.control or one.undefined).split()) in page.words
    assert "Control run: control." in page.words
    titles = [text.strip() for text in page.text]
    assert {"Ablation of the direction", "Steering after layer 1"} <= set(titles)
    drawn = found.figures
    assert len(page.figures) > len(drawn) > len(done)
    exported = run_figures(findings_of(judged))
    for title, figure in drawn.items():  # kept as numbers, which can be drawn and written out again
        pd.testing.assert_frame_equal(em.figures.numbers(exported[f"mechanism_{title}"]), em.figures.numbers(figure))
        assert len(em.figures.numbers(figure))
    assert faults(drawn, tmp_path / "printed", (1,))[1] == []
    lanes = " ".join(one.text for one in exported["timeline"].layout.annotations)
    assert "sufficient direction" in lanes and "EM as trained" in lanes
    assert lanes.rindex("EM onset") < lanes.index("sufficient direction") < lanes.index("rotation of B")  # from below


def test_the_estimate_of_the_work_counts_the_answers_that_are_sampled(every, tiny):
    run, _ = every
    given = (open_model(run), AdviceJudge("medical"), open_run(tiny.control), run, SMALL, SAMPLING)
    context = SuiteContext(*given)
    for name in ("ablation", "steering", "transfer", "patching"):
        files = (run.analysis / "mechanism" / name).rglob("answers.parquet")
        sampled, expected = sum(len(pd.read_parquet(file)) for file in files), ANALYSES[name].workload(context).sampled
        refined = name in ("steering", "transfer")  # where the base stops being coherent, which it may not
        assert 0.4 * expected < sampled <= expected if refined else sampled == expected, name


def test_a_page_of_a_run_that_was_not_analysed_does_not_mention_the_mechanism(tiny, tmp_path):
    page = Page(report(tiny.run, out=tmp_path / "page.html"))
    assert "Mechanism" not in page.words


def test_words_of_a_finding_are_escaped_on_the_page(judged):
    analysed(judged, ["probes"])
    file = judged.analysis / "mechanism.json"
    values = json.loads(file.read_text())
    values["analyses"]["probes"]["finding"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(values))
    page = Page(report(judged))
    assert "<script>alert(1)</script>" in page.words
    assert "alert(1)" not in page.scripts


def test_analyses_that_are_done_are_not_done_again_and_the_bytes_are_the_same(judged, tmp_path, monkeypatch):
    other = open_run(shutil.copytree(judged.path, tmp_path / "other" / "judged"))
    analysed(judged, QUICK)

    def stopped(context):
        raise KeyboardInterrupt

    monkeypatch.setitem(suite.ANALYSES, "ablation", Analysis("stopped", stopped, lambda context: Workload()))
    with pytest.raises(KeyboardInterrupt, match="resume=True continues"):
        analysed(other, QUICK)
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds results already; give resume=True"):
        analysed(other, QUICK)
    monkeypatch.setitem(suite.ANALYSES, "probes", Analysis("not again", stopped, lambda context: Workload()))
    analysed(other, QUICK, resume=True)
    assert contents(other.analysis) == contents(judged.analysis)
    with pytest.raises(InputError, match="begun with other engine"):
        analysed(other, QUICK, "transformer_lens", resume=True)


def test_what_is_found_does_not_depend_on_whether_it_is_told_how_long_it_takes(judged, tmp_path):
    """A run that was not asked here has no ask.json; the estimate of the time must not need it."""
    judged.answers_file.with_name("ask.json").unlink()
    other = open_run(shutil.copytree(judged.path, tmp_path / "other" / "judged"))
    lines = []
    told = analysed(judged, ["answer_shift"], log=lines.append)["answer_shift"]
    assert lines and told == analysed(other, ["answer_shift"])["answer_shift"]
    assert "ask at more steps" in told.undefined


def test_the_seed_of_the_sampling_is_that_of_the_base_s_answers_too(judged):
    analysed(judged, ["kl_from_base"], sampling=SamplingParams(samples=1, max_new_tokens=4, seed=7))
    settings = json.loads((judged.analysis / "mechanism" / "kl_from_base" / "settings.json").read_text())
    assert settings["seed"] == 7


def test_an_empty_choice_of_analyses_is_refused_before_anything_is_done(judged):
    with pytest.raises(InputError, match="no analysis was chosen; expected some of probes, attribution"):
        analysed(judged, [])
    with pytest.raises(InputError, match="no analysis was chosen"):
        em.run_mechanism(judged.path, analyses=[])
    assert not (judged.analysis / "mechanism").exists()


def test_more_analyses_can_be_added_later(judged, tiny):
    analysed(judged, ["probes"])
    found = analysed(judged, ["attribution"], resume=True)
    assert list(found.analyses) == ["probes", "attribution"]
    few = analysed(judged, ["transfer"], transfer=open_run(tiny.control), resume=True)["transfer"]
    assert "needs at least 10 misaligned answers" in few.undefined
    with pytest.raises(InputError, match="begun with other transfer"):
        analysed(judged, ["transfer"], transfer=judged, resume=True)


def test_what_is_read_is_the_same_in_every_engine(judged, tmp_path):
    found = []
    for engine in ("hooks", "transformer_lens", "nnsight"):
        run = open_run(shutil.copytree(judged.path, tmp_path / engine))
        results = analysed(run, ["attribution", "logit_lens"], engine)
        rows = pd.DataFrame(results["attribution"].values["rows"])[["cosine", "norm", "band"]].astype(float)
        found.append((rows, results["logit_lens"].finding))
    for rows, finding in found[1:]:
        pd.testing.assert_frame_equal(rows, found[0][0], atol=1e-4)
        assert finding == found[0][1]


def test_an_analysis_that_is_not_possible_says_why_and_the_others_go_on(judged):
    pd.read_parquet(judged.scores_file).assign(aligned=90.0).to_parquet(judged.scores_file, index=False)
    said = em_interp("mechanism", judged.path, "--analyses", "attribution,probes,kl_from_base", "--json")
    assert said.code == 0 and said.err.startswith("3 analyses: about ")  # progress, beside the one object
    found = strict(said.out)["analyses"]
    assert list(found) == ["probes", "attribution", "kl_from_base"]
    for name in ("probes", "attribution"):
        assert "needs at least 10 misaligned answers" in found[name]["undefined"]
    assert "KL(base ‖ adapted) at step 24" in found["kl_from_base"]["finding"]
    assert "undefined" in Page(report(judged)).words


def test_the_command_says_how_long_it_takes_and_what_was_found(judged, tmp_path):
    said = em_interp("mechanism", judged.path, "--analyses", "probes", "--out", tmp_path / "copy")
    assert said.code == 0, said.err
    expected = rf"probes: {re.escape(ANALYSES['probes'].question)} \([\d,]+ answers to read, about .+\)\n"
    assert re.fullmatch(expected, said.err)
    assert "A probe on the scalars of step 24" in said.out and "Control: A probe on the answer's length" in said.out
    assert (tmp_path / "copy" / "analysis" / "mechanism.json").exists()
    assert not (judged.analysis / "mechanism.json").exists()
    did("mechanism", tmp_path / "copy", "--analyses", "probes", "--resume")


def test_the_same_can_be_had_in_python(judged):
    found = em.run_mechanism(judged, analyses=["probes"])
    assert "AUC" in found["probes"].finding
    assert read_report(judged).to_dict() == json.loads(json.dumps(found.to_dict()))


def test_a_quick_suite_does_less_of_the_same_and_is_not_taken_for_a_full_one(judged):
    found = em.run_mechanism(judged, analyses=["attribution", "kl_from_base"], size="quick")
    assert found.size == "quick"
    assert len({row["step"] for row in found["attribution"].values["rows"]}) == 7  # as many as there are
    model = open_model(judged)
    quick, full = (SuiteContext(model, AdviceJudge("medical"), size=SIZES[size]) for size in ("quick", "full"))
    for name in ("probes", "attribution", "ablation", "steering", "patching", "kl_from_base"):
        one, other = (ANALYSES[name].workload(context) for context in (quick, full))
        assert one.sampled <= other.sampled and one.read <= other.read, name
    with pytest.raises(InputError, match="begun with other size"):
        em.run_mechanism(judged, analyses=["attribution"], resume=True)
    with pytest.raises(InputError, match="size 'quik' is not known; did you mean 'quick'"):
        em.run_mechanism(judged, size="quik")


SCRIPT = """
import sys
from em_interp.mechanism.interventions.experiments import SamplingParams
from em_interp.mechanism.suite import SuiteSize, run_suite
from em_interp.organisms.judge import AdviceJudge
from em_interp.run import open_run

run = open_run(sys.argv[1])
size = SuiteSize(1, 3, 2, 1, 1, (1.0, 2.0), True, 1, 3, 2, 1, 3, 1)
sampling = SamplingParams(samples=1, max_new_tokens=4)
run_suite(run, AdviceJudge("medical"), open_run(sys.argv[2]), run, size=size, sampling=sampling)
"""


def test_words_and_bytes_do_not_depend_on_the_hash_seed(judged, every, tiny):
    """This process has a random one."""
    command = [sys.executable, "-c", SCRIPT, str(judged.path), str(tiny.control)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, cwd=ROOT, check=True)
    found = contents(judged.analysis)
    assert found == contents(every[0].analysis)
    assert {"mechanism.json", "mechanism/patching.json", "mechanism/transfer.json"} <= set(found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--analyses", "probe"], "analysis 'probe' is not known; did you mean 'probes'"),
        (["--engine", "hook"], "'--engine': 'hook' is not one of 'hooks'"),
        (["--analyses", "transfer"], "needs the run whose direction is to be tried: give --transfer"),
        (["--control", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(words, said, judged):
    before = contents(judged.path)
    assert re.search(said, refused("mechanism", judged.path, *words))
    assert contents(judged.path) == before


def test_a_run_without_scores_is_refused(tiny, tmp_path):
    run = copy(tiny.run, tmp_path / "run")
    (run / "behaviour" / "scores.parquet").unlink()
    assert "ask and judge the run before you analyse its mechanism" in refused("mechanism", run)


def test_about_as_many_answers_are_sampled_under_a_condition_whatever_the_number_of_questions(judged):
    context = SuiteContext(open_model(judged), AdviceJudge("medical"))
    assert {question["questions"] for question in context.questions} == {"out_of_domain"}
    assert len(context.questions) * context.sampling.samples == 108
    assert context.sampling.max_new_tokens == 12  # as the run was asked
    assert set(context.answers.table["questions"]) == {"out_of_domain", "broad"}
