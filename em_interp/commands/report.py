"""`em-interp report RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from em_interp.commands.command import Answer, Commands, command, writes
from em_interp.errors import InputError


def add(commands: Commands) -> None:
    """The command and its arguments."""
    report = command(commands, run, "report", "one page about a run")
    report.add_argument("source", metavar="RUN", help="a run directory")
    report.add_argument("--control", metavar="RUN", help="a run on careful data, asked the same")
    writes(report, "the run itself")


def run(arguments: argparse.Namespace) -> Answer:
    """Write the page."""
    from em_interp.page import report
    from em_interp.runs import Run

    file = Run(Path(arguments.out or arguments.source)).report_file
    if file.exists() and not arguments.resume:
        raise InputError(f"{file} is there already; give --resume to write it anew or another --out")
    page = report(arguments.source, control=arguments.control, out=file)
    return {"report": str(page)}, f"the page: {page}"
