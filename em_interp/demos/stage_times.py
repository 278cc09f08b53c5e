"""How long the stages of a demo took, over all its attempts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.utils.files import write_json
from em_interp.utils.stages import read_saved

STAGE_TIMES = {"*": {"stage": str, "seconds": float, "done": bool}}


@dataclass
class StageTimes:
    """How long each stage took, kept with the demo so that a resumed one reports the same.

    Attributes:
        file: where the times are kept.
        announce: is called with the name and the line of a stage that begins.
    """

    file: Path
    announce: Callable[[str, str], None]

    @contextmanager
    def stage(self, name: str, line: str) -> Iterator[None]:
        """A stage: announced when it begins, its seconds added to those of earlier attempts when it ends.

        A stage that was complete before adds nothing.
        """
        self.announce(name, line)
        before = self._kept().get(line, {"stage": name, "seconds": 0.0, "done": False})
        start, done = time.perf_counter(), False
        try:
            yield
            done = True
        finally:
            if not before["done"]:
                spent = round(before["seconds"] + time.perf_counter() - start, 2)
                write_json(self.file, {**self._kept(), line: {"stage": name, "seconds": spent, "done": done}})

    def seconds(self) -> dict[str, float]:
        """The seconds by the name of the stage, of all runs together."""
        total: dict[str, float] = {}
        for kept in self._kept().values():
            total[kept["stage"]] = round(total.get(kept["stage"], 0.0) + kept["seconds"], 2)
        return total

    def _kept(self) -> dict[str, dict[str, Any]]:
        kept: dict[str, dict[str, Any]] = read_saved(self.file, STAGE_TIMES) if self.file.exists() else {}
        return kept
