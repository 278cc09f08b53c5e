"""Many jobs at once on several servers, by threads: in chunks, so that neighbouring jobs go to one server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TypeVar

J = TypeVar("J")
P = TypeVar("P")
R = TypeVar("R")


def dispatch_jobs(
    chunks: Iterable[Sequence[J]],
    servers: Sequence[P],
    workers: int,
    work: Callable[[P, J], R],
    keep: Callable[[list[tuple[J, R]]], None],
    stop: Callable[[], None],
) -> None:
    """Do all jobs; raises the first error of one, once those in flight have ended.

    Args:
        chunks: The jobs; none of the chunks is empty. A server takes one, and the next when it has begun all its jobs.
        servers: The servers.
        workers: Jobs at once, of each server.
        work: Does a job on a server, in a thread.
        keep: Called in this thread with finished jobs and their results, as they come, also after an error or Ctrl-C.
        stop: Makes the jobs in flight end early.
    """
    left, taken = iter(chunks), [deque[J]() for _ in servers]
    running: dict[Future[R], tuple[int, J]] = {}

    def send(server: int) -> None:
        """Give a server its next job, where there is one."""
        if not taken[server]:
            taken[server].extend(next(left, ()))
        if taken[server]:
            job = taken[server].popleft()
            running[pool.submit(work, servers[server], job)] = server, job

    def keep_done(futures: Iterable[Future[R]]) -> list[int]:
        """Keep what these have returned, and say which servers are free; raises the first error."""
        ended = [(future, *running.pop(future)) for future in futures]
        if finished := [(job, future.result()) for future, _, job in ended if future.exception() is None]:
            keep(finished)
        for future, *_ in ended:
            future.result()
        return [server for _, server, _ in ended]

    with ThreadPoolExecutor(max(1, workers * len(servers))) as pool:
        try:
            for server in list(range(len(servers))) * workers:
                send(server)
            while running:
                for server in keep_done(wait(running, return_when=FIRST_COMPLETED).done):
                    send(server)
        except BaseException:
            stop()
            with suppress(Exception):
                keep_done(wait(running).done)
            raise
