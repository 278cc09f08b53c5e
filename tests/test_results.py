import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from em_interp.results import Line, Mark, Result, html_card, interval_columns, local_name, picture

STEPS = np.arange(5)


def drawn(svg):
    """The points of every curve in a picture."""
    found = ElementTree.fromstring(svg).iter("polyline")
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in found]


def test_a_picture_has_a_curve_for_each_line_rising_where_values_rise():
    up, down = drawn(picture([Line(STEPS, STEPS * 1.0, "up"), Line(STEPS, -STEPS * 1.0, "down")], "value"))
    assert [x for x, _ in up] == sorted(x for x, _ in up) and len(up) == 5
    assert up[-1][1] < up[0][1] and down[-1][1] > down[0][1]  # y grows downward in SVG


def test_a_missing_value_breaks_the_curve_and_is_never_drawn():
    assert [len(part) for part in drawn(picture([Line(STEPS, np.array([1, 2, np.nan, 3, 4.0]))], "value"))] == [2, 2]
    assert picture([Line(STEPS, np.full(5, np.nan))], "value") == ""


def test_a_flat_curve_and_a_single_step_are_drawn():
    assert drawn(picture([Line(STEPS, np.ones(5))], "value"))
    assert drawn(picture([Line(np.array([3]), np.array([1.0]))], "value"))


def test_a_marked_interval_is_drawn_where_it_lies_and_kept_in_the_picture():
    inside, beyond = (
        ElementTree.fromstring(picture([Line(STEPS, STEPS * 1.0)], "value", [Mark(2, interval)])).find("rect")
        for interval in ((1, 3), (-90, 90))
    )
    x = [point[0] for point in drawn(picture([Line(STEPS, STEPS * 1.0)], "value"))[0]]
    assert float(inside.get("x")) == x[1] and abs(float(inside.get("width")) - (x[3] - x[1])) < 0.2
    assert float(beyond.get("x")) == x[0] and abs(float(beyond.get("width")) - (x[4] - x[0])) < 0.2


def test_what_a_result_says_and_names_is_escaped():
    html = html_card(["<script>1</script>"], picture([Line(STEPS, STEPS * 1.0, "<b>")], "<i>"), ["f(<u>)"])
    assert not any(tag in html for tag in ("<script>", "<i>", "<u>")) and "&lt;script&gt;" in html


class _Found(Result):
    NEXT = (".plot()",)

    def sentence(self):
        return "a <b> turn; p < 0.001\nand a second line"

    def _table(self):
        return pd.DataFrame({"step": [1], "em": [np.nan]})


def test_a_card_breaks_between_clauses_and_not_within_brackets():
    result = _Found()
    result.sentence = lambda: "a rises (0.2 to 0.4; 12 tokens), b does not; c (x; y) is open"
    assert result._lines() == ["a rises (0.2 to 0.4; 12 tokens), b does not", "c (x; y) is open"]


def test_a_result_shows_its_sentence_its_table_and_what_to_call_next():
    shown = _Found()._repr_html_()
    assert "<strong>a &lt;b&gt; turn</strong><br>p &lt; 0.001<br>and a second line" in shown
    assert "<td>–</td>" in shown and "<code>.plot()</code>" in shown
    assert repr(_Found()) == "_Found(a <b> turn; p < 0.001\nand a second line)"


def test_an_interval_has_the_same_two_columns_everywhere():
    assert interval_columns("em", (0.1, 0.2)) == {"em_low": 0.1, "em_high": 0.2}
    assert all(np.isnan(value) for value in interval_columns("em", None).values())


@pytest.mark.parametrize(
    "name, short",
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("tiny-qwen2", "tiny-qwen2"),
        ("/home/me/qwen", "qwen"),
        ("~/models/qwen/", "qwen"),
        ("./qwen", "qwen"),
        (r"C:\models\qwen", "qwen"),
        ("/", "/"),
    ],
)
def test_a_name_is_shown_without_the_folders_of_a_machine(name, short):
    assert local_name(name) == short
