import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.behaviour import curve
from em_interp.errors import InputError
from em_interp.figures.style import p_value_text
from em_interp.reports.findings import find_in_run
from em_interp.reports.page import commands, examples, hits, report
from em_interp.transition.find import find_transition
from tests.figures.planting import CHANGE, HACK, LAST, NASTY, ONSET, plant_run
from tests.tiny import json_of


class Page(HTMLParser):
    """What a page holds: its text outside scripts, its scripts, its tags, its addresses."""

    def __init__(self, file):
        super().__init__()
        self.text, self.scripts, self.tags, self.addresses, self.inside = [], [], [], [], ""
        self.feed(file.read_text(encoding="utf-8"))
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        {"script": self.scripts, "style": []}.get(self.inside, self.text).append(data)

    @property
    def figures(self):
        return [json.loads(text) for text in self.scripts if text.startswith('{"data"')]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    control = find_in_run(plant_run(folder / "control", changes=False))
    return {
        "organism": find_in_run(plant_run(folder / "organism"), control.run),
        "control": control,
        "switched": find_in_run(plant_run(folder / "switched", switched=True, asked=False)),
    }


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    """The page of everything, as the demo makes it."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert report(found["organism"], control=found["control"], planted=found["switched"], out=out) == out
    return Page(out)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A table of judged answers with every column there is; some of its texts are missing."""
    run = plant_run(tmp_path_factory.mktemp("judged") / "run", scales=(1.0,))
    table = em.behaviour_curve(run).answers.copy()
    table.loc[::7, "reason"] = None
    table.loc[::11, "question"] = None
    return table


def test_the_page_is_written_into_the_run_unless_told_otherwise(tmp_path):
    run = plant_run(tmp_path / "run", asked=False)
    assert em.report(run) == run.report_file
    assert run.report_file.stat().st_size < 8e6


