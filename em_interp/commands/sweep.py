"""`em-interp sweep CONFIG`."""

from __future__ import annotations

import argparse
import sys

from em_interp.commands.command import Answer, Commands, command, log, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    sweep = command(commands, run, "sweep", "every run of a grid, and one page that compares them")
    sweep.add_argument("config", help="a YAML file with base, grid and control; see configs/tiny-sweep.yaml")
    sweep.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a core for built-in bases)")
    sweep.add_argument("--backend", default="loky", help="loky (default), or ray: the cluster of RAY_ADDRESS")
    writes(sweep, "checkpoints/<name of the config>")


def run(arguments: argparse.Namespace) -> Answer:
    """Sweep; the exit code is 1 where a run failed."""
    from em_interp.sweeps.run import sweep

    found = sweep(
        arguments.config,
        arguments.out,
        arguments.resume,
        arguments.jobs,
        arguments.backend,
        sys.stderr.isatty(),
        log,
    )
    arguments.code = 1 if found.failures else 0
    return found.to_dict(), f"{found.sentence()}\nthe page: {found.page}"
