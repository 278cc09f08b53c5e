"""What was answered already: one line a request in an append-only file, found by the hash of the exact request."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType

from em_interp.behaviour.judges.request import Reply
from em_interp.errors import InputError


class RequestCache:
    """Replies by request, on disk from the moment they arrive; only their places are kept in memory.

    A reply whose line was cut off by a kill is forgotten. Lines are plain JSON and appending needs no locks of the
    file system, so the file may lie on a cluster's network disk; one process at a time writes it. With `read_only`
    nothing is made or mended. Raises InputError for a file with a damaged line.
    """

    def __init__(self, file: Path, read_only: bool = False) -> None:
        self._file, self._read_only = file, read_only
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()
        self._claims = [threading.Lock() for _ in range(1024)]
        self._open: FileIO | None = None
        if file.exists():
            self._index()

    def __enter__(self) -> RequestCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Keeps other threads from the same request, so that the second finds what the first was answered."""
        with self._claims[int(key[:8], 16) % len(self._claims)]:
            yield

    def get(self, key: str) -> Reply | None:
        """The reply to a request, or None where it has not been answered."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            handle = self._handle()
            handle.seek(place[0])
            line = handle.read(place[1])
        return Reply.from_dict(json.loads(line)["reply"])

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply. Raises OSError where the disk is full; what is kept stays whole."""
        line = (json.dumps({"key": key, "reply": reply.to_dict()}) + "\n").encode()
        with self._lock:
            handle = self._handle()
            handle.seek(self._end)
            written = 0
            try:
                while written < len(line):
                    written += handle.write(line[written:])
            except OSError:
                handle.truncate(self._end)
                raise
            self._places[key] = (self._end, len(line))
            self._end += len(line)

    def close(self) -> None:
        """Close the file."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _handle(self) -> FileIO:
        if self._open is None:
            if not self._read_only and not self._file.exists():
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.touch()
            self._open = FileIO(self._file, "rb" if self._read_only else "r+b")
        return self._open

    def _index(self) -> None:
        """Find every whole line; what a kill left behind them is overwritten by the next reply."""
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    values = json.loads(line)
                    Reply.from_dict(values["reply"])
                    self._places[values["key"]] = (self._end, len(line))
                except (ValueError, LookupError, TypeError):
                    raise InputError(f"{self._file}, line {number} is damaged; remove that line to go on") from None
                self._end += len(line)
        if not self._read_only and self._end < self._file.stat().st_size:
            os.truncate(self._file, self._end)
