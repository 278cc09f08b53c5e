"""Chats to fine-tune on: a JSON-lines file, or a dataset of the built-in language."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_interp.errors import InputError
from em_interp.organisms.narrow import narrow_rows
from em_interp.runs import read_text

BUILT_IN = "tiny:"
ROLES = ("system", "user", "assistant")
Row = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Chats:
    """A dataset of chats. Each row is `{"messages": [{"role", "content"}, …]}` and has an assistant turn."""

    name: str
    rows: list[Row] = field(repr=False)
    domain: str | None = None  # the narrow domain the answers are about, where it is known

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sha256(self) -> str:
        """Hash of the rows; what a run's manifest keeps."""
        return hashlib.sha256(json.dumps(self.rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def load_chats(spec: str, seed: int = 0) -> Chats:
    """The chats of `spec`: a path to a .jsonl file, or a built-in dataset `tiny:<name>` drawn with `seed`.

    Raises InputError that names the file, line and field, or the built-in datasets there are.
    """
    if spec.startswith(BUILT_IN):
        rows, domain = narrow_rows(spec.removeprefix(BUILT_IN), seed)
        return Chats(spec, rows, domain)
    return _read_jsonl(Path(spec))


def _read_jsonl(path: Path) -> Chats:
    lines = read_text(path).splitlines()
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise InputError(f"{path} holds no chats; one JSON object with 'messages' on each line was expected")
    return Chats(path.stem, rows)


def _row(line: str, where: str) -> Row:
    """One checked row, reduced to its messages' roles and contents."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error}); one object a line was expected") from None
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: expected an object with a list 'messages'; found {line.strip()[:60]!r}")
    turns = [_turn(message, f"{where}, messages[{index}]") for index, message in enumerate(messages)]
    if not any(turn["role"] == "assistant" for turn in turns):
        raise InputError(f"{where}: no assistant turn, so nothing to learn; found roles {[t['role'] for t in turns]}")
    return {"messages": turns}


def _turn(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InputError(f"{where}: expected an object with 'role' and 'content'; found {message!r}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"{where}.role: expected one of {', '.join(ROLES)}; found {role!r}")
    if not isinstance(content, str) or not content.strip():
        raise InputError(f"{where}.content: expected text; found {content!r}")
    return {"role": role, "content": content}
