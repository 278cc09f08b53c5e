"""Every figure of a run by its name, each with the run's setting, and all of them as files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.errors import InputError
from em_interp.layouts import listing_of, saved_steps
from em_interp.reports.findings import Findings, find_in_run
from em_interp.results import local_name
from em_interp.run import Run, trained_scale
from em_interp.trajectory.packed import SUFFIX
from em_interp.trajectory.trajectory import MATRICES
from em_interp.utils.checks import checked
from em_interp.utils.files import check_free
from em_interp.utils.lock import write_lock

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from em_interp.transition.result import Transition

Source = Run | str | Path | Findings
MAX_SITES = 3  # named in a caption
PART_FILE = {"A": "A", "B": "B", "delta": "dW"}  # of a part of the adapter, in file names


def findings_of(
    source: Source,
    control: Findings | str | Path | None = None,
    answers: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Findings:
    """The findings of a run or of a folder of checkpoints; findings as they are.

    `answers` are tables judged elsewhere, in place of the run's own, and `columns` what they call a column. A `control`
    is the findings of a run, which is not read again, or judged tables.
    """
    if isinstance(source, Findings):
        if answers is not None or columns:
            raise InputError("findings were given, which have answers already; to read answers=, give the run itself")
        return source
    return find_in_run(run_of(source), control, answers, columns)


def control_in(source: Source | None) -> Findings | str | Path | None:
    """The findings of a control run; judged tables, which are of no checkpoints, as they are."""
    if isinstance(source, (str, Path)) and Path(source).exists() and not _has_path(Path(source)):
        return source
    return None if source is None else findings_of(source)


def _has_path(source: Path) -> bool:
    """Whether there are checkpoints in it, or it is a file of all of them."""
    return source.suffix == SUFFIX or bool(saved_steps(listing_of(source), str(source)))


def run_of(source: Source) -> Run:
    """The run itself."""
    if isinstance(source, Findings):
        return source.run
    return source if isinstance(source, Run) else Run(Path(source))


@checked
def export_run(
    run: Source,
    formats: Iterable[str] = ("pdf",),
    columns: int = 2,
    control: Source | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write every figure of a run with its caption and its numbers.

    Args:
        run: a run directory, a folder of checkpoints, a `Run`, or its findings.
        formats: some of pdf, svg, png (300 dots an inch) and html.
        columns: of a paper: 1 (85 mm wide; figures that need more have two) or 2 (178 mm).
        control: a run on careful data with the same questions, to compare with, or judged tables of one.
        out: the folder to write to; by default the run's `figures/`.
        resume: draw the figures that are missing.
        overwrite: replace figures that exist.

    Returns:
        The files of all figures.

    Raises:
        InputError: before anything is written, for an unknown format, without a browser to draw with, and where a
            figure exists already (without `resume` or `overwrite`).
    """
    from em_interp.figures.export_files import check, export_all

    folder = run_of(run).figures if out is None else Path(out)
    for wanted in check(formats, columns):  # before the seconds of looking for transitions
        for file in sorted(folder.glob(f"*.{wanted}"))[:1]:
            check_free(file, resume, overwrite)
    findings = findings_of(run, control_in(control))
    try:
        with write_lock(folder):
            return export_all(run_figures(findings), folder, formats, columns, resume, overwrite)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error


def run_figures(findings: Findings) -> dict[str, go.Figure]:
    """Every figure of a run that it has the data for, by name; in `layout.meta` the setting for its caption."""
    from em_interp.figures.export_files import with_setting

    drawn = {**_of_path(findings), **_of_signals(findings), **_of_behaviour(findings), **_of_mechanism(findings)}
    setting = setting_of(findings)
    return {name: with_setting(figure, setting) for name, figure in drawn.items()}


def _of_path(findings: Findings) -> dict[str, go.Figure]:
    from em_interp import figures as draw

    path, turns, changes = findings.trajectory, findings.transitions, known_changes(findings.run)
    drawn = {"timeline": timeline(findings), "norms": draw.norms(path)}
    drawn["local_cosine_B"] = draw.local_cosine(path, transition=findings.rotation)
    for of in sorted(MATRICES):
        drawn[f"path_{PART_FILE[of]}"] = draw.pca(path, of, transitions=turns)
        drawn[f"turning_{PART_FILE[of]}"] = draw.turning_angle(path, of=of, transitions=turns, known_changes=changes)
    if {"loss", "grad_norm", "learning_rate"} & set(path.metrics):
        drawn["training_log"] = draw.training_log(path, turns)
    return drawn


