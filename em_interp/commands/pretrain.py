"""`em-interp pretrain`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from em_interp.commands.command import Answer, Commands, command, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    pretrain = command(commands, run, "pretrain", "make a base of the built-in language (minutes)")
    pretrain.add_argument("--family", required=True, help="qwen2, llama or gemma3")
    pretrain.add_argument("--seed", type=int, help="by default that of the base kept with the project")
    writes(pretrain, "checkpoints/tiny-<family>", resume=False)


def run(arguments: argparse.Namespace) -> Answer:
    """Make a base."""
    from em_interp.organisms.pretrain import pretrain

    out = Path(arguments.out or f"checkpoints/tiny-{arguments.family}")
    base = pretrain(arguments.family, out, arguments.seed, sys.stderr.isatty())
    return {"base": str(base)}, f"the base: {base}"
