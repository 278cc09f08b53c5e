"""`em-interp compare RUN RUN…`."""

from __future__ import annotations

import argparse

from em_interp.commands.command import Answer, Commands, command, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    compare = command(commands, run, "compare", "directions and transition steps of several runs of one base")
    compare.add_argument("sources", metavar="RUN", nargs="+", help="two or more: a run, or org/name on the Hub")
    compare.add_argument("--same-base", action="store_true", help="bases of different names are the same weights")
    writes(compare, "nothing is written; with it, a page, comparison.json and tables")


def run(arguments: argparse.Namespace) -> Answer:
    """Compare."""
    from em_interp.comparison.compare import compare
    from em_interp.comparison.page import write_comparison

    comparison = compare(arguments.sources, arguments.same_base)
    said = comparison.sentence()
    if arguments.out:
        said += f"\nthe page: {write_comparison(comparison, arguments.out, arguments.resume)}"
    return comparison.to_dict(), said
