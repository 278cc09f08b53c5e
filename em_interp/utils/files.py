"""Reading and writing files: a file is written whole or not at all, and replaced only on request.

Files and folders are written beside their place and renamed, so that existence means completeness and a crash costs at
most the item in flight.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from em_interp.errors import InputError, Interrupted, one_line

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; renamed to `path` when the block ends without error.

    On an error whatever was written is removed and `path` is left as it was. An existing folder is replaced. Raises
    InputError where a link inside a run directory leads to the path, and OSError for a full disk whatever writes there.
    """
    path = Path(path)
    refuse_links(path)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    _remove(part)
    try:
        yield part
        if path.is_dir() and part.is_dir():
            _remove(path)
        part.replace(path)
    except BaseException as error:
        _remove(part)
        _raise_as_os_error(error, path, part)
        raise


_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # as libraries in Rust have it; as shutil lists it


def _raise_as_os_error(error: BaseException, path: Path, part: Path) -> None:
    """Raise OSError that names `path` for an error of the disk that names `part` or nothing, as safetensors' does."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and number is not None and error.filename not in (None, str(part)):
        return
    if number is None and isinstance(error, Exception) and (found := _NUMBER.search(str(error))):
        number = int(found[1] or found[2])
    if number is not None:
        raise OSError(number, os.strerror(number), str(path)) from error


RUN_FILES = ("config.yaml", "manifest.json", "trainer_state.json", "behaviour")  # one of them tells a run directory
RUN_FOLDERS = ("behaviour", "analysis", "figures", "resume")
_OWN_CHECKPOINT = re.compile(r"\.?checkpoint-[0-9]+(?:\.part)?")
MAX_NAME = 60  # characters of a name that came from elsewhere


def refuse_links(path: Path, in_place: bool = False) -> None:
    """Raise InputError where a folder of a run directory on the way to `path` is a link, which may lead out of it.

    The run directory itself may be one, and so may what is not part of it. For a file that is written `in_place`, a
    link in its own place is refused too, and so is all that is no regular file: writing to a pipe waits for a reader.
    """
    path = Path(path).absolute()
    links = [place for place in (*([path] if in_place else []), *list(path.parents)[:MAX_DEPTH]) if place.is_symlink()]
    for link in links:
        for root in list(link.parents)[:MAX_DEPTH]:
            if _is_in_run(path.relative_to(root).parts) and any((root / name).exists() for name in RUN_FILES):
                raise InputError(
                    f"{link} is a link, which is not written through; put a real one there, or give another out=…"
                )
    if in_place and path.exists():
        check_regular(path)


MAX_DEPTH = 8  # folders between a run directory and its deepest file


def _is_in_run(parts: tuple[str, ...]) -> bool:
    """Whether a path from a run directory is one of the run's own."""
    own_checkpoint = parts[0] == "checkpoints" and len(parts) > 1 and _OWN_CHECKPOINT.fullmatch(parts[1])
    return parts[0] in RUN_FOLDERS or bool(own_checkpoint)


def safe_name(name: str) -> str:
    """A name from elsewhere as the name of a file, or part of it: letters, digits, '-', '_' and '.', not too long."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    if len(plain) <= MAX_NAME and plain.strip("."):
        return plain
    return f"{plain[:MAX_NAME]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """For a stage that writes to `folder`: a full disk as InputError, Ctrl-C and SIGTERM as Interrupted."""
    try:
        yield
    except OSError as error:
        kept = "; what was written is kept, resume=True continues" if folder.exists() else ""
        raise InputError(f"{folder} cannot be written: {error.strerror or error}{kept}") from error
    except KeyboardInterrupt as error:
        raise Interrupted(folder, getattr(error, "progress", "")) from None


def check_free(path: Path, resume: bool, overwrite: bool, content: str = "") -> None:
    """Raise InputError where `path` exists already without `resume` or `overwrite`, and where both are given.

    Every function that writes calls it before it computes anything. `content` names what is there, where the path
    does not say it.
    """
    check_resume_or_overwrite(resume, overwrite)
    if path.exists() and not (resume or overwrite):
        reason = f"{path} holds {content} already" if content else f"{path} is there already"
        raise InputError(f"{reason}; give resume=True to go on with it, overwrite=True to replace it, or another out=…")


def check_free_or_unkept(path: Path | None, resume: bool, overwrite: bool) -> None:
    """`check_free` of where a result is kept; where it is not, `resume` and `overwrite` would do nothing."""
    check_resume_or_overwrite(resume, overwrite)
    if path is not None:
        check_free(path, resume, overwrite)
    elif resume or overwrite:
        given = "resume" if resume else "overwrite"
        raise InputError(f"{given}=True is for a result that is kept, and this one is not: leave it out, or give out=…")


def check_names_free(folder: Path, names: Iterable[str], resume: bool, overwrite: bool) -> None:
    """`check_free` of a folder that is taken where it holds one of the names."""
    for name in names:
        if (folder / name).exists():
            check_free(folder, resume, overwrite, name)


def check_replaceable(places: Iterable[Path], begun: bool, what: str) -> None:
    """Raise InputError where one of the places holds something that is not of `what`, for none was `begun` there."""
    for place in places if not begun else ():
        if place.is_file() or (place.is_dir() and any(not entry.name.startswith(".") for entry in place.iterdir())):
            raise InputError(f"{place} is not of {what}, so it is not replaced; give out=… a folder of its own")


def check_resume_or_overwrite(resume: bool, overwrite: bool) -> None:
    """Raise InputError where both are given."""
    if resume and overwrite:
        raise InputError("resume=True continues with what exists and overwrite=True replaces it; give one of them")


def remove(*paths: Path) -> None:
    """Remove files and folders, where they exist."""
    for path in paths:
        _remove(path)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with write_beside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV with nine digits, whole or not at all; text that a spreadsheet would compute is quoted.

    A text cell that starts with =, +, - or @ (or with a tab or a carriage return) gets an apostrophe in front, which
    spreadsheets show as text; otherwise an answer of a model could run as a formula.
    """
    safe = table.rename(columns=_defused).map(_defused)
    write_text(path, safe.to_csv(index=False, float_format="%.9g"))


