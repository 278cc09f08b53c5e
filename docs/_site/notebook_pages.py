"""The notebooks as pages of the site: text and code as Markdown, and the outputs of a run as HTML.

Running all of them takes some minutes, so what was run is kept in `.cache/notebooks`, by a hash of everything that it
depends on: the scripts, the configs and the package.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat

LOG = logging.getLogger("mkdocs.notebooks")
ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "notebooks"
SECONDS_PER_CELL = 900
GPU = "*This cell needs a GPU, weights or data of yours; it was not run here.*"


def _load_make():  # noqa: ANN202
    spec = spec_from_file_location("make_notebooks", ROOT / "notebooks" / "make.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _load_make()
sources = MAKE.sources


@dataclass(frozen=True)
class NotebookPage:
    """A notebook as Markdown with a placeholder for the outputs of each cell, and these outputs as HTML."""

    markdown: str
    outputs: tuple[str, ...]


@cache
def pages(execute: bool) -> dict[str, NotebookPage]:
    """A page for each notebook by its stem; with `execute` the notebooks are run where they have not been."""
    notebooks = executed() if execute else {source.stem: read(source) for source in sources()}
    return {stem: page(notebook) for stem, notebook in notebooks.items()}


def read(source: Path) -> nbformat.NotebookNode:
    """The notebook of a percent script."""
    return nbformat.reads(MAKE.notebook(source), as_version=4)


def executed() -> dict[str, nbformat.NotebookNode]:
    """All notebooks with outputs, by their stems; from the cache where nothing that they depend on has changed."""
    folder = CACHE / fingerprint()
    if not folder.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        clone = CACHE / "clone"
        lay_out(clone)
        for source in sources():
            LOG.info("running %s", source.name)
            run(source, clone)
        (clone / "notebooks").rename(folder)
        shutil.rmtree(clone)
    return {source.stem: nbformat.read(folder / f"{source.stem}.ipynb", as_version=4) for source in sources()}


def fingerprint() -> str:
    """A hash of the scripts, the configs and the package's source."""
    files = [*sources(), *sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "em_interp").rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def lay_out(clone: Path) -> None:
    """Make a folder as a clone is after `make demo`, so that the runs of the user are neither read nor touched."""
    shutil.copytree(ROOT / "configs", clone / "configs")
    (clone / "notebooks").mkdir()
    LOG.info("running the demo, which the notebooks read")
    demo = [sys.executable, "-m", "em_interp", "demo", "--out", str(clone / "checkpoints" / "demo")]
    subprocess.run(demo, check=True, env=environment())


def environment() -> dict[str, str]:
    """The environment of what is run: one thread, no network, and this copy of the package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PLOTLY_RENDERER": "plotly_mimetype"}
    return {**os.environ, **fixed, "PYTHONPATH": path}


def run(source: Path, clone: Path) -> nbformat.NotebookNode:
    """Run a notebook in the folder `notebooks` of `clone`, and write it there with its outputs.

    Cells tagged `gpu` are not run.
    """
    from nbclient import NotebookClient

    notebook = read(source)
    cells = notebook.cells
    notebook.cells = [cell for cell in cells if not needs_gpu(cell)]
    resources = {"metadata": {"path": str(clone / "notebooks")}}
    NotebookClient(notebook, timeout=SECONDS_PER_CELL, resources=resources).execute(env=environment())
    notebook.cells = cells
    nbformat.write(notebook, clone / "notebooks" / f"{source.stem}.ipynb")
    return notebook


def needs_gpu(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is tagged as one that needs a GPU, weights or data."""
    return "gpu" in cell.metadata.get("tags", [])


def placeholder(number: int) -> str:
    """What stands in a page's Markdown and HTML for the outputs of its code cell `number`."""
    return f'<div class="outputs" id="outputs-{number}"></div>'


def page(notebook: nbformat.NotebookNode) -> NotebookPage:
    """The page of a notebook."""
    parts: list[str] = []
    outputs: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts += [f"```python\n{cell.source}\n```", GPU if needs_gpu(cell) else placeholder(len(outputs))]
        if not needs_gpu(cell):
            shown = "".join(map(output_html, cell.get("outputs", [])))
            outputs.append(f'<div class="outputs">{shown}</div>' if shown else "")
    return NotebookPage("\n\n".join(parts) + "\n", tuple(outputs))


def output_html(output: nbformat.NotebookNode) -> str:
    """One output of a cell as HTML: a figure of plotly, HTML, or text."""
    if output.output_type == "stream":
        return f"<pre>{escape(output.text)}</pre>"
    data = output.get("data", {})
    if "application/vnd.plotly.v1+json" in data:
        return figure_html(dict(data["application/vnd.plotly.v1+json"]))
    if "text/html" in data:
        return data["text/html"]
    return f"<pre>{escape(data['text/plain'])}</pre>" if "text/plain" in data else ""


def figure_html(values: dict) -> str:
    """A figure of plotly as HTML that uses the site's copy of plotly's script."""
    import plotly.io as pio

    values.pop("config", None)
    text = json.dumps(values)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    return pio.to_html(pio.from_json(text), full_html=False, include_plotlyjs=False, div_id=f"figure-{name}")
