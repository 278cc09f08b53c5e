"""Commands about answers: sample them, judge them, compute their rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from em_interp.cli import log
from em_interp.cli.app import ASK, Columns, CommandResult, Out, Overrides, Overwrite, Resume, command
from em_interp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.run import Run


@command(ASK, "em-interp ask checkpoints/tiny")
def ask(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    overrides: Overrides = [],  # noqa: B006
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Sample answers to a run's questions at many of its steps.

    With --out they go into a copy of the run.
    On several GPUs: torchrun --nproc-per-node 4 -m em_interp ask RUN
    With vLLM: em-interp serve RUN, then --set behaviour.engine=vllm
    """
    from em_interp.pipeline.behaviour import ask_run
    from em_interp.run import copy_run, open_run
    from em_interp.utils.processes import MAX_WAIT, init_processes, only_main_continues

    with only_main_continues():
        processes, run = init_processes(MAX_WAIT), open_run(source)
        if run.resume_state.is_dir() and processes.is_main:
            log(f"{run.path} has not finished training: answers are sampled up to step {max(run.steps(), default=0)}")
        without = ("behaviour", "analysis", "report.html")
        place = processes.on_main(lambda: copy_run(run, out, without))
        answers = ask_run(place, resume=resume, overwrite=overwrite, overrides=overrides)
    return CommandResult({"run": str(place.path), "answers": str(answers)}, f"the answers: {answers}")


@command(ASK, "em-interp serve checkpoints/tiny --python ~/vllm/bin/python")
def serve(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a folder of checkpoints.")],
    more: Annotated[
        list[str], typer.Argument(metavar="[-- OPTIONS]", help="More options for vLLM's server, after --.")
    ] = [],  # noqa: B006
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The Python of an environment with vLLM (default: behaviour.engine.python)."),
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="Port of the server.")] = None,
    show: Annotated[bool, typer.Option("--print", metavar="", help="Print the command instead of starting it.")] = (
        False
    ),
) -> CommandResult:
    """Serve the base of a run with vLLM, for ask and prefer with --set behaviour.engine=vllm.

    Install vLLM yourself, in a separate environment. The server runs until it is interrupted.
    """
    import os
    import subprocess

    from em_interp.pipeline.serving import serve_command
    from em_interp.trajectory.load import open_checkpoints

    started = serve_command(open_checkpoints(source), python, port, more)
    if not show:
        log(f"starting {started.shell()}\nonce it is up: em-interp ask {source} --set behaviour.engine=vllm")
        done = subprocess.run(started.words, env={**os.environ, **started.environment})
        if done.returncode > 0:
            raise InputError(f"vLLM's server ended with exit code {done.returncode}; what it printed says why")
    values = {"command": started.words, "environment": started.environment, "base_url": started.base_url}
    return CommandResult(values, started.shell() if show else "")


