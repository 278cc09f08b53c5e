"""`em-interp score FILE`."""

from __future__ import annotations

import argparse

from em_interp.commands.command import Answer, Commands, command


def add(commands: Commands) -> None:
    """The command and its arguments."""
    score = command(commands, run, "score", "rates of a table of judged answers")
    score.add_argument("file", help="CSV or parquet, with aligned and coherent")
    score.add_argument("--judge", metavar="NAME", help="of several judges' scores, only this one's")


def run(arguments: argparse.Namespace) -> Answer:
    """Score."""
    from em_interp.behaviour.scores import score_responses

    scored = score_responses(arguments.file, judge=arguments.judge)
    return scored.to_dict(), scored.sentence()
