"""Long work in parts: each kept when it is done, so that an interrupted stage goes on to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_interp.errors import InputError
from em_interp.runs import read_json, write_json


def begin(settings_file: Path, settings: dict[str, Any], resume: bool) -> None:
    """Write the settings of a stage, or check that those of one begun earlier are the same.

    Raises InputError where it was begun before (without `resume`) or with other settings, naming the first.
    """
    folder = settings_file.parent
    if not settings_file.exists():
        write_json(settings_file, settings)
        return
    if not resume:
        raise InputError(f"{folder} holds results already; give --resume to continue, or another --out")
    begun = read_json(settings_file)
    other = [key for key, value in json.loads(json.dumps(settings)).items() if begun.get(key) != value]
    if other:
        raise InputError(f"what is in {folder} was begun with other {other[0]}; remove the folder to begin anew")


def in_parts(folder: Path, count: int, make: Callable[[int], Any], name: str, progress: bool = False) -> list[Any]:
    """The values of parts 0 … count − 1, each read from `folder` or made and kept there as JSON."""
    from tqdm import tqdm

    values = []
    for index in tqdm(range(count), name, unit="batch", disable=not progress):
        part = folder / f"{index:05}.json"
        if not part.exists():
            write_json(part, make(index))
        values.append(read_json(part))
    return values


def clear(folder: Path) -> None:
    """Remove parts whose values have been put together."""
    shutil.rmtree(folder, ignore_errors=True)
