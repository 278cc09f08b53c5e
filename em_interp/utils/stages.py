"""Work that continues where it was interrupted: its settings, its parts and its folder.

A stage writes its settings first and each part when it is done. Interrupted and resumed, it ends with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from em_interp.errors import InputError, one_line
from em_interp.utils.checks import described, fits
from em_interp.utils.files import read_json, resumable, to_json, write_json
from em_interp.utils.lock import write_lock
from em_interp.utils.processes import SINGLE, Processes, lost_process_as_error
from em_interp.utils.progress import is_watched, progress_bar


@dataclass(frozen=True)
class Storage:
    """Where an analysis keeps its work, and whether it continues with existing parts.

    Attributes:
        folder: None keeps nothing; an interrupted analysis then begins anew.
        resume: continue with what is in the folder. Without it a folder that has results already is refused.
        progress: whether progress is shown, with the time left; None: where somebody is watching (see `is_watched`).
    """

    folder: Path | None = None
    resume: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))

    @classmethod
    def of(cls, given: Storage | str | Path | None) -> Storage:
        """The storage given; a path is its folder."""
        return given if isinstance(given, Storage) else cls(None if given is None else Path(given))

    @property
    def shows_progress(self) -> bool:
        """Whether progress is shown here."""
        return is_watched() if self.progress is None else self.progress

    def at(self, *names: str) -> Storage:
        """The same for a folder within this one."""
        return self if self.folder is None else Storage(self.folder.joinpath(*names), self.resume, self.progress)

    @contextmanager
    def open(self) -> Iterator[Path]:
        """The folder to work in; a temporary one, removed when the block ends, where none was given."""
        if self.folder is not None:
            with write_lock(self.folder), resumable(self.folder):
                yield self.folder
        else:
            with TemporaryDirectory() as folder:
                yield Path(folder)


@contextmanager
def shared_write_lock(path: Path, folder: Path, processes: Processes) -> Iterator[None]:
    """For a stage of several processes that writes to `folder` in `path`, which the main process locks for all."""
    with ExitStack() as stack, resumable(folder), lost_process_as_error(folder):
        processes.on_main(lambda: stack.enter_context(write_lock(path)))
        yield


def begin_stage(
    settings_file: Path,
    settings: dict[str, Any],
    resume: bool,
    result: Path | None = None,
    what: str = "results",
    replaceable: bool = False,
) -> None:
    """Write the settings of a stage, or check that those of one begun earlier are the same.

    A stage has begun where its settings or its `result` exist. Raises InputError where it has (without `resume`), and
    where its settings were others, naming the first. `replaceable` says whether overwrite=True begins the stage anew;
    without it the folder is the stage's alone.
    """
    folder = settings_file.parent
    if not settings_file.exists() and not (result is not None and result.exists()):
        write_json(settings_file, settings)
        return
    if not resume:
        ways = "resume=True to continue, overwrite=True to replace them, or another out=…"
        ways = ways if replaceable else "resume=True to continue, or another folder"
        raise InputError(f"{folder} holds {what} already; give {ways}")
    begun = read_saved(settings_file, dict) if settings_file.exists() else {}
    for key, value in json.loads(to_json(settings)).items():
        if begun.get(key) != value:
            raise InputError(
                f"the {what} in {folder} were begun with other {key} (with {described(begun.get(key))}; now given: "
                f"{described(value)}); give the same, or begin anew: "
                f"{'overwrite=True, or another out=…' if replaceable else 'remove that folder, or give another'}"
            )


def in_parts(
    folder: Path,
    count: int,
    make: Callable[[int], Any],
    name: str,
    progress: bool | None = None,
    processes: Processes = SINGLE,
) -> list[Any]:
    """The values of parts 0 … count − 1, each read from `folder`, or made and kept there as JSON.

    `make` must not return None. Several processes make about as many each, and all get all values.
    """
    files = [folder / f"{index:05}.json" for index in range(count)]

    def make_share() -> None:
        share = range(processes.rank, count, processes.count)
        for index in progress_bar(share, name, "batch", progress if processes.is_main else False):
            if read_part(files[index]) is None:
                write_json(files[index], make(index))

    processes.on_all(make_share)
    return [read_json(file) for file in files]


def read_saved(file: Path, form: Any) -> Any:
    """The JSON value that a stage has kept in `file`; raises InputError that names the place where it has another form.

    Args:
        file: the file.
        form: a mapping of keys to forms (a key with '?' may be missing or null, '*' is every key; others may be there),
            a list with the form of each item, or a type.
    """
    value = read_json(file)
    _check_form(value, form, "", file)
    return value


def _check_form(value: Any, form: Any, place: str, file: Path) -> None:
    is_whole = isinstance(value, type(form)) if isinstance(form, (dict, list)) else fits(value, form)
    if not is_whole:
        what = f"{place} is {described(value)}" if place else f"it holds {described(value)}"
        raise damaged(file, what)
    if isinstance(form, list):
        for number, item in enumerate(value):
            _check_form(item, form[0], f"{place}[{number}]", file)
    for key, inner in form.items() if isinstance(form, dict) else ():
        if key == "*":
            for name, item in value.items():
                _check_form(item, inner, f"{place}.{name}".lstrip("."), file)
            continue
        name = key.removesuffix("?")
        if name not in value and name == key:
            raise damaged(file, f"{place or 'it'} has no {name}")
        if value.get(name) is not None or name == key:
            _check_form(value[name], inner, f"{place}.{name}".lstrip("."), file)


def damaged(file: Path, why: object) -> InputError:
    """The error for a file of em-interp that does not hold what em-interp writes there."""
    reason = one_line(str(why), 200)
    return InputError(f"{file} does not hold what em-interp writes there: {reason}; remove it, or make it anew")


@contextmanager
def reading_saved(file: Path) -> Iterator[None]:
    """For a block that uses what was kept in `file`: where that has another form, as `damaged`."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise damaged(file, f"{type(error).__name__}: {error}") from None


def read_part(part: Path) -> Any:
    """The value of a part; None where it is missing or damaged, as by a power cut."""
    try:
        return read_json(part)
    except InputError:
        return None
