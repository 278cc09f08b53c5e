"""Titles, names and the numbers that figures carry."""

from dataclasses import replace

import em_interp as em
from em_interp.figures.style import new_figure, without_title
from em_interp.reports.run_figures import setting_of


def test_a_figure_without_its_title_is_as_much_lower_and_has_the_same_panels(organism):
    whole = em.figures.norms(organism.trajectory)
    bare = without_title(whole)
    assert "title" not in bare["layout"]
    assert whole.layout.title.text == "<b>Size of the adapter</b>"
    panels = [layout["height"] - layout["margin"]["t"] for layout in (whole.layout, bare["layout"])]
    assert panels[0] == panels[1]
    assert bare["layout"]["height"] < whole.layout.height


def test_a_page_and_a_paper_get_no_numbers_with_the_drawing(organism):
    whole = em.figures.norms(organism.trajectory)
    assert whole.layout.meta["numbers"] and "meta" not in without_title(whole)["layout"]


def test_steps_are_written_in_full():
    axis = new_figure("Steps").layout.template.layout.xaxis
    assert axis.exponentformat == "none"  # 10000 and not 10k


def test_a_base_in_a_folder_of_this_machine_is_called_by_its_name(organism):
    path = replace(organism.trajectory, base="/home/someone/models/qwen")
    for figure in (em.figures.norms(path), path.plot()):
        assert "/home" not in figure.layout.meta["subtitle"] and "qwen" in figure.layout.meta["subtitle"]
    assert "/home" not in setting_of(replace(organism, trajectory=path))
