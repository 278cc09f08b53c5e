"""The answer of a sweep: each run's transitions, whether the seeds of a group agree, and the runs that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from em_interp.comparison.pooled import Agreement, pool_steps
from em_interp.results import Result, interval_columns
from em_interp.run import Run
from em_interp.sweeps.grid import REPLICATE, PlannedRun
from em_interp.sweeps.groups import AcrossBases, WithinBase
from em_interp.sweeps.jobs import SUMMARY, SUMMARY_FILE, run_path
from em_interp.transition.result import Transition
from em_interp.utils.checks import check_known
from em_interp.utils.stages import read_saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SIGNAL_TITLES = {
    "rotation": "Rotation of B",
    "gradient_norm": "Gradient-norm peak",
    "onset": "EM onset",
    "offset": "Onset after rotation",
}
SIGNALS = tuple(SIGNAL_TITLES)
Table = Literal["runs", "pooled", "signals"]
TABLES: tuple[str, ...] = get_args(Table)
POOLED_COLUMNS = [
    *("group", "label", "signal", "level", "pooled_runs", "mean", "mean_low", "mean_high", "tau", "q", "q_p_value"),
    *("i_squared", "prediction_low", "prediction_high", "transition", "none", "inconclusive", "without_interval"),
]


@dataclass(frozen=True, eq=False)
class RunResult:
    """One run of the sweep: its summary, or why it has none."""

    plan: PlannedRun
    path: Path
    error: str | None  # why it could not be trained or analysed
    summary: dict[str, Any]  # of `jobs.summary`; empty where there is an error

    @classmethod
    def read(cls, plan: PlannedRun, out: Path, error: str | None) -> RunResult:
        """The result of one run, from the files of its worker."""
        path = run_path(out, plan.name)
        return cls(plan, path, error, {} if error else read_saved(Run(path).analysis / SUMMARY_FILE, SUMMARY))

    @property
    def control(self) -> str | None:
        """The control it was analysed with; None also where that failed."""
        return self.summary.get("control")

    @property
    def signals(self) -> dict[str, Transition]:
        """Rotation of B, gradient-norm peak, the declared onset of EM, and the offset of it from the rotation."""
        if not self.summary:
            return {}
        located = {name: Transition.from_dict(self.summary[name]) for name in SIGNALS[:-1]}
        return {**located, "offset": _offset(located["rotation"], located["onset"], self.summary["offset"])}

    def to_dict(self) -> dict[str, Any]:
        """A run for `sweep.json`; paths are from the sweep's folder, so that it can be moved."""
        offset = {}
        if self.summary:
            offset = {"offset": {**self.signals["offset"].to_dict(), **(self.summary["offset"] or {})}}
        path = str(Path("runs") / self.plan.name)
        about = {"run": self.plan.name, "path": path, "settings": self.plan.values, "group": self.plan.group}
        return {**about, "error": self.error, **self.summary, **offset}


def _offset(rotation: Transition, onset: Transition, offset: dict[str, Any] | None) -> Transition:
    """The offset in the form of a transition, so that it is pooled and drawn as the steps are."""
    if offset is not None:
        interval = None if offset["interval"] is None else tuple(offset["interval"])
        chance = "" if offset["chance"] is None else f"; chance of being as near {offset['chance']:.2g}"
        reason = f"from the rotation of B to the onset of EM{chance}"
        estimate = {"step": offset["steps"], "interval": interval, "level": offset["level"]}
        return Transition("offset", "transition", reason, **estimate)
    verdicts = {"rotation": rotation.verdict, "onset": onset.verdict}
    reason = " and ".join(f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict != "transition")
    return Transition("offset", "none" if "none" in verdicts.values() else "inconclusive", reason)


def _agreements(runs: Sequence[RunResult]) -> dict[str, Agreement]:
    names = [run.plan.name for run in runs]
    return {name: pool_steps(names, [run.signals[name] for run in runs]) for name in SIGNALS if runs}


