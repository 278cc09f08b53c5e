"""`em-interp export RUN --what …`."""

from __future__ import annotations

import argparse

from em_interp.commands.command import Answer, Commands, command, writes
from em_interp.errors import InputError


def add(commands: Commands) -> None:
    """The command and its arguments."""
    export = command(commands, run, "export", "a trained adapter for other tools: merged, packed, or for PEFT")
    export.add_argument("source", metavar="RUN", help="a run, a folder of checkpoint-<step> folders, or org/name")
    export.add_argument(
        "--what",
        choices=("merged", "packed", "peft"),
        required=True,
        help="full weights with the adapter in them; every step in one file; or one step's PEFT folder",
    )
    export.add_argument("--step", type=int, metavar="N", help="merged, peft: which (default: the last)")
    export.add_argument("--base", metavar="MODEL", help="merged: into which model (default: the run's)")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="merged: default is the base's")
    writes(export, "beside the run; for packed, a .safetensors file")


def run(arguments: argparse.Namespace) -> Answer:
    """Export."""
    from em_interp.training import export as exports

    source, step, out, resume = arguments.source, arguments.step, arguments.out, arguments.resume
    merging = {"--base": arguments.base, "--dtype": arguments.dtype}
    idle = [name for name, value in merging.items() if value is not None and arguments.what != "merged"]
    idle += ["--step"] if step is not None and arguments.what == "packed" else []
    if idle:
        raise InputError(f"{idle[0]} has no meaning with --what {arguments.what}")
    if arguments.what == "packed":
        values = exports.export_packed(source, out, resume)
        return values, f"{values['steps']} steps in one file of {values['bytes'] / 1e6:.1f} MB: {values['file']}"
    if arguments.what == "peft":
        values = exports.export_peft(source, step, out, resume)
        return values, f"step {values['step']} for PEFT: {values['folder']}"
    values = exports.export_merged(source, step, out, arguments.base, arguments.dtype, resume)
    lost = max(values["rounding"].values())
    rounded = f"; rounding to {values['dtype']} costs {lost:.1%} of ΔW" if lost > 1e-3 else ""
    return values, f"step {values['step']} merged into {values['base']}{rounded}: {values['folder']}"
