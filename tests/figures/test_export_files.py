"""Figures as files: whole on paper, with caption and numbers, and refused before anything is written."""

import json
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.figures import export_files as files
from em_interp.figures.style import without_title
from em_interp.reports.findings import find_in_run
from em_interp.reports.run_figures import export_run, run_figures, setting_of
from em_interp.run import Run
from em_interp.utils.files import write_csv
from tests.figures.on_paper import faults, faults_of
from tests.figures.planting import LAST, plant_run
from tests.test_page_in_browser import FLAGS, browser
from tests.tiny import json_of, refused

POINT = 25.4 / 72  # mm


@pytest.fixture(scope="module")
def drawn(organism, bare):
    """Every figure of the organism and of the path alone."""
    return {"organism": run_figures(organism), "bare": run_figures(bare)}


@pytest.fixture(scope="module")
def printed(drawn, tmp_path_factory):
    """Two figures of the organism, one that fits one column and one that does not, in every format, by one browser."""
    browser()
    folder = tmp_path_factory.mktemp("figures")
    chosen = {name: drawn["organism"][name] for name in ("norms", "timeline")}
    em.figures.export_all(chosen, folder, ("pdf", "svg", "png", "html"), columns=1)
    return folder


def page_mm(pdf):
    box = re.search(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", pdf.read_bytes())
    return float(box[1]) * POINT


def test_a_figure_is_as_wide_as_a_column_and_one_that_needs_more_as_the_page(printed):
    assert page_mm(printed / "norms.pdf") == pytest.approx(85, abs=0.5)
    assert page_mm(printed / "timeline.pdf") == pytest.approx(178, abs=0.5)
    (width,) = struct.unpack(">I", (printed / "norms.png").read_bytes()[16:20])
    assert width / 300 * 25.4 == pytest.approx(85, abs=0.5)  # at 300 dots an inch


def test_no_type_is_smaller_than_six_points_on_paper(printed):
    for name, columns in (("norms", 85), ("timeline", 178)):
        svg = (printed / f"{name}.svg").read_text(encoding="utf-8")
        layout = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
        assert len(sizes) > 5
        assert min(sizes) * columns / layout / POINT >= 6


def test_a_printed_figure_has_no_title_and_its_caption_has_it(printed):
    assert "Size of the adapter" not in (printed / "norms.svg").read_text(encoding="utf-8")
    caption = (printed / "norms.txt").read_text(encoding="utf-8")
    assert caption.startswith("Size of the adapter. ")
    for word in ("tiny-qwen2", "layers.2.mlp.down_proj", "rank 1", "alpha 16", "seed 0", "tiny:medical"):
        assert word in caption
    assert "Size of the adapter" in (printed / "norms.html").read_text(encoding="utf-8")


def test_the_numbers_beside_a_figure_are_those_of_the_run(printed, organism):
    table = pd.read_csv(printed / "norms.csv")
    assert list(table) == ["step", "norm_B", "norm_A", "norm_delta"]
    np.testing.assert_array_equal(table["step"], organism.trajectory.steps)
    np.testing.assert_allclose(table["norm_B"], np.linalg.norm(organism.trajectory.vectors("B"), axis=1), rtol=1e-5)


def test_the_numbers_behind_a_figure_are_its_results_frame(organism):
    curve, last = organism.curve, organism.curve.at(LAST)
    drawn = em.figures.numbers(em.figures.behaviour(curve, organism.control))
    of_run = drawn[drawn["run"] == "this run"].drop(columns="run")
    pd.testing.assert_frame_equal(of_run.reset_index(drop=True), curve.frame(), check_dtype=False)
    assert (drawn["run"] == "control").sum() == len(organism.control.frame())
    pd.testing.assert_frame_equal(em.figures.numbers(last.plot()), last.frame(), check_dtype=False)


def test_the_numbers_of_a_signal_are_its_curves_and_its_transitions(organism):
    table = em.figures.numbers(em.figures.timeline(organism.onsets))
    found = table.dropna(subset=["step"])
    wanted = sorted((t.step, *t.interval) for t in organism.onsets if t.step is not None)
    np.testing.assert_allclose(sorted(map(tuple, found[["step", "step_low", "step_high"]].to_numpy())), wanted)
    (peak,) = [t for t in organism.transitions if t.signal == "gradient_norm"]
    table = em.figures.numbers(em.figures.gradient_norm(peak))
    assert table["row"].unique().tolist() == ["logged", "smoothed", "transition"]
    np.testing.assert_allclose(table.loc[table["row"] == "smoothed", "grad_norm"], peak.evidence["smooth"])


def test_every_figure_of_a_run_has_numbers_a_caption_and_a_unit_on_every_axis(drawn):
    for name, figure in drawn["organism"].items():
        assert len(em.figures.numbers(figure)), name
        caption = em.figures.caption(figure)
        assert "seed 0" in caption and not re.search(r"<|\.\.", caption), name
        layout = json.loads(figure.to_json())["layout"]
        axes = [axis.get("title", {}).get("text") for key, axis in layout.items() if re.fullmatch(r"[xy]axis\d*", key)]
        assert any(axes)
        for title in filter(None, axes):
            assert re.search(r"\(.+\)|^Training step$", title.replace("<br>", " ")), f"{name}: {title!r} has no unit"


def test_numbers_survive_the_json_of_a_figure(organism):
    figure = organism.curve.plot()
    kept = pio.from_json(figure.to_json())
    pd.testing.assert_frame_equal(em.figures.numbers(kept), em.figures.numbers(figure))


@pytest.mark.parametrize(("kind", "columns"), [("organism", (1, 2)), ("bare", (1,))])
def test_no_words_of_a_printed_figure_are_cut_or_lie_on_others(kind, columns, drawn, request, tmp_path):
    found = request.getfixturevalue(kind)
    figures = {**drawn[kind], "trajectory": em.figures.trajectory(found.trajectory)}
    count, wrong = faults(figures, tmp_path, columns)
    assert count > 20 * len(figures)
    assert wrong == []


def test_words_that_are_cut_lie_on_others_or_reach_beyond_the_page_are_found(organism, tmp_path):
    browser()
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1]), {"height": 300, "meta": {"top": 0}, "margin": {"t": 40}})
    figure.add_annotation(x=0.5, y=0.5, text="some words", showarrow=False)
    figure.add_annotation(x=0.52, y=0.5, text="other words", showarrow=False)
    far = {"x": 0.97, "xref": "paper", "xanchor": "left"}
    figure.add_annotation(y=0.2, text="words that reach far beyond the edge", showarrow=False, **far)
    _, wrong = faults({"bad": figure}, tmp_path, (1,))
    assert any(text.startswith("other") and what.startswith("some") for _, _, text, what in wrong)
    assert "the edge of the page" in {what for *_, what in wrong}
    cut, norms = tmp_path / "cut.pdf", without_title(em.figures.norms(organism.trajectory))
    size = {"width": files.layout_width(2), "height": norms["layout"]["height"], "scale": 1 / files.LAYOUT}
    pio.write_image(norms, cut, **size)  # as kaleido prints by itself: with margins, which cut the foot
    assert {what for _, what in faults_of(cut)[1]} == {"cut"}


