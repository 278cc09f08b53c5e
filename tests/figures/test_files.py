"""Figures as files: their size on paper, what stands beside them, and what is refused before anything is written."""

import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.figures import export_files as files
from em_interp.reports.run_figures import export_run, run_figures, setting_of
from em_interp.run import Run
from tests.test_page_in_browser import browser
from tests.tiny import json_of, refused

POINT = 25.4 / 72  # mm


@pytest.fixture(scope="module")
def printed(organism, tmp_path_factory):
    """Two figures of the organism, one that fits one column and one that does not, in every format, by one browser."""
    browser()
    folder = tmp_path_factory.mktemp("figures")
    chosen = {name: run_figures(organism)[name] for name in ("norms", "timeline")}
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


def test_what_is_printed_has_no_title_and_the_caption_beside_has_it(printed):
    assert "Size of the adapter" not in (printed / "norms.svg").read_text(encoding="utf-8")
    said = (printed / "norms.txt").read_text(encoding="utf-8")
    assert said.startswith("Size of the adapter. ")
    for word in ("tiny-qwen2", "layers.2.mlp.down_proj", "rank 1", "alpha 16", "seed 0", "tiny:medical"):
        assert word in said
    assert "Size of the adapter" in (printed / "norms.html").read_text(encoding="utf-8")


def test_the_numbers_beside_a_figure_are_those_of_the_run(printed, organism):
    table = pd.read_csv(printed / "norms.csv")
    drawn = table[table["name"] == "‖B‖"]
    assert set(drawn["y_axis"]) == {"‖B‖ (weight units)"}
    np.testing.assert_array_equal(drawn["x"], organism.trajectory.steps)
    np.testing.assert_allclose(drawn["y"], np.linalg.norm(organism.trajectory.vectors("B"), axis=1), rtol=1e-5)


def test_bands_are_read_back_as_intervals_with_their_curve(organism):
    table = em.figures.numbers(organism.curve.plot())
    rates = organism.curve.frame()
    rates = rates[(rates["scale"] == 2) & (rates["questions"] == "in_domain")].sort_values("step")
    part = table[(table["panel_title"] == "adapter ×2") & (table["group"] == "in_domain")]
    em_rows = part[part["y_axis"] == "EM rate (% of scored answers)"]
    band, line = em_rows[em_rows["kind"] == "band"], em_rows[em_rows["kind"] == "values"]
    np.testing.assert_allclose(line["y"].astype(float), 100 * rates["em"])
    np.testing.assert_allclose(band.sort_values("x")[["y_low", "y_high"]], 100 * rates[["em_low", "em_high"]])


def test_error_bars_are_read_back_as_intervals(organism):
    figure = em.figures.timeline(organism.onsets)
    table = em.figures.numbers(figure)
    marks = table[table["name"].str.startswith("EM onset", na=False)]
    wanted = sorted((t.step, *t.interval) for t in organism.onsets if t.step is not None)
    np.testing.assert_allclose(sorted(map(tuple, marks[["x", "x_low", "x_high"]].to_numpy())), wanted)


def test_every_figure_of_a_run_has_numbers_a_caption_and_a_unit_on_every_axis(organism):
    for name, figure in run_figures(organism).items():
        table = em.figures.numbers(figure)
        assert len(table) > 3 or figure.layout.annotations, name  # or it says why there is nothing to draw
        caption = em.figures.caption(figure)
        assert "seed 0" in caption and not re.search(r"<|\.\.", caption), name
        titles = {*table["x_axis"], *table["y_axis"]}
        titles -= {np.nan} if name == "timeline" else set()  # its lanes have no y
        for title in titles:
            assert re.search(r"\(.+\)|^Training step$", title), f"{name}: {title!r} has no unit"


def test_a_run_without_log_and_answers_has_the_figures_of_its_path(bare, organism):
    assert set(run_figures(bare)) < set(run_figures(organism))
    assert {"norms", "path_B", "turning_dW", "rotation_A", "timeline"} <= set(run_figures(bare))


def test_figures_that_are_there_are_not_replaced_unasked(bare, tmp_path):
    made = export_run(bare, ("html",), out=tmp_path)
    assert {file.suffix for file in made} == {".html", ".csv", ".txt"}
    norms = tmp_path / "norms.html"
    assert norms.stat().st_size < 200_000  # plotly is there once, beside
    assert (tmp_path / "plotly.min.js").exists()
    norms.write_text("mine")
    with pytest.raises(InputError, match=r"\.html is there already; give --resume"):
        export_run(bare, ("html",), out=tmp_path)
    assert norms.read_text() == "mine"
    (tmp_path / "timeline.html").unlink()
    export_run(bare, ("html",), out=tmp_path, resume=True)
    assert norms.read_text() == "mine" and (tmp_path / "timeline.html").exists()
    export_run(bare, ("html",), out=tmp_path, overwrite=True)
    assert norms.read_text() != "mine"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


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


def test_without_kaleido_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['kaleido'] = None\n"
        "from em_interp.figures.export_files import check\n"
        "try: check(['png'])\nexcept ValueError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "PNG need the package kaleido: `pip install 'em-interp[export]'`" in said


def test_a_figure_too_wide_for_one_column_is_refused_where_one_was_asked_for(organism, tmp_path):
    with pytest.raises(InputError, match=r"needs 111 mm and a column has 85; give columns=2"):
        em.figures.export(em.figures.timeline(organism.transitions), tmp_path / "timeline.html", columns=1)
    made = em.figures.export(em.figures.norms(organism.trajectory), tmp_path / "deep" / "n.html", columns=1)
    assert [file.name for file in made] == ["n.html", "n.txt", "n.csv"]


def test_what_a_run_does_not_record_its_captions_say(bare, tmp_path):
    said = setting_of(replace(bare, run=Run(tmp_path)))
    assert said.startswith("Base tiny-qwen2; 1 adapted site (layers.2.mlp.down_proj); rank 1; alpha not recorded;")
    assert "scale 16; seed not recorded" in said


def test_one_command_writes_every_figure_and_leaves_a_page_that_is_there(bare, tmp_path):
    run = Run(shutil.copytree(bare.run.path, tmp_path / "run"))
    run.report_file.write_text("mine")
    said = json_of("report", run.path, "--figures", "html")
    assert run.report_file.read_text() == "mine"
    assert {Path(file).parent for file in said["figures"]} == {run.figures}
    stems = {Path(file).stem for file in said["figures"]}
    assert stems == set(run_figures(bare))
    assert ".html is there already; give --resume" in refused("report", run.path, "--figures", "html")
    assert "'pfd' is none; did you mean 'pdf'?" in refused("report", run.path, "--figures", "pfd")
