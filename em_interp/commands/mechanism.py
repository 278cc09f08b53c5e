"""`em-interp mechanism RUN`."""

from __future__ import annotations

import argparse
import sys

from em_interp.commands.command import Answer, Commands, command, log, writes

ENGINES = ("hooks", "transformer_lens", "nnsight")
MADE = ("mechanism", "mechanism.json", "direction_size", "exchange", "change", "canary", "report.html")


def add(commands: Commands) -> None:
    """The command and its arguments."""
    mechanism = command(commands, run, "mechanism", "look inside the model along a judged run")
    mechanism.add_argument("source", metavar="RUN", help="a run that was asked and judged")
    mechanism.add_argument("--control", metavar="RUN", help="a run on careful data, which the map is held against")
    mechanism.add_argument("--transfer", metavar="RUN", help="another run on the same base: try its directions on this")
    mechanism.add_argument("--engine", default="hooks", metavar="ENGINE", help=f"one of {', '.join(ENGINES)}")
    mechanism.add_argument("--parts", metavar="A,B", help="only these parts (default: all)")
    writes(mechanism, "the run itself; another folder gets a copy of it")


def run(arguments: argparse.Namespace) -> Answer:
    """Look inside."""
    from em_interp.pipeline import run_mechanism
    from em_interp.run import elsewhere, open_run

    control, transfer = (None if path is None else open_run(path) for path in (arguments.control, arguments.transfer))
    parts = None if arguments.parts is None else arguments.parts.split(",")
    place = elsewhere(open_run(arguments.source), arguments.out, MADE)
    shown = sys.stderr.isatty()
    found = run_mechanism(
        place,
        control,
        arguments.engine,
        transfer,
        parts,
        arguments.resume,
        progress=shown,
        log=(lambda says: None) if arguments.json else log,
    )
    return found, "\n".join([*map(_line, found["parts"].values()), f"kept in {place.analysis / 'mechanism.json'}"])


def _line(part: dict[str, str]) -> str:
    said = (
        f"undefined: {part['undefined']}" if "undefined" in part else f"{part['found']}\n  Control: {part['control']}"
    )
    return f"{part['question']}\n  {said}"
