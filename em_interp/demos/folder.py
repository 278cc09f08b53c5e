"""The folder of a demo: its runs, the page, the summary, and what a resumed demo continues from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from em_interp.run import Run
from em_interp.utils.files import check_names_free, check_replaceable, remove


@dataclass(frozen=True)
class DemoFolder:
    """Where a demo is written.

    Attributes:
        path: the folder.
        runs: its runs by name; each lies in a folder of its own.
    """

    path: Path
    runs: dict[str, Run]

    @classmethod
    def of(cls, path: str | Path, names: Iterable[str]) -> DemoFolder:
        """The folder of a demo with runs of these names."""
        return cls(Path(path), {name: Run(Path(path) / name) for name in names})

    @property
    def page(self) -> Path:
        """The page about the organism, beside its control."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """What the demo returns."""
        return self.path / "summary.json"

    @property
    def seconds(self) -> Path:
        """How long each stage took."""
        return self.path / "seconds.json"

    @property
    def threads(self) -> Path:
        """On how many threads it computes."""
        return self.path / "threads.json"

    def check_free(self, resume: bool, overwrite: bool) -> None:
        """Raise InputError where a demo is there already without `resume` or `overwrite`, and where both are given."""
        check_names_free(self.path, (*self.runs, self.summary.name, self.page.name), resume, overwrite)

    def clear(self) -> None:
        """Remove a demo; files of other names stay. Raises InputError where what is there is of no demo."""
        for run in self.runs.values():
            check_replaceable([run.path], run.is_begun(), "a demo")
        files = (self.summary, self.page, self.seconds, self.threads)
        check_replaceable(files, any(run.is_begun() for run in self.runs.values()), "a demo")
        remove(*files, *(run.path for run in self.runs.values()))
