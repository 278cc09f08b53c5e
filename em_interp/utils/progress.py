"""Progress at a terminal and in Jupyter: a bar, a line, and whether anybody is likely to see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from em_interp.errors import printable


def progress_bar(
    items: Iterable[Any], name: str, unit: str, show: bool | None = None, total: int | None = None, done: int = 0
) -> Any:
    """The items, with a bar that shows how many are done and the time left. `show` None: where it is watched.

    `total` and `done` (before the first of the items) are needed where the items have no length.
    """
    from tqdm import tqdm

    file = CELL_LINE if _in_jupyter() else None
    hidden = not (is_watched() if show is None else show)
    return tqdm(items, name, total, unit=unit, disable=hidden, file=file, initial=done)


class CellLine:
    """A file for progress in Jupyter: one line of a cell's output, in which new text replaces the text before.

    What tqdm prints otherwise is kept in a notebook once for every update; its bar of widgets is kept as nothing.
    """

    encoding = "utf-8"
    cell: int | None = None
    output: Any = None

    def write(self, text: str) -> None:
        """Show a line of text; blank text and movements of the cursor are nothing to show."""
        from IPython.display import display

        line, cell = text.strip(), _shell().execution_count
        if not line or line.startswith("\x1b"):
            return
        if cell == self.cell:
            self.output.update({"text/plain": line}, raw=True)
        else:
            self.cell, self.output = cell, display({"text/plain": line}, raw=True, display_id=True)

    def flush(self) -> None:
        """Nothing waits to be written."""


CELL_LINE = CellLine()


def is_watched() -> bool:
    """Whether progress is likely to be seen: at a terminal or in Jupyter."""
    return sys.stderr.isatty() or _in_jupyter()


def _in_jupyter() -> bool:
    return "IPython" in sys.modules and _shell() is not None and "IPKernelApp" in _shell().config


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython()


def announce(line: str) -> None:
    """Show a line of progress."""
    print(printable(line), file=sys.stdout if _in_jupyter() else sys.stderr, flush=True)