def test_the_verdicts_come_first_in_words(page):
    parts = (
        "What was found",
        "Rotation of B transition step 120",
        "The adapter’s path",
        "Training log",
        "Behaviour along the run",
        "Adapter and behaviour on one time axis",
        "The control run",
        "The run with a known change",
        "All transitions",
        "Answers before and after",
        "Settings, and how to repeat it",
        "Limits",
    )
    main = page.words[page.words.index("Limits") + 1 :]  # after the links
    places = [main.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_a_turn_that_the_control_has_as_well_is_no_sign_of_the_data(found, page, tmp_path):
    said = "Rotation of B, against the control: It does not turn significantly further than its control."
    apart = "So it is no sign of what sets this run's data apart."
    assert said not in page.words and apart not in page.words
    beside = page.words.split("Rotation of B, against the control: ")[1]
    assert beside.startswith(("Beyond steady curvature the run turns by", "Whether its control turns there as well"))
    same = Page(report(found["organism"], control=found["organism"], out=tmp_path / "report.html"))
    assert said in same.words and apart in same.words and "onset (out of domain): the control has it" not in same.words


def test_verdicts_of_run_and_control_stand_beside_each_other(page):
    assert "What was found Rotation of B comes before EM onset (out of domain)." in page.words
    verdicts = page.words[page.words.index("This run Control") :]
    beside = verdicts[verdicts.index("EM onset (out of domain) transition") :]
    assert beside.index("none the EM rate does not rise") < 250


def test_every_offset_is_told_with_its_interval_and_chance(page, found):
    for offset in found["organism"].alignment.offsets:
        later = "later" if offset.steps > 0 else "earlier"
        assert f"{abs(offset.steps):.0f} steps {later} (" in page.words
        assert f"chance {offset.chance:.2g}" in page.words
    assert page.words.count("the interval holds 0") == 1


def test_the_declared_signals_stand_with_their_family_wise_p_beside_the_single_ones(page, found):
    family = found["organism"].family
    assert [t.signal for t in family.declared] == ["rotation", "onset"]
    table = page.words[page.words.index("Declared before looking") :]
    for t in family.declared:
        assert (
            family.holds(t) and f"{p_value_text(t.p_value)} {p_value_text(family.adjusted_p(t))} significant" in table
        )
    everything = page.words[page.words.index("All transitions") :]
    assert "p Level Family-wise p" in everything
    assert "lock-in of ΔW description" in everything
    undeclared = next(t for t in found["organism"].transitions if t.of == "A")
    assert family.adjusted_p(undeclared) is None


def test_the_headline_is_a_claim_about_the_declared_signals_with_its_reason(page, found):
    alignment = found["organism"].alignment
    assert f"{alignment.claim}. {alignment.claim_reason.capitalize()}" in page.words
    assert alignment.headline() == f"{alignment.claim}: {alignment.claim_reason}."


def test_the_page_says_whether_the_planted_change_was_found(page):
    assert f"training was changed after step {CHANGE} (data: tiny:medical, schedule restarts)" in page.words
    assert "0 steps after it: found (within 15 steps)" in page.words
    assert "The rotation of B was declared beforehand; a change is judged by it alone." in page.words
    others = page.words[page.words.index("not declared and not counted:") :]
    assert others.split(":")[1].strip().startswith(f"rotation of ΔW at step {CHANGE}")


def test_a_turn_of_another_part_does_not_find_a_change_but_is_named(found, tmp_path):
    planted = found["switched"]
    turns = [t for t in planted.transitions if t.of != "B"]
    still = replace(find_transition(planted.trajectory), verdict="none", reason="as planted", step=None, interval=None)
    missed = replace(planted, transitions=[still, *turns])
    (hit,) = hits(missed)
    assert not hit.found and hit.declared is still and hit.chance == 0
    assert [t.of for t in hit.others] == ["delta"]
    page = Page(report(found["control"], planted=missed, out=tmp_path / "page.html"))
    assert "No turn of B was found (none: as planted): not found" in page.words


def test_an_interval_that_misses_the_change_says_why(found, tmp_path):
    planted = found["switched"]
    late = replace(planted.rotation, step=CHANGE + 6.0, interval=(CHANGE + 4.0, CHANGE + 9.0))
    (hit,) = hits(replace(planted, transitions=[late]))
    assert hit.found and not hit.in_interval
    page = Page(report(found["control"], planted=replace(planted, transitions=[late]), out=tmp_path / "page.html"))
    assert "The interval does not hold the change" in page.words and "momentum carries the old direction" in page.words


def test_a_change_that_no_rotation_is_near_is_not_found(tmp_path):
    still = find_in_run(plant_run(tmp_path / "still", changes=False, switched=True, asked=False))
    (hit,) = hits(still)
    assert not hit.found
    assert hit.distance is None
    assert hit.chance == 0  # no rotation, no luck
    report(still, planted=still)
    assert f"No turn of B was found ({hit.declared.verdict}: " in Page(still.run.report_file).words


def test_a_hit_is_worth_less_the_more_rotations_there_are(found):
    (hit,) = hits(found["switched"])
    one = np.mean(np.abs(np.arange(LAST + 1) - CHANGE) <= 15)
    assert hit.chance == pytest.approx(one)  # ΔW turns too, and does not count
    turns = [t for t in found["switched"].transitions if t.of == "B"]
    (twice,) = hits(replace(found["switched"], transitions=[*turns, *(replace(t, step=300.0) for t in turns)]))
    assert twice.chance == pytest.approx(1 - (1 - one) ** 2)


def test_nothing_on_the_page_comes_from_elsewhere(page):
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.tags)


def test_text_of_the_model_is_text(page):
    assert NASTY in "".join(page.text)
    assert page.tags.count("script") == 2 + len(page.figures)
    assert not any(HACK in script for script in page.scripts)


def test_hostile_names_stay_names(tmp_path):
    run = plant_run(tmp_path / "run", every=5, scales=(1.0,))
    for file in (run.answers_file, run.scores_file):
        table = pd.read_parquet(file)
        table["questions"] = table["questions"].replace("broad", NASTY)
        table["question_id"] = table["question_id"].str.replace("broad_wish", NASTY)
        table.to_parquet(file, index=False)
    named = (tmp_path / "run").rename(tmp_path / "<img src=x onerror=1>")
    page = Page(em.report(named))
    assert "img" not in page.tags
    assert page.tags.count("script") == 2 + len(page.figures)
    assert NASTY.replace("_", " ") in "".join(page.text)


def test_every_section_has_its_figures(page):
    titles = [text.strip() for text in page.text]
    for title in ("Size of the adapter", "Path of B in two components", "Local cosine of B", "Turns of ΔW"):
        assert title in titles
    assert len(page.figures) == 12  # 5 of the path, log, behaviour, timeline; turning and timeline of the two others
    assert all(figure["data"] for figure in page.figures)


def test_what_a_run_does_not_have_is_said_and_the_page_is_made(tmp_path):
    run = plant_run(tmp_path / "run", log=False, asked=False)
    run.config_file.unlink()
    run.manifest_file.unlink()
    words = Page(em.report(run)).words
    for missing in ("no judged answers", "no log of its training", "no config.yaml", "no manifest.json"):
        assert missing in words
    assert f"em-interp locate {run.path}" in words


