"""Many jobs at once on several servers, by threads: in chunks, so that neighbouring jobs go to one server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

J = TypeVar("J")
P = TypeVar("P")
R = TypeVar("R")


class _JobQueue(Generic[J]):
    """The jobs that are left: a server takes a chunk of them, and when that is done the next."""

    def __init__(self, chunks: Iterable[Sequence[J]], servers: int) -> None:
        self.chunks: Iterator[Sequence[J]] = iter(chunks)
        self.taken: list[deque[J]] = [deque() for _ in range(servers)]
        self.lock, self.closed = Lock(), False

    def next(self, server: int) -> J | None:
        """The next job of a server; None where there is none."""
        with self.lock:
            if self.closed:
                return None
            if not self.taken[server]:
                self.taken[server].extend(next(self.chunks, ()))
            return self.taken[server].popleft() if self.taken[server] else None


class _Ended:
    """A thread has ended, with an error or without."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


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
        chunks: The jobs; none of the chunks is empty.
        servers: The servers.
        workers: Jobs at once, of each server.
        work: Does a job on a server, in a thread.
        keep: Called in this thread with finished jobs and their results, as they come, also after an error or Ctrl-C.
        stop: Makes the jobs in flight end early.
    """
    queue, results = _JobQueue(chunks, len(servers)), SimpleQueue[Any]()

    def run(server: int) -> None:
        error = None
        try:
            while (job := queue.next(server)) is not None:
                results.put((job, work(servers[server], job)))
        except BaseException as raised:
            error = raised
        results.put(_Ended(error))

    threads = [
        Thread(target=run, args=(server,), daemon=True) for server in range(len(servers)) for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            running -= _keep_some(results, keep)
    except BaseException:
        queue.closed = True
        stop()
        for thread in threads:
            thread.join()
        keep_left = [item for item in _drained(results) if not isinstance(item, _Ended)]
        if keep_left:
            keep(keep_left)
        raise


def _keep_some(results: SimpleQueue[Any], keep: Callable[[list[Any]], None]) -> int:
    """Keep the results that are there, one at least; returns how many threads have ended, or raises their error."""
    items = [results.get(), *_drained(results)]
    finished = [item for item in items if not isinstance(item, _Ended)]
    if finished:
        keep(finished)
    ended = [item for item in items if isinstance(item, _Ended)]
    for item in ended:
        if item.error is not None:
            raise item.error
    return len(ended)


def _drained(results: SimpleQueue[Any]) -> list[Any]:
    items = []
    try:
        while True:
            items.append(results.get_nowait())
    except Empty:
        return items
