"""`em-interp report RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from em_interp.commands.command import Answer, Commands, command, writes
from em_interp.errors import InputError


def add(commands: Commands) -> None:
    """The command and its arguments."""
    report = command(commands, run, "report", "one page about a run, and its figures as files")
    report.add_argument("source", metavar="RUN", help="a run directory")
    report.add_argument("--answers", metavar="TABLES", help="judged answers from elsewhere; RUN may be any checkpoints")
    report.add_argument("--control", metavar="RUN", help="a run on careful data, asked the same")
    report.add_argument(
        "--figures", metavar="FORMATS", help="every figure too: pdf, svg, png, html, or some of them (a,b)"
    )
    report.add_argument("--columns", type=int, default=2, help="of a paper, for the figures: 1 (85 mm) or 2 (178 mm)")
    writes(report, "the run itself")


def run(arguments: argparse.Namespace) -> Answer:
    """Write the page and, where asked for, the figures; a page that is there already stays as it is beside figures."""
    from em_interp.figures.export_files import check
    from em_interp.reports.page import report
    from em_interp.reports.run_figures import export_run, found_in
    from em_interp.run import Run

    place = Run(Path(arguments.out or arguments.source))
    if arguments.out is None and arguments.answers and not place.path.is_dir():
        raise InputError(f"{arguments.source} is no folder here to write to; give --out")
    formats = None if arguments.figures is None else check(arguments.figures.split(","), arguments.columns)
    write = arguments.resume or not place.report_file.exists()
    if not (write or formats):
        raise InputError(f"{place.report_file} is there already; give --resume to write it anew or another --out")
    control = None if arguments.control is None else found_in(arguments.control)
    found = found_in(arguments.source, control, arguments.answers)
    values, said = {"report": str(place.report_file)}, []
    if write:
        said.append(f"the page: {report(found, control=control, out=place.report_file)}")
    if formats:
        files = export_run(found, formats, arguments.columns, out=place.figures, resume=arguments.resume)
        said.append(f"{len({file.stem for file in files})} figures, each with caption and numbers: {place.figures}")
    return values | ({"figures": [str(file) for file in files]} if formats else {}), "\n".join(said)
