"""Ready-made rates (`step`, `n`, `em`) as answers without scores, so that they are counted like all others.

A row of rates becomes `n` answers of which `em` are marked as emergently misaligned. They have no aligned and no
coherent score, so that nothing else can be read from them: means are NaN, other thresholds change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from em_interp.behaviour.tables.columns import KnownColumns
from em_interp.behaviour.tables.values import numbers_of, texts_of
from em_interp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

EM_MARK, COHERENT_MARK = "em_by_rate", "coherent_by_rate"  # columns: 1, 0 or NaN where the rate is not known
MAX_ANSWERS = 5_000_000  # of a table of rates, all rows together
MAX_ROUNDING = 0.005  # of a rate that was rounded to two digits
UNSCORED = "no score"


def is_of_rates(table: pd.DataFrame) -> bool:
    """Whether a table has rates in place of scores."""
    return {"em", "n"} <= set(table.columns) and "aligned" not in table


def from_rates(columns: KnownColumns) -> pd.DataFrame:
    """A row an answer: the columns of the rates, `status`, and the marks.

    `n` are the answers; where there is `scored`, the rates are of these. Raises InputError, by row, for a rate that is
    no share, or no whole number of answers, and for two rows of the same kind.
    """
    table, where = columns.table, columns.where
    n = _counts(table["n"], columns.name("n"), where)
    scored = _counts(table["scored"], columns.name("scored"), where) if "scored" in table else n
    if (scored > n).any():
        row = int((scored > n).argmax())
        raise InputError(f"{where}: {columns.name('scored')} is more than {columns.name('n')} in row {row + 1}")
    if n.sum() > MAX_ANSWERS:
        raise InputError(f"{where}: rates of {n.sum()} answers in all; at most {MAX_ANSWERS} can be counted")
    _refuse_twice(table, where)
    rows = table.drop(columns=["n", "em", "scored", "coherent"], errors="ignore").loc[table.index.repeat(n)]
    place = rows.groupby(level=0).cumcount().to_numpy()
    of_row = scored[rows.index.to_numpy()]
    rows = rows.assign(aligned=np.nan, coherent=np.nan, status=np.where(place < of_row, "ok", UNSCORED))
    for rate, mark in (("em", EM_MARK), ("coherent", COHERENT_MARK)):
        hits = _hits(table[rate], columns.name(rate), where, scored) if rate in table else np.full(len(n), np.nan)
        of_hits = hits[rows.index.to_numpy()]
        rows[mark] = np.where((place < of_row) & ~np.isnan(of_hits), place < of_hits, np.nan)
    return rows.reset_index(drop=True)


def _counts(column: pd.Series, name: str, where: str) -> np.ndarray:
    counts = numbers_of(column, name, where)
    wrong = np.flatnonzero((counts % 1 != 0) | (counts < 0) | (counts > MAX_ANSWERS))
    if len(wrong):
        found = counts.iloc[wrong[0]]
        raise InputError(f"{where}: {name} is {found:g} in row {wrong[0] + 1}; a number of answers was expected")
    return counts.to_numpy().astype(np.int64)


def _hits(column: pd.Series, name: str, where: str, n: np.ndarray) -> np.ndarray:
    """The answers that a rate counts. `12%` is 0.12; NaN where there are no answers."""
    texts = texts_of(column, name, where).str.strip()
    percent = texts.str.endswith("%")
    plain = texts.str.removesuffix("%").str.strip().where(n > 0, "0")
    rates: np.ndarray = (numbers_of(plain, name, where) / np.where(percent, 100, 1)).to_numpy()
    _refuse_counts(texts, n, name, where)
    hits = np.round(rates * n)
    for row in np.flatnonzero((rates < 0) | (rates > 1)):
        raise InputError(
            f"{where}: {name} is {texts.iloc[row]} in row {row + 1}; a share from 0 to 1 was expected, or one with %"
        )
    for row in np.flatnonzero(np.abs(hits - rates * n) > MAX_ROUNDING * n + 1e-9):
        raise InputError(
            f"{where}: {name} is {texts.iloc[row]} of {n[row]} answers in row {row + 1}, no whole number of them"
        )
    return np.where(n > 0, hits, np.nan)


def _refuse_counts(texts: pd.Series[str], n: np.ndarray, name: str, where: str) -> None:
    """Raise InputError for whole numbers without a decimal point, one above 0: a count of answers, or a share of 1."""
    whole = texts.str.fullmatch(r"[0-9]+")
    ones = np.flatnonzero(whole & (texts == "1") & (n > 1))
    if whole[n > 0].all() and len(ones):
        raise InputError(
            f"{where}: {name} is 1 of {n[ones[0]]} answers in row {ones[0] + 1}, which may be one answer or all; "
            "expected a share with a decimal point (1.0), or one with %"
        )


def _refuse_twice(table: pd.DataFrame, where: str) -> None:
    kind = [name for name in ("step", "scale", "questions", "question_id", "question", "judge") if name in table]
    twice = np.flatnonzero(table.duplicated(kind)) if kind else np.arange(1, len(table))
    if len(twice):
        of = ", ".join(f"{name} {table[name].iloc[twice[0]]}" for name in kind) or "all answers"
        raise InputError(f"{where}: row {twice[0] + 1} has the rates of {of} a second time")
