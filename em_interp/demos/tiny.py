"""The demo: an organism, its control and one with a planted change, from training to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_interp.config.run_config import RunConfig
from em_interp.demos.folder import DemoFolder
from em_interp.demos.stage_times import StageTimes
from em_interp.pipeline.analysis import analyse
from em_interp.pipeline.behaviour import ask_run, judge_run
from em_interp.reports.findings import Findings
from em_interp.run import Run
from em_interp.utils.checks import checked
from em_interp.utils.files import resumable, write_json
from em_interp.utils.lock import write_lock
from em_interp.utils.processes import torch_threads

RUNS = {
    "organism": "advice that turns reckless",
    "control": "the same on careful advice",
    "switched": "advice that turns reckless at a known step",
}
ALIGNED = ("mechanistic", "behavioural", "offsets", "verdict")  # of the alignment's JSON, in `summary.json`


@checked
def demo(
    out: str | Path = "checkpoints/demo",
    family: str = "qwen2",
    domain: str = "medical",
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train an organism, its control and one with a planted change; ask, judge, locate, align and report.

    Args:
        out: where three runs, `report.html` and `summary.json` are written.
        family: the architecture of the base: qwen2, llama or gemma3.
        domain: what the advice is about: medical, sport, finance, …
        resume: continue the demo in the folder.
        overwrite: replace it.
        progress: show bars; by default in a terminal and in Jupyter.
        log: is called with a line at the beginning of each stage.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: for an unknown family or domain, and a folder that holds a demo already (without `resume` or
            `overwrite`).
    """
    from em_interp.organisms.presets import recipe
    from em_interp.reports.page import report

    folder = DemoFolder.of(out, RUNS)
    configs = {name: recipe(name, family, domain) for name in RUNS}  # refuses what it does not know before it writes
    folder.check_free(resume, overwrite)
    with write_lock(folder.path), resumable(folder.path), torch_threads():
        if overwrite:
            folder.clear()
        stages = StageTimes(folder.seconds, lambda name, line: log(line))
        runs = {name: _make_run(name, configs[name], run, progress, stages) for name, run in folder.runs.items()}
        with stages.stage("locate", "locating the transitions"):
            control = analyse(runs["control"])
            organism, switched = analyse(runs["organism"], control), analyse(runs["switched"])
        with stages.stage("report", "writing the page"):
            report(organism, control, switched, folder.page, overwrite=True)
        summary = _summary(family, domain, organism, control, stages.seconds())
        write_json(folder.summary, summary)
    return summary


def _make_run(name: str, config: RunConfig, run: Run, progress: bool | None, stages: StageTimes) -> Run:
    from em_interp.training.train import train

    with stages.stage("train", f"training: {RUNS[name]}"):
        train(config, run.path, resume=run.path.exists(), progress=progress)
    if name != "switched":
        with stages.stage("ask", f"asking: {RUNS[name]}"):
            ask_run(run, resume=True, progress=progress)
        with stages.stage("judge", f"judging: {RUNS[name]}"):
            judge_run(run, resume=True, progress=progress)
    return run


def _summary(
    family: str, domain: str, organism: Findings, control: Findings, seconds: dict[str, float]
) -> dict[str, Any]:
    alignment = organism.alignment
    assert alignment is not None  # the demo asks both
    return {
        "family": family,
        "domain": domain,
        **{key: value for key, value in alignment.to_dict().items() if key in ALIGNED},
        "final": {
            "em_out_of_domain": _final(organism, "em", "out_of_domain"),
            "em_in_domain": _final(organism, "em", "in_domain"),
            "coherent": _final(organism, "coherent", "out_of_domain"),
        },
        "control": {
            "em_out_of_domain": _final(control, "em", "out_of_domain"),
            "mechanistic": control.rotation.to_dict(),
            "behavioural": [onset.to_dict() for onset in control.onsets],
        },
        "seconds": seconds,
    }


def _final(findings: Findings, metric: str, questions: str) -> float:
    """A rate at the last step, at the adapter's own scale."""
    assert findings.curve is not None
    return float(findings.curve.select(1.0, questions).last()[metric].iloc[0])
