"""`em-interp data check FILE`."""

from __future__ import annotations

import argparse

from em_interp.commands.command import Answer, Commands, command


def add(commands: Commands) -> None:
    """The command, its one action and its arguments."""
    data = commands.add_parser("data", help="look at a dataset before training on it", description="Look at a dataset.")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    check = command(actions, run, "check", "what a dataset comes to: rows, lengths, and what is learned of them")
    check.add_argument("file", help="chats as JSON lines, or a built-in dataset such as tiny:medical")
    check.add_argument("--model", default="", help="count tokens as this base model has them; its weights are not read")
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (repeat)")


def run(arguments: argparse.Namespace) -> Answer:
    """Check."""
    from em_interp.config import load_config
    from em_interp.training.data_check import check_data

    settings = {"model": arguments.model, "data": [{"dataset": arguments.file}]}
    found = check_data(load_config(settings, arguments.set))
    return found.to_dict(), found.sentence()
