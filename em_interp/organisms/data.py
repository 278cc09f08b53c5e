"""Chats to fine-tune on: a JSON-lines file, or a dataset of the built-in language."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from em_interp.organisms.jsonl import MESSAGES, Row, read_rows
from em_interp.organisms.narrow import narrow_rows

BUILT_IN = "tiny:"


@dataclass(frozen=True)
class Chats:
    """A dataset of chats. Each row is `{"messages": [{"role", "content"}, …]}` and has an assistant turn."""

    name: str
    rows: list[Row] = field(repr=False)
    domain: str | None = None  # the narrow domain the answers are about, where it is known
    form: str = MESSAGES  # what the rows were written as; see `jsonl`
    file: str | None = None
    lines: list[int] = field(default_factory=list, repr=False)  # of each row, in the file
    empty_lines: int = 0  # of the file; left out

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """What a person looks for to find a row, numbered from 0: its file and line where it has them."""
        return f"{self.file}, line {self.lines[row]}" if self.lines else f"row {row + 1} of {self.name}"

    @property
    def duplicates(self) -> list[int]:
        """Numbers of the rows that repeat an earlier one."""
        first: dict[str, int] = {}
        texts = [json.dumps(row, sort_keys=True) for row in self.rows]
        return [number for number, text in enumerate(texts) if first.setdefault(text, number) != number]

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
    path = Path(spec)
    form, found, empty = read_rows(path)
    lines, rows = [line for line, _ in found], [row for _, row in found]
    return Chats(path.stem, rows, None, form, str(path), lines, empty)