def test_html_is_the_same_to_the_byte_each_time_and_forbids_what_pages_forbid(organism, tmp_path):
    figure = em.figures.norms(organism.trajectory)
    for name in ("one", "two"):
        em.figures.export(figure, tmp_path / f"{name}.html")
    pages = [(tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("one", "two")]
    assert pages[0] == pages[1]
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', pages[0])[1]
    assert policy in (em.report(organism, out=tmp_path / "report.html")).read_text(encoding="utf-8")
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("count", [1, 2])
def test_exported_html_is_drawn_under_its_content_policy(count, organism, tmp_path):
    figures = {f"norms{k}": em.figures.norms(organism.trajectory) for k in range(count)}
    em.figures.export_all(figures, tmp_path, ("html",))
    page = (tmp_path / "norms0.html").as_uri()
    command = [browser(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 'class="main-svg"' in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


def test_a_text_cell_that_a_spreadsheet_would_compute_is_text(tmp_path):
    cells = ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "fine", "a=b"]
    write_csv(tmp_path / "table.csv", pd.DataFrame({"=name": cells, "number": -1.5}))
    back = pd.read_csv(tmp_path / "table.csv")
    assert list(back) == ["'=name", "number"] and (back["number"] == -1.5).all()
    assert back["'=name"].tolist() == [*(f"'{cell}" for cell in cells[:5]), "fine", "a=b"]


def test_a_run_without_log_and_answers_has_the_figures_of_its_path(drawn):
    assert set(drawn["bare"]) < set(drawn["organism"])
    assert {"norms", "path_B", "turning_dW", "rotation_A", "timeline"} <= set(drawn["bare"])


def test_figures_that_are_there_are_not_replaced_unasked(tmp_path_factory, tmp_path):
    bare = find_in_run(plant_run(tmp_path_factory.mktemp("few") / "bare", log=False, asked=False, every=12))
    made = export_run(bare, ("html",), out=tmp_path)
    assert {file.suffix for file in made} == {".html", ".csv", ".txt"}
    norms = tmp_path / "norms.html"
    assert norms.stat().st_size < 200_000  # plotly is there once, beside
    assert (tmp_path / "plotly.min.js").exists()
    norms.write_text("mine")
    with pytest.raises(InputError, match=r"\.html is there already; give resume=True"):
        export_run(bare, ("html",), out=tmp_path)
    assert norms.read_text() == "mine"
    (tmp_path / "timeline.html").unlink()
    export_run(bare, ("html",), out=tmp_path, resume=True)
    assert norms.read_text() == "mine" and (tmp_path / "timeline.html").exists()
    export_run(bare, ("html",), out=tmp_path, overwrite=True)
    assert norms.read_text() != "mine"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_judged_tables_alone_are_a_control_too(control, tmp_path):
    control.curve.answers.to_csv(tmp_path / "judged.csv", index=False)
    few = plant_run(tmp_path / "few", log=False, scales=(1.0,), every=12)
    for name, given in (("tables", tmp_path / "judged.csv"), ("run", control)):
        export_run(few, ("html",), control=given, out=tmp_path / name)
    drawn = [(tmp_path / name / "behaviour.csv").read_text() for name in ("tables", "run")]
    assert drawn[0] == drawn[1] and "control" in drawn[0]


@pytest.mark.parametrize(
    ("formats", "columns", "said"),
    [
        (("pfd",), 2, "'pfd' is none; did you mean 'pdf'?"),
        ((), 2, "no format of figures was given; there are html, pdf, png, svg"),
        (("html",), 3, "columns should be 1 (85 mm) or 2 (178 mm); it is 3"),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_run_is_looked_at(formats, columns, said, tmp_path):
    with pytest.raises(InputError, match=re.escape(said)):
        export_run(tmp_path / "nothing", formats, columns)


def test_without_a_browser_the_message_says_what_to_install(monkeypatch, bare):
    from choreographer.browsers.chromium import Chromium

    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)
    with pytest.raises(InputError, match=r"^PDF, SVG need Chrome or Chromium, .*apt install chromium"):
        export_run(bare, ("pdf", "html", "svg"))
    assert not bare.run.figures.exists()
    assert files.check(("html",)) == ("html",)


def test_without_kaleido_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)  # so that it cannot be imported
    with pytest.raises(InputError) as refused:
        files.check(["png"])
    said = "a figure as PNG needs kaleido, which is not installed: pip install 'em-interp[export]'"
    assert said in str(refused.value)


def test_a_figure_too_wide_for_one_column_is_refused_where_one_was_asked_for(organism, tmp_path):
    with pytest.raises(InputError, match=r"needs 111 mm and a column has 85; give columns=2"):
        em.figures.export(em.figures.timeline(organism.transitions), tmp_path / "timeline.html", columns=1)
    made = em.figures.export(em.figures.norms(organism.trajectory), tmp_path / "deep" / "n.html", columns=1)
    assert [file.name for file in made] == ["n.html", "n.txt", "n.csv"]


def test_what_a_run_does_not_record_its_captions_say(bare, tmp_path):
    said = setting_of(replace(bare, run=Run(tmp_path)))
    assert said.startswith("Base tiny-qwen2; 1 adapted site (layers.2.mlp.down_proj); rank 1; alpha not recorded;")
    assert "scale 16; seed not recorded" in said
    Run(tmp_path).config_file.write_text("base_model: Qwen/Qwen2.5-14B-Instruct\nadapter: lora\n")  # as of Axolotl
    assert setting_of(replace(bare, run=Run(tmp_path))) == said


def test_one_command_writes_every_figure_and_leaves_a_page_that_is_there(bare, drawn, tmp_path):
    run = Run(shutil.copytree(bare.run.path, tmp_path / "run"))
    run.report_file.write_text("mine")
    said = json_of("report", run.path, "--figures", "html")
    assert run.report_file.read_text() == "mine"
    assert {Path(file).parent for file in said["figures"]} == {run.figures}
    stems = {Path(file).stem for file in said["figures"]}
    assert stems == set(drawn["bare"])
    assert ".html is there already; give --resume" in refused("report", run.path, "--figures", "html")
    assert "'pfd' is none; did you mean 'pdf'?" in refused("report", run.path, "--figures", "pfd")
    assert "give --figures as well" in refused("report", run.path, "--paper-columns", 1, "--overwrite")


def test_a_figure_whose_name_leads_elsewhere_is_written_in_the_folder(tmp_path):
    figure = go.Figure(go.Scatter(x=[1, 2], y=[1, 2]))
    names = ["/../../OUTSIDE", "..", f"{tmp_path}/absolute", "a\0b", "a\n/b", "x" * 300]
    em.figures.export_all(dict.fromkeys(names, figure), tmp_path / "run/figures", ("html",))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["figures"]
    written = {entry.name for entry in (tmp_path / "run/figures").glob("*.html")}
    assert {"_.._.._OUTSIDE.html", "a_b.html", "a__b.html"} <= written and len(written) == len(names)
