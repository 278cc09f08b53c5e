"""Commands that share results: the page, adapters for other tools, the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from em_interp.cli.app import SHARE, Columns, CommandResult, Out, Overwrite, Resume, command
from em_interp.errors import InputError


@command(SHARE, "em-interp report checkpoints/tiny --control checkpoints/demo/control --figures pdf")
def report(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    answers: Annotated[
        str | None,
        typer.Option(metavar="TABLES", help="Judged answers from elsewhere; RUN may then be any checkpoints."),
    ] = None,
    columns: Columns = [],  # noqa: B006
    control: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A run on careful data with the same questions, or judged answers of it."),
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option(metavar="FORMATS", help="Also write every figure, as pdf, svg, png, html or several (pdf,png)."),
    ] = None,
    paper_columns: Annotated[
        int | None, typer.Option(help="The figures' width: 1 column (85 mm) or 2 (178 mm, the default).")
    ] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Write one page about a run, and its figures as files.

    They are written into the run by default.
    With --figures or --resume an existing page is left unchanged.
    """
    from em_interp.behaviour.tables.columns import given_columns
    from em_interp.figures.export_files import check
    from em_interp.reports.page import report as write_page
    from em_interp.reports.run_figures import control_in, export_run, findings_of
    from em_interp.run import Run
    from em_interp.utils.files import check_free

    place = Run(Path(out or source))
    if out is None and answers and not place.path.is_dir():
        raise InputError(f"{source} is no folder on this machine, so nothing can be written there; give --out")
    width = 2 if paper_columns is None else paper_columns
    formats = None if figures is None else check(figures.split(","), width)
    if formats is None and paper_columns is not None:
        raise InputError("--paper-columns is the width of figures; give --figures as well, such as --figures pdf")
    check_free(place.report_file, resume or (formats is not None and not overwrite), overwrite)
    write = overwrite or not place.report_file.exists()
    control_found = control_in(control)
    findings = findings_of(source, control_found, answers, given_columns(columns)) if write or formats else None
    values: dict[str, Any] = {"report": str(place.report_file)}
    unchanged = "" if write else " (unchanged; --overwrite writes it anew)"
    lines = [f"the page: {place.report_file}{unchanged}"]
    if write and findings is not None:
        write_page(findings, control=control_found, out=place.report_file, overwrite=overwrite)
    if formats and findings is not None:
        files = export_run(findings, formats, width, out=place.figures, resume=resume, overwrite=overwrite)
        values |= {"figures": [str(file) for file in files]}
        lines.append(f"{len({file.stem for file in files})} figures, each with caption and numbers: {place.figures}")
    return CommandResult(values, "\n".join(lines))


FORMATS_WITH = {"--base": ("merged",), "--dtype": ("merged",), "--step": ("merged", "peft")}


@command(SHARE, "em-interp export checkpoints/tiny --format merged --step 400")
def export(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run, a folder of checkpoint-<step> folders, or org/name on the Hub."),
    ],
    format: Annotated[
        Literal["merged", "packed", "peft", "inspect"],
        typer.Option(
            help="merged: full weights with the adapter; packed: every step in one file; peft: a step for "
            "PEFT; inspect: the judged answers as Inspect logs."
        ),
    ],
    step: Annotated[int | None, typer.Option(metavar="N", help="merged, peft: which step (default: the last).")] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="merged: the model to merge into (default: the run's).")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="merged: type of the weights (default: the base's)."),
    ] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Export a trained adapter, or judged answers, for other tools.

    It is written beside the run by default; packed is one .safetensors file.
    """
    from em_interp.training import export as exports

    for option, value in {"--base": base, "--dtype": dtype, "--step": step}.items():
        if value is not None and format not in FORMATS_WITH[option]:
            raise InputError(f"{option} has no meaning with --format {format}")
    again = {"resume": resume, "overwrite": overwrite}
    if format == "inspect":
        values = exports.export_inspect(source, out, **again)
        return CommandResult(values, f"{len(values['files'])} logs of Inspect: {Path(values['files'][0]).parent}")
    if format == "packed":
        values = exports.export_packed(source, out, **again)
        size = f"{values['steps']} steps in one file of {values['bytes'] / 1e6:.1f} MB"
        return CommandResult(values, f"{size}: {values['file']}")
    if format == "peft":
        values = exports.export_peft(source, step, out, **again)
        return CommandResult(values, f"step {values['step']} for PEFT: {values['folder']}")
    values = exports.export_merged(source, step, out, base, dtype, **again)
    lost = max(values["rounding"].values())
    rounded = f"; rounding to {values['dtype']} costs {lost:.1%} of ΔW" if lost > 1e-3 else ""
    return CommandResult(values, f"step {values['step']} merged into {values['base']}{rounded}: {values['folder']}")


@command(SHARE, "em-interp publish checkpoints/tiny me/tiny-organism")
def publish(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", metavar="", help="Create the repository as private.")] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Upload a run to the Hub, in one commit with a model card.

    With --resume only files that the repository lacks are uploaded, with --overwrite all.
    """
    from em_interp.hub.publishing import publish as upload

    commit = upload(source, repository, resume=resume, overwrite=overwrite, private=private)
    return CommandResult({"repository": repository, "commit": commit}, f"published: {commit}")