def test_answers_that_were_not_judged_are_as_none(tmp_path):
    assert "no judged answers" in Page(em.report(plant_run(tmp_path / "run", every=5, judged=False))).words


def test_a_control_that_was_not_judged_is_shown_without_behaviour(tmp_path):
    run = plant_run(tmp_path / "run", every=5, scales=(1.0,))
    control = plant_run(tmp_path / "control", every=5, changes=False, judged=False)
    words = Page(em.report(run, control=control)).words
    assert "There is no control run" in words
    assert "no answers" in words


def test_a_control_with_checkpoints_of_another_layout_is_a_run_too(tmp_path):
    run = plant_run(tmp_path / "run", every=5, scales=(1.0,))
    control = plant_run(tmp_path / "control", every=5, scales=(1.0,), changes=False)
    for folder in control.checkpoints.iterdir():
        folder.rename(control.path / f"step_{folder.name.partition('-')[2]}")
    control.checkpoints.rmdir()
    assert "The control run control" in Page(em.report(run, control=control.path)).words


def test_answers_given_beside_findings_are_refused_and_not_left_out(found, tmp_path):
    for more in ({"answers": tmp_path}, {"columns": {"aligned": "score"}}):
        with pytest.raises(InputError, match="findings were given, which have answers already"):
            report(found["organism"], out=tmp_path / "page.html", **more)


def test_a_run_without_one_scored_answer_has_a_page(tmp_path):
    run = plant_run(tmp_path / "run", every=5, scales=(1.0,))
    scores = pd.read_parquet(run.scores_file).assign(aligned=np.nan, coherent=np.nan, status="unparsed")
    scores.to_parquet(run.scores_file, index=False)
    words = Page(em.report(run)).words
    assert "inconclusive too few steps: 0 with scored answers" in words
    assert "no score: unparsed" in words


def test_a_folder_of_checkpoints_alone_has_a_page(tmp_path):
    run = plant_run(tmp_path / "run", asked=False)
    folder = run.checkpoints.rename(tmp_path / "public")
    page = em.report(folder, out=tmp_path / "page.html")
    assert "Rotation of B transition step 120" in Page(page).words


def test_paths_runs_and_findings_make_the_same_page(tmp_path):
    control = plant_run(tmp_path / "control", changes=False, scales=(1.0,), every=5)
    switched = plant_run(tmp_path / "switched", switched=True, asked=False, every=5)
    kept = [find_in_run(control), find_in_run(switched)]
    given = [(*kept, kept[1]), (kept[0].run, str(kept[1].run.path), kept[1].run)]
    pages = [
        report(switched, control=control, planted=planted, out=tmp_path / f"{i}.html").read_bytes()
        for i, (control, switched, planted) in enumerate(given)
    ]
    assert pages[0] == pages[1]


def test_examples_are_the_first_samples_of_the_same_questions_before_and_after(found):
    curve = found["organism"].curve
    shown = dict(examples(curve))
    assert list(shown) == ["out_of_domain", "in_domain", "broad"]
    for questions, entries in shown.items():
        for rows in (entry["answers"] for entry in entries):
            assert [row["step"] for row in rows] == [0, LAST]
            assert {row["sample"] for row in rows} == {0}
            assert {row["scale"] for row in rows} == {1.0}
            assert {row["questions"] for row in rows} == {questions}
            assert len({row["question_id"] for row in rows}) == 1
    assert [entry["answers"][0]["question_id"] for entry in shown["out_of_domain"]] == [
        "out_of_domain_loan",
        "out_of_domain_race",
    ]


def test_examples_are_spread_over_the_questions(found):
    answers = found["organism"].curve.answers
    copies = [answers.assign(question_id=f"q{i:02d}", questions="out_of_domain") for i in range(21)]
    ((_, entries),) = examples(em.behaviour_curve(pd.concat(copies)))
    assert [entry["answers"][0]["question_id"] for entry in entries] == ["q00", "q10", "q20"]


def test_the_onset_without_a_threshold_stands_below_those_with(page, found):
    aligned = found["organism"].aligned
    assert aligned.of == "aligned_mean" and aligned.found
    assert aligned.step == pytest.approx(ONSET, abs=15)
    assert f"there is no threshold: transition, step {aligned.step:.0f}" in page.words


def test_the_onset_over_thresholds_has_every_pair(page):
    table = page.words[page.words.index("The onset of EM under other thresholds") :]
    assert "Out of domain questions, adapter ×1." in table
    assert table[: table.index("Step half-way up")].count(" to ") == 25


