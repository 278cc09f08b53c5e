"""`em-interp train CONFIG`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.commands.command import Answer, Commands, command, log, writes
from em_interp.run import Run

if TYPE_CHECKING:
    from em_interp.config import RunConfig


def add(commands: Commands) -> None:
    """The command and its arguments."""
    train = command(commands, run, "train", "train an adapter and save its path")
    train.add_argument("config", help="a YAML file; see configs/")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (repeat)")
    train.add_argument("--model", help="another base, such as tiny-qwen2: layers are mapped by depth, changes told")
    writes(train, "checkpoints/<name of the config>")


def run(arguments: argparse.Namespace) -> Answer:
    """Train."""
    from em_interp.training.distributed import main_reports
    from em_interp.training.train import train

    with main_reports():
        run = Run(Path(arguments.out or Path("checkpoints") / Path(arguments.config).stem))
        train(_config(arguments), run.path, arguments.resume, sys.stderr.isatty())
    _warn(run)
    steps = run.steps()
    return {"run": str(run.path), "steps": steps}, f"{len(steps)} checkpoints, the last at step {steps[-1]}: {run.path}"


def _warn(run: Run) -> None:
    """Say so now where the run's config asks built-in questions of a model that was not trained on built-in data."""
    if run.config().behaviour.questions == "tiny" and run.manifest()["phases"][-1]["domain"] is None:
        log(
            f"the data are not built in, so before this run is asked: in {run.config_file} set behaviour.questions to "
            "default or a YAML file, and behaviour.judge to a model's endpoint"
        )


def _config(arguments: argparse.Namespace) -> RunConfig:
    """The config with its overrides; those come last, but for the data, which another model's are chosen by."""
    from em_interp.config import load_config
    from em_interp.organisms.presets import for_model
    from em_interp.training.distributed import launched

    if arguments.model is None:
        return load_config(arguments.config, arguments.set)
    data = [setting for setting in arguments.set if setting.startswith("data")]
    config, changes = for_model(load_config(arguments.config, data), arguments.model)
    for change in changes if launched().is_main else ():
        log(change)
    return load_config(config, arguments.set)
