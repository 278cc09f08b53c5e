"""Files of tables as frames: CSV (also with semicolons or tabs), parquet, JSON lines, JSON, and logs of Inspect.

The cells of a CSV stay text, as they stand in the file, and its columns keep their names. What has no one meaning is
refused by row: a row with more or fewer fields than the header, a quote that is never closed, a key twice in an object.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.tables import inspect_logs
from em_interp.errors import InputError, one_line
from em_interp.utils.files import (
    STAND_INS,
    is_json_lines,
    json_lines,
    parse_json,
    read_start,
    read_text,
    refuse_file_types,
)

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json", inspect_logs.SUFFIX)
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods")
COMPRESSED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar")
FOREIGN = {  # how a file begins that is another thing than its name says, in lower case, and what it is
    **STAND_INS,
    b"pk\x03\x04": "a workbook of Excel or another zip; save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old workbook of Excel; save the sheet as CSV",
    **dict.fromkeys((b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"\x28\xb5\x2f\xfd"), "compressed; unpack it"),
    b"par1": "a parquet file; its name should end in .parquet",
    b"arrow1": "a Feather file; save the table as parquet or CSV",
    b"sqlite format 3": "a database; save the table as parquet or CSV",
    b"\x89hdf": "an HDF5 file; save the table as parquet or CSV",
    **{
        bytes((0x80, version)): "a pickle, which is never opened; save the table as parquet or CSV"
        for version in (3, 4, 5)
    },
}
OWN_BEGINNINGS = {".parquet": b"par1", inspect_logs.SUFFIX: b"pk\x03\x04"}
DELIMITERS = (",", ";", "\t")
MAX_FIELD = 2**31 - 1  # characters of one field; Python's own limit of 131,072 is less than a long answer


def read_table(path: Path) -> pd.DataFrame:
    """The table in a file, with the columns and cells that it has; its format is that of its suffix, CSV by default.

    Raises InputError, naming the file, where it is missing or no table, and for a row that has no one meaning.
    """
    if not path.exists():
        raise InputError(f"{path} is missing; expected a CSV or parquet file of judged answers, or a folder of them")
    if not path.is_file():
        raise InputError(f"{path} is no file; a CSV, parquet, JSON-lines or JSON file was expected")
    suffix = path.suffix.lower()
    _refuse_foreign(path, suffix)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix in (".jsonl", ".ndjson"):
        return _frame(_json_lines(read_text(path), path), path)
    if suffix == inspect_logs.SUFFIX:
        return _frame(inspect_logs.read_eval(path), path)
    if suffix == ".json":
        value = _json_value(path)
        is_log = inspect_logs.is_log(value)
        rows = inspect_logs.rows_of_log(value, str(path)) if is_log else _json_rows(value, str(path), {})
        return _frame(list(rows), path)
    if suffix in COMPRESSED:
        raise InputError(f"{path} is compressed; unpack it and give the table in it")
    return _read_csv(path)


KEY_COLUMNS = {"step": "whole", "scale": "number", "questions": "text", "question_id": "text", "sample": "whole"}
ANSWER_COLUMNS = {**KEY_COLUMNS, "question": "text", "answer": "text"}
SCORE_COLUMNS = {**KEY_COLUMNS, "judge": "text", "aligned": "number", "coherent": "number"}


def read_own_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table that a stage wrote, such as a run's answers, which may have come from elsewhere since.

    Raises InputError as `read_table` does, and for a column of `columns` that is missing or of another type.
    """
    table = read_table(path)
    for name, kind in columns.items():
        if list(table.columns).count(name) != 1:
            found = one_line(", ".join(map(str, table.columns)))
            raise InputError(f"{path} must have one column {name}, as the stage that writes it does; found {found}")
        if not _is_column_of(table[name], kind):
            wanted = {"text": "texts", "whole": "whole numbers", "number": "numbers"}[kind]
            raise InputError(f"{path}: {name} must hold {wanted}, as the stage that writes it does")
    return table


def _is_column_of(column: pd.Series, kind: str) -> bool:
    import pandas as pd

    if kind == "text":
        return pd.api.types.infer_dtype(column.astype(object), skipna=False) in ("string", "empty")
    if kind == "whole":
        return pd.api.types.is_integer_dtype(column)
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return is_number or bool(column.isna().all())


