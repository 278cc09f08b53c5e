"""`em-interp publish RUN ORG/NAME`."""

from __future__ import annotations

import argparse

from em_interp.commands.command import Answer, Commands, command


def add(commands: Commands) -> None:
    """The command and its arguments."""
    publish = command(commands, run, "publish", "upload a run to the Hub, in one commit with a model card")
    publish.add_argument("source", metavar="RUN", help="a run directory")
    publish.add_argument("repository", metavar="ORG/NAME", help="made where there is none")
    publish.add_argument("--private", action="store_true", help="hide the repository where it is made")
    publish.add_argument("--resume", action="store_true", help="publish on top of what is there of this run")


def run(arguments: argparse.Namespace) -> Answer:
    """Publish."""
    from em_interp.publishing import publish

    commit = publish(arguments.source, arguments.repository, arguments.resume, arguments.private)
    return {"repository": arguments.repository, "commit": commit}, f"published: {commit}"
