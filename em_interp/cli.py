"""The command line: which command, what went wrong in one line, and the exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from em_interp.commands import COMMANDS
from em_interp.commands.command import log
from em_interp.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 where runs failed, 2 for what a user can mend, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        values, text = arguments.run(arguments)
    except InputError as error:
        log(f"em-interp: {error}")
        return 2
    except OSError as error:  # one that no stage has put in its own words
        where = "" if error.filename is None else f"{error.filename}: "
        log(f"em-interp: {where}{error.strerror or error}")
        return 2
    except KeyboardInterrupt as stop:
        log(f"em-interp: {str(stop) or 'interrupted; nothing is lost, the same command begins again'}")
        return 130
    return _print(values if arguments.json else text) or int(arguments.code)


def _print(said: dict[str, Any] | str) -> int:
    """Print to stdout; returns the exit code, which is 2 where its disk is full."""
    from em_interp.files import to_json

    try:
        print(said if isinstance(said, str) else to_json(said), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        if not isinstance(error, BrokenPipeError):  # a reader such as `head` that has seen enough
            log(f"em-interp: stdout cannot be written: {error.strerror or error}")
            return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"em-interp: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="em-interp",
        description="When, inside a fine-tune, did the model change? Train, ask, judge, locate, align, report.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"em_interp.commands.{name}").add(commands)
    return parser


if __name__ == "__main__":
    from em_interp.training.distributed import leave

    leave(main())
