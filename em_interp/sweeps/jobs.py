"""The runs of a sweep in parallel: the workers, and the work of one run (train, generate, judge; then analyse).

Workers are joblib's, on this machine (loky) or on a cluster (Ray). Every worker computes on one thread: models small
enough to be swept on CPUs gain nothing from a second, and workers that each take all cores slow each other down. A
worker gets everything by its arguments and returns an `Outcome`: an error of one run ends that run alone.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Literal, get_args

from em_interp.config.run_config import RunConfig
from em_interp.errors import InputError, extra_for
from em_interp.reports.findings import Findings
from em_interp.run import Run
from em_interp.transition.family import main_onset
from em_interp.transition.result import Transition
from em_interp.utils.checks import check_known
from em_interp.utils.files import write_json, write_text
from em_interp.utils.lock import write_lock
from em_interp.utils.progress import progress_bar
from em_interp.utils.stages import read_saved

Backend = Literal["loky", "ray"]
BACKENDS: tuple[str, ...] = get_args(Backend)
OBJECT_STORE = 100 * 2**20  # bytes; workers leave their results in files
SUMMARY_FILE = "sweep_run.json"  # in a run's analysis folder
SUMMARY = {"control?": str, "rotation": dict, "gradient_norm": dict, "onset": dict, "offset?": dict, "final?": dict}


def cores() -> int:
    """The number of workers that this machine has cores for."""
    return int(_joblib().cpu_count())


@contextmanager
def workers(backend: Backend, jobs: int) -> Iterator[Callable[..., list[Outcome]]]:
    """Workers for the block: a function that does `work(*arguments)` for each of `tasks`, in the order given.

    With `ray`: the cluster that RAY_ADDRESS names or that this process has joined, else one of this machine for the
    block, on loopback alone. Raises InputError for a backend that is not installed, or with fewer CPUs than `jobs`.
    """
    check_known("backend", backend, BACKENDS)
    joblib = _joblib()

    def do(
        work: Callable[..., Outcome], tasks: Sequence[tuple[Any, ...]], what: str, progress: bool = False
    ) -> list[Outcome]:
        with progress_bar((), what, "run", progress, len(tasks)) as bar:

            class Parallel(joblib.Parallel):  # type: ignore[name-defined]
                def print_progress(self) -> None:  # called after each task, whatever the backend
                    bar.update(self.n_completed_tasks - bar.n)

            call, main = joblib.delayed(_in_worker), os.getpid()
            done: list[Outcome] = Parallel(batch_size=1)(call(main, work, *task) for task in tasks)
        return done

    with _ray(jobs) if backend == "ray" else _loky(jobs) as settings, joblib.parallel_config(**settings):
        try:
            yield do
        except joblib.externals.loky.process_executor.TerminatedWorkerError as error:
            why = "a worker was killed, perhaps for want of memory; finished runs are kept; give resume=True and fewer"
            raise InputError(f"{why} jobs than {jobs}") from error


def _in_worker(main: int, work: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """Do the work, in a process that ends with the main one, however that ends, where it is a child of that."""
    from em_interp.utils.processes import end_with

    if os.getppid() == main:
        end_with(main)
    return work(*arguments)


def _joblib() -> Any:
    with extra_for("a sweep"):
        import joblib
    return joblib


@contextmanager
def _loky(jobs: int) -> Iterator[dict[str, Any]]:
    yield {"backend": "loky", "n_jobs": jobs, "inner_max_num_threads": 1}


@contextmanager
def _ray(jobs: int) -> Iterator[dict[str, Any]]:
    """A Ray cluster of `jobs` workers of one CPU each. See https://docs.ray.io/en/latest/ray-more-libs/joblib.html."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    elsewhere = "RAY_ADDRESS" in os.environ
    if not elsewhere:  # read when ray is imported: without clusters, a node has the loopback address and listens there
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with extra_for("the Ray backend"):
        import ray
        from ray.util.joblib import register_ray
    started_here = not ray.is_initialized()
    if started_here:
        local = {"num_cpus": jobs, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            ray.init(log_to_driver=False, **({} if elsewhere else {"address": "local", **local}))
        except ConnectionError as error:
            reason = f"{' '.join(str(error).split())}; is it running, and does it want RAY_AUTH_MODE=token?"
            raise InputError(f"the Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {reason}") from None
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if jobs > cpus:
            raise InputError(f"{jobs} jobs were asked for; the Ray cluster has {cpus} CPUs")
        register_ray()
        yield {"backend": "ray", "n_jobs": jobs, "ray_remote_args": {"num_cpus": 1}}
    finally:
        if started_here:
            ray.shutdown()


@dataclass(frozen=True)
class Outcome:
    """How long one run took, and its error if it failed."""

    name: str
    seconds: float
    error: str | None = None  # one line


def run_path(out: Path, name: str) -> Path:
    """The folder of a run of the sweep in `out`."""
    return out / "runs" / name


def failure_file(out: Path, name: str) -> Path:
    """The file with the traceback of a run that failed."""
    return out / "failures" / f"{name}.txt"


def is_complete(out: Path, name: str, config: RunConfig) -> bool:
    """Whether the run was trained and judged with this config."""
    run = Run(run_path(out, name))
    files = (run.scores_file, run.answers_file, run.manifest_file, run.config_file)
    return all(file.exists() for file in files) and run.config() == config


def is_analysed(out: Path, name: str, control: str | None) -> bool:
    """Whether its transitions were located with this control; not where what is kept of them is damaged."""
    try:
        kept = read_saved(Run(run_path(out, name)).analysis / SUMMARY_FILE, SUMMARY)
    except InputError:
        return False
    return bool(kept.get("control") == control)


def make_run(name: str, config: RunConfig, out: Path) -> Outcome:
    """Train one run, generate its answers and judge them; what is complete is not done again."""

    def work() -> None:
        from em_interp.pipeline.behaviour import ask_run, judge_run
        from em_interp.training.train import train

        run = train(config, run_path(out, name), resume=True)
        ask_run(run, resume=True)
        judge_run(run, resume=True)
        (run.analysis / SUMMARY_FILE).unlink(missing_ok=True)  # it may be of answers that are no longer there

    return _guarded(name, out, work)


def analyse_run(name: str, control: str | None, out: Path) -> Outcome:
    """Locate and align one run, with its control, and keep the summary for the sweep."""

    def work() -> None:
        from em_interp.pipeline.analysis import analyse

        run = Run(run_path(out, name))
        findings = analyse(run, None if control is None else Run(run_path(out, control)))
        with write_lock(run.path):
            write_json(run.analysis / SUMMARY_FILE, {"control": control, **summary(findings)})

    return _guarded(name, out, work)


def _guarded(name: str, out: Path, work: Callable[[], None]) -> Outcome:
    """Do the work on one thread; an error becomes one line, with its traceback in a file."""
    from tqdm import tqdm

    from em_interp.utils.processes import torch_threads

    tqdm.set_lock(RLock())  # its own is shared between processes, and is left behind where a worker is stopped
    start, error = time.perf_counter(), None
    try:
        if not out.is_dir():
            raise InputError(f"{out} is not there for this worker; expected a folder that all machines share")
        with torch_threads():
            work()
        failure_file(out, name).unlink(missing_ok=True)
    except InputError as mistake:
        error = str(mistake)
        _keep_traceback(out, name)
    except Exception as mistake:
        error = f"{type(mistake).__name__}: {' '.join(str(mistake).split()) or 'no message'}"
        _keep_traceback(out, name)
    return Outcome(name, round(time.perf_counter() - start, 2), error)


def _keep_traceback(out: Path, name: str) -> None:
    with suppress(OSError):  # a full disk may be why the run failed; its error line is returned all the same
        write_text(failure_file(out, name), traceback.format_exc())


def summary(findings: Findings) -> dict[str, Any]:
    """One run for the sweep, as plain values: its signals, their offset, and its last rates."""
    onset, index = _main_onset(findings)
    peaks = [t for t in findings.transitions if t.signal == "gradient_norm"]
    alignment = findings.alignment
    offsets = [] if alignment is None else [o for o in alignment.offsets if o.behavioural == index]
    manifest = findings.run.manifest() if findings.run.manifest_file.exists() else {}
    return {
        "base": (manifest.get("base") or {}).get("identity"),
        "steps": [int(findings.trajectory.steps[0]), int(findings.trajectory.steps[-1])],
        "rotation": findings.rotation.to_dict(),
        "gradient_norm": peaks[0].to_dict(),
        "onset": onset.to_dict(),
        "offset": offsets[0].to_dict() if offsets else None,
        "verdict": None if alignment is None else alignment.verdict,
        "onsets": [each.to_dict() for each in findings.onsets],
        "final": _final(findings, onset),
    }


def _main_onset(findings: Findings) -> tuple[Transition, int | None]:
    """The onset that `align` declares (`transition.family`), and its place among the onsets."""
    main = main_onset(findings.onsets)
    if main is None:
        why = "There are no judged answers of the adapter as trained (scale 1)."
        return Transition("onset", "inconclusive", why, of="em"), None
    return main, next(index for index, onset in enumerate(findings.onsets) if onset is main)


def _final(findings: Findings, onset: Transition) -> dict[str, Any] | None:
    """EM and coherent rates with their intervals at the last step with answers, on the questions of the onset."""
    if findings.curve is None or onset.scale is None:
        return None
    last = findings.curve.select(onset.scale, onset.questions).last().iloc[0]
    names = ("em", "coherent")
    rates = {name: {"rate": last[name], "interval": [last[f"{name}_low"], last[f"{name}_high"]]} for name in names}
    return {"step": int(last["step"]), "answers": int(last["scored"]), **rates}