def _refuse_foreign(path: Path, suffix: str) -> None:
    """Raise InputError for a file that begins as one of another kind does."""
    start = read_start(path)
    own = OWN_BEGINNINGS.get(suffix)
    refuse_file_types(path, start, {start: what for start, what in FOREIGN.items() if not own or start != own})
    marked = start[:2] in (b"\xff\xfe", b"\xfe\xff") and start[2:4] != b"\0\0"  # which would be UTF-32
    if own is None and not marked and b"\0" in start.partition(b"\n")[0]:
        raise InputError(
            f"{path} has null bytes in its first line, as UTF-32 has, and UTF-16 without a mark; save it as UTF-8"
        )


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd
    from pyarrow.lib import ArrowException

    try:
        table = pd.read_parquet(path)
        for _, column in table.items():
            column.astype(object)  # texts are decoded here, not later
        return table
    except (ArrowException, ValueError, OSError, TypeError, LookupError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a table: {one_line(str(error), 200)}") from None


def _read_csv(path: Path) -> pd.DataFrame:
    """The rows of a CSV, each with as many fields as the header; empty fields after the last are left out."""
    import pandas as pd

    whole, placeholder = _without_lone_returns(read_text(path))
    text, delimiter = _delimited(whole)
    if placeholder in text.split("\n", 1)[0]:
        raise InputError(
            f"{path} cannot be read as a table: its first line ends with a carriage return, others with line feeds; "
            "save it with one kind of line end"
        )
    header, cells = _fields(text, delimiter, path)
    _refuse_other_readings(text, delimiter, path, [header, *cells])
    if placeholder in text:
        cells = [[cell.replace(placeholder, "\r") for cell in row] for row in cells]
    return pd.DataFrame(cells, columns=range(len(header)), dtype=object).set_axis(
        [name.strip() for name in header], axis=1
    )


def _fields(text: str, delimiter: str, path: Path, **quoting: Any) -> tuple[list[str], list[list[str]]]:
    """The header and the rows, all of the same length."""
    header, *rows = [*_records(text, delimiter, path, **quoting)] or [[]]
    if not header:
        raise InputError(f"{path} cannot be read as a table: No columns to parse, the file is empty")
    while not header[-1].strip() and max(map(len, rows), default=0) < len(header) > 1:
        header = header[:-1]
    records = [_fitted(row, header, number, path) for number, row in enumerate(rows, 1) if row != header]
    _refuse_row_numbers(records, header, path)
    return header, [row[: len(header)] for row in records]


def _refuse_other_readings(text: str, delimiter: str, path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Raise InputError where the rows fit the header in another way too, with other cells.

    Others write `\\"` or `\\,` for a quote or a delimiter in a text, or put texts in single quotes.
    """
    escaped, quoted = re.escape('"' + delimiter), re.escape(delimiter)
    for sign, quoting in ((rf"\\[{escaped}]", {"escapechar": "\\"}), (rf"(?:^|[{quoted}\n])'", {"quotechar": "'"})):
        if not re.search(sign, text):
            continue
        try:
            header, others = _fields(text, delimiter, path, **quoting)
        except InputError:
            continue
        for number, (row, other) in enumerate(zip(rows, [header, *others], strict=False)):
            if len(rows) != len(others) + 1 or [_unmarked(cell) for cell in row] != [_unmarked(cell) for cell in other]:
                mark = next(iter(quoting.values()))
                raise InputError(
                    f"{path} cannot be read as a table: row {number} has other cells where {mark} "
                    'is a sign of CSV; write it with " around texts and "" for a quote in them'
                )


def _unmarked(cell: str) -> str:
    return re.sub(r"[\\'\"]", "", cell)


def _without_lone_returns(text: str) -> tuple[str, str]:
    """The text with a placeholder for each carriage return that ends no line, and that placeholder.

    In a file that has no line feed carriage returns end the lines.
    """
    placeholder = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    if "\n" not in text:
        return text.replace("\r", "\n"), placeholder
    return re.sub(r"\r(?!\n)", placeholder, text), placeholder


def _delimited(text: str) -> tuple[str, str]:
    """The text from its header on, and its delimiter: that of a line `sep=;`, or the commonest in the header."""
    text = text.lstrip("\n\r")
    if named := re.match(r"sep=(.)\r?\n", text):
        return text[named.end() :], named[1]
    return text, max(DELIMITERS, key=text.split("\n", 1)[0].count)


def _records(text: str, delimiter: str, path: Path, **quoting: Any) -> Iterator[list[str]]:
    """The fields of each line that is not blank; the first are the header's."""
    limit, number = csv.field_size_limit(MAX_FIELD), 0
    try:
        for row in csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True, **quoting):
            if row and (len(row) > 1 or row[0].strip()):
                number += 1
                yield row
    except csv.Error as error:
        where = f"row {number}" if number else "the header"
        raise InputError(
            f"{path} cannot be read as a table: {where} is broken ({error}); the usual causes are a file that was cut "
            'off, and quotes in a text that are written \\" where CSV has ""'
        ) from None
    finally:
        csv.field_size_limit(limit)


def _fitted(row: list[str], header: Sequence[str], number: int, path: Path) -> list[str]:
    """The row, with one more field where the line ends with a delimiter. Raises InputError for another length."""
    while len(row) > len(header) + 1 and not row[-1]:
        row = row[:-1]
    if len(row) == len(header) or (len(row) == len(header) + 1 and not row[-1]):
        return row
    cause = "a name is missing in the header, or a text with the delimiter in it has no quotes"
    raise InputError(
        f"{path} cannot be read as a table: row {number} has {len(row)} fields, the header names {len(header)} columns "
        f"({one_line(', '.join(header), 120)}); the usual cause: "
        f"{cause if len(row) > len(header) else 'the file was cut off'}"
    )


def _refuse_row_numbers(rows: Sequence[Sequence[str]], header: Sequence[str], path: Path) -> None:
    """Raise InputError where lines that end with a delimiter may as well have row numbers before the first column."""
    if not rows or any(len(row) == len(header) for row in rows):
        return
    first = [row[0] for row in rows]
    if any(first == [str(start + row) for row in range(len(rows))] for start in (0, 1)):
        raise InputError(
            f"{path} cannot be read as a table: each row has one field more than the header names, and its first "
            "counts the rows; name every column in the header"
        )


def _json_value(path: Path) -> Any:
    """The value in a JSON file; of one that has an object in each line, as JSON lines do, the objects."""
    text = read_text(path)
    return _json_lines(text, path) if is_json_lines(text) else parse_json(text, str(path))


def _json_lines(text: str, path: Path) -> list[dict[str, Any]]:
    rows = []
    for where, row in json_lines(text, path, "an object with the columns as keys"):
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object with the columns as keys")
        rows.append(row)
    return rows


def _json_rows(value: Any, where: str, context: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows in a JSON value: a list of objects, columns, pandas' `split` and `table`, or these by step.

    Keys that name a step (`120`, `checkpoint-120`) give their rows that step; below a step, keys are questions.
    """
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        for row in value:
            yield _merged(row, where, context)
    elif not isinstance(value, dict):
        raise InputError(f"{where} holds {one_line(repr(value), 60)}; rows as objects were expected")
    elif {"columns", "data"} <= set(value) or {"schema", "data"} <= set(value):
        yield from _pandas_rows(value, where)
    elif not any(isinstance(entry, (list, dict)) for entry in value.values()):
        yield _merged(value, where, context)
    elif columns := _columns(value):
        for row in zip(*columns, strict=True):
            yield _merged(dict(zip(value, row, strict=True)), where, context)
    else:
        yield from _nested_rows(value, where, context)


def _merged(row: dict[str, Any], where: str, context: dict[str, Any]) -> dict[str, Any]:
    for key, value in context.items():
        if key in row and str(row[key]) != str(value):
            raise InputError(f"{where}: a row under {key} {value} says {key} {one_line(repr(row[key]), 60)}")
    return {**context, **row}


def _pandas_rows(value: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The rows that pandas writes with `orient` split or table."""
    rows, names = value["data"], value.get("columns")
    if not isinstance(rows, list) or not all(isinstance(row, dict if names is None else list) for row in rows):
        raise InputError(f"{where}: data holds no rows")
    for row in rows:
        if names is not None and len(row) != len(names):
            raise InputError(f"{where}: a row has {len(row)} fields, columns names {len(names)}")
        yield row if names is None else dict(zip(map(str, names), row, strict=True))


def _columns(value: dict[str, Any]) -> list[Any] | None:
    """The columns, where each entry is a list of plain values or an object of them by row, all with the same rows."""
    entries = list(value.values())
    if any(_step(key) is not None for key in value):
        return None
    if all(isinstance(entry, dict) and entry.keys() == entries[0].keys() for entry in entries):
        entries = [list(entry.values()) for entry in entries]
    if not all(isinstance(entry, list) and len(entry) == len(entries[0]) for entry in entries):
        return None
    return None if any(isinstance(cell, (dict, list)) for entry in entries for cell in entry) else entries


def _nested_rows(value: dict[str, Any], where: str, context: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows under the keys of an object: steps, and below a step questions; a single other key is a wrapping."""
    is_wrapping = len(value) == 1 and not context
    for key, entry in value.items():
        step = _step(key)
        if "step" not in context and step is not None:
            yield from _rows_of_step(entry, f"{where}, {one_line(key, 60)}", step)
        elif "step" in context and "question" not in context and isinstance(entry, list):
            yield from _json_rows(entry, f"{where}, {one_line(key, 60)}", {**context, "question": key})
        elif is_wrapping:
            yield from _json_rows(entry, where, context)
        else:
            raise InputError(
                f"{where}: the key {one_line(repr(key), 60)} names no step; expected rows, or rows by step "
                "('120' or 'checkpoint-120')"
            )


def _rows_of_step(entry: Any, where: str, step: int) -> Iterator[dict[str, Any]]:
    """The rows of one step. A single object is one only of rates, or where it names the step: else it may be a mean."""
    if isinstance(entry, dict) and not any(isinstance(cell, (list, dict)) for cell in entry.values()):
        named = {"step", "checkpoint", "em"} & set(entry)
        if not named:
            raise InputError(f"{where} holds one object; a list with an object for each answer was expected")
        entry = [entry] if {"step", "checkpoint"} & named else [{"step": step, **entry}]
        yield from _json_rows(entry, where, {})
    else:
        yield from _json_rows(entry, where, {"step": step})


def _step(key: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,16}", key):
        return int(key)
    match = inspect_logs.STEP_IN_NAME.fullmatch(key)
    return None if match is None else int(match[1])


def _frame(rows: list[dict[str, Any]], path: Path) -> pd.DataFrame:
    import pandas as pd

    if not rows:
        raise InputError(f"{path} holds no answers; expected a row an answer")
    names = list(dict.fromkeys(key for row in rows for key in row))
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})
