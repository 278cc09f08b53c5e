"""Commands about several runs: compare them, or run a whole grid of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from em_interp.cli import FAILED, OK, log
from em_interp.cli.app import COMPARE, CommandResult, Out, Overwrite, Resume, command


@command(COMPARE, "em-interp compare checkpoints/medical checkpoints/sport --out checkpoints/compared")
def compare(
    sources: Annotated[list[str], typer.Argument(metavar="RUN…", help="Two or more: runs, or org/name on the Hub.")],
    same_base: Annotated[
        bool, typer.Option("--same-base", metavar="", help="Treat bases of different names as the same weights.")
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option(metavar="N", help="Across bases: number of random adapters for the null (default: 99)."),
    ] = None,
    steering_transfer: Annotated[
        bool,
        typer.Option(
            "--steering-transfer", metavar="", help="Across bases: also steer and ablate with transferred directions."
        ),
    ] = False,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Compare runs: directions within one base, similarity across bases.

    With --out it writes a page, the findings as JSON, and tables.
    """
    from em_interp.comparison.compare import compare as compare_runs
    from em_interp.comparison.matching import OtherBases, match
    from em_interp.comparison.page import Comparison, write_comparison
    from em_interp.errors import InputError
    from em_interp.utils.files import check_free_or_unkept

    for name in ("comparison.json", "cross_base.json"):
        check_free_or_unkept(None if out is None else Path(out) / name, resume, overwrite)
    try:
        if draws is not None or steering_transfer:
            match(sources, same_base)
            given = "--draws" if draws is not None else "--steering-transfer"
            raise InputError(f"{given} is for runs of different bases; these are of one: leave it out")
        comparison: Comparison = compare_runs(sources, same_base)
    except OtherBases:
        from em_interp.comparison.cross_base.compare import compare_across_bases

        n_random = 99 if draws is None else draws
        comparison = compare_across_bases(sources, draws=n_random, steering_transfer=steering_transfer, log=log)
    text = comparison.sentence()
    if out is not None:
        text += f"\nthe page: {write_comparison(comparison, out, overwrite)}"
    return CommandResult(comparison.to_dict(), text)


@command(COMPARE, "em-interp sweep configs/tiny-sweep.yaml --jobs 4")
def sweep(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A YAML file with base, grid and control; see configs/tiny-sweep.yaml."),
    ],
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Runs at a time (default: one per core for built-in bases).")
    ] = None,
    backend: Annotated[
        Literal["loky", "ray"], typer.Option(help="loky: this machine; ray: the Ray cluster at RAY_ADDRESS.")
    ] = "loky",
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Run every combination of a grid, and write one page that compares the runs.

    Written to checkpoints/NAME-OF-CONFIG by default. The exit code is 1 if a run failed.
    """
    from em_interp.sweeps.run import sweep as run_sweep

    result = run_sweep(config, out, resume=resume, overwrite=overwrite, jobs=jobs, backend=backend, log=log)
    return CommandResult(
        result.to_dict(), f"{result.sentence()}\nthe page: {result.page}", FAILED if result.failures else OK
    )
