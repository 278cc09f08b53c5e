"""What a repository holds at one commit: its files with their sizes and hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from em_interp.errors import InputError
from em_interp.hub.access import Repository
from em_interp.hub.names import CHECKPOINT, is_commit

WEIGHTS, STEERING, CONFIG, LOG = (
    "adapter_model.safetensors",
    "steering_vector.pt",
    "adapter_config.json",
    "trainer_state.json",
)
CHANGE = ("weight_change.safetensors", "weight_change.json")  # a step of full fine-tuning, without its full weights
AT_ROOT = ("config.yaml", "manifest.json", CONFIG, LOG)


@dataclass(frozen=True)
class RemoteFile:
    """One file as the Hub lists it."""

    path: str
    size: int  # bytes
    sha256: str | None  # of a file in LFS
    blob: str | None  # git's hash of any other file

    def fault(self, content: bytes) -> str | None:
        """What is wrong with `content` as this file; None where it is the file, whole."""
        if len(content) != self.size:
            return f"{len(content)} bytes instead of {self.size}"
        if self.sha256:
            return None if hashlib.sha256(content).hexdigest() == self.sha256 else "another sha256 than is listed"
        if self.blob:
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            return None if git.hexdigest() == self.blob else "another git hash than is listed"
        return None


def commit_of(repo: Repository, revision: str) -> tuple[str, list[str]]:
    """The commit that `revision` is now, and the paths in it. One request, the first one of any fetch."""
    url = f"{repo.endpoint}/api/models/{repo.name}/revision/{quote(revision, safe='')}"
    info = _json(repo.get(url, first=True), repo)
    sha = info.get("sha") if isinstance(info, dict) else None
    if not is_commit(sha) or (is_commit(revision) and sha != revision):
        raise InputError(f"{repo.endpoint} does not answer like the Hub: {repo.name} at {revision} is commit {sha!r}")
    return sha, [str(file.get("rfilename")) for file in info.get("siblings") or []]


def list_files(repo: Repository, commit: str) -> list[RemoteFile]:
    """Every file of a commit: one listing, over as many pages as the Hub makes of it."""
    url: str | None = f"{repo.endpoint}/api/models/{repo.name}/tree/{commit}?recursive=true&expand=false"
    files: list[RemoteFile] = []
    seen: set[str] = set()
    while url:
        if url in seen:
            raise InputError(f"{repo.endpoint} does not answer like the Hub: its listing of {repo.name} never ends")
        seen.add(url)
        response = repo.get(url)
        files += _page(_json(response, repo), repo)
        url = _next(response, repo)
    return files


def _page(entries: Any, repo: Repository) -> list[RemoteFile]:
    try:
        return [_file(entry) for entry in entries if entry["type"] == "file"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{repo.endpoint} does not answer like the Hub: its listing of {repo.name} is none") from None


def _file(entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    return RemoteFile(
        str(entry["path"]), int(entry["size"]), lfs["oid"] if lfs else None, None if lfs else entry.get("oid")
    )


def _next(response: Any, repo: Repository) -> str | None:
    """The next page, at our endpoint whatever host the link names: a mirror passes on links to the original."""
    link = response.links.get("next", {}).get("url")
    if link is None:
        return None
    host, parts = urlsplit(repo.endpoint), urlsplit(link)
    return f"{host.scheme}://{host.netloc}{parts.path}?{parts.query}"


def _json(response: Any, repo: Repository) -> Any:
    try:
        return response.json()
    except ValueError:
        raise InputError(f"{repo.endpoint} does not answer like the Hub: it sent no JSON (a log-in page?)") from None


def needed(files: list[RemoteFile], repo: Repository) -> list[RemoteFile]:
    """The files that make up the path: each step's adapter and config, one log, and what describes the run.

    Of the logs only the one that is read: the run's own, else that of the last step that has one. Raises InputError
    where there is no step, and where a step has no adapter that can be read.
    """
    steps: dict[str, dict[str, RemoteFile]] = {}
    for file in files:
        if match := CHECKPOINT.fullmatch(file.path):
            steps.setdefault(file.path.rpartition("/")[0], {})[match[2]] = file
    if not steps:
        there = ", ".join(sorted({file.path.split("/")[0] for file in files})[:8]) or "nothing"
        raise InputError(f"{repo.name} holds no checkpoint-<step> folders, so no path; it holds {there}")
    for folder, held in steps.items():
        if not {WEIGHTS, STEERING, CHANGE[0]} & set(held):
            there = ", ".join(sorted(held))
            raise InputError(f"{repo.name}: {folder} holds {there}; expected {WEIGHTS} (or {STEERING})")
    root = {file.path: file for file in files if file.path in AT_ROOT}
    logs = [folder for folder, held in steps.items() if LOG in held]
    last = [] if LOG in root or not logs else [steps[max(logs, key=lambda folder: int(folder.rpartition("-")[2]))][LOG]]
    adapters = [held[name] for held in steps.values() for name in (CONFIG, WEIGHTS, STEERING, *CHANGE) if name in held]
    return [*root.values(), *adapters, *last]


def is_there(file: RemoteFile, folder: Path) -> bool:
    """Whether `folder` has the file, by its size: what was written there was checked before."""
    try:
        return (folder / file.path).stat().st_size == file.size
    except OSError:
        return False