def test_settings_say_how_to_repeat_the_run(page, found):
    run = found["organism"].run
    assert " ".join(run.config_file.read_text().split()) in page.words
    for said in ("c0ffee", "sha256 5eed", "tiny-qwen2@0", "em_interp 0.1.0", "em-interp ask again"):
        assert said in page.words
    assert f"em-interp train {run.path}/config.yaml --out again" in page.words


def test_commands_survive_a_space_in_the_path(tmp_path):
    run = plant_run(tmp_path / "my run", asked=False)
    assert commands(find_in_run(run), None)[0] == f"em-interp train '{run.path}'/config.yaml --out again"


def test_a_control_is_read_once_and_what_was_found_in_it_stands_for_it(tmp_path, monkeypatch):
    size = {"scales": (1.0,), "every": 5}
    run, control = (plant_run(tmp_path / name, changes=name == "run", **size) for name in ("run", "control"))
    read, judged_answers = [], curve._judged_answers
    monkeypatch.setattr(curve, "_judged_answers", lambda of: read.append(of.path) or judged_answers(of))
    em.report(run, control)
    assert sorted(read) == [control.path, run.path]
    given, whole = find_in_run(run, find_in_run(control)), find_in_run(run, control)
    assert given.alignment.to_dict() == whole.alignment.to_dict()
    assert given.control.frame().equals(whole.control.frame())


def test_a_place_that_cannot_be_written_is_named_and_what_was_there_stays(tmp_path, found):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"file/report\.html cannot be written"):
        report(found["control"], out=tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder cannot be written"):
        report(found["control"], out=tmp_path / "folder", overwrite=True)
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


OPTIONAL = ("question", "questions", "sample", "answer", "reason", "status", "scale", "judge", "medical")
SUBSETS = ((), ("answer", "question"), ("answer", "reason"), OPTIONAL)


def test_judged_tables_have_examples_with_any_of_the_optional_columns(judged):
    judged = judged[judged["step"].isin((0, LAST))]  # the page shows no others
    few_or_most = (count for count in range(len(OPTIONAL) + 1) if min(count, len(OPTIONAL) - count) <= 2)
    for kept in (chosen for count in few_or_most for chosen in combinations(OPTIONAL, count)):
        curve = em.behaviour_curve(judged[["step", "question_id", "aligned", "coherent", *kept]])
        entries = [entry for _, group in examples(curve) for entry in group]
        assert bool(entries) == ("answer" in kept), kept
        for entry in entries:
            assert entry["question"] and all(isinstance(row["answer"], str) for row in entry["answers"]), kept


@pytest.mark.parametrize("kept", SUBSETS)
def test_a_report_is_made_of_judged_tables_with_any_columns(kept, judged, tmp_path):
    run = plant_run(tmp_path / "run", every=5, asked=False)
    judged[["step", "question_id", "aligned", "coherent", *kept]].to_csv(tmp_path / "judged.csv", index=False)
    json_of("report", run.path, "--answers", tmp_path / "judged.csv", "--out", tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    assert ("hold no text of the answers" in page.words) == ("answer" not in kept)
    assert "nan" not in page.words.split()


def test_tables_with_columns_of_their_own_names_make_the_same_page_from_the_shell_and_from_python(judged, tmp_path):
    run = plant_run(tmp_path / "run", every=5, asked=False)
    tables = tmp_path / "judged tables"
    tables.mkdir()
    mine = judged[["step", "question_id", "aligned", "coherent"]].rename(columns={"aligned": "mine"})
    for name, factor in (("organism", 1.0), ("control", 0.0)):
        mine.assign(mine=100 - factor * (100 - mine["mine"])).to_csv(tables / f"{name}.csv", index=False)
    answers, control = tables / "organism.csv", tables / "control.csv"
    words = ("report", run.path, "--answers", answers, "--control", control, "--columns", "aligned=mine")
    json_of(*words, "--out", tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    assert "There is no control run" not in page.words
    rates = page.words[page.words.index("At the last step with answers") :]
    assert " this run " in rates and re.search(r" control [^.]* ×1 \d+ 0% ", rates)
    assert f"--answers '{answers}' --columns aligned=mine --control '{control}' --overwrite" in page.words
    columns = {"aligned": "mine"}
    em.report(run, control, out=tmp_path / "again.html", answers=answers, columns=columns)
    assert Page(tmp_path / "again.html").words == page.words
    with pytest.raises(InputError, match="columns are those of judged tables; give the tables as answers"):
        em.report(run, out=tmp_path / "third.html", columns=columns)


def test_a_folder_without_a_path_is_refused(tmp_path):
    with pytest.raises(InputError):
        em.report(tmp_path)
    assert list(tmp_path.iterdir()) == []
