import json
import shutil

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.files import write_json
from em_interp.mechanism import suite as inside
from em_interp.mechanism.experiments import SamplingParams
from em_interp.mechanism.model import open_model
from em_interp.mechanism.suite import ANALYSES, Analysis, SuiteContext, kept_figures, kept_transitions, run_suite
from em_interp.organisms.judge import AdviceJudge
from em_interp.reports.page import report
from em_interp.reports.run_figures import found_in, run_figures
from em_interp.run import open_run
from em_interp.transition.result import Transition
from tests.test_page import Page
from tests.tiny import contents, copy, did, em_interp, json_of, refused, strict

SAMPLING = SamplingParams(samples=1, max_new_tokens=4, batch=400)
QUICK = ["scalars", "ablation"]


@pytest.fixture
def judged(tiny, tmp_path):
    """A copy of the tiny run, asked little, whose judge called every other answer misaligned."""
    run = open_run(copy(tiny.run, tmp_path / "judged"))
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


def look(run, parts=None, engine="hooks", **more):
    return run_suite(
        run, open_model(run, engine=engine), AdviceJudge("medical"), parts=parts, sampling=SAMPLING, **more
    )


def test_every_part_is_carried_out_and_said_in_words(judged, tiny):
    control = open_run(tiny.control)
    found = look(judged, control=control, transfer=judged)
    assert strict((judged.analysis / "mechanism.json").read_text()) == json.loads(json.dumps(found))
    assert list(found["parts"]) == list(ANALYSES)
    assert (found["control"], found["engine"]) == ("control", "hooks")
    done = {name for name, part in found["parts"].items() if "undefined" not in part}
    assert done == set(ANALYSES) - {"change"}, {name: part.get("undefined") for name, part in found["parts"].items()}
    assert "ask at more steps" in found["parts"]["change"]["undefined"]
    for name in done:
        part = found["parts"][name]
        assert part["found"].endswith(".") and part["control"].endswith(".")
    np.testing.assert_allclose(found["parts"]["transfer"]["values"]["cosine"]["answers"], 1)  # its own direction
    page = Page(report(judged))
    for name, part in found["parts"].items():
        assert ANALYSES[name].question in page.words
        assert " ".join(part.get("control", part.get("undefined")).split()) in page.words
    assert "Control run: control." in page.words
    titles = [figure["layout"]["meta"]["title"] for figure in page.figures]
    assert {"Taking the direction out of the residual stream", "Steering after layer 1"} <= set(titles)
    drawn = {title: figure for group in kept_figures(judged).values() for title, figure in group.items()}
    assert len(page.figures) > len(drawn) > len(done)
    exported = run_figures(found_in(judged))
    for title, figure in drawn.items():  # kept as numbers, which can be drawn and written out again
        pd.testing.assert_frame_equal(em.figures.numbers(exported[f"inside_{title}"]), em.figures.numbers(figure))
        assert len(em.figures.numbers(figure))
    lanes = " ".join(one.text for one in exported["timeline"].layout.annotations)
    assert "direction that suffices" in lanes and "EM shown as trained" in lanes
    assert (
        lanes.rindex("EM onset") < lanes.index("direction that suffices") < lanes.index("rotation of B")
    )  # from below


def test_a_page_of_a_run_nobody_looked_inside_does_not_speak_of_it(tiny, tmp_path):
    page = Page(report(tiny.run, out=tmp_path / "page.html"))
    assert "Inside the model" not in page.words


def test_the_steps_found_inside_are_told_for_the_time_axis(tiny, tmp_path):
    run = open_run(copy(tiny.run, tmp_path / "run"))
    assert kept_transitions(run) == []
    size = Transition("sufficient_size", "transition", "so", step=67.0, interval=(33.0, 100.0), level=0.95)
    peak = Transition("answer_change", "none", "no peak")
    parts = {"direction_size": {"values": {"transitions": [size.to_dict()]}}, "scalars": {"undefined": "too few"}}
    for more, told in (({}, [size]), ({"change": {"values": {"peak": peak.to_dict()}}}, [size, peak])):
        write_json(run.analysis / "mechanism.json", {"parts": parts | more})
        assert kept_transitions(run) == told


def test_words_of_a_finding_are_escaped_on_the_page(judged):
    look(judged, ["scalars"])
    file = judged.analysis / "mechanism.json"
    found = json.loads(file.read_text())
    found["parts"]["scalars"]["found"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(found))
    page = Page(report(judged))
    assert "<script>alert(1)</script>" in page.words
    assert "alert(1)" not in page.scripts


