"""`em-interp locate SOURCE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from em_interp.commands.command import Answer, Commands, command, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    locate = command(commands, run, "locate", "where an adapter's path changes")
    locate.add_argument("source", help="a run, a folder of checkpoint-<step> folders, or org/name on the Hub")
    locate.add_argument("--revision", help="a branch, tag or commit of org/name (default: main)")
    locate.add_argument("--signal", help="rotation, gradient_norm, norm_onset, lock_in or composition (default: all)")
    locate.add_argument("--of", help="B, A or delta (default: all)")
    locate.add_argument("--site", help="one adapted module (default: all together)")
    writes(locate, "the run's analysis folder, where SOURCE is a run")


def run(arguments: argparse.Namespace) -> Answer:
    """Locate."""
    from em_interp.findings import keep, located
    from em_interp.run import Run
    from em_interp.trajectory.load import load_trajectory
    from em_interp.transition.find import find_transitions

    path = load_trajectory(arguments.source, arguments.revision)
    found = find_transitions(path, arguments.signal, arguments.of, arguments.site)
    values = located(arguments.source, path, found)
    whole = not (arguments.signal or arguments.of or arguments.site)
    if arguments.out or (whole and Run(Path(arguments.source)).config_file.exists()):
        keep(values, Run(Path(arguments.out or arguments.source)).analysis / "locate.json", arguments.resume)
    return values, "\n".join(f"{transition.sentence()}\n    {transition.reason}" for transition in found)
