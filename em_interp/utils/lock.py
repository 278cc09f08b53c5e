"""One writer per folder: a lock file that names the process that writes there. Readers ignore it.

The lock is the operating system's own on the file `.writing`, so that it ends with the process, however that ends; what
the file says is for people, and for folders that several machines share. A file that is left by a process that was
killed on this machine is taken over.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_interp.errors import InputError, one_line

LOCK_FILE = ".writing"
MAX_LOCK_BYTES = 4096
_LOCKED_BYTE = 2**30  # where Windows locks: far from what others read
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # by some network file systems


@dataclass
class _Owner:
    """The thread of this process that writes to a folder, its open blocks, and what the last one releases."""

    thread: int
    count: int = 0
    resources: ExitStack = field(default_factory=ExitStack)


_owners: dict[Path, _Owner] = {}  # by folder
_owners_lock = threading.RLock()  # re-entrant: the garbage collector may end an abandoned block at any moment


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """For a stage that writes in `folder`, such as a run directory: no other process or thread writes there meanwhile.

    Stages of one thread nest, and may end in any order. The folder is made where it is missing, and removed again
    where nothing was written to it. Where no lock file can be made, as in a folder that is read-only, there is no lock:
    the stage finds out for itself.

    Raises InputError that names the other process: host, process id and since when it writes.
    """
    folder, thread = Path(folder).resolve(), threading.get_ident()
    with _owners_lock:
        owner = _owners.setdefault(folder, _Owner(thread))
        if owner.thread != thread:
            raise InputError(f"{folder} is being written by another thread of this process; wait until it has ended")
        owner.count += 1
    try:
        if owner.count == 1:
            owner.resources.enter_context(_create_folder(folder))
            owner.resources.enter_context(_hold_lock(folder))
        yield
    finally:
        with _owners_lock:
            owner.count -= 1
            if not owner.count:
                del _owners[folder]
                owner.resources.close()


@contextmanager
def _create_folder(folder: Path) -> Iterator[None]:
    """The folder, made with its parents; those that are empty at the end are removed again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()


@contextmanager
def _hold_lock(folder: Path) -> Iterator[None]:
    file = folder / LOCK_FILE
    descriptor = _acquire(file)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                file.unlink()
            os.close(descriptor)


def _acquire(file: Path) -> int | None:
    """The open and locked file; None where there can be none."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{file} is a link; remove it: it is where a process that writes says so") from None
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{file} is a pipe or device; remove it: it is where a process that writes says so")
            _check_owner(file, descriptor)
            if _is_at(file, descriptor):
                _write_owner(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the other process removed the file between the opening and the locking


def _check_owner(file: Path, descriptor: int) -> None:
    """Lock the file; raises InputError where another process has it, or one of another machine may have it."""
    is_free = _try_lock(descriptor)
    owner = _owner(descriptor)
    host, pid = owner.get("host"), owner.get("pid")
    if is_free is None:
        is_free = host != socket.gethostname() or not isinstance(pid, int) or not _is_alive(pid)
    if is_free and host in (None, socket.gethostname()):
        return
    named = one_line(f"(process {pid} on {host}, since {owner.get('since')})", 200) if owner else ""
    gone = f"; if that process has ended, remove {file}" if is_free else ""
    raise InputError(
        f"{file.parent} is being written by another process {named}; wait until it has ended, or give "
        f"another out=…{gone}"
    )


def _try_lock(descriptor: int) -> bool | None:
    """Whether the lock was free and is now held; None where the file system has no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _UNSUPPORTED else False
    return True


def _owner(descriptor: int) -> dict[str, Any]:
    """What the lock file says of its process; empty where it says nothing."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        owner = json.loads(os.read(descriptor, MAX_LOCK_BYTES))
    except (ValueError, OSError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _write_owner(descriptor: int) -> None:
    """Write which process has the lock; on a full disk the lock holds without it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n"
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, owner.encode())


def _is_at(file: Path, descriptor: int) -> bool:
    """Whether the open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