def test_parts_that_are_done_are_not_done_again_and_the_bytes_are_the_same(judged, tmp_path, monkeypatch):
    other = open_run(shutil.copytree(judged.path, tmp_path / "other" / "judged"))
    look(judged, QUICK)

    def stopped(on):
        raise KeyboardInterrupt

    monkeypatch.setitem(inside.ANALYSES, "ablation", Analysis("stopped", stopped))
    with pytest.raises(KeyboardInterrupt, match="--resume goes on"):
        look(other, QUICK)
    monkeypatch.undo()
    with pytest.raises(InputError, match="holds results already; give --resume"):
        look(other, QUICK)
    monkeypatch.setitem(inside.ANALYSES, "scalars", Analysis("not again", stopped))
    look(other, QUICK, resume=True)
    assert contents(other.analysis) == contents(judged.analysis)
    with pytest.raises(InputError, match="begun with other engine"):
        look(other, QUICK, "transformer_lens", resume=True)


def test_more_parts_can_be_added_later(judged, tiny):
    look(judged, ["scalars"])
    found = look(judged, ["directions"], resume=True)
    assert list(found["parts"]) == ["scalars", "directions"]
    few = look(judged, ["transfer"], transfer=open_run(tiny.control), resume=True)["parts"]["transfer"]
    assert "needs at least 10 misaligned answers" in few["undefined"]
    with pytest.raises(InputError, match="begun with other transfer"):
        look(judged, ["transfer"], transfer=judged, resume=True)


def test_what_is_read_is_the_same_in_every_engine(judged, tmp_path):
    found = []
    for engine in ("hooks", "transformer_lens", "nnsight"):
        run = open_run(shutil.copytree(judged.path, tmp_path / engine))
        values = look(run, ["directions", "readouts"], engine)["parts"]
        rows = pd.DataFrame(values["directions"]["values"]["rows"])[["cosine", "norm", "band"]].astype(float)
        found.append((rows, values["readouts"]["found"]))
    for rows, said in found[1:]:
        pd.testing.assert_frame_equal(rows, found[0][0], atol=1e-4)
        assert said == found[0][1]


def test_a_part_that_cannot_be_had_says_why_and_the_others_go_on(judged):
    pd.read_parquet(judged.scores_file).assign(aligned=90.0).to_parquet(judged.scores_file, index=False)
    found = json_of("mechanism", judged.path, "--parts", "directions,scalars,canary")
    assert list(found["parts"]) == ["scalars", "directions", "canary"]
    for name in ("scalars", "directions"):
        assert "needs at least 10 misaligned answers" in found["parts"][name]["undefined"]
    assert "KL(base ‖ adapted) at step 24" in found["parts"]["canary"]["found"]
    assert "undefined" in Page(report(judged)).words


def test_the_command_tells_what_it_does_and_what_was_found(judged, tmp_path):
    said = em_interp("mechanism", judged.path, "--parts", "scalars", "--out", tmp_path / "copy")
    assert said.code == 0, said.err
    assert said.err == f"scalars: {ANALYSES['scalars'].question}\n"
    assert "A probe on the scalars of step 24" in said.out and "Control: A probe on the answer's length" in said.out
    assert (tmp_path / "copy" / "analysis" / "mechanism.json").exists()
    assert not (judged.analysis / "mechanism.json").exists()
    did("mechanism", tmp_path / "copy", "--parts", "scalars", "--resume")


def test_the_same_can_be_had_in_python(judged):
    found = em.run_mechanism(judged, parts=["scalars"])
    assert "AUC" in found["parts"]["scalars"]["found"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parts", "scalar"], "there is no part 'scalar'.*scalars"),
        (["--engine", "hook"], "there is no engine 'hook'.*hooks"),
        (["--parts", "transfer"], "needs the run whose direction is to be tried: give --transfer RUN"),
        (["--control", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(words, said, judged):
    import re

    before = contents(judged.path)
    assert re.search(said, refused("mechanism", judged.path, *words))
    assert contents(judged.path) == before


def test_a_run_without_scores_is_refused(tiny, tmp_path):
    run = copy(tiny.run, tmp_path / "run")
    (run / "behaviour" / "scores.parquet").unlink()
    assert "ask and judge the run before looking inside" in refused("mechanism", run)


def test_about_as_many_answers_are_asked_of_an_arm_whatever_the_number_of_questions(judged):
    looking = SuiteContext(judged, open_model(judged), AdviceJudge("medical"))
    assert {question["questions"] for question in looking.questions} == {"out_of_domain"}
    assert len(looking.questions) * looking.sampling.samples == 108
    assert looking.sampling.max_new_tokens == 12  # as the run was asked
    assert set(looking.answers.table["questions"]) == {"out_of_domain", "broad"}
