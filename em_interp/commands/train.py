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
    writes(train, "checkpoints/<name of the config>")


def run(arguments: argparse.Namespace) -> Answer:
    """Train."""
    from em_interp.config import load_config
    from em_interp.training.train import train

    config = load_config(arguments.config, arguments.set)
    out = arguments.out or Path("checkpoints") / Path(arguments.config).stem
    run = train(config, out, arguments.resume, sys.stderr.isatty())
    steps = run.steps()
    return {"run": str(run.path), "steps": steps}, f"{len(steps)} checkpoints, the last at step {steps[-1]}: {run.path}"
