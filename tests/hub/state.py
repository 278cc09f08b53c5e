"""What a Hub holds: repositories with their commits, what was asked of it, and how it is to misbehave."""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from em_interp.errors import InputError

TOKEN = "hf_secret_of_the_tests"
LFS = (".safetensors", ".pt", ".parquet")
FAULTS = ("429", "500", "503", "cut", "short", "long", "changed", "html", "403", "412", "slow")


@dataclass
class Repo:
    """A repository: its commits' files, and where its branches are."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    access: str = "public"  # or private, gated

    def commit(self, files: dict[str, bytes]) -> str:
        said = [f"{len(self.commits)}", *(f"{name} {hashlib.sha1(held).hexdigest()}" for name, held in files.items())]
        sha = hashlib.sha1("\n".join(said).encode()).hexdigest()
        self.commits[sha], self.refs["main"] = dict(files), sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    token: str | None
    host: str
    body: bytes


class Hub:
    """The state of the server, and all that was asked of it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[Asked] = []
        self.wrong: list[str] = []  # requests that no Hub call of em_interp makes
        self.faults: list[list] = []
        self.stored: dict[str, bytes] = {}  # LFS objects
        self.page_size, self.endpoint, self.lock = 1000, "", threading.Lock()
        self.released = threading.Event()  # ends what is slow

    def put(self, name: str, folder: Path) -> str:
        """A repository with the files of a folder; returns its commit."""
        files = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
        return self.repos.setdefault(name, Repo()).commit({".gitattributes": b"*.safetensors lfs\n", **files})

    def misbehave(self, kind: str, pattern: str, times: int = 1, **headers: str) -> None:
        """Answer the next `times` requests whose path matches in a wrong way."""
        assert kind in FAULTS
        self.faults.append([kind, re.compile(pattern), times, headers])

    def paths(self, method: str = "GET") -> list[str]:
        return [asked.path for asked in self.asked if asked.method == method]

    def downloads(self) -> list[str]:
        """The files whose content was requested, as often as it was."""
        found = (
            re.fullmatch(r"(?:/storage/[0-9a-f]{64}|/[^/]+/[^/]+/resolve/[0-9a-f]{40})/(.+)", p) for p in self.paths()
        )
        return sorted(match[1] for match in found if match)

    def fault(self, path: str) -> tuple[str, dict[str, str]]:
        with self.lock:
            for fault in self.faults:
                if fault[2] and fault[1].search(path):
                    fault[2] -= 1
                    return fault[0], fault[3]
        return "", {}


def entry(path, held):
    listed = {"type": "file", "path": path, "size": len(held)}
    if path.endswith(LFS):
        lfs = {"oid": hashlib.sha256(held).hexdigest(), "size": len(held), "pointerSize": 130}
        return listed | {"oid": "1" * 40, "lfs": lfs}
    return listed | {"oid": hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()}


def said_by(call, *arguments, **options):
    """The one line that is said when a call is refused; the token is never in it."""
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)
    return str(error.value)