@command(ASK, "em-interp judge checkpoints/tiny")
def judge(
    source: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory; or a CSV or parquet with question and answer.")
    ],
    overrides: Overrides = [],  # noqa: B006
    columns: Columns = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Count requests and tokens; send and write nothing.")
    ] = (False),
    retest: Annotated[
        int | None, typer.Option(metavar="N", help="Judge N judged answers a second time and compare.")
    ] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Score the answers of a run, or of a table.

    With --out the scores go into a copy of the run. Those of a table go to a folder NAME-judged beside it.
    """
    from em_interp.behaviour.judging.judge import commonest_cause
    from em_interp.behaviour.scores import score_responses
    from em_interp.pipeline.behaviour import judge_name, judge_run

    if dry_run and retest is not None:
        raise InputError("--dry-run sends no request and --retest sends many; give one of them")
    if dry_run:
        return _count_requests(source, out, overrides, columns)
    if retest is not None:
        return _retest(source, out, overrides, columns, retest, resume, overwrite)
    run = _place(source, out, overrides, columns, ("scores.*", "analysis", "report.html"))
    scores = judge_run(run, resume=resume, overwrite=overwrite, overrides=overrides)
    scored = score_responses(scores, judge=judge_name(run, overrides))
    values = {"run": str(run.path), "scores": str(scores), "unscored": scored.unscored}
    lines = [scored.sentence(), commonest_cause(scored.answers), f"the scores: {scores}"]
    return CommandResult(values, "\n".join(line for line in lines if line))


def _count_requests(source: str, out: str | None, overrides: list[str], columns: list[str]) -> CommandResult:
    from em_interp.behaviour.judging.judge_checks import dry_run
    from em_interp.pipeline.behaviour import judge_endpoint, judge_prompts

    run, answers = _unjudged(source, out, columns)
    cost = dry_run(run, judge_endpoint(run, overrides), judge_prompts(run, overrides), answers)
    return CommandResult(cost.to_dict(), cost.sentence())


def _retest(
    source: str,
    out: str | None,
    overrides: list[str],
    columns: list[str],
    count: int,
    resume: bool,
    overwrite: bool,
) -> CommandResult:
    from em_interp.behaviour.judging.judge_checks import retest
    from em_interp.behaviour.judging.llm_judge import open_judge
    from em_interp.pipeline.behaviour import judge_endpoint, judge_prompts
    from em_interp.reports.findings import save_result
    from em_interp.utils.files import check_free

    run = _place(source, out, overrides, columns, ("retest.json",))
    file = run.analysis / "retest.json"
    check_free(file, resume, overwrite)
    with open_judge(run, judge_endpoint(run, overrides), judge_prompts(run, overrides)) as model:
        result = retest(run, model, count)
        save_result(result.to_dict(), file, overwrite)
    return CommandResult(result.to_dict(), result.sentence())


def _table(source: str, out: str | None, columns: list[str]) -> tuple[Path, Path] | None:
    """The table and the folder for its scores, where the source is a table."""
    file = Path(source)
    if columns and file.is_dir():
        raise InputError(f"--columns are those of a table; {source} is a folder, whose answers have ours")
    if not file.is_file():
        return None
    return file, Path(out or file.with_name(f"{file.stem}-judged"))


def _run_with_answers(source: str) -> Run:
    """The run, or the folder that judging a table has made."""
    from em_interp.run import Run, open_run

    run = Run(Path(source))
    return run if run.answers_file.exists() else open_run(source)


def _place(source: str, out: str | None, overrides: list[str], columns: list[str], without: tuple[str, ...]) -> Run:
    """The run that is judged and written to; `without` is what no copy of a run takes along."""
    from em_interp.behaviour.judging.answer_tables import import_answers
    from em_interp.behaviour.tables.columns import given_columns
    from em_interp.pipeline.behaviour import judge_endpoint
    from em_interp.run import Run, copy_run

    table = _table(source, out, columns)
    if table is None:
        return copy_run(_run_with_answers(source), out, without)
    judge_endpoint(Run(table[1]), overrides)  # refuses what cannot judge a table before anything is written
    return import_answers(*table, given_columns(columns))


def _unjudged(source: str, out: str | None, columns: list[str]) -> tuple[Run, pd.DataFrame | None]:
    """The run as it is, and the answers where they are in no run yet."""
    from em_interp.behaviour.judging.answer_tables import read_answers
    from em_interp.behaviour.tables.columns import given_columns
    from em_interp.run import Run

    table = _table(source, out, columns)
    if table is None:
        return _run_with_answers(source), None
    return Run(table[1]), read_answers(table[0], given_columns(columns))


@command(ASK, "em-interp prefer checkpoints/tiny --control checkpoints/demo/control")
def prefer(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a folder of checkpoints.")],
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="PAIRS",
            help="A table of question, aligned and misaligned; judged answers; or built-in pairs such as "
            "english:medical (default: those of the run's built-in dataset).",
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS", help="For example 'every 20' or '0, 50, 100' (default: the config's behaviour.steps)."
        ),
    ] = None,
    scales: Annotated[str | None, typer.Option(metavar="X,Y", help="Multipliers of the adapter (default: 1).")] = None,
    control: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run on careful data, measured on the same pairs.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Measure how likely misaligned answers are relative to aligned ones.

    Nothing is sampled or judged. With --out the values go into a copy of the run.
    """
    from em_interp.pipeline.prefer import preference_curve
    from em_interp.run import check_other, copy_run
    from em_interp.trajectory.load import open_checkpoints
    from em_interp.utils.files import check_free
    from em_interp.utils.processes import MAX_WAIT, init_processes, only_main_continues

    with only_main_continues():
        processes, run = init_processes(MAX_WAIT), open_checkpoints(source)
        check_other(run, control)
        models = _saved_steps(run, steps), _numbers(scales)
        without = ("preferences*", "analysis", "report.html")
        run = processes.on_main(lambda: copy_run(run, out, without))
        processes.on_main(lambda: check_free(run.preferences_file, resume, overwrite))
        curve = preference_curve(run, pairs, *models, control, resume=resume, overwrite=overwrite, overrides=overrides)
    values = {"run": str(run.path), "preferences": str(run.preferences_file), **curve.to_dict()}
    return CommandResult(values, f"{curve.sentence()}\nthe preferences: {run.preferences_file}")


def _saved_steps(run: Run, schedule: str | None) -> list[int] | None:
    """The saved steps that are nearest to those of a schedule, where one is given."""
    from em_interp.behaviour.sampling.checkpoint_models import steps_with_models
    from em_interp.config.schedule import Schedule

    return None if schedule is None else Schedule(schedule).nearest(steps_with_models(run))


def _numbers(text: str | None) -> list[float] | None:
    """The numbers of a list such as 1,2, where one is given."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--scales expects numbers such as 1,2; found {text!r}") from None


@command(ASK, "em-interp score judged.csv")
def score(
    file: Annotated[str, typer.Argument(metavar="FILE", help="CSV, parquet or JSON lines, with aligned and coherent.")],
    judge: Annotated[str | None, typer.Option(metavar="NAME", help="Use only this judge's scores.")] = None,
    columns: Columns = [],  # noqa: B006
) -> CommandResult:
    """Compute the rates of a table of judged answers."""
    from em_interp.behaviour.scores import score_responses
    from em_interp.behaviour.tables.columns import given_columns

    scored = score_responses(file, judge=judge, columns=given_columns(columns))
    return CommandResult(scored.to_dict(), scored.sentence())
