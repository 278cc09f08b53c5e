"""The stages that give a run its behaviour: ask and judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.config.run_config import BehaviourConfig, EndpointConfig, RunConfig, load_config
from em_interp.errors import InputError
from em_interp.pipeline.serving import base_device, check_overrides, config_of, vllm_servers
from em_interp.run import Run, RunLike, open_run
from em_interp.utils.checks import checked
from em_interp.utils.files import check_free
from em_interp.utils.processes import MAX_WAIT, init_processes
from em_interp.utils.progress import is_watched

if TYPE_CHECKING:
    from em_interp.behaviour.judging.judge import Judge
    from em_interp.behaviour.judging.llm_judge import Prompts

# the settings of a run's config that its answers depend on, and those that its scores do
ASK_SETTINGS = (
    *("model", "dtype", "seed", "behaviour.questions", "behaviour.sets", "behaviour.engine", "behaviour.steps"),
    *("behaviour.scales", "behaviour.samples", "behaviour.temperature", "behaviour.max_new_tokens"),
)
JUDGE_SETTINGS = ("behaviour.judge", "behaviour.questions")  # a file of questions may have the judge's prompts


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
        overrides: changes of the config (`key.path=value`) for this call alone, such as `behaviour.engine=vllm`.

    Returns:
        The table of answers, a parquet file.

    Raises:
        InputError: answers are there already, or the config's questions or base cannot be used.
    """
    from em_interp.behaviour.sampling.ask import ask
    from em_interp.behaviour.sampling.checkpoint_models import steps_with_models
    from em_interp.organisms.bases import load_base

    run = open_run(run)
    processes = init_processes(MAX_WAIT)
    for file in (run.answers_file, run.answers_file.with_name("ask.json")):
        processes.on_main(lambda file=file: check_free(file, resume, overwrite))  # type: ignore[misc]
    config, servers = load_config(run.config(), overrides), vllm_servers(run, overrides)
    check_overrides(overrides, ASK_SETTINGS, "answers are sampled")
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
        overrides: changes of the config (`key.path=value`) for this call alone.

    Returns:
        The table of scores, a parquet file, with those of other judges.

    Raises:
        InputError: there are no answers, this judge's scores are there already, or the judge cannot be used.
    """
    from em_interp.behaviour.judging.judge import has_scores, judge_answers

    run = open_run(run)
    if has_scores(run, judge_name(run, overrides)):
        check_free(run.scores_file.parent, resume, overwrite, f"scores of {judge_name(run, overrides)}")
    with configured_judge(run, overrides, overwrite) as judge:
        return judge_answers(run, judge, resume, is_watched() if progress is None else progress, overwrite)


@contextmanager
def configured_judge(run: Run, overrides: Sequence[str] = (), overwrite: bool = False) -> Iterator[Judge]:
    """The judge that a run's config names, with its overrides. Raises InputError where it cannot judge the run."""
    from em_interp.behaviour.judging.llm_judge import open_judge
    from em_interp.organisms.judge import AdviceJudge

    judge = _judge_settings(run, overrides).judge
    if isinstance(judge, EndpointConfig):
        with open_judge(run, judge, judge_prompts(run, overrides), overwrite) as model:
            yield model
    else:
        _check_language(run)
        yield AdviceJudge(_domain(run))


def _check_language(run: Run) -> None:
    """Raise InputError for a run on English data, whose answers the built-in judge cannot score."""
    if str(run.phases()[-1].get("dataset", "")).startswith("english:"):
        raise InputError(
            f"{run.path} was trained on English, which the judge 'tiny' cannot read; set behaviour.judge to a model's "
            "endpoint, or read the run without a judge: em-interp prefer"
        )


def judge_name(run: Run, overrides: Sequence[str] = ()) -> str:
    """What the scores of a run's judge are filed under."""
    return _judge_settings(run, overrides).judge_name


def judge_endpoint(run: Run, overrides: Sequence[str] = ()) -> EndpointConfig:
    """The model's endpoint that judges a run; raises InputError where its config names another kind of judge."""
    judge = _judge_settings(run, overrides).judge
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

    questions = _judge_settings(run, overrides).questions
    return Prompts({} if questions in LANGUAGES else read_questions(questions).prompts)


def _judge_settings(run: Run, overrides: Sequence[str]) -> BehaviourConfig:
    """What the run's config and the overrides say of its behaviour; answers that came as a table have these alone."""
    settings = config_of(run, overrides).behaviour  # refuses what is no setting at all
    check_overrides(overrides, JUDGE_SETTINGS, "answers are judged")
    return settings


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
