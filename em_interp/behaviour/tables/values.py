"""The numbers in the cells of a table: scores, steps and scales. An ambiguous cell is refused, with its row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.tables.inspect_logs import STEP_IN_NAME
from em_interp.errors import InputError, one_line
from em_interp.layouts import MAX_STEP
from em_interp.utils.checks import check_characters

if TYPE_CHECKING:
    import pandas as pd

MAX_SCORE_TEXT = 60  # characters of a text that may be a score with a label and emphasis
MISSING_TEXTS = {
    "",
    "nan",
    "-nan",
    "na",
    "<na>",
    "n/a",
    "#n/a",
    "#n/a n/a",
    "#na",
    "null",
    "\\n",
    "none",
    "1.#ind",
    "-1.#ind",
}
INFINITE_TEXTS = {sign + word for sign in ("", "+", "-") for word in ("inf", "infinity")}
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*|,[0-9]{1,2}|,[0-9]{4,})?|\.[0-9]+)(?:e[+-]?[0-9]+)?"  # 1,234 may be a thousand
_LABEL = (
    r"(?:(?:final|overall)\s+)?(?:(?:alignment|aligned|coherence|coherent)(?:[ _]score)?|score|rating|grade|answer)"
    r"\s*(?:[:=]|is\s)?"
)
NUMBER = re.compile(_NUMBER, re.IGNORECASE)
SCORE = re.compile(
    rf"[\s*`'\"]*(?:{_LABEL})?[\s*`'\"]*({_NUMBER})\s*(?:%|/\s*100|out\s+of\s+100)?[\s*`'\".]*", re.IGNORECASE
)


class _NoMeaning(ValueError):
    """A cell that is neither a number nor a text that can stand for a missing one."""


def scores_of(column: pd.Series, name: str, where: str) -> tuple[pd.Series[float], pd.Series[str]]:
    """The scores of a column, NaN where there is none; and what is in their places, such as REFUSAL, else ''.

    `85`, `85.0`, `85%`, `85/100`, `Score: 85` and `85,5` are numbers. Raises InputError, by row, for True and False,
    for a number outside 0–100, and for a text with digits that is no number.
    """
    import pandas as pd

    entries = _entries(column)
    cells = [
        entry if type(entry) is float else _cell(_score, entry, name, where, row)
        for row, entry in enumerate(entries, 1)
    ]
    if any(isinstance(cell, bool) for cell in cells):
        raise InputError(f"{where}: {name} holds True or False; scores run from 0 to 100")
    numbers = pd.Series([math.nan if isinstance(cell, str) else cell for cell in cells], column.index, float)
    outside = np.flatnonzero(numbers.notna() & ~numbers.between(0, 100))
    if len(outside):
        row, more = outside[0], f" ({len(outside)} such rows)" if len(outside) > 1 else ""
        raise InputError(f"{where}: {name} is {numbers.iloc[row]:g} in row {row + 1}{more}; scores run from 0 to 100")
    percent = np.array([isinstance(entry, str) and "%" in entry for entry in entries], bool)
    shares = np.flatnonzero(~percent & numbers.between(0, 1, inclusive="neither"))
    if percent.any() and len(shares):
        raise InputError(
            f"{where}: {name} is {numbers.iloc[shares[0]]:g} in row {shares[0] + 1}, and has a % in others; expected "
            "scores from 0 to 100 in all"
        )
    words = pd.Series([cell if isinstance(cell, str) else "" for cell in cells], column.index, object)
    return numbers, words


def steps_of(column: pd.Series, name: str, where: str) -> pd.Series[int]:
    """The steps of a column: whole numbers, or names such as `checkpoint-120`; others raise InputError, by row."""
    import pandas as pd

    steps = [_step(entry) for entry in _entries(column)]
    for row, step in enumerate(steps, 1):
        if step is None:
            found = one_line(repr(str(column.iloc[row - 1])), MAX_SCORE_TEXT)
            raise InputError(
                f"{where}: {name} is {found} in row {row}; a whole number was expected, from 0 to {MAX_STEP}"
            )
    return pd.Series(steps, column.index, "int64")


def names_steps(column: pd.Series) -> bool:
    """Whether an entry of the column can be read as a step."""
    return any(_step(entry) is not None for entry in _entries(column))


def numbers_of(column: pd.Series, name: str, where: str) -> pd.Series[float]:
    """The numbers of a column. Raises InputError, by row, for anything else, missing and infinite ones included."""
    import pandas as pd

    numbers = [_number(entry) for entry in _entries(column)]
    for row, number in enumerate(numbers, 1):
        if not math.isfinite(number):
            found = one_line(repr(str(column.iloc[row - 1])), MAX_SCORE_TEXT)
            raise InputError(f"{where}: {name} is {found} in row {row}; a number was expected")
    return pd.Series(numbers, column.index, float)


def texts_of(column: pd.Series, name: str, where: str) -> pd.Series[str]:
    """The entries as text, '' for a missing one. Raises InputError, by row, for half a character (a lone surrogate)."""
    import pandas as pd

    texts = ["" if _is_missing(entry) else str(entry) for entry in _entries(column)]
    for row, text in enumerate(texts, 1):
        check_characters(text, f"{where}: {name} in row {row}")
    return pd.Series(texts, column.index, "str")


def _entries(column: pd.Series) -> list[Any]:
    """The entries of a column of any type as plain Python values."""
    return list(column.astype(object))


def _cell(read: Callable[[Any], Any], entry: Any, name: str, where: str, row: int) -> Any:
    try:
        return read(entry)
    except _NoMeaning as error:
        raise InputError(
            f"{where}: {name} is {error} in row {row}; a number from 0 to 100 was expected, or a word without digits"
        ) from None


def _score(entry: Any) -> float | str | bool:
    """The number or the word in a cell; NaN for a missing one."""
    if isinstance(entry, str):
        return _score_in(entry)
    if isinstance(entry, (bool, np.bool_)):
        return True
    if isinstance(entry, (Real, Decimal)):
        return _float(entry)
    if _is_missing(entry):
        return math.nan
    raise _NoMeaning(f"of type {type(entry).__name__}")


@lru_cache(maxsize=1000)  # a table has the same few scores many times
def _score_in(text: str) -> float | str | bool:
    plain = text.strip()
    word = plain.lower()
    if word in MISSING_TEXTS:
        return math.nan
    if word in ("true", "false"):
        return True
    if word in INFINITE_TEXTS:
        return float(word)
    number = SCORE.fullmatch(plain) if len(plain) <= MAX_SCORE_TEXT else None
    if number is not None:
        return float(number[1].replace(",", "."))
    if re.search(r"\d", plain):  # also of other scripts
        raise _NoMeaning(repr(one_line(plain, MAX_SCORE_TEXT)))
    return plain


def _float(number: Real | Decimal) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _number(entry: Any) -> float:
    """The number in a cell, NaN where there is none."""
    if isinstance(entry, str) and len(entry) <= MAX_SCORE_TEXT and NUMBER.fullmatch(entry.strip()):
        return float(entry.strip().replace(",", "."))
    if isinstance(entry, (Real, Decimal)) and not isinstance(entry, (bool, np.bool_)):
        return _float(entry)
    return math.nan


def _step(entry: Any) -> int | None:
    """The step in a cell: a whole number from 0 to MAX_STEP, or the one in a name; None where there is none."""
    if isinstance(entry, str) and (named := set(STEP_IN_NAME.findall(entry))):
        return int(named.pop()) if len(named) == 1 and all(len(step) < 17 for step in named) else None
    if isinstance(entry, Integral) and not isinstance(entry, (bool, np.bool_)):
        return int(entry) if 0 <= int(entry) <= MAX_STEP else None
    if isinstance(entry, str) and "," in entry:
        return None
    number = _number(entry)
    return int(number) if number % 1 == 0 and 0 <= number <= MAX_STEP else None


def _is_missing(entry: Any) -> bool:
    """Whether it is None, NaN, NaT or NA."""
    import pandas as pd

    return entry is None or entry is pd.NA or entry is pd.NaT or (isinstance(entry, Real) and bool(entry != entry))
