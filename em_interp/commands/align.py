"""`em-interp align RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from em_interp.commands.command import Answer, Commands, command, writes
from em_interp.errors import InputError


def add(commands: Commands) -> None:
    """The command and its arguments."""
    align = command(commands, run, "align", "how far the behaviour's change is from the adapter's")
    align.add_argument("source", metavar="RUN", help="a run that was asked and judged")
    align.add_argument("--answers", metavar="TABLES", help="judged answers from elsewhere; RUN may be any checkpoints")
    align.add_argument(
        "--control", metavar="RUN", help="a run on careful data, asked the same, or judged answers of it"
    )
    writes(align, "the run's analysis folder")


def run(arguments: argparse.Namespace) -> Answer:
    """Align."""
    from em_interp.findings import findings, keep
    from em_interp.run import Run

    place = Run(Path(arguments.out or arguments.source))
    if arguments.out is None and arguments.answers and not place.path.is_dir():
        raise InputError(f"{arguments.source} is no folder here to write to; give --out")
    found = findings(arguments.source, arguments.control, arguments.answers)
    if found.alignment is None:
        raise InputError(f"{arguments.source} has no scores: ask and judge the run first, or give --answers")
    values = found.alignment.to_dict()
    keep(values, place.analysis / "align.json", arguments.resume)
    said = [found.rotation, *found.onsets]
    lines = [one.sentence() if one.found else f"{one.sentence()}\n    {one.reason}" for one in said]
    return values, "\n".join([*lines, found.alignment.sentence()])
