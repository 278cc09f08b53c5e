"""The stages of a run in order: train, ask, judge, locate, align, report; and the demo, which is all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.config import EndpointConfig, RunConfig, load_config
from em_interp.errors import InputError
from em_interp.files import read_json, resumable, write_json
from em_interp.findings import Findings, findings, keep, located
from em_interp.run import Run, open_run

if TYPE_CHECKING:
    from em_interp.behaviour.judge import Judge
    from em_interp.behaviour.llm_judge import Prompts
    from em_interp.mechanism.experiments import SamplingParams
    from em_interp.mechanism.model import EngineName
    from em_interp.mechanism.report import MechanismReport
    from em_interp.mechanism.suite import SizeName, SuiteSize


def ask_run(run: Run | str | Path, resume: bool = False, progress: bool = False) -> Path:
    """Ask a trained run what its config says; returns the table of answers."""
    from em_interp.behaviour.ask import ask, steps_with_models
    from em_interp.organisms.bases import load_base

    run = run if isinstance(run, Run) else open_run(run)
    config = run.config()
    wanted, asked = config.behaviour, _questions(run, config)
    return ask(
        run,
        load_base(config.model, config.base_dtype),
        asked,
        wanted.steps.nearest(steps_with_models(run)),
        wanted.scales,
        wanted.samples,
        wanted.temperature,
        wanted.max_new_tokens,
        config.seed,
        resume=resume,
        progress=progress,
    )


def judge_run(
    run: Run | str | Path, resume: bool = False, progress: bool = False, settings: Sequence[str] = ()
) -> Path:
    """Score the answers of a run with the judge its config names; returns the table of scores.

    `settings` are overrides of the config (`key.path=value`), for this judging alone.
    """
    from em_interp.behaviour.judge import judge_answers

    run = run if isinstance(run, Run) else open_run(run)
    with run_judge(run, settings) as judge:
        return judge_answers(run, judge, resume, progress)


@contextmanager
def run_judge(run: Run, settings: Sequence[str] = ()) -> Iterator[Judge]:
    """The judge that a run's config names, with its overrides. Raises InputError where there is no such judge."""
    from em_interp.behaviour.llm_judge import open_judge
    from em_interp.organisms.judge import AdviceJudge

    judge = _judge(run, settings)
    if isinstance(judge, EndpointConfig):
        with open_judge(run, judge, judge_prompts(run, settings)) as model:
            yield model
    elif judge == "tiny":
        yield AdviceJudge(_domain(run))
    else:
        raise InputError(
            f"behaviour.judge {judge!r} is not known; this version has 'tiny', the built-in language's, and a mapping "
            "with base_url and model, for a model's endpoint"
        )


def judge_name(run: Run, settings: Sequence[str] = ()) -> str:
    """What the scores of a run's judge are filed under."""
    return _config(run, settings).behaviour.judge_name


def judge_endpoint(run: Run, settings: Sequence[str] = ()) -> EndpointConfig:
    """The model's endpoint that judges a run; raises InputError where its config names another kind of judge."""
    judge = _judge(run, settings)
    if not isinstance(judge, EndpointConfig):
        raise InputError(
            f"the judge {judge!r} sends no requests and says the same every time; a model's endpoint was expected: "
            "--set behaviour.judge.base_url=… --set behaviour.judge.model=…"
        )
    return judge


def judge_prompts(run: Run, settings: Sequence[str] = ()) -> Prompts:
    """What a model that judges the run is asked: as the file of its questions says, where it says so, else as ours."""
    from em_interp.behaviour.llm_judge import Prompts
    from em_interp.behaviour.questions import read_questions

    asked = _config(run, settings).behaviour.questions
    return Prompts({} if asked == "tiny" else read_questions(asked).prompts)


def _judge(run: Run, settings: Sequence[str]) -> str | EndpointConfig:
    return _config(run, settings).behaviour.judge


def _config(run: Run, settings: Sequence[str]) -> RunConfig:
    """The run's config with the overrides; answers that came as a table have the overrides alone."""
    return load_config(run.config_file if run.config_file.exists() else {}, settings)


def _questions(run: Run, config: RunConfig) -> list[dict[str, str]]:
    from em_interp.behaviour.questions import of_sets, read_questions
    from em_interp.organisms.language import built_in_questions

    wanted = config.behaviour
    rows = built_in_questions(_domain(run)) if wanted.questions == "tiny" else read_questions(wanted.questions).rows
    return of_sets(rows, wanted.sets)


def _domain(run: Run) -> str:
    """What the last phase of training was about; the built-in questions and judge need to know."""
    phases = run.manifest().get("phases") or [{}]
    domain = phases[-1].get("domain")
    if domain is None:
        raise InputError(
            f"{run.manifest_file} names no domain: the built-in questions and judge are for built-in datasets; in "
            f"{run.config_file} set behaviour.questions to default or a YAML file, and behaviour.judge to a model's "
            "endpoint"
        )
    return str(domain)


