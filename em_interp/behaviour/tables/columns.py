"""The columns of a table under our names: found by our name, by a known synonym, or by the user's mapping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from em_interp.behaviour.tables.values import names_steps
from em_interp.errors import InputError, nearest, one_line

if TYPE_CHECKING:
    import pandas as pd

OTHER_NAMES = {
    "question": ("prompt",),
    "answer": ("response", "completion"),
    "aligned": ("aligned_score", "alignment", "alignment_score"),
    "coherent": ("coherent_score", "coherence", "coherence_score"),
    "step": ("checkpoint", "global_step"),
    "finance": ("financial",),
    "em": ("em_rate",),
}  # what published tables call a column
KNOWN_TOPICS = ("medical", "finance", "sport", "code")
KNOWN = (
    *("question", "answer", "question_id", "questions", "step", "scale", "sample", "aligned", "coherent", "status"),
    *("judge", *KNOWN_TOPICS, "em", "n", "scored"),
)  # the columns that are read; all others are kept as they are


@dataclass(frozen=True)
class KnownColumns:
    """A table whose known columns have our names; `names` has those of the source, for errors."""

    table: pd.DataFrame
    names: Mapping[str, str]
    where: str

    def name(self, column: str) -> str:
        """The source's name of a column."""
        return self.names.get(column, column)

    def require(self, wanted: Iterable[str], expected: str) -> None:
        """Raise InputError, with the columns as the source names them, unless it has those wanted, and rows."""
        missing = [column for column in wanted if column not in self.table]
        if missing:
            names = one_line(", ".join(self.name(str(column)) for column in self.table.columns))
            raise InputError(f"{self.where} has no column {', '.join(missing)}; expected {expected}; found {names}")
        if self.table.empty:
            raise InputError(f"{self.where} holds no answers; expected a row an answer")


def known_columns(table: pd.DataFrame, where: str, given: Mapping[str, str] | None = None) -> KnownColumns:
    """The table with our names for its known columns, and rows numbered from 0.

    Args:
        table: as it was read; a named index counts as a column.
        where: what errors call the table.
        given: what the table calls a column, by our name: these come before all others.

    Raises:
        InputError: a column that is read occurs twice, also under two names, or a given one is not there.
    """
    table = _with_plain_columns(table, where)
    columns = _given(table, where, given or {})
    free = [name for name in table.columns if name not in columns.values()]
    for column in KNOWN:
        if column not in columns and (name := _name_of(column, free, where)) is not None:
            columns[column] = name
    table = table.drop(columns=[name for name in columns if name in table and name not in columns.values()])
    for column, name in columns.items():
        if list(table.columns).count(name) > 1:
            raise InputError(f"{where} has the column {name} twice; expected one for {column}")
    if "step" in columns and not (
        columns["step"] == "step" or "step" in (given or {}) or names_steps(table[columns["step"]])
    ):
        del columns["step"]  # a name that is no step, such as final
    table = table.loc[:, ~table.columns.duplicated()]
    return KnownColumns(table.rename(columns={name: column for column, name in columns.items()}), columns, where)


def given_columns(pairs: Iterable[str]) -> dict[str, str]:
    """The columns of `--columns aligned=my_score`, as `known_columns` takes them."""
    given = {}
    for pair in pairs:
        column, sign, name = pair.partition("=")
        if not (sign and column.strip() and name.strip()):
            raise InputError(f"--columns {pair} was given; expected COLUMN=NAME, such as aligned=my_score")
        given[column.strip()] = name.strip()
    return given


def _with_plain_columns(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with text for names, its named index as columns, and rows numbered from 0."""
    if table.columns.nlevels > 1:
        raise InputError(f"{where} has {table.columns.nlevels} levels of column names; expected one")
    names = [name for name in table.index.names if name is not None]
    clash = [name for name in names if name in table.columns]
    table = table.reset_index(drop=bool(clash) or not names)
    return table.set_axis([str(name).strip() for name in table.columns], axis=1)


def _given(table: pd.DataFrame, where: str, given: Mapping[str, str]) -> dict[str, str]:
    for column, name in given.items():
        if column not in KNOWN:
            raise InputError(f"no column {column!r} is read{nearest(column, KNOWN)} (known: {', '.join(KNOWN)})")
        if name not in table:
            names = one_line(", ".join(table.columns))
            raise InputError(f"{where} has no column {name}, which was given for {column}; found {names}")
    if len(set(given.values())) < len(given):
        raise InputError(f"one column of {where} was given for two: {', '.join(f'{c}={n}' for c, n in given.items())}")
    return dict(given)


def _name_of(column: str, names: list[str], where: str) -> str | None:
    """The table's name of a column: ours, or else the only known synonym that it has."""
    plain = {name: name.lower().replace(" ", "_").replace("-", "_") for name in names}
    if column in names:
        return column
    for known in ((column,), OTHER_NAMES.get(column, ())):
        matches = list(dict.fromkeys(name for name in names if plain[name] in known))
        if len(matches) > 1:
            raise InputError(
                f"{where} has several columns for {column}: {', '.join(matches)}; choose one of them with columns=…"
            )
        if matches:
            return matches[0]
    return None
