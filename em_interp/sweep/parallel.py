"""The same work for many runs, some at a time: joblib on this machine (loky), or on a cluster (Ray).

Every worker computes on one thread: models small enough to be swept on CPUs gain nothing from a second, and workers
that each take all cores stand in each other's way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from em_interp.errors import InputError, nearest
from em_interp.sweep.work import Outcome

Backend = Literal["loky", "ray"]
BACKENDS: tuple[str, ...] = get_args(Backend)
OBJECT_STORE = 100 * 2**20  # bytes; workers leave their results in files


def cores() -> int:
    """How many workers this machine has room for."""
    return int(_joblib().cpu_count())


@contextmanager
def workers(backend: Backend, jobs: int) -> Iterator[Callable[..., list[Outcome]]]:
    """Workers for the block: a function that does `work(*arguments)` for each of `tasks`, in the order given.

    With `ray`: the cluster that RAY_ADDRESS names or that this process has joined, else one of this machine for the
    block, on loopback alone. Raises InputError for a backend that is not installed, or with fewer CPUs than `jobs`.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not known{nearest(backend, BACKENDS)} (known: {', '.join(BACKENDS)})")
    joblib = _joblib()

    def do(
        work: Callable[..., Outcome], tasks: Sequence[tuple[Any, ...]], what: str, progress: bool = False
    ) -> list[Outcome]:
        from tqdm import tqdm

        with tqdm(total=len(tasks), desc=what, unit="run", disable=not progress) as bar:

            class Parallel(joblib.Parallel):  # type: ignore[name-defined]
                def print_progress(self) -> None:  # called after each task, whatever the backend
                    bar.update(self.n_completed_tasks - bar.n)

            done: list[Outcome] = Parallel(batch_size=1)(joblib.delayed(work)(*task) for task in tasks)
        return done

    with _ray(jobs) if backend == "ray" else _loky(jobs) as settings, joblib.parallel_config(**settings):
        try:
            yield do
        except joblib.externals.loky.process_executor.TerminatedWorkerError as error:
            why = "a worker was killed, perhaps for want of memory; finished runs are kept; give --resume and fewer"
            raise InputError(f"{why} --jobs than {jobs}") from error


def _joblib() -> Any:
    try:
        import joblib
    except ImportError:
        raise InputError("a sweep needs joblib; install it with: pip install 'em-interp[sweep]'") from None
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
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise InputError("the Ray backend needs ray; install it with: pip install 'em-interp[ray]'") from None
    mine = not ray.is_initialized()
    if mine:
        local = {"num_cpus": jobs, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            ray.init(log_to_driver=False, **({} if elsewhere else {"address": "local", **local}))
        except ConnectionError as error:
            said = f"{' '.join(str(error).split())}; is it running, and does it want RAY_AUTH_MODE=token?"
            raise InputError(f"the Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: {said}") from None
    try:
        there = int(ray.cluster_resources().get("CPU", 0))
        if jobs > there:
            raise InputError(f"--jobs {jobs} was asked for; the Ray cluster has {there} CPUs")
        register_ray()
        yield {"backend": "ray", "n_jobs": jobs, "ray_remote_args": {"num_cpus": 1}}
    finally:
        if mine:
            ray.shutdown()
