"""Names on the Hub, and which of a repository's files make up a path."""

from __future__ import annotations

import re
from typing import TypeGuard

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
CHECKPOINT = re.compile(r"(?:checkpoints/)?checkpoint-([0-9]+)/([^/]+)")  # both public layouts


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `organisation/repository`."""
    return _HUB_ID.fullmatch(name) is not None


def is_commit(revision: object) -> TypeGuard[str]:
    """Whether `revision` is a whole commit hash: what it names never changes."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None
