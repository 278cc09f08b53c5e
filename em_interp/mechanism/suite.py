"""The suite: every analysis of a run's mechanism, at one of two sizes.

Each analysis is kept when it is done, so that an interrupted suite continues. One that is not possible (too few
misaligned answers, say) is recorded with its reason, and the others continue.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from em_interp.behaviour.judging.judge import Judge
from em_interp.behaviour.sampling.ask import asked_settings
from em_interp.behaviour.sampling.checkpoint_models import adapter_digest, base_settings
from em_interp.errors import InputError
from em_interp.mechanism.analyses import ANALYSES, Workload
from em_interp.mechanism.answers import AnswerSet, answer_means, latest_answers, steps_to_read, tokenized_answers
from em_interp.mechanism.attribution import DirectionAttribution, attribute_direction
from em_interp.mechanism.directions import CONTRASTS, Direction, mean_difference, stream_names
from em_interp.mechanism.interventions.ablation import Ablation, ablate
from em_interp.mechanism.interventions.experiments import Questions, SamplingParams, main_questions
from em_interp.mechanism.interventions.steering import COEFFICIENTS, SteeringCurve, steer
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.mechanism.report import AnalysisResult, MechanismReport, figure_values, suite_folder
from em_interp.run import Run, RunLike, check_other, open_run
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.trajectory.load import TrajectorySource, load_trajectory
from em_interp.utils.checks import check_known, checked
from em_interp.utils.files import read_bytes, remove, write_json
from em_interp.utils.progress import announce
from em_interp.utils.stages import Storage, begin_stage

N_TIMED = 128  # answers that are sampled to estimate how long an analysis takes
SizeName = Literal["quick", "full"]


@dataclass(frozen=True)
class SuiteSize:
    """How much each analysis of the suite does.

    Attributes:
        answers: approximate number of answers that are sampled under each condition.
        steps: number of steps whose adapter is read.
        n_random_attribution: number of random adapters for the attribution's band.
        layers: number of single layers after which directions are ablated.
        n_random_ablation: number of random directions for each control of the ablation.
        coefficients: the coefficients of steering.
        refine: whether coefficients are added where the base stops being coherent.
        n_random_steering: number of random directions for each coefficient.
        patching_steps: the number of rows and of columns of the patching grid.
        n_random_patching: number of random adapters of each kind, with random A and with the final A.
        samples_read: answers to each question that the answer shift reads; None for all.
        kl_steps: number of steps at which the KL from the base is measured.
        kl_samples: number of the base's answers to each question, over whose tokens the KL is averaged.
    """

    answers: int = 108
    steps: int = 41
    n_random_attribution: int = 20
    layers: int = 6
    n_random_ablation: int = 4
    coefficients: tuple[float, ...] = COEFFICIENTS
    refine: bool = True
    n_random_steering: int = 3
    patching_steps: int = 12
    n_random_patching: int = 8
    samples_read: int | None = None
    kl_steps: int = 40
    kl_samples: int = 2


SIZES: dict[SizeName, SuiteSize] = {
    "full": SuiteSize(),
    "quick": SuiteSize(
        answers=54,
        steps=11,
        n_random_attribution=10,
        layers=3,
        n_random_ablation=2,
        coefficients=(-1.0, 1.0, 2.0, 2.5, 3.0),
        refine=False,
        n_random_steering=3,
        patching_steps=6,
        n_random_patching=4,
        samples_read=2,
        kl_steps=11,
        kl_samples=1,
    ),
}


@checked
def run_suite(
    model: TrajectoryModel | TrajectorySource,
    judge: Judge,
    control: RunLike | None = None,
    transfer: RunLike | None = None,
    analyses: Sequence[str] | None = None,
    size: SizeName | SuiteSize = "full",
    sampling: SamplingParams | None = None,
    resume: bool = False,
    progress: bool | None = None,
    log: Callable[[str], None] | None = None,
    overwrite: bool = False,
) -> MechanismReport:
    """Carry out the analyses of a judged run; the results are kept in `analysis/mechanism` and `mechanism.json`.

    Args:
        model: the model of a run, or what `open_model` opens.
        judge: scores the answers that ablation, steering and patching sample.
        control: a run on careful data, whose last step patching is compared with.
        transfer: another run on the same base, whose directions are ablated and added in this one's model.
        analyses: some of `ANALYSES`; by default all that are possible.
        size: `quick`, `full`, or any other `SuiteSize`.
        sampling: how answers are sampled; by default as in the run, with about `size.answers` answers a condition.
        resume: continue; finished analyses are not done again.
        progress: whether progress is shown; by default in a terminal and in Jupyter.
        log: called with a line that says how long all of it takes at each size, and with one before each analysis;
            by default they are shown with progress.
        overwrite: replace all results that exist.

    Returns:
        The report: a result by analysis, each with `.frame()` and `.plot()`.

    Raises:
        InputError: for an unknown analysis or size, a run without scores, results that exist already (without
            `resume` or `overwrite`) or were begun with other settings.
    """
    chosen = chosen_analyses(analyses, transfer is not None, size)
    model = as_model(model)
    if not model.run.scores_file.exists():
        raise InputError(f"{model.run.scores_file} is missing: ask and judge the run before you analyse its mechanism")
    check_other(model.run, control)
    chosen_size = size if isinstance(size, SuiteSize) else SIZES[size]
    control, transfer = (None if given is None else open_run(given) for given in (control, transfer))
    context = SuiteContext(model, judge, control, transfer, chosen_size, sampling, progress)
    storage = Storage(suite_folder(model.run), resume, progress)
    with storage.open() as folder:
        settings = _settings(context)
        if overwrite:
            remove(*folder.glob("*"), model.run.analysis / "mechanism.json")
        begin_stage(folder / "settings.json", settings, resume, replaceable=True)
        if transfer is not None:  # may be added later, when other analyses are done
            of_transfer = {"transfer": _last_adapter(transfer)}
            begin_stage(folder / "transfer" / "settings.json", of_transfer, resume=True, replaceable=True)
        clock = _Clock(context, chosen, log or announce) if log or storage.shows_progress else None
        for name in chosen:
            _carry_out(name, context, clock)
        report = _report(context, size if isinstance(size, str) else "custom")
        write_json(model.run.analysis / "mechanism.json", report.to_dict())
    return report


def chosen_analyses(analyses: Sequence[str] | None, transfer: bool, size: SizeName | SuiteSize) -> list[str]:
    """The names of the analyses to carry out; `transfer` says whether a run to transfer from was given.

    Raises InputError for an unknown analysis or size, for none, and where transfer has no run.
    """
    if isinstance(size, str):
        check_known("size", size, SIZES)
    if analyses is None:
        return [name for name in ANALYSES if name != "transfer" or transfer]
    if not analyses:
        raise InputError(f"no analysis was chosen; expected some of {', '.join(ANALYSES)}, or analyses=None for all")
    for name in analyses:
        check_known("analysis", name, ANALYSES)
    if "transfer" in analyses and not transfer:
        raise InputError("the analysis transfer needs the run whose direction is to be tried: give transfer=…")
    return [name for name in ANALYSES if name in analyses]


def _settings(context: SuiteContext) -> dict[str, Any]:
    """Everything that the results depend on."""
    model = context.model
    return {
        **base_settings(model.base),
        "adapters": adapter_digest(model.trajectory, model.trajectory.steps.tolist()),
        "engine": model.engine.name,
        "scores": hashlib.sha256(read_bytes(context.run.scores_file)).hexdigest()[:16],
        "size": asdict(context.size),
        "sampling": asdict(context.sampling),
        "questions": [dict(question) for question in context.questions],
        "control": None if context.control is None else _last_adapter(context.control),
    }


def _last_adapter(run: Run) -> str:
    path = load_trajectory(run)
    return adapter_digest(path, [int(path.steps[-1])])


class _Clock:
    """Says how long the analyses that are not done take, all together at each size and one by one."""

    def __init__(self, context: SuiteContext, chosen: Sequence[str], log: Callable[[str], None]) -> None:
        self.context, self.log = context, log
        self.left = [name for name in chosen if not _is_done(context, name)]
        if len(self.left) > 1:
            resized = {name: replace(context, size=size) for name, size in SIZES.items() if size != context.size}
            times = ", ".join(f"size {name}: {_in_words(self._seconds(sized))}" for name, sized in resized.items())
            log(f"{len(self.left)} analyses: {_in_words(self._seconds(context))} ({times})")

    def _seconds(self, context: SuiteContext) -> float:
        """The seconds of the analyses that are left and possible, at the size of this context."""
        return sum(self._work(name, context)[1] for name in self.left)

    def _work(self, name: str, context: SuiteContext) -> tuple[Workload, float]:
        """How much an analysis does and how many seconds that takes; nothing where it is not possible."""
        try:
            workload = ANALYSES[name].workload(context)
            return workload, self.context.seconds(workload)
        except InputError:
            return Workload(), 0.0

    def begins(self, name: str) -> None:
        """Say what an analysis does, how long it takes and how long all that is left takes."""
        duration, seconds = _duration(*self._work(name, self.context)), self._seconds(self.context)
        left = f"; {_in_words(seconds)} left in all" if len(self.left) > 1 else ""
        self.log(f"{name}: {ANALYSES[name].question} ({duration}{left})")

    def ends(self, name: str) -> None:
        """Remove an analysis from those that are left."""
        self.left.remove(name)


def _is_done(context: SuiteContext, name: str) -> bool:
    return (suite_folder(context.run) / f"{name}.json").exists()


def _carry_out(name: str, context: SuiteContext, clock: _Clock | None) -> None:
    """One analysis, unless it is done; where it is not possible its reason is stored, and it is retried on resume."""
    folder, analysis = suite_folder(context.run), ANALYSES[name]
    if _is_done(context, name):
        return
    if clock is not None:
        clock.begins(name)
    try:
        finding = analysis.run(context)
    except InputError as error:
        result = AnalysisResult(analysis.question, undefined=str(error))
        write_json(folder / "undefined" / f"{name}.json", result.to_dict())
        if clock is not None:
            clock.log(f"{name}: undefined, {error}")
        return
    finally:
        if clock is not None:
            clock.ends(name)
    figures = {title: figure_values(figure) for title, figure in finding.figures.items()}
    write_json(folder / "figures" / f"{name}.json", figures)
    result = AnalysisResult(analysis.question, finding.finding, finding.control, finding.values)
    (folder / "undefined" / f"{name}.json").unlink(missing_ok=True)
    write_json(folder / f"{name}.json", result.to_dict())


def _duration(workload: Workload, seconds: float) -> str:
    """How much an analysis does and about how long that takes, in words."""
    counts = [(workload.sampled, "answers to sample and judge"), (workload.read, "answers to read")]
    work = [f"{count:,.0f} {what}" for count, what in counts if count]
    return ", ".join([*work, _in_words(seconds)])


def _in_words(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.0f} s" if seconds >= 1 else "about a second"


def _report(context: SuiteContext, size: str) -> MechanismReport:
    """All analyses that were carried out, in the order of `ANALYSES`."""
    folder, analyses = suite_folder(context.run), {}
    for name in ANALYSES:
        for file in (folder / f"{name}.json", folder / "undefined" / f"{name}.json"):
            if name not in analyses and file.exists():
                analyses[name] = AnalysisResult.read(file)
    return MechanismReport(
        run=context.run.name,
        base=context.model.base.identity,
        engine=context.model.engine.name,
        size=size,
        control=None if context.control is None else context.control.name,
        answers=context.answers.to_dict(),
        analyses=analyses,
        folder=folder,
    )


@dataclass(frozen=True, eq=False)
class SuiteContext:
    """What the analyses work with."""

    model: TrajectoryModel
    judge: Judge
    control: Run | None = None
    transfer: Run | None = None
    size: SuiteSize = SIZES["full"]
    given_sampling: SamplingParams | None = None
    progress: bool | None = None
    _directions: dict[str, Direction] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The run that is analysed."""
        return self.model.run

    @cached_property
    def questions(self) -> Questions:
        """The questions outside the training domain, or all where no set is called so."""
        return main_questions(self.run)

    @cached_property
    def sampling(self) -> SamplingParams:
        """The run's sampling parameters, with about the same number of answers per condition for any question set."""
        if self.given_sampling is not None:
            return self.given_sampling
        settings = asked_settings(self.run)
        same = {key: settings[key] for key in ("temperature", "max_new_tokens") if key in settings}
        return SamplingParams(samples=max(1, math.ceil(self.size.answers / len(self.questions))), **same)

    @cached_property
    def answers(self) -> AnswerSet:
        """The last step's answers to questions outside the training domain, a small group filled from earlier steps."""
        return latest_answers(self.run)

    @cached_property
    def steps(self) -> list[int]:
        """The steps that are read."""
        steps = self.model.trajectory.steps
        return steps_to_read(self.model, steps[evenly_spaced(steps, self.size.steps)].tolist())

    @cached_property
    def layers(self) -> list[int]:
        """The single layers after which directions are ablated."""
        return evenly_spaced(np.arange(self.model.layers), self.size.layers).tolist()

    @cached_property
    def attribution(self) -> DirectionAttribution:
        """The mean difference along the run."""
        return attribute_direction(self.model, self.answers, self.steps, n_random=self.size.n_random_attribution)

    def directions(self) -> Iterator[tuple[str, Direction]]:
        """The direction of each contrast."""
        for contrast in CONTRASTS:
            if contrast not in self._directions:
                self._directions[contrast] = mean_difference(self.model, self.answers, contrast)
            yield contrast, self._directions[contrast]

    def storage(self, *names: str) -> Storage:
        """A folder of an analysis, which continues with what exists."""
        return Storage(suite_folder(self.run).joinpath(*names), True, self.progress)

    def ablation(self, direction: Direction, *names: str) -> Ablation:
        """The ablation of a direction, kept in this folder."""
        n_random, storage = self.size.n_random_ablation, self.storage(*names)
        shared = (self.model, direction, self.judge, self.questions)
        return ablate(*shared, self.layers, self.sampling, n_random, storage=storage)

    def steering(self, direction: Direction, *names: str) -> SteeringCurve:
        """The steering with a direction, kept in this folder."""
        n_random, storage = self.size.n_random_steering, self.storage(*names)
        shared = (self.model, direction, self.judge, self.questions, None, self.size.coefficients, self.sampling)
        return steer(*shared, n_random, self.size.refine, storage=storage)

    def seconds(self, workload: Workload) -> float:
        """About how long a workload takes here, without judging by a server."""
        sampling = self._seconds_per_sampled if workload.sampled else 0.0
        reading = self._seconds_per_read if workload.read else 0.0
        return workload.sampled * sampling + workload.read * reading

    @cached_property
    def _seconds_per_sampled(self) -> float:
        count = N_TIMED
        questions = [self.questions[i % len(self.questions)]["question"] for i in range(count)]
        with self.model.at(self.model.last_step) as adapted:
            start = time.perf_counter()
            adapted.generate(questions, 1, self.sampling.temperature, self.sampling.max_new_tokens)
            return (time.perf_counter() - start) / count

    @cached_property
    def _seconds_per_read(self) -> float:
        if not len(self.answers):
            return 0.0
        batch = tokenized_answers(self.model, self.answers)[:1]
        with self.model.at(self.model.last_step) as adapted:
            start = time.perf_counter()
            answer_means(adapted, batch, stream_names(self.model))
            return (time.perf_counter() - start) / len(batch[0])
