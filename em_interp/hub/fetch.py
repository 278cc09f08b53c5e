"""Fetching: a repository of checkpoints as a folder in the user's cache, whole before it is used."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import get_ident
from urllib.parse import quote

from em_interp.errors import InputError
from em_interp.hub import access
from em_interp.hub.access import Repository, in_one_line, repository
from em_interp.hub.listing import RemoteFile, commit_of, is_there, list_files, needed
from em_interp.hub.names import is_commit
from em_interp.runs import read_json, read_text, to_json

WORKERS = 8  # downloads at a time
TRIES = 3  # of a file that arrives whole but wrong


def fetch(name: str, revision: str | None = None) -> Path:
    """A folder with the checkpoints of the repository `name`, in the user's cache; its own name is the commit.

    `revision` is a branch, a tag or a commit (default: main). Only what a path needs is fetched, by one listing and
    parallel downloads; each file is checked against the size and hash listed, and appears only when whole. What is
    there is never fetched again, and a whole commit hash that is there needs no network. With HF_HUB_OFFLINE set a
    branch or tag is the commit it was when last fetched.

    Raises InputError, in one line, where huggingface_hub is not installed, where the Hub cannot be reached or refuses,
    and where the repository holds no path.
    """
    repo, revision = repository(name), revision or "main"
    place = cache_folder() / name.replace("/", "--")
    try:
        with in_one_line(repo, revision):
            commit = _commit(repo, revision, place)
            missing = [file for file in _files(repo, commit, place) if not is_there(file, place / commit)]
            _download(repo, commit, missing, place / commit)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror or error}") from error
    return place / commit


def cache_folder() -> Path:
    """Where fetched repositories are kept: in $EM_INTERP_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("EM_INTERP_CACHE") or platformdirs.user_cache_dir("em_interp")) / "hub"


def _commit(repo: Repository, revision: str, place: Path) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if is_commit(revision) and _listing(place, revision).is_file():
        return revision
    ref = place / "refs" / quote(revision, safe="")
    try:
        commit, _ = commit_of(repo, revision)
    except OfflineModeIsEnabled:
        if ref.is_file():
            return read_text(ref)
        raise
    _put(ref, commit.encode())
    return commit


def _files(repo: Repository, commit: str, place: Path) -> list[RemoteFile]:
    """The needed files of a commit, which is listed once and for all: a commit never changes."""
    kept = _listing(place, commit)
    if kept.is_file():
        return needed([RemoteFile(**values) for values in read_json(kept)], repo)
    files = list_files(repo, commit)
    _put(kept, to_json([asdict(file) for file in files]).encode())
    return needed(files, repo)


def _listing(place: Path, commit: str) -> Path:
    return place / "listings" / f"{commit}.json"


def _download(repo: Repository, commit: str, files: Iterable[RemoteFile], folder: Path) -> None:
    def one(file: RemoteFile) -> None:
        _put(folder / file.path, _content(repo, commit, file))

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="em_interp-hub") as pool:
        try:
            for _ in pool.map(one, files):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _content(repo: Repository, commit: str, file: RemoteFile) -> bytes:
    """The bytes of a file, checked; a file that arrives cut or changed is asked for again."""
    url = f"{repo.page}/resolve/{commit}/{quote(file.path)}"
    fault: str | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(access.WAIT)
        try:
            content: bytes = repo.get(url).content
        except RuntimeError:  # huggingface_hub closes the client that threads share where one is refused a connection
            fault = "no connection"
            continue
        fault = file.fault(content)
        if fault is None:
            return content
    raise InputError(f"{repo.name}: {file.path} arrived {TRIES} times with {fault}; is something between changing it?")


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, under a name of our own: another process may be fetching the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
