"""The pages as a browser shows them: drawn whole, silent, alone. Needs Chromium or Chrome."""

import json
import os
import re
import shutil
import subprocess
from html import unescape

import pytest

import em_interp as em
from em_interp.comparison.page import write_comparison
from tests.figures.planting import plant_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=30000",
    "--enable-logging=stderr",
    "--v=0",
    "--window-size=1200,900",
    "--dump-dom",
)
PROBE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const plots = [...document.querySelectorAll(".plot")].map((plot) => ({
    name: plot.closest("figure").dataset.name,
    size: [...plot.querySelectorAll(".main-svg")].map((svg) => svg.getBoundingClientRect().width),
    marks: plot.querySelectorAll(".scatterlayer .trace path, .heatmaplayer image").length,
    boxes: [...plot.querySelectorAll(".legend .traces, .modebar-group")].map((part) => [
      part.classList.contains("modebar-group"), part.getBoundingClientRect(),
    ]),
    empty: plot.textContent.includes("no run has a step to show"),
  }));
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  const {body, title} = document;
  body.dataset.seen = JSON.stringify({drawn: body.dataset.drawn, title, wide: body.scrollWidth, plots, loaded});
}, 1000));
</script>"""


def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        missing = f"no browser: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("EM_INTERP_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module", params=["organism", "control", "bare", "comparison"])
def opened(request, tmp_path_factory):
    """What the browser said of the page, and what a probe added to it saw."""
    chromium, folder = browser(), tmp_path_factory.mktemp("page")
    control = plant_run(folder / "control", changes=False, scales=(1.0,), every=5)
    if request.param == "organism":
        planted = plant_run(folder / "switched", switched=True, asked=False, every=5)
        file = em.report(plant_run(folder / "organism", scales=(1.0,), every=5), control=control, planted=planted)
    elif request.param == "control":
        file = em.report(control)
    elif request.param == "comparison":
        other = plant_run(folder / "other", asked=False, every=5)
        file = write_comparison(em.compare([control, other]), folder / "compared")
    else:
        file = em.report(plant_run(folder / "bare", log=False, asked=False, every=5))
    probed = folder / "probed.html"
    probed.write_text(file.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (seen,) = re.findall(r'<body[^>]* data-seen="([^"]*)"', done.stdout) or [""]
    assert seen, f"the page did not come to its end:\n{done.stderr[-2000:]}"
    return json.loads(unescape(seen)), done.stderr


def test_every_figure_is_drawn(opened):
    seen, _ = opened
    assert seen["plots"]
    assert int(seen["drawn"]) == len(seen["plots"])
    for plot in seen["plots"]:
        assert plot["size"], plot["name"]
        assert min(plot["size"]) > 300, plot["name"]
        assert plot["marks"] or plot["empty"], plot["name"]


def test_no_button_lies_on_a_legend(opened):
    seen, _ = opened
    for plot in seen["plots"]:
        buttons, entries = ([box for is_button, box in plot["boxes"] if is_button == kind] for kind in (True, False))
        assert buttons, f"{plot['name']} has no buttons"
        for box in entries:
            assert not any(overlap(box, button) for button in buttons), f"a button covers the legend of {plot['name']}"


def overlap(one, other):
    return all(
        one[low] < other[high] and other[low] < one[high] for low, high in (("left", "right"), ("top", "bottom"))
    )


def test_the_console_stays_empty(opened):
    _, said = opened
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []


def test_nothing_is_loaded(opened):
    seen, _ = opened
    assert [name for name in seen["loaded"] if not name.startswith(("data:", "blob:"))] == []


def test_what_the_model_said_is_not_executed(opened):
    seen, _ = opened
    assert "hacked" not in seen["title"]


def test_the_page_is_no_wider_than_the_window(opened):
    seen, _ = opened
    assert seen["wide"] <= 1200
