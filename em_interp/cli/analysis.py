"""Commands that look at one run: where its path changes, when its behaviour does, and inside the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from em_interp.cli import log
from em_interp.cli.app import ANALYSE, Columns, CommandResult, Out, Overwrite, Resume, command

if TYPE_CHECKING:
    from em_interp.transition.monitoring.monitor import Look, Monitor


@command(ANALYSE, "em-interp locate checkpoints/tiny")
def locate(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A run, a folder of checkpoints, a log alone, or org/name on the Hub."),
    ],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of org/name (default: main).")] = None,
    signal: Annotated[
        str | None,
        typer.Option(help="rotation, gradient_norm, norm_onset, lock_in or composition (default: all)."),
    ] = None,
    of: Annotated[str | None, typer.Option(help="B, A or delta (default: all).")] = None,
    site: Annotated[str | None, typer.Option(help="One adapted module (default: all together).")] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A run on careful data: the run must turn further than it does."),
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Which adapter, if the checkpoints have several.")] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Find where an adapter's path changes.

    Results for a whole run are stored in its analysis folder.
    """
    from em_interp.pipeline.analysis import locate as find

    result = find(
        source,
        control,
        signal=signal,
        of=of,
        site=site,
        revision=revision,
        adapter=adapter,
        out=out,
        resume=resume,
        overwrite=overwrite,
    )
    return CommandResult(result.to_dict(), "\n".join([result.sentence(), *result.trajectory.notes]))


@command(ANALYSE, "em-interp watch runs/mine --control runs/control")
def watch(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run in training, or a finished one.")],
    controls: Annotated[
        list[str],
        typer.Option("--control", metavar="RUN", help="A finished control run, which an alarm must exceed (repeat)."),
    ] = [],  # noqa: B006  typer makes a list of its own
    last: Annotated[int | None, typer.Option(help="The run's number of steps (default: max_steps of its log).")] = None,
    level: Annotated[
        float, typer.Option(help="At most this share of runs without a transition raise an alarm.")
    ] = 0.05,
    once: Annotated[bool, typer.Option("--once", metavar="", help="Use the run so far, without waiting.")] = False,
) -> CommandResult:
    """Follow a run while it trains: raise an alarm if B turns or the gradient norm has a hump.

    It ends when the run ends. For a finished run it shows the same as during training.
    """
    from em_interp.transition.monitoring.watch import watch as follow

    monitor = follow(source, controls=controls, last=last, level=level, follow=not once, on_update=_show_monitor)
    if sys.stderr.isatty():
        log("")
    return CommandResult(monitor.to_dict(), monitor.sentence().replace("; ", "\n"))


def _show_monitor(monitor: Monitor, looks: list[Look]) -> None:
    """Progress on stderr: an alarm on a line of its own; at a terminal also a status line that is written over."""
    for look in looks:
        if look.alarm:
            log(f"alarm at step {look.step} of {monitor.last}: {look.transition.sentence()}")
    if sys.stderr.isatty():
        p_values = {signal.replace("_", " "): monitor.run_p(signal) for signal in monitor.signals}
        known = ", ".join(f"{name} p {p:.2g}" for name, p in p_values.items() if p is not None) or "no look so far"
        sys.stderr.write(f"\rstep {monitor.step} of {monitor.last}: {known} ")
        sys.stderr.flush()


@command(ANALYSE, "em-interp align checkpoints/tiny --control checkpoints/demo/control")
def align(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run with judged answers.")],
    answers: Annotated[
        str | None,
        typer.Option(metavar="TABLES", help="Judged answers from elsewhere; RUN may then be any checkpoints."),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A run on careful data with the same questions, or judged answers of it."),
    ] = None,
    columns: Columns = [],  # noqa: B006
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Find how many steps lie between the adapter's change and the behaviour's.

    Results are stored in the run's analysis folder.
    """
    from em_interp.behaviour.tables.columns import given_columns
    from em_interp.pipeline.analysis import align_run

    own = given_columns(columns)
    findings = align_run(source, control, answers=answers, columns=own, out=out, resume=resume, overwrite=overwrite)
    assert findings.alignment is not None
    lines = [
        transition.sentence() if transition.found else f"{transition.sentence()}\n    {transition.reason}"
        for transition in (findings.rotation, *findings.onsets, *findings.preference_onsets)
    ]
    return CommandResult(findings.alignment.to_dict(), "\n".join([*lines, findings.alignment.sentence()]))


@command(ANALYSE, "em-interp mechanism checkpoints/tiny --analyses ablation,steering")
def mechanism(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run with judged answers.")],
    control: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run on careful data, with which patching is compared.")
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A run on the same base, whose directions are applied to this one."),
    ] = None,
    engine: Annotated[
        Literal["hooks", "transformer_lens", "nnsight"], typer.Option(help="What reads and changes activations.")
    ] = "hooks",
    analyses: Annotated[str | None, typer.Option(metavar="A,B", help="Only these (default: all).")] = None,
    size: Annotated[
        Literal["quick", "full"],
        typer.Option(help="On the built-in organism quick takes a minute or two, full four."),
    ] = "full",
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Analyse the model's internals along a judged run.

    With --out the results go into a copy of the run.
    """
    from em_interp.pipeline.analysis import run_mechanism
    from em_interp.run import check_other, copy_run, open_run

    check_other(source, control)
    others = [None if path is None else open_run(path) for path in (control, transfer)]
    place = copy_run(open_run(source), out, ("mechanism", "mechanism.json", "report.html"))
    chosen = None if analyses is None else analyses.split(",")
    report = run_mechanism(
        place, others[0], engine, others[1], chosen, size, resume=resume, overwrite=overwrite, log=log
    ).to_dict()
    lines = [_line(result) for result in report["analyses"].values()]
    return CommandResult(report, "\n".join([*lines, f"kept in {place.analysis / 'mechanism.json'}"]))


def _line(result: dict[str, str]) -> str:
    if "undefined" in result:
        return f"{result['question']}\n  undefined: {result['undefined']}"
    return f"{result['question']}\n  {result['finding']}\n  Control: {result['control']}"
