"""Replies of judging models, stored on disk when they arrive, so that no request is sent and paid for twice."""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from em_interp.behaviour.judging.replies import Reply
from em_interp.errors import InputError

BUSY_TIMEOUT = 60.0  # seconds for another process that is writing
_TABLE = "CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, reply TEXT, sha256 TEXT)"
_INSERT = "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)"
_DAMAGE = (sqlite3.Error, UnicodeDecodeError)  # the second where SQLite's message repeats what is no UTF-8
_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE")
_NO_ACCESS = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_BUSY", "SQLITE_PERM")


class RequestCache:
    """Replies by the hash of the exact request, in one SQLite file; for many threads and several processes at once.

    The file is checked when it is opened. A damaged one is set aside as `<name>.damaged`, and the replies in it that
    are whole go into a new one; a single damaged reply counts as missing. With `read_only` nothing is made or written,
    and a damaged file counts as empty.
    """

    def __init__(self, file: Path, read_only: bool = False) -> None:
        self._file, self._read_only = file, read_only
        self._lock = threading.Lock()
        self._claims = [threading.Lock() for _ in range(1024)]
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> RequestCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        rows = self._run("SELECT count(*) FROM replies")
        return int(rows[0][0]) if rows else 0

    def __contains__(self, request: str) -> bool:
        return self.get(request) is not None

    @contextmanager
    def claimed(self, request: str) -> Iterator[None]:
        """Keeps other threads from the same request, so that the second finds what the first was answered."""
        with self._claims[int(request[:8], 16) % len(self._claims)]:
            yield

    def get(self, request: str) -> Reply | None:
        """The reply to a request, or None where it has not been answered."""
        rows = self._run("SELECT request, reply, sha256 FROM replies WHERE request = ?", request)
        return Reply.from_dict(json.loads(rows[0][1])) if rows and _is_whole(rows[0]) else None

    def put(self, request: str, reply: Reply) -> None:
        """Keep a reply. Raises OSError where it cannot be written; what is kept stays whole."""
        text = json.dumps(reply.to_dict())
        self._run(_INSERT, request, text, _sha256(request.encode(), text.encode()).decode())

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _run(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        """The rows of a statement. A file that is damaged, also when it is opened again, is renewed before."""
        with self._lock:
            for mend in (self.close, self._renew):
                try:
                    return self._execute(statement, values)
                except _DAMAGE as error:
                    self.close()
                    if self._read_only:
                        return []
                    _check_access(error, self._file)
                    mend()
            return self._execute(statement, values)

    def _execute(self, statement: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        if self._database is None and not (self._read_only and not self._file.exists()):
            self._database = self._connect()
        if self._database is None:
            return []
        with self._database:
            return self._database.execute(statement, values).fetchall()

    def _connect(self) -> sqlite3.Connection:
        """The open database, checked; raises sqlite3.DatabaseError where it is damaged."""
        if self._file.is_symlink():
            raise InputError(f"{self._file} is a link; remove it: what a judge has answered is kept in the run itself")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        database = _open(self._file, "rw" if self._read_only else "rwc")
        try:
            database.execute("PRAGMA synchronous = OFF")  # a kill loses nothing; what a power cut damages is mended
            if not self._read_only:
                database.execute(_TABLE)
            if (fault := database.execute("PRAGMA integrity_check(1)").fetchone()) != (b"ok",):
                raise sqlite3.DatabaseError(str(fault))
        except BaseException:
            database.close()
            raise
        return database

    def _renew(self) -> None:
        """Set the file aside, and put the replies in it that are whole into a new one."""
        aside = self._file.with_name(f"{self._file.name}.damaged")
        for end in ("", "-journal"):
            if (part := self._file.with_name(self._file.name + end)).exists():
                part.replace(aside.with_name(aside.name + end))
        self._database = self._connect()
        with self._database, closing(_open(aside, "rw")) as damaged, suppress(*_DAMAGE):
            for row in damaged.execute("SELECT request, reply, sha256 FROM replies"):
                if _is_whole(row):
                    self._database.execute(_INSERT, [value.decode() for value in row])


def _open(file: Path, mode: str) -> sqlite3.Connection:
    address = f"{file.absolute().as_uri()}?mode={mode}"
    database = sqlite3.connect(address, timeout=BUSY_TIMEOUT, uri=True, check_same_thread=False)
    database.text_factory = bytes  # a damaged text may be no UTF-8
    return database


def _check_access(error: Exception, file: Path) -> None:
    """Raises OSError where the error is of the disk, not of what the file holds."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(_NO_ACCESS):
        code = errno.ENOSPC if name.startswith(_FULL) else errno.EIO
        raise OSError(code, f"{file.name}: {error}") from None


def _is_whole(row: tuple[Any, ...]) -> bool:
    request, reply, sha256 = row
    return isinstance(request, bytes) and isinstance(reply, bytes) and _sha256(request, reply) == sha256


def _sha256(request: bytes, reply: bytes) -> bytes:
    return hashlib.sha256(request + reply).hexdigest().encode()
