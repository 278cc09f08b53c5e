"""The report of the suite: the findings on a run's mechanism, as stored in `analysis/mechanism.json`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from em_interp.errors import InputError, nearest
from em_interp.results import Result
from em_interp.run import Run, RunLike, open_run
from em_interp.transition.result import Transition
from em_interp.utils.checks import checked
from em_interp.utils.stages import read_saved, reading_saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


RESULT = {"question": str, "finding?": str, "control?": str, "values?": dict, "undefined?": str}
REPORT = {
    "run": str,
    "base": str,
    "engine": str,
    "size": str,
    "control?": str,
    "answers": dict,
    "analyses": {"*": RESULT},
}


@dataclass(frozen=True)
class AnalysisResult:
    """One analysis of the suite.

    Attributes:
        question: the question that the analysis answers.
        finding: the answer in words.
        control: what it was compared with, in words.
        values: the result's `to_dict()`; for ablation and steering a mapping from contrast to it.
        undefined: why the analysis was not possible; None where it was.
    """

    question: str
    finding: str = ""
    control: str = ""
    values: dict[str, Any] | None = None
    undefined: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the question with the reason, or with finding, control and values."""
        if self.undefined is not None:
            return {"question": self.question, "undefined": self.undefined}
        return {name: getattr(self, name) for name in ("question", "finding", "control", "values")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AnalysisResult:
        """The inverse of `to_dict`."""
        return cls(**values)

    @classmethod
    def read(cls, file: Path) -> AnalysisResult:
        """The result that is kept in a file; raises InputError where it holds none."""
        with reading_saved(file):
            return cls.from_dict(read_saved(file, RESULT))


@dataclass(frozen=True, eq=False, repr=False)
class MechanismReport(Result):
    """The findings of the suite on one run.

    Attributes:
        run: the name of the run.
        base: the identity of its base model.
        engine: the engine that ran the model.
        size: the size of the suite: `quick`, `full` or `custom`.
        control: the name of the control run; None where the base was used as the control.
        answers: in words, the answers from which directions and probes were computed.
        analyses: the results by name, in order.
        folder: the folder of the figures.
    """

    NEXT: ClassVar = (".frame()", ".plot(name)", ".figures", ".transitions()", "[name].values")

    run: str
    base: str
    engine: str
    size: str
    control: str | None
    answers: dict[str, Any]
    analyses: dict[str, AnalysisResult]
    folder: Path

    def __getitem__(self, name: str) -> AnalysisResult:
        if name not in self.analyses:
            known = tuple(self.analyses)
            raise InputError(f"{name!r} was not analysed{nearest(name, known)}; there are {', '.join(known) or 'none'}")
        return self.analyses[name]

    def sentence(self) -> str:
        """The finding of each analysis, a line each."""
        lines = [
            f"{name}: {result.finding if result.undefined is None else f'undefined, {result.undefined}'}"
            for name, result in self.analyses.items()
        ]
        return "\n".join(lines) or "no analysis was carried out"

    def frame(self) -> pd.DataFrame:
        """A row an analysis: its name, question, whether it is defined, finding (or reason) and control."""
        import pandas as pd

        rows = []
        for name, result in self.analyses.items():
            defined = result.undefined is None
            words = result.finding if defined else result.undefined
            row = {"analysis": name, "question": result.question, "defined": defined, "finding": words}
            rows.append(row | {"control": result.control})
        return pd.DataFrame(rows, columns=["analysis", "question", "defined", "finding", "control"])

    @cached_property
    def figures_by_analysis(self) -> dict[str, dict[str, go.Figure]]:
        """The figures of each analysis, by name, as they were kept."""
        figures = {}
        for name, result in self.analyses.items():
            file = self.folder / "figures" / f"{name}.json"
            if result.undefined is None and file.exists():
                with reading_saved(file):
                    figures[name] = {title: _kept_figure(values) for title, values in read_saved(file, dict).items()}
        return figures

    @property
    def figures(self) -> dict[str, go.Figure]:
        """All figures by name."""
        return {title: figure for group in self.figures_by_analysis.values() for title, figure in group.items()}

    def plot(self, name: str | None = None) -> go.Figure:
        """One of the figures; by default the first. Raises InputError with their names for any other."""
        figures = self.figures
        name = next(iter(figures), "") if name is None else name
        if name not in figures:
            known = tuple(figures)
            raise InputError(
                f"there is no figure {name!r}{nearest(name, known)}; there are {', '.join(known) or 'none'}"
            )
        return figures[name]

    def transitions(self) -> list[Transition]:
        """Steps for the run's time axis: those from which components are sufficient, and that of the answer shift."""
        values = {name: result.values for name, result in self.analyses.items() if result.values is not None}
        with reading_saved(_file(self.folder.parent)):
            transitions = list(values["patching"]["transitions"]) if "patching" in values else []
            if "answer_shift" in values:
                transitions.append(values["answer_shift"]["peak"])
            return [Transition.from_dict(transition) for transition in transitions]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `mechanism.json` holds them."""
        names = ("run", "base", "engine", "size", "control", "answers")
        analyses = {name: result.to_dict() for name, result in self.analyses.items()}
        return {**{name: getattr(self, name) for name in names}, "analyses": analyses}


def suite_folder(run: Run) -> Path:
    """Where the suite keeps its work."""
    return run.analysis / "mechanism"


@checked
def read_report(run: RunLike) -> MechanismReport | None:
    """The report that is kept with a run.

    Args:
        run: a run, or its folder.

    Returns:
        The report, or None where the run's mechanism was not analysed.

    Raises:
        InputError: for what is not a run, and for a file of another form.
    """
    run = open_run(run)
    file = _file(run.analysis)
    if not file.exists():
        return None
    values = read_saved(file, REPORT)
    with reading_saved(file):
        analyses = {name: AnalysisResult.from_dict(kept) for name, kept in values["analyses"].items()}
        return MechanismReport(**{**values, "analyses": analyses}, folder=suite_folder(run))


def _file(analysis: Path) -> Path:
    """Where the report is kept in a run's folder of results."""
    return analysis / "mechanism.json"


def _kept_figure(values: dict[str, Any]) -> go.Figure:
    """The figure with these values; raises a TypeError or KeyError where they lack what our figures have."""
    from plotly.graph_objects import Figure

    figure = Figure(values)
    meta = figure.layout.meta
    sizes = (figure.layout.height, figure.layout.margin.t, meta["top"], meta["least_width"])
    if not all(isinstance(size, (int, float)) for size in sizes):
        raise TypeError("a size is no number")
    if not all(isinstance(meta[key], str) for key in ("title", "subtitle")):
        raise TypeError("a title is no text")
    return figure


def figure_values(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain values; plotly's own JSON packs arrays, which cannot be read back as numbers."""
    traces = [trace.to_plotly_json() for trace in figure.data]
    return {"data": traces, "layout": figure.layout.to_plotly_json()}
