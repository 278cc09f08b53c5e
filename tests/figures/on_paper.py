"""Figures as a browser lays them out at the width of a paper's column: which of their words lie on one another."""

import json
import re
import subprocess
from html import unescape

from plotly.offline import get_plotlyjs

from em_interp.figures.export_files import columns_of
from em_interp.figures.style import without_title
from tests.test_page_in_browser import FLAGS, browser

WIDTH = {1: 428, 2: 897}  # pixels of the layout, as `em_interp.figures.export_files` has them
LOOK = """
const words = (plot) => [...plot.querySelectorAll("text")]
  .map((text) => ({said: text.textContent, box: text.getBoundingClientRect()}))
  .filter(({said, box}) => said.trim() && box.width > 0);
const across = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left);
const down = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
const look = (plot, name) => {
  const all = words(plot), frame = plot.querySelector(".main-svg").getBoundingClientRect(), found = [];
  all.forEach(({said, box}, i) => {
    if (across(box, frame) < box.width - 1 || down(box, frame) < box.height - 1) found.push([name, said, "the edge"]);
    for (const other of all.slice(0, i))
      if (across(box, other.box) > 1 && down(box, other.box) > 1.5) found.push([name, said, other.said]);
  });
  return [all.length, found];
};
addEventListener("load", async () => {
  let count = 0, found = [];
  for (const {name, data, layout} of figures) {
    const plot = document.body.appendChild(document.createElement("div"));
    await Plotly.newPlot(plot, data, layout, {staticPlot: true});
    const [words, met] = look(plot, name);
    count += words;
    found = found.concat(met);
  }
  document.body.dataset.seen = JSON.stringify({count, found});
});
"""


def overlaps(figures, columns, folder):
    """How many words the figures have, and which of them lie on others or beyond the edge: (figure, words, words)."""
    laid_out = []
    for name, figure in figures.items():
        bare = without_title(figure)
        bare.update_layout(width=WIDTH[columns_of(figure, columns)])
        laid_out.append(json.loads(bare.to_json()) | {"name": name})
    said = json.dumps(laid_out).replace("<", "\\u003c")
    page = folder / "page.html"
    script = f"<script>{get_plotlyjs()}</script><script>const figures = {said};{LOOK}</script>"
    page.write_text(f'<!doctype html><meta charset="utf-8"><body>{script}</body>', encoding="utf-8")
    command = [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    seen = json.loads(unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
    return seen["count"], [tuple(met) for met in seen["found"]]
