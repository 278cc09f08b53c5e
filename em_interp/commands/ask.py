"""`em-interp ask RUN`."""

from __future__ import annotations

import argparse
import sys

from em_interp.commands.command import Answer, Commands, command, log, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    ask = command(commands, run, "ask", "ask a trained run its questions along the way")
    ask.add_argument("source", metavar="RUN", help="a run directory")
    writes(ask, "the run itself; another folder gets a copy of it")


def run(arguments: argparse.Namespace) -> Answer:
    """Ask."""
    from em_interp.pipeline import ask_run
    from em_interp.run import elsewhere, open_run

    source = open_run(arguments.source)
    if source.resume_state.is_dir():
        log(f"{source.path} is not trained to its end: it is asked up to step {max(source.steps(), default=0)}")
    run = elsewhere(source, arguments.out, without=("behaviour", "analysis", "report.html"))
    answers = ask_run(run, arguments.resume, sys.stderr.isatty())
    return {"run": str(run.path), "answers": str(answers)}, f"the answers: {answers}"
