"""The notebooks from their percent scripts: `python notebooks/make.py` writes each `.ipynb` beside its `.py`.

The script is the source. The notebook is the same cells without outputs, byte for byte the same each time.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources(folder: Path = HERE) -> list[Path]:
    """The percent scripts, in order of their numbers."""
    return sorted(folder.glob("[0-9]_*.py"))


def notebook(source: Path) -> str:
    """The notebook of a percent script, as text."""
    made = jupytext.read(source)
    made.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    for number, cell in enumerate(made.cells, 1):
        cell.id = f"cell-{number}"  # jupytext's are drawn at random
    return nbformat.writes(made, version=4) + "\n"


if __name__ == "__main__":
    for script in sources():
        script.with_suffix(".ipynb").write_text(notebook(script), encoding="utf-8")
