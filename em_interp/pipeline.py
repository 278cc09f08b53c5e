"""The stages of a run in order: ask, judge, locate, align, and the look inside the model.

Each stage writes to the run. It is refused, before it computes anything, where its results are there already, unless
`resume` (continue with them) or `overwrite` (replace them) is given. A run is given as a Run or as its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.checks import checked
from em_interp.config import EndpointConfig, RunConfig, load_config
from em_interp.errors import InputError
from em_interp.files import check_free
from em_interp.findings import Findings, PathTransitions, find_in_run, keep
from em_interp.lock import writing
from em_interp.processes import MAX_WAIT, join
from em_interp.run import Run, open_run
from em_interp.serving import base_device, vllm_servers
from em_interp.stages import is_watched

if TYPE_CHECKING:
    from em_interp.behaviour.judging.judge import Judge
    from em_interp.behaviour.judging.llm_judge import Prompts
    from em_interp.mechanism.interventions.experiments import SamplingParams
    from em_interp.mechanism.model import EngineName
    from em_interp.mechanism.report import MechanismReport
    from em_interp.mechanism.suite import SizeName, SuiteSize

RunLike = Run | str | Path
Log = Callable[[str], None]


def _as_run(run: RunLike) -> Run:
    return run if isinstance(run, Run) else open_run(run)


@checked
def ask_run(
    run: RunLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Generate answers to the questions that a run's config names, along its checkpoints.

    Args:
        run: a run, or its folder.
        resume: continue with the answers that exist.
        overwrite: replace them, and the scores that they have.
        progress: show a bar; by default in a terminal and in Jupyter.
        overrides: changes of the config (`key.path=value`) for this asking alone, such as `behaviour.engine=vllm`.

    Returns:
        The table of answers, a parquet file.

    Raises:
        InputError: answers are there already, or the config's questions or base cannot be used.
    """
    from em_interp.behaviour.sampling.ask import ask, steps_with_models
    from em_interp.organisms.bases import load_base

    run = _as_run(run)
    for file in (run.answers_file, run.answers_file.with_name("ask.json")):
        join(MAX_WAIT).on_main(lambda file=file: check_free(file, resume, overwrite))  # type: ignore[misc]
    config, servers = load_config(run.config(), overrides), vllm_servers(run, overrides)
    settings, questions = config.behaviour, _questions(run, config)
    return ask(
        run,
        load_base(config.model, config.base_dtype, base_device(servers)),
        questions,
        settings.steps.nearest(steps_with_models(run)),
        settings.scales,
        settings.samples,
        settings.temperature,
        settings.max_new_tokens,
        config.seed,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        servers=servers,
    )