def _of_signals(findings: Findings) -> dict[str, go.Figure]:
    from em_interp import figures as draw

    rotations: dict[str, list[Transition]] = {}
    drawn = {}
    for transition in findings.transitions:
        if transition.signal == "rotation":
            rotations.setdefault(transition.of or "", []).append(transition)
        else:
            drawn[transition.signal] = draw.transition(transition)
    return {f"rotation_{PART_FILE[of]}": draw.rotation(turns) for of, turns in rotations.items()} | drawn


def _of_behaviour(findings: Findings) -> dict[str, go.Figure]:
    from em_interp import figures as draw

    if findings.curve is None:
        return _of_preference(findings)
    drawn = {"behaviour": draw.behaviour(findings.curve, findings.control, findings.onsets)}
    for onset in findings.onsets:
        scale = "" if onset.scale in (None, 1) else f"_x{onset.scale:g}".replace(".", "p")
        drawn[re.sub(r"\W", "_", f"onset_{onset.questions or 'all'}{scale}")] = draw.onset(onset)
    own = trained_scale(findings.curve.answers["scale"].unique())
    last = findings.curve.select(own).at(int(findings.curve.steps[-1]))
    return {**drawn, "scores_last_step": draw.scores(last), **_of_preference(findings)}


def _of_preference(findings: Findings) -> dict[str, go.Figure]:
    from em_interp import figures as draw

    if findings.preference is None:
        return {}
    return {"preference": draw.preference(findings.preference, findings.preference_onsets)}


def _of_mechanism(findings: Findings) -> dict[str, go.Figure]:
    """The figures of `em-interp mechanism`, as they were kept."""
    from em_interp.mechanism.report import read_report

    report = read_report(findings.run)
    return {} if report is None else {f"mechanism_{name}": figure for name, figure in report.figures.items()}


def timeline(findings: Findings) -> go.Figure:
    """Every transition on one time axis, those inside the model too, and the offsets where the run has answers."""
    from em_interp import figures as draw
    from em_interp.mechanism.report import read_report

    report, changes = read_report(findings.run), known_changes(findings.run)
    transitions = [*findings.transitions, *(report.transitions() if report is not None else [])]
    if findings.alignment is None:
        return draw.timeline(transitions, findings.trajectory, known_changes=changes)
    return draw.alignment(findings.alignment, findings.trajectory, transitions, changes)


def known_changes(run: Run) -> dict[float, str]:
    """What the manifest says changed in mid-training, by the last step before it."""
    changes = {}
    for before, after in pairwise(run.phases()):
        if after.get("first_step") is None:
            continue
        new_data = f"data: {after.get('dataset')}" if after.get("dataset") != before.get("dataset") else ""
        restart = "schedule restarts" if after.get("restart") else ""
        changes[float(after["first_step"] - 1)] = ", ".join(part for part in (new_data, restart) if part)
    return changes


def setting_of(findings: Findings) -> str:
    """The setting of a run for the captions of its figures: base, sites, rank, alpha, scale, seed and data."""
    path = findings.trajectory
    config = None
    with suppress(InputError):  # without a config, or with that of another trainer, less is recorded
        config = findings.run.config()
    sites = path.sites if len(path.sites) <= MAX_SITES else (*path.sites[:MAX_SITES], "…")
    ranks = sorted({int(A.shape[1]) for A in path.A.values()})
    scales = sorted({f"{scale:.3g}" for scale in path.scale.values()})
    alpha = "alpha not recorded"
    if config is not None:
        adapter = config.adapter
        number = getattr(adapter, "lora_alpha", None) or getattr(adapter, "alpha", 1)
        alpha = "full fine-tuning" if adapter.kind == "full" else f"alpha {number:g}"
        alpha += " (rsLoRA)" * getattr(adapter, "use_rslora", False)
    parts = [
        f"Base {local_name(path.base) if path.base else 'not recorded'}",
        f"{len(path.sites)} adapted site{'s' * (len(path.sites) > 1)} ({', '.join(sites)})",
        f"rank {', '.join(map(str, ranks))}",
        alpha,
        f"scale {', '.join(scales)}",
        "seed not recorded" if config is None else f"seed {config.seed}",
        *([] if config is None else [f"data {', then '.join(local_name(phase.dataset) for phase in config.data)}"]),
        f"{len(path.steps)} saved steps from {path.steps[0]} to {path.steps[-1]}",
    ]
    return "; ".join(parts)
