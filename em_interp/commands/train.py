"""`em-interp train CONFIG`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from em_interp.commands.command import Answer, Commands, command, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    train = command(commands, run, "train", "train an adapter and save its path")
    train.add_argument("config", help="a YAML file; see configs/")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (repeat)")
    train.add_argument("--processes", type=int, metavar="N", help="train in N processes, one a GPU (default: 1)")
    writes(train, "checkpoints/<name of the config>")


def run(arguments: argparse.Namespace) -> Answer:
    """Train."""
    from em_interp.config import load_config
    from em_interp.runs import Run
    from em_interp.training.launch import launch
    from em_interp.training.processes import check_shares, first_speaks, launched
    from em_interp.training.train import train

    config = load_config(arguments.config, arguments.set)
    out = Path(arguments.out) if arguments.out else Path("checkpoints") / Path(arguments.config).stem
    if launched().count == 1 and (arguments.processes or 1) > 1:
        check_shares(config, arguments.processes)
        launch(_words(arguments, out), arguments.processes)
        run = Run(out)
    else:
        with first_speaks():
            run = train(config, out, arguments.resume, sys.stderr.isatty(), arguments.processes)
    steps = run.steps()
    return {"run": str(run.path), "steps": steps}, f"{len(steps)} checkpoints, the last at step {steps[-1]}: {run.path}"


def _words(arguments: argparse.Namespace, out: Path) -> list[str]:
    """The same command for each of several processes."""
    settings = [word for setting in arguments.set for word in ("--set", setting)]
    words = ["train", arguments.config, *settings, "--out", str(out), "--processes", str(arguments.processes)]
    return [*words, "--resume"] if arguments.resume else words