def _numbers(transition: Transition | None) -> dict[str, float]:
    """Step and interval, NaN where there is none."""
    step = np.nan if transition is None or transition.step is None else transition.step
    return {"step": step, **interval_columns("step", None if transition is None else transition.interval)}


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """All runs of a sweep. Pooled steps are of runs that differ in their seed alone, with random effects."""

    NEXT: ClassVar[tuple[str, ...]] = (".plot()", ".frame('runs')", ".frame('pooled')", ".page")

    out: Path
    runs: tuple[RunResult, ...]
    controls: tuple[RunResult, ...]
    within: tuple[WithinBase, ...]
    across: AcrossBases | None  # None with one base
    keys: tuple[str, ...]  # the settings that vary

    @property
    def page(self) -> Path:
        """Where its page is written."""
        return self.out / "sweep.html"

    @property
    def failures(self) -> dict[str, str]:
        """Why, by the name of each run that failed."""
        return {run.plan.name: run.error for run in (*self.runs, *self.controls) if run.error}

    def pooled(self) -> list[tuple[str, dict[str, Agreement]]]:
        """Each group of runs that differ in their seed alone, with their agreements; failed runs are left out."""
        groups: dict[str, list[RunResult]] = {}
        for run in self.runs:
            groups.setdefault(run.plan.group, []).append(run)
        return [(group, _agreements([run for run in runs if run.summary])) for group, runs in groups.items()]

    def counts(self) -> dict[str, dict[str, int]]:
        """For each signal, how many runs have which verdict."""
        signals = [run.signals for run in self.runs if run.summary]
        return {name: dict(Counter(of_run[name].verdict for of_run in signals)) for name in SIGNALS}

    def frame(self, table: Table = "runs") -> pd.DataFrame:
        """A tidy table.

        Args:
            table: `runs` (a row a run), `signals` (a row a run and signal) or `pooled` (a row a group and signal, with
                the test whether its seeds have the same step).

        Returns:
            The rows; runs that failed are in the first two with their error.

        Raises:
            InputError: for another name.
        """
        import pandas as pd

        rows = {"runs": self._run_rows, "signals": self._signal_rows, "pooled": self._pooled_rows}
        check_known("table", table, TABLES)
        return pd.DataFrame(list(rows[table]()), columns=POOLED_COLUMNS if table == "pooled" else None)

    def _run_rows(self) -> Iterator[dict[str, Any]]:
        for run in self.runs:
            row = {"run": run.plan.name, "group": run.plan.group, **run.plan.values}
            for name in SIGNALS:
                transition = run.signals.get(name)
                row[f"{name}_verdict"] = transition.verdict if transition else "failed"
                row |= {f"{name}_{part}": value for part, value in _numbers(transition).items()}
            offset, final = run.summary.get("offset") or {}, run.summary.get("final") or {}
            for rate in ("em", "coherent"):
                row[f"final_{rate}"] = (final.get(rate) or {}).get("rate", np.nan)
            row |= {"offset_chance": offset.get("chance"), "alignment": run.summary.get("verdict")}
            yield {**row, "control": run.control, "error": run.error}

    def _signal_rows(self) -> Iterator[dict[str, Any]]:
        for run in self.runs:
            about = {"run": run.plan.name, "group": run.plan.group, REPLICATE: run.plan.values.get(REPLICATE)}
            for name in SIGNALS:
                t = run.signals.get(name)
                verdict, reason = ("failed", run.error) if t is None else (t.verdict, t.reason)
                yield {**about, "signal": name, "verdict": verdict, **_numbers(t), "reason": reason}

    def _pooled_rows(self) -> Iterator[dict[str, Any]]:
        for group, agreements in self.pooled():
            for name, agreement in agreements.items():
                yield {"group": group, **agreement.row(), "label": SIGNAL_TITLES[name]}

    def plot(self) -> go.Figure:
        """Every run's steps with their intervals, by group, with the pooled steps."""
        from em_interp.figures.sweeps import sweep

        return sweep(self.frame("signals"), self.frame("pooled"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: every run with everything found in it, the pooled steps, and the comparisons of directions."""
        return {
            "n_runs": len(self.runs),
            "n_failed": len(self.failures),
            "counts": self.counts(),
            "runs": [run.to_dict() for run in self.runs],
            "controls": [run.to_dict() for run in self.controls],
            "pooled": [
                {"group": group, **{name: agreement.to_dict() for name, agreement in agreements.items()}}
                for group, agreements in self.pooled()
            ],
            "within_bases": [group.to_dict() for group in self.within],
            "across_bases": None if self.across is None else self.across.lines,
            "failures": self.failures,
        }

    def sentence(self) -> str:
        """Lines: how many runs, how many have each signal, whether the seeds of each group agree, and failures."""
        lines = [f"runs: {len(self.runs)}; controls: {len(self.controls)}; failed: {len(self.failures)}"]
        for name, counts in self.counts().items():
            words = [f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda item: -item[1])]
            lines.append(f"{SIGNAL_TITLES[name]}: {', '.join(words) or 'no run'}")
        for group, agreements in self.pooled():
            pooled = [agreement for name, agreement in agreements.items() if agreement.pooled and name != "offset"]
            lines += [f"{group}: {agreement.sentence()}" for agreement in pooled]
        return "\n".join([*lines, *(f"failed: {name}: {why}" for name, why in self.failures.items())])

    def __repr__(self) -> str:
        return f"Sweep({len(self.runs)} runs, {len(self.controls)} controls, {len(self.failures)} failed; {self.out})"

    def _table(self) -> pd.DataFrame:
        return self.frame()