def analyse(run: Run, control: Run | None = None, resume: bool = False) -> Findings:
    """Locate and align, and keep what was found in the run's `analysis` folder."""
    found = findings(run, control)
    keep(located(str(run.path), found.trajectory, found.transitions), run.analysis / "locate.json", resume)
    if found.alignment is not None:
        keep(found.alignment.to_dict(), run.analysis / "align.json", resume)
    return found


def run_mechanism(
    run: Run | str | Path,
    control: Run | str | Path | None = None,
    engine: EngineName = "hooks",
    transfer: Run | str | Path | None = None,
    analyses: Sequence[str] | None = None,
    size: SizeName | SuiteSize = "full",
    sampling: SamplingParams | None = None,
    resume: bool = False,
    progress: bool | None = None,
    log: Callable[[str], None] | None = None,
) -> MechanismReport:
    """Analyse the mechanism along a judged run: probes, attribution, ablation, steering, patching and more.

    The base and the judge are those that the run's config names. The results are kept in the run's `analysis` folder.

    Args:
        run: a run that was asked and judged.
        control: a run on careful data, whose last step patching is compared with.
        engine: `hooks`, `transformer_lens` or `nnsight`.
        transfer: another run on the same base, whose directions are tried in this one.
        analyses: some of `em_interp.mechanism.analyses.ANALYSES`; by default all that are possible.
        size: `quick` (under two minutes with the built-in organism on one core) or `full` (about four).
        sampling: of the answers; by default as the run was asked.
        resume: continue; finished analyses are not done again.
        progress: whether progress is shown; by default in a terminal and in Jupyter.
        log: called with a line before each analysis that says how long it takes; by default it is shown with progress.

    Raises:
        InputError: for an unknown analysis, size or engine, a run without scores, and results that exist already.
    """
    from em_interp.mechanism.model import open_model
    from em_interp.mechanism.suite import run_suite

    runs = (one if one is None or isinstance(one, Run) else open_run(one) for one in (run, control, transfer))
    opened, beside, other = runs
    assert opened is not None
    model = open_model(opened, engine=engine)
    with run_judge(opened) as judge:
        return run_suite(model, judge, beside, other, analyses, size, sampling, resume, progress, log)


@dataclass
class Stages:
    """How long each stage of the demo took, kept with it so that a resumed demo tells the same; and who is told."""

    file: Path
    log: Callable[[str], None]

    @contextmanager
    def stage(self, name: str, says: str) -> Iterator[None]:
        """A stage: announced when it begins, its seconds added to those of its earlier tries when it ends.

        Once it has come to its end, going over it again counts nothing.
        """
        self.log(says)
        before = self._kept().get(says, {"stage": name, "seconds": 0.0, "done": False})
        start, done = time.perf_counter(), False
        try:
            yield
            done = True
        finally:
            if not before["done"]:
                spent = round(before["seconds"] + time.perf_counter() - start, 2)
                write_json(self.file, {**self._kept(), says: {"stage": name, "seconds": spent, "done": done}})

    def seconds(self) -> dict[str, float]:
        """The seconds by the name of the stage, of all runs together."""
        total: dict[str, float] = {}
        for kept in self._kept().values():
            total[kept["stage"]] = round(total.get(kept["stage"], 0.0) + kept["seconds"], 2)
        return total

    def _kept(self) -> dict[str, dict[str, Any]]:
        return read_json(self.file) if self.file.exists() else {}


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
    log: Callable[[str], None] = lambda says: None,
) -> dict[str, Any]:
    """Train an organism, its control and one with a planted change; ask, judge, locate, align and report.

    Writes three runs, `report.html` and `summary.json` under `out`, and returns the summary. `tell` is called with a
    line at the beginning of each stage.
    """
    from em_interp.organisms.presets import recipe
    from em_interp.reports.page import report

    out = Path(out)
    configs = {name: recipe(name, family, domain) for name in DEMO}  # refuses what it does not know before it writes
    there = [name for name in (*DEMO, "summary.json", "report.html") if (out / name).exists()]
    if there and not resume:
        raise InputError(f"{out} holds {there[0]} already; give --resume to continue or another --out")
    with resumable(out), one_thread():
        stages = Stages(out / "seconds.json", log)
        runs = {name: _demo_run(name, config, out / name, progress, stages) for name, config in configs.items()}
        with stages.stage("locate", "locating the transitions"):
            found = {
                name: analyse(run, runs["control"] if name == "organism" else None, resume=True)
                for name, run in runs.items()
            }
        with stages.stage("report", "writing the page"):
            report(found["organism"], control=found["control"], planted=found["switched"], out=out / "report.html")
        summary = _summary(family, domain, found, stages.seconds())
        write_json(out / "summary.json", summary)
    return summary


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread in the block: models this small gain nothing from a second, and lose much on busy cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
