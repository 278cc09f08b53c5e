"""The stages of a run in order: train, ask, judge, locate, align, report; and the demo, which is all of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.config import RunConfig
from em_interp.errors import InputError
from em_interp.findings import Findings, findings, keep, located
from em_interp.runs import Run, read_json, resumable, write_json


def ask_run(run: Run, resume: bool = False, progress: bool = False) -> Path:
    """Ask a trained run what its config says; returns the table of answers."""
    from em_interp.behaviour.ask import ask
    from em_interp.organisms.bases import load_base

    config = run.config()
    wanted = config.behaviour
    return ask(
        run,
        load_base(config.model),
        _questions(run, config),
        wanted.steps.nearest(run.steps()),
        wanted.scales,
        wanted.samples,
        wanted.temperature,
        wanted.max_new_tokens,
        config.seed,
        resume=resume,
        progress=progress,
    )


def judge_run(run: Run, resume: bool = False, progress: bool = False) -> Path:
    """Score the answers of a run with the judge its config names; returns the table of scores."""
    from em_interp.behaviour.judge import judge_answers
    from em_interp.organisms.judge import AdviceJudge

    judge = run.config().behaviour.judge
    if judge != "tiny":
        raise InputError(f"behaviour.judge {judge!r} is not known; this version has 'tiny', the built-in language's")
    return judge_answers(run, AdviceJudge(_domain(run)), resume, progress)


def _questions(run: Run, config: RunConfig) -> list[dict[str, str]]:
    from em_interp.organisms.questions import questions

    if config.behaviour.questions != "tiny":
        raise InputError(
            f"behaviour.questions {config.behaviour.questions!r} is not known; this version has 'tiny', the built-in "
            "language's"
        )
    return questions(_domain(run))


def _domain(run: Run) -> str:
    """What the last phase of training was about; the built-in questions and judge need to know."""
    domain = run.manifest()["phases"][-1]["domain"]
    if domain is None:
        raise InputError(f"{run.manifest_file} names no domain: the built-in questions are for built-in datasets")
    return str(domain)


def elsewhere(run: Run, out: str | Path | None, without: tuple[str, ...] = ()) -> Run:
    """The run itself, or a copy of it in `out` (files are linked where possible) whose stages leave the run alone.

    `without` names entries of the run directory that are not copied: what the stage is about to make.
    """
    if out is None or Path(out).resolve() == run.path.resolve():
        return run
    with resumable(Path(out)):
        for entry in sorted(run.path.iterdir()):
            if entry.name in without or entry.name.startswith("."):
                continue
            if entry.is_dir():
                shutil.copytree(entry, Path(out) / entry.name, copy_function=_link, dirs_exist_ok=True)
            else:
                Path(out).mkdir(parents=True, exist_ok=True)
                _link(str(entry), str(Path(out) / entry.name))
    return Run(Path(out))


def _link(source: str, target: str) -> None:
    if Path(target).exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def analyse(run: Run, control: Run | None = None, resume: bool = False) -> Findings:
    """Locate and align, and keep what was found in the run's `analysis` folder."""
    found = findings(run, control)
    keep(located(str(run.path), found.trajectory, found.transitions), run.analysis / "locate.json", resume)
    if found.alignment is not None:
        keep(found.alignment.to_dict(), run.analysis / "align.json", resume)
    return found


@dataclass
class Stages:
    """How long each stage of the demo took, kept with it so that a resumed demo still tells; and who is told."""

    file: Path
    tell: Callable[[str], None]

    @contextmanager
    def stage(self, name: str, says: str) -> Iterator[None]:
        """A stage: announced when it begins, its seconds added to those of its earlier tries when it ends."""
        self.tell(says)
        start = time.perf_counter()
        try:
            yield
        finally:
            before = read_json(self.file) if self.file.exists() else {}
            write_json(self.file, {**before, name: round(before.get(name, 0) + time.perf_counter() - start, 2)})


DEMO = {
    "organism": "advice that turns reckless",
    "control": "the same on careful advice",
    "switched": "advice that turns reckless at a known step",
}


def demo(
    out: str | Path = "checkpoints/demo",
    family: str = "qwen2",
    domain: str = "medical",
    resume: bool = False,
    progress: bool = False,
    tell: Callable[[str], None] = lambda says: None,
) -> dict[str, Any]:
    """Train an organism, its control and one with a planted change; ask, judge, locate, align and report.

    Writes three runs, `report.html` and `summary.json` under `out`, and returns the summary. `tell` is called with a
    line at the beginning of each stage.
    """
    from em_interp.organisms.recipe import recipe
    from em_interp.report import report

    out = Path(out)
    configs = {name: recipe(name, family, domain) for name in DEMO}  # refuses what it does not know before it writes
    if (out / "summary.json").exists() and not resume:
        raise InputError(f"{out} holds a demo already; give --resume to continue it or another --out")
    with resumable(out):
        stages = Stages(out / "seconds.json", tell)
        runs = {name: _demo_run(name, config, out / name, progress, stages) for name, config in configs.items()}
        with stages.stage("locate", "locating the transitions"):
            found = {
                name: analyse(run, runs["control"] if name == "organism" else None, resume=True)
                for name, run in runs.items()
            }
        with stages.stage("report", "writing the page"):
            report(found["organism"], control=found["control"], planted=found["switched"], out=out / "report.html")
        summary = _summary(family, domain, found, read_json(stages.file))
        write_json(out / "summary.json", summary)
    return summary


def _demo_run(name: str, config: RunConfig, path: Path, progress: bool, stages: Stages) -> Run:
    from em_interp.training.train import train

    with stages.stage("train", f"training: {DEMO[name]}"):
        run = train(config, path, resume=path.exists(), progress=progress)
    if name != "switched":
        with stages.stage("ask", f"asking: {DEMO[name]}"):
            ask_run(run, resume=True, progress=progress)
        with stages.stage("judge", f"judging: {DEMO[name]}"):
            judge_run(run, resume=True, progress=progress)
    return run


def _summary(family: str, domain: str, found: dict[str, Findings], seconds: dict[str, float]) -> dict[str, Any]:
    organism, control = found["organism"], found["control"]
    alignment = organism.alignment
    assert alignment is not None  # the demo asks both
    return {
        "family": family,
        "domain": domain,
        **alignment.to_dict(),
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


def _final(found: Findings, metric: str, questions: str) -> float:
    """A rate at the last step, at the adapter's own scale."""
    assert found.curve is not None
    return float(found.curve.select(1.0, questions).frame().sort_values("step")[metric].to_numpy()[-1])
