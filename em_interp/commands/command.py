"""What the commands have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

Answer = tuple[dict[str, Any], str]  # what --json prints, and what a person reads
Commands = Any  # what argparse's add_subparsers returns; it has no public type


def command(
    commands: Commands, run: Callable[[argparse.Namespace], Answer], name: str, says: str
) -> argparse.ArgumentParser:
    """A new command that `run` carries out and `says` describes."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=says, description=says.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.set_defaults(run=run, code=0)
    return parser


def writes(parser: argparse.ArgumentParser, default: str, resume: bool = True) -> None:
    """Give a command that writes its --out, and --resume."""
    parser.add_argument("--out", metavar="DIR", help=f"where it writes (default: {default})")
    if resume:
        parser.add_argument("--resume", action="store_true", help="go on with what is there, or replace it")


def log(says: str) -> None:
    """A line to the person at the terminal; stdout is for results."""
    print(says, file=sys.stderr)
