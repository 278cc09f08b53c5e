"""The stages that analyse a run: locate, align, and the analyses of the model's internals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.errors import InputError
from em_interp.pipeline.behaviour import configured_judge
from em_interp.reports.findings import Findings, PathTransitions, find_in_run, save_result
from em_interp.run import Run, RunLike, check_other, open_run
from em_interp.utils.checks import checked
from em_interp.utils.files import check_free, check_free_or_unkept
from em_interp.utils.lock import write_lock

if TYPE_CHECKING:
    from em_interp.mechanism.interventions.experiments import SamplingParams
    from em_interp.mechanism.model import EngineName
    from em_interp.mechanism.report import MechanismReport
    from em_interp.mechanism.suite import SizeName, SuiteSize

Log = Callable[[str], None]


@checked
def locate(
    source: RunLike,
    control: RunLike | None = None,
    *,
    signal: str | None = None,
    of: str | None = None,
    site: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> PathTransitions:
    """The transitions of a path; those of a whole run are kept in its `analysis/locate.json`.

    Args:
        source: a run, a folder of checkpoints, or a repository of the Hub.
        control: a run on careful data: rotations that go no further than its own are `none`.
        signal: one signal; by default all.
        of: one matrix of the adapter, A, B or delta (ΔW); by default all.
        site: one adapted module; by default all together.
        revision: a branch, tag or commit of the repository.
        adapter: the adapter to read where the checkpoints hold several.
        out: the folder in whose `analysis/locate.json` the transitions are kept, also those of one signal or site and
            those against a control.
        resume: keep the findings that exist; it is an error if they differ.
        overwrite: replace them.

    Returns:
        The transitions of every signal, with the steps and sites of the path.

    Raises:
        InputError: for a source that cannot be read, an unknown signal, matrix or site, and findings that exist
            already (without `resume` or `overwrite`) or differ.
    """
    from em_interp.trajectory.load import load_trajectory
    from em_interp.transition.find import find_transitions

    check_other(source, control)
    name = str(source.path if isinstance(source, Run) else source)
    kept = out is not None or (not (signal or of or site or control) and Run(Path(name)).config_file.exists())
    file = Run(Path(out or name)).analysis / "locate.json"
    check_free_or_unkept(file if kept else None, resume, overwrite)
    path = load_trajectory(source, revision, adapter)
    found = find_transitions(path, signal, of, site, control)  # type: ignore[arg-type]  # it checks them
    result = PathTransitions(name, path, found)
    if kept:
        with write_lock(file.parents[1]):
            save_result(result.to_dict(), file, overwrite)
    return result


def align_run(
    run: RunLike,
    control: RunLike | None = None,
    *,
    answers: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Findings:
    """How far the behavioural transitions of a run are from its rotation; kept in `analysis/align.json`.

    Args:
        run: a judged run; with `answers` any folder of checkpoints.
        control: a run on careful data with the same questions.
        answers: judged tables in place of the run's own answers.
        columns: these tables' name for a column, by our name: `{"aligned": "my_score"}`.
        out: the folder whose `analysis/align.json` is written; by default the run.
        resume: check the findings that are there: they stay, and other ones are an error.
        overwrite: replace them.

    Returns:
        What was found; its `alignment` is never None.
    """
    place = Run(Path(out or (run.path if isinstance(run, Run) else run)))
    if out is None and answers is not None and not place.path.is_dir():
        raise InputError(f"{place.path} is no folder on this machine, so nothing can be written there; give out=…")
    file = place.analysis / "align.json"
    check_free(file, resume, overwrite)
    findings = find_in_run(run, control, answers, columns)
    if findings.alignment is None:
        raise InputError(
            f"{findings.run.path} has no scores and no preferences: ask and judge the run first, or read it with "
            "em-interp prefer, or give answers=…"
        )
    with write_lock(place.path):
        save_result(findings.alignment.to_dict(), file, overwrite)
    return findings


def analyse(run: Run, control: Findings | Run | None = None) -> Findings:
    """Locate and align a run, and write the findings to its `analysis` folder, replacing earlier ones.

    What was found in the control is not read again.
    """
    findings = find_in_run(run, control)
    located = PathTransitions(str(run.path), findings.trajectory, findings.transitions)
    with write_lock(run.path):
        save_result(located.to_dict(), run.analysis / "locate.json", overwrite=True)
        if findings.alignment is not None:
            save_result(findings.alignment.to_dict(), run.analysis / "align.json", overwrite=True)
    return findings


@checked
def run_mechanism(
    run: RunLike,
    control: RunLike | None = None,
    engine: EngineName = "hooks",
    transfer: RunLike | None = None,
    analyses: Sequence[str] | None = None,
    size: SizeName | SuiteSize = "full",
    sampling: SamplingParams | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    log: Log | None = None,
) -> MechanismReport:
    """Analyse the mechanism along a judged run: probes, attribution, ablation, steering, patching and more.

    The base and the judge are those that the run's config names. The results are kept in the run's `analysis` folder.

    Args:
        run: a judged run, or its folder.
        control: a run on careful data, whose last step patching is compared with.
        engine: `hooks`, `transformer_lens` or `nnsight`.
        transfer: another run on the same base, whose directions are ablated and added in this one's model.
        analyses: some of `em_interp.mechanism.analyses.ANALYSES`; by default all that are possible.
        size: `quick` (under two minutes with the built-in organism on one core) or `full` (about four).
        sampling: how answers are sampled; by default as in the run.
        resume: continue with the analyses that exist.
        overwrite: replace them all.
        progress: whether progress is shown; by default in a terminal and in Jupyter.
        log: called with a line before each analysis that says how long it takes; by default it is shown with progress.

    Returns:
        The report: a result by analysis, each with `.frame()` and `.plot()`.

    Raises:
        InputError: for an unknown analysis, size or engine, a run without scores, and results that exist already.
    """
    from em_interp.mechanism.model import open_model
    from em_interp.mechanism.suite import chosen_analyses, run_suite

    run = open_run(run)
    chosen_analyses(analyses, transfer is not None, size)
    control, transfer = (None if source is None else open_run(source) for source in (control, transfer))
    check_free(run.analysis / "mechanism", resume, overwrite)
    model = open_model(run, engine=engine)
    with write_lock(run.path), configured_judge(run) as judge:
        more = (analyses, size, sampling, resume, progress, log, overwrite)
        return run_suite(model, judge, control, transfer, *more)