def _defused(cell: Any) -> Any:
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{cell}"
    return cell


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all; see `to_json` for numbers that are not finite."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any, indent: int | None = 2) -> str:
    """`value` as strict JSON: NaN and infinities become null, numpy numbers and arrays become plain ones."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as what JSON has: None for NaN and infinities, lists for arrays, plain numbers for numpy's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


MAX_READ = 2**30  # bytes of a file that is read whole; one with holes may claim any size


BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """The text in `path`, in UTF-8 or, where a byte-order mark says so, UTF-16; its line ends are kept.

    Raises InputError naming the file when it is missing, no regular file, too large, cannot be read, or is other text.
    """
    content = read_bytes(path)
    codec = next((codec for mark, codec in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(codec)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not {codec.upper().removesuffix('-SIG')} (byte 0x{content[error.start]:02x}); save "
            "the file as UTF-8; it may be Windows-1252, compressed or encrypted"
        ) from None
    refuse_file_types(path, text[:512].encode(errors="replace"), STAND_INS)
    return text


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a text, numbered from 1. Only a line feed ends one: JSON may hold other separators as they are."""
    return enumerate(text.removesuffix("\n").split("\n"), start=1)


def is_json_lines(text: str) -> bool:
    """Whether there are several lines, and each that is not blank looks like an object."""
    lines = [line.strip() for _, line in numbered_lines(text) if line.strip()]
    return len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines)


def json_lines(text: str, path: Path, expected: str) -> Iterator[tuple[str, Any]]:
    """The place ('<path>, line 3') and the JSON value of each line that is not blank; InputError as `parse_json`.

    `text` is that of the file, `expected` says what a line should hold.
    """
    for number, line in numbered_lines(text):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where, f"; {expected} a line was expected")


def parse_json(text: str, where: str, hint: str = "") -> Any:
    """The value of JSON text from elsewhere.

    Raises InputError where it is broken, an object has a key twice, or a text half of a character, which no file holds.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
        if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):  # half a character, unless its other half follows
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:  # all of json's and codecs'; numbers and nesting beyond limits
        raise InputError(f"{where}: not valid JSON ({one_line(str(error), 120)}){hint}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(key for key, _ in pairs)}")
    return values


WEB_PAGE = "a web page, not the file itself; download the file behind it (the raw file, or after a log-in)"
STAND_INS = {  # how a file begins that came in place of another, in lower case, and what it is
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull` in the clone",
    b"<!doctype html": WEB_PAGE,
    b"<html": WEB_PAGE,
}


def refuse_file_types(path: Path, content: bytes, kinds: Mapping[bytes, str]) -> None:
    """Raise InputError, with what it is, for a file that begins as one of `kinds`, whatever the case."""
    start = content[:512].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for beginning, what in kinds.items():
        if start.startswith(beginning):
            raise InputError(f"{path} is {what}")


def read_bytes(path: Path, limit: float = MAX_READ) -> bytes:
    """The bytes of `path`; raises InputError naming the file when it is missing, no regular file or too large."""
    return _read(path, lambda file: _no_larger(file, limit).read_bytes())


def _no_larger(path: Path, limit: float) -> Path:
    """The path; raises InputError for a file that is larger than what is read whole."""
    if (size := path.stat().st_size) > limit:
        raise InputError(f"{path} holds {size / 2**30:.1f} GiB; {limit / 2**30:g} at most are read")
    return path


def read_start(path: Path) -> bytes:
    """The first 512 bytes of `path`; raises what `read_bytes` raises."""

    def read(file: Path) -> bytes:
        with file.open("rb") as content:
            return content.read(512)

    return _read(path, read)


def _read(path: Path, reader: Callable[[Path], T]) -> T:
    path = Path(path)
    try:
        check_regular(path)
        return reader(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, (InputError, UnicodeDecodeError)):
            raise
        raise InputError(f"{path} cannot be the name of a file: {error}") from None


def check_regular(path: Path) -> None:
    """Raise InputError for a folder, and for a pipe, socket or device, whose content may have no end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; a file was expected")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is a pipe, socket or device; a file was expected")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; raises InputError naming the file when it is missing, else as `parse_json`."""
    return parse_json(read_text(path), str(path), "; it may be truncated")