@checked
def judge_run(
    run: RunLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Score the answers of a run with the judge that its config names.

    Args:
        run: a run, or its folder.
        resume: continue with this judge's scores that exist; answers whose request failed are judged again.
        overwrite: replace this judge's scores. Requests that were answered before are not sent again.
        progress: show a bar; by default in a terminal and in Jupyter.
        overrides: changes of the config (`key.path=value`) for this judging alone.

    Returns:
        The table of scores, a parquet file, with those of other judges.

    Raises:
        InputError: there are no answers, this judge's scores are there already, or the judge cannot be used.
    """
    from em_interp.behaviour.judging.judge import has_scores, judge_answers

    run = _as_run(run)
    if has_scores(run, judge_name(run, overrides)):
        check_free(run.scores_file.parent, resume, overwrite, f"scores of {judge_name(run, overrides)}")
    with run_judge(run, overrides, overwrite) as judge:
        return judge_answers(run, judge, resume, is_watched() if progress is None else progress, overwrite)


@contextmanager
def run_judge(run: Run, overrides: Sequence[str] = (), overwrite: bool = False) -> Iterator[Judge]:
    """The judge that a run's config names, with its overrides. Raises InputError where there is no such judge."""
    from em_interp.behaviour.judging.llm_judge import open_judge
    from em_interp.organisms.judge import AdviceJudge

    judge = _config(run, overrides).behaviour.judge
    if isinstance(judge, EndpointConfig):
        with open_judge(run, judge, judge_prompts(run, overrides), overwrite) as model:
            yield model
    elif judge == "tiny":
        _check_language(run)
        yield AdviceJudge(_domain(run))
    else:
        raise InputError(
            f"behaviour.judge {judge!r} is not known; this version has 'tiny', the built-in language's, and a mapping "
            "with base_url and model, for a model's endpoint"
        )


def _check_language(run: Run) -> None:
    """Raise InputError for a run on English data, of whose answers the built-in judge understands nothing."""
    if str(run.phases()[-1].get("dataset", "")).startswith("english:"):
        raise InputError(
            f"{run.path} was trained on English, which the judge 'tiny' cannot read; set behaviour.judge to a model's "
            "endpoint, or read the run without a judge: em-interp prefer"
        )


def judge_name(run: Run, overrides: Sequence[str] = ()) -> str:
    """What the scores of a run's judge are filed under."""
    return _config(run, overrides).behaviour.judge_name


def judge_endpoint(run: Run, overrides: Sequence[str] = ()) -> EndpointConfig:
    """The model's endpoint that judges a run; raises InputError where its config names another kind of judge."""
    judge = _config(run, overrides).behaviour.judge
    if not isinstance(judge, EndpointConfig):
        raise InputError(
            f"the judge {judge!r} sends no requests and gives the same scores every time; a model's endpoint was "
            "expected: --set behaviour.judge.base_url=… --set behaviour.judge.model=…"
        )
    return judge


def judge_prompts(run: Run, overrides: Sequence[str] = ()) -> Prompts:
    """The prompts of a model that judges the run: those in the file of its questions, else the built-in ones."""
    from em_interp.behaviour.judging.llm_judge import Prompts
    from em_interp.behaviour.questions import read_questions
    from em_interp.organisms.built_in import LANGUAGES

    questions = _config(run, overrides).behaviour.questions
    return Prompts({} if questions in LANGUAGES else read_questions(questions).prompts)


def _config(run: Run, overrides: Sequence[str]) -> RunConfig:
    """The run's config with the overrides; answers that came as a table have the overrides alone."""
    return load_config(run.config_file if run.config_file.exists() else {}, overrides)


def _questions(run: Run, config: RunConfig) -> list[dict[str, str]]:
    from em_interp.behaviour.questions import of_sets, read_questions
    from em_interp.organisms.built_in import LANGUAGES, questions_of

    named = config.behaviour.questions
    rows = questions_of(named, _domain(run)) if named in LANGUAGES else read_questions(named).rows
    return of_sets(rows, config.behaviour.sets)


def _domain(run: Run) -> str:
    """The domain of the last phase of training, on which the built-in questions and judge depend."""
    domain = run.phases()[-1].get("domain")
    if domain is None:
        raise InputError(
            f"{run.manifest_file} names no domain: the built-in questions and judge are for built-in datasets; in "
            f"{run.config_file} set behaviour.questions to default or a YAML file, and behaviour.judge to a model's "
            "endpoint"
        )
    return str(domain)


@checked
def locate(
    source: RunLike,
    *,
    signal: str | None = None,
    of: str | None = None,
    site: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> PathTransitions:
    """The transitions of a path; those of a whole run are kept in its `analysis/locate.json`.

    Args:
        source: a run, a folder of checkpoints, or a repository of the Hub.
        signal: one signal; by default all.
        of: one part of the adapter, A, B or delta; by default all.
        site: one adapted module; by default all together.
        revision: a branch, tag or commit of the repository.
        adapter: the adapter to read where the checkpoints hold several.
        out: the folder whose `analysis/locate.json` is written, whatever was asked for.
        resume: check the findings that are there: they stay, and other ones are an error.
        overwrite: replace them.

    Returns:
        The transitions of every signal, with the steps and sites of the path.
    """
    from em_interp.trajectory.load import load_trajectory
    from em_interp.transition.find import find_transitions

    name = str(source.path if isinstance(source, Run) else source)
    kept = out is not None or (not (signal or of or site) and Run(Path(name)).config_file.exists())
    file = Run(Path(out or name)).analysis / "locate.json"
    check_free(file, resume, overwrite) if kept else None
    path = load_trajectory(source, revision, adapter)
    result = PathTransitions(name, path, find_transitions(path, signal, of, site))  # type: ignore[arg-type]  # it checks them
    if kept:
        with writing(file.parents[1]):
            keep(result.to_dict(), file, overwrite)
    return result


def align_run(
    run: RunLike,
    control: RunLike | None = None,
    *,
    answers: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Findings:
    """How far the behavioural transitions of a run are from its rotation; kept in `analysis/align.json`.

    Args:
        run: a judged run; with `answers` any folder of checkpoints.
        control: a run on careful data that was asked the same.
        answers: judged tables in place of the run's own answers.
        columns: what these tables call a column, by our name: `{"aligned": "my_score"}`.
        out: the folder whose `analysis/align.json` is written; by default the run.
        resume: check the findings that are there: they stay, and other ones are an error.
        overwrite: replace them.

    Returns:
        What was found; its `alignment` is never None.
    """
    place = Run(Path(out or (run.path if isinstance(run, Run) else run)))
    if out is None and answers is not None and not place.path.is_dir():
        raise InputError(f"{place.path} is no folder on this machine, so nothing can be written there; give --out")
    file = place.analysis / "align.json"
    check_free(file, resume, overwrite)
    findings = find_in_run(run, control, answers, columns)
    if findings.alignment is None:
        raise InputError(
            f"{findings.run.path} has no scores and no preferences: ask and judge the run first, or read it with "
            "em-interp prefer, or give --answers"
        )
    with writing(place.path):
        keep(findings.alignment.to_dict(), file, overwrite)
    return findings


def analyse(run: Run, control: Run | None = None) -> Findings:
    """Locate and align a run, and write what was found to its `analysis` folder, in place of what was there."""
    findings = find_in_run(run, control)
    located = PathTransitions(str(run.path), findings.trajectory, findings.transitions)
    with writing(run.path):
        keep(located.to_dict(), run.analysis / "locate.json", overwrite=True)
        if findings.alignment is not None:
            keep(findings.alignment.to_dict(), run.analysis / "align.json", overwrite=True)
    return findings


@checked
def run_mechanism(
    run: RunLike,
    control: RunLike | None = None,
    engine: EngineName = "hooks",
    transfer: RunLike | None = None,
    analyses: Sequence[str] | None = None,
    size: SizeName | SuiteSize = "full",
    sampling: SamplingParams | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    log: Log | None = None,
) -> MechanismReport:
    """Analyse the mechanism along a judged run: probes, attribution, ablation, steering, patching and more.

    The base and the judge are those that the run's config names. The results are kept in the run's `analysis` folder.

    Args:
        run: a judged run, or its folder.
        control: a run on careful data, whose last step patching is compared with.
        engine: `hooks`, `transformer_lens` or `nnsight`.
        transfer: another run on the same base, whose directions are tried in this one.
        analyses: some of `em_interp.mechanism.analyses.ANALYSES`; by default all that are possible.
        size: `quick` (under two minutes with the built-in organism on one core) or `full` (about four).
        sampling: of the answers; by default as the run was asked.
        resume: continue with the analyses that exist.
        overwrite: replace them all.
        progress: whether progress is shown; by default in a terminal and in Jupyter.
        log: called with a line before each analysis that says how long it takes; by default it is shown with progress.

    Returns:
        The report: a result by analysis, each with `.frame()` and `.plot()`.

    Raises:
        InputError: for an unknown analysis, size or engine, a run without scores, and results that exist already.
    """
    from em_interp.mechanism.model import open_model
    from em_interp.mechanism.suite import chosen_analyses, run_suite

    run = _as_run(run)
    chosen_analyses(analyses, transfer is not None, size)
    control, transfer = (None if source is None else _as_run(source) for source in (control, transfer))
    check_free(run.analysis / "mechanism", resume, overwrite)
    model = open_model(run, engine=engine)
    with writing(run.path), run_judge(run) as judge:
        more = (analyses, size, sampling, resume, progress, log, overwrite)
        return run_suite(model, judge, control, transfer, *more)


@contextmanager
def torch_threads(count: int = 1) -> Iterator[None]:
    """Torch on so many threads in the block; small models gain nothing from a second, and lose much on busy cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
