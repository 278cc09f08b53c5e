"""`em-interp mechanism RUN`."""

from __future__ import annotations

import argparse
import sys

from em_interp.commands.command import Answer, Commands, command, log, writes

ENGINES = ("hooks", "transformer_lens", "nnsight")
MADE = ("mechanism", "mechanism.json", "report.html")


def add(commands: Commands) -> None:
    """The command and its arguments."""
    mechanism = command(commands, run, "mechanism", "look inside the model along a judged run")
    mechanism.add_argument("source", metavar="RUN", help="a run that was asked and judged")
    mechanism.add_argument("--control", metavar="RUN", help="a run on careful data, which the map is held against")
    mechanism.add_argument("--transfer", metavar="RUN", help="another run on the same base: try its directions on this")
    mechanism.add_argument("--engine", default="hooks", metavar="ENGINE", help=f"one of {', '.join(ENGINES)}")
    mechanism.add_argument("--analyses", metavar="A,B", help="only these analyses (default: all)")
    writes(mechanism, "the run itself; another folder gets a copy of it")


def run(arguments: argparse.Namespace) -> Answer:
    """Look inside."""
    from em_interp.pipeline import run_mechanism
    from em_interp.run import elsewhere, open_run

    control, transfer = (None if path is None else open_run(path) for path in (arguments.control, arguments.transfer))
    analyses = None if arguments.analyses is None else arguments.analyses.split(",")
    place = elsewhere(open_run(arguments.source), arguments.out, MADE)
    report = run_mechanism(
        place,
        control,
        arguments.engine,
        transfer,
        analyses,
        resume=arguments.resume,
        progress=sys.stderr.isatty(),
        log=(lambda says: None) if arguments.json else log,
    ).to_dict()
    return report, "\n".join([*map(_line, report["analyses"].values()), f"kept in {place.analysis / 'mechanism.json'}"])


def _line(result: dict[str, str]) -> str:
    undefined = f"undefined: {result.get('undefined')}"
    return f"{result['question']}\n  " + (
        undefined if "undefined" in result else f"{result['finding']}\n  Control: {result['control']}"
    )
