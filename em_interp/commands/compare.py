"""`em-interp compare RUN RUN…`."""

from __future__ import annotations

import argparse

from em_interp.commands.command import Answer, Commands, command, log, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    compare = command(commands, run, "compare", "several runs: directions within one base, likeness across bases")
    compare.add_argument("sources", metavar="RUN", nargs="+", help="two or more: a run, or org/name on the Hub")
    compare.add_argument("--same-base", action="store_true", help="bases of different names are the same weights")
    compare.add_argument(
        "--draws", type=int, default=99, metavar="N", help="across bases: random adapters (default 99)"
    )
    compare.add_argument(
        "--use", action="store_true", help="across bases: also steer and ablate with carried directions"
    )
    writes(compare, "nothing is written; with it, a page, the findings as JSON and tables")


def run(arguments: argparse.Namespace) -> Answer:
    """Compare within one base or, where the runs have different ones, across families."""
    from em_interp.comparison.compare import compare
    from em_interp.comparison.matching import OtherBases
    from em_interp.comparison.page import write_comparison

    try:
        comparison = compare(arguments.sources, arguments.same_base)
    except OtherBases:
        return _across(arguments)
    said = comparison.sentence()
    if arguments.out:
        said += f"\nthe page: {write_comparison(comparison, arguments.out, arguments.resume)}"
    return comparison.to_dict(), said


def _across(arguments: argparse.Namespace) -> Answer:
    from em_interp.comparison.cross_base.compare import compare_across_bases
    from em_interp.comparison.page import write_families

    progress = (lambda says: None) if arguments.json else log
    comparison = compare_across_bases(arguments.sources, draws=arguments.draws, use=arguments.use, log=progress)
    said = comparison.sentence()
    if arguments.out:
        said += f"\nthe page: {write_families(comparison, arguments.out, arguments.resume)}"
    return comparison.to_dict(), said
