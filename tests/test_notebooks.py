"""The notebooks: made from the scripts beside them, without outputs, and running from the first cell to the last."""

import importlib.util
import shutil
from functools import reduce
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbconvert import HTMLExporter

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PLOTLY = "application/vnd.plotly.v1+json"
SECONDS = 120  # what each is promised to take at most, on a machine that does nothing else
SHORTER = {  # what shows nothing more for being longer, by the number of the notebook; `make docs` runs them whole
    "2": {"for seed in range(3)": "for seed in range(1)"},
    "3": {
        "range(0, 401, 50)": "range(0, 401, 200)",
        "samples=6,": "samples=2,",
        "(1.5, 2, 2.25, 2.5)": "(2.25,)",
        "samples=8": "samples=4",
    },
    "4": {"draws=19": "draws=9"},
    "6": {r"\"epochs\": 2": r"\"steps\": 40", r"\"every 20\"": r"\"every 8\"", "samples=6": "samples=1"},
}
SHORT = {"steps: 400\n": "steps: 60\n", "samples: 6 ": "samples: 2 ", "scales: [1, 1.5]": "scales: [1]"}  # the config


def load_make():
    spec = importlib.util.spec_from_file_location("make", NOTEBOOKS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()
SOURCES = make.sources()


@pytest.fixture(scope="session")
def desk(tmp_path_factory, demo):
    """A folder as a clone has it after `make demo`, from which the notebooks run one after another.

    The run of the first notebook is that of the demo.
    """
    folder = clone(tmp_path_factory.mktemp("clone"))
    shutil.copytree(demo, folder / "checkpoints" / "demo")
    shutil.copytree(demo / "organism", folder / "checkpoints" / "tiny")
    return folder


@pytest.fixture(scope="session")
def short_desk(tmp_path_factory):
    """A folder as a clone has it, for the notebook that trains runs by the config: here of few steps and answers."""
    folder = clone(tmp_path_factory.mktemp("short"))
    config = folder / "configs" / "tiny.yaml"
    config.write_text(changed(config.read_text(encoding="utf-8"), SHORT), encoding="utf-8")
    return folder


def changed(text, changes):
    """The text with each change, whose place is there once."""
    assert all(text.count(old) == 1 for old in changes)
    return reduce(lambda text, change: text.replace(*change), changes.items(), text)


def clone(folder):
    shutil.copytree(NOTEBOOKS.parent / "configs", folder / "configs")
    (folder / "notebooks").mkdir()
    return folder


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_is_the_script_without_outputs(source):
    kept = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert kept == make.notebook(source), "run: python notebooks/make.py"
    cells = nbformat.reads(kept, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells)
    assert {cell.source for cell in cells}  # not an empty notebook


def test_no_notebook_is_without_its_script():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {path.stem for path in SOURCES}


@pytest.fixture(scope="module")
def kernel():
    """The kernel of all notebooks one after another: each would import torch anew."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.timeout(10 * SECONDS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_runs(source, kernel, request):
    number = source.stem[0]
    desk = request.getfixturevalue("short_desk" if number == "4" else "desk")
    notebook = nbformat.reads(changed(make.notebook(source), SHORTER.get(number, {})), as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "gpu" not in cell.metadata.get("tags", [])]
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # no names of the notebook before
    place = {"metadata": {"path": str(desk / "notebooks")}}
    client = NotebookClient(notebook, km=kernel, timeout=5 * SECONDS, resources=place)
    client.execute()  # raises at the first cell that does
    client.kc.stop_channels()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert [out for out in outputs if out.get("name") == "stderr"] == []
    assert not any("\r" in out.get("text", "") for out in outputs), "a bar's updates are kept"
    figures = [out.data for out in outputs if PLOTLY in out.get("data", {})]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert figures and page.count("Plotly.newPlot(") >= len(figures)
