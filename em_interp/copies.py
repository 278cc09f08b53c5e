"""A stage that writes elsewhere: a copy of a run, whose adapters are linked, so that the run itself is left alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from em_interp.errors import InputError
from em_interp.runs import Run, resumable, write_beside

NEVER_COPIED = (".*", "resume")  # what is being written, and what training overwrites in place


def elsewhere(run: Run, out: str | Path | None, without: tuple[str, ...] = ()) -> Run:
    """The run itself, or a copy of it in `out` (adapters are linked where possible) whose stages leave the run alone.

    `without` are names and patterns of files and folders that are not copied: what the stage is about to make.
    Raises InputError where `out` holds another run, lies inside the run, or cannot be written.
    """
    if out is None or Path(out).resolve() == run.path.resolve():
        return run
    copy = Run(Path(out))
    if run.path.resolve() in copy.path.resolve().parents:
        raise InputError(f"{out} lies inside the run {run.path}; give another --out")
    if copy.config_file.exists() or copy.steps():
        for mine, theirs in ((run.config_file, copy.config_file), (run.manifest_file, copy.manifest_file)):
            if _content(mine) != _content(theirs):
                raise InputError(
                    f"{out} holds another run than {run.path}: its {mine.name} differs; give another --out"
                )
    with resumable(copy.path):
        for file in _files(run.path, (*without, *NEVER_COPIED)):
            _copy(file, copy.path / file.relative_to(run.path))
    return copy


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _files(folder: Path, without: tuple[str, ...]) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if any(fnmatch(entry.name, pattern) for pattern in without):
            continue
        if entry.is_dir():
            yield from _files(entry, without)
        else:
            yield entry


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":  # may be gigabytes in all, and nobody edits them
        try:
            target.hardlink_to(source)
            return
        except OSError:  # another disk, or one without links
            pass
    with write_beside(target) as part:
        shutil.copy2(source, part)
