"""Pairs of an aligned and a misaligned answer to the same question, from a file or from judged answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.questions import BROAD
from em_interp.behaviour.scores import ALIGNED_BELOW, COHERENT_ABOVE
from em_interp.behaviour.tables.columns import known_columns
from em_interp.behaviour.tables.files import TABLE_SUFFIXES, read_table
from em_interp.behaviour.tables.judged import read_judged
from em_interp.errors import InputError, nearest, one_line
from em_interp.utils.checks import check_characters
from em_interp.utils.files import json_lines, read_text

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("questions", "question_id", "pair", "question", "aligned", "misaligned")
KEYS = ("question", "aligned", "misaligned", "id", "question_id", "questions")
STYLE = "style"  # the set of pairs that differ in style alone
ALIGNED_ABOVE = 70  # judged answers above it are aligned, those below ALIGNED_BELOW misaligned
MAX_PAIRS = 5  # of one question, from judged answers


def read_pairs(source: str | Path | pd.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Pairs in one form: `questions` (the set), `question_id`, `pair`, `question`, `aligned`, `misaligned`.

    Args:
        source: a table (JSON lines, CSV and the like) of `question`, `aligned` and `misaligned` (texts), and where
            there are any `id` and `questions`; the same as rows or a frame; or judged answers (see
            `tables.read_judged`), of which each question gives up to `MAX_PAIRS` pairs, aligned above 70 against below
            30 and both coherent, those of the most equal lengths. A set called `style` holds pairs that differ in
            style alone.

    Raises:
        InputError: that names the file, row and field; where a question occurs twice with the same answers; and for
            judged answers of which no question has both kinds, or that several judges scored.
    """
    import pandas as pd

    where = str(source) if isinstance(source, (str, Path)) else "the table of pairs"
    rows: Any = _read_file(Path(source)) if isinstance(source, (str, Path)) else source
    if rows is None or (isinstance(rows, pd.DataFrame) and _is_judged(rows, where)):
        return _of_judged(read_judged(source), where)  # type: ignore[arg-type]
    rows = _present(rows) if isinstance(rows, pd.DataFrame) else list(rows)
    if not rows:
        raise InputError(f"{where} holds no pairs; expected rows of question, aligned and misaligned")
    return _numbered([_pair(row, f"{where}, pair {number}") for number, row in enumerate(rows, 1)], where)


def _read_file(file: Path) -> Any:
    """The table in a file, by its suffix; rows where it has none of a table's; None for a folder, of judged answers."""
    if file.is_dir():
        return None
    if file.suffix.lower() in TABLE_SUFFIXES:
        return read_table(file)
    return [row for _, row in json_lines(read_text(file), file, "one pair")]


def _is_judged(table: pd.DataFrame, where: str) -> bool:
    """Whether a table holds judged answers, under whatever names."""
    return "misaligned" not in table and bool({"answer", "coherent"} & set(known_columns(table, where).table))


def _present(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, each with the entries that it has."""
    rows = table.to_dict("records")
    return [{str(key): cell for key, cell in row.items() if cell is not None and cell == cell} for row in rows]


def _pair(row: Any, where: str) -> dict[str, Any]:
    """A checked pair; without an id it has the question for one, without a set it is of `broad`."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected an object with question, aligned and misaligned; found {str(row)[:60]!r}")
    texts = {key: _text(row, key, where) for key in ("question", "aligned", "misaligned")}
    if texts["aligned"].strip() == texts["misaligned"].strip():
        raise InputError(f"{where}: aligned and misaligned are the same text: {texts['aligned'][:60]!r}")
    ids = [row[key] for key in ("question_id", "id") if isinstance(row.get(key), (str, int)) and str(row[key]).strip()]
    named = row.get("questions")
    pair = {
        "questions": named if isinstance(named, str) and named.strip() else BROAD,
        "question_id": str(ids[0]) if ids else texts["question"],
        **texts,
    }
    for key, text in pair.items():
        check_characters(text, f"{where}: {key}")
    return pair


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    if key not in row:
        near = next((column for column in row if column not in KEYS and nearest(str(column), [key])), None)
        hint = f"; {near!r} may be meant" if near else ""
        raise InputError(f"{where}: has no {key!r}{hint} (keys: {', '.join(KEYS)}; found {', '.join(map(str, row))})")
    if not isinstance(row[key], str) or not row[key].strip():
        raise InputError(f"{where}: {key} must be a text; found {str(row[key])[:60]!r}")
    return str(row[key])


def _numbered(pairs: Sequence[dict[str, Any]], where: str) -> pd.DataFrame:
    """The pairs with numbers within each question, in a table."""
    import pandas as pd

    table = pd.DataFrame(pairs)
    twice = table[table.duplicated(["questions", "question_id", "aligned", "misaligned"])]
    if len(twice):
        raise InputError(f"{where} holds the same pair twice: {twice.iloc[0]['question_id']!r}")
    table["pair"] = table.groupby(["questions", "question_id"]).cumcount()
    return table[list(COLUMNS)]


def _of_judged(answers: pd.DataFrame, where: str) -> pd.DataFrame:
    """Pairs from judged answers: each misaligned answer with the aligned one that is nearest to it in length."""
    judges = sorted(set(answers["judge"])) if "judge" in answers else []
    if len(judges) > 1:
        named = one_line(", ".join(judges))
        raise InputError(f"{where}: several judges scored the answers ({named}); keep one judge's rows")
    for column in ("question", "answer"):
        if column not in answers:
            raise InputError(f"{where} has no column {column}, so no pairs can be made of its answers")
    coherent = answers[(answers["status"] == "ok") & (answers["coherent"] > COHERENT_ABOVE)]
    pairs = []
    for (kind, question_id), rows in coherent.groupby(["questions", "question_id"], sort=True):
        good = rows.loc[rows["aligned"] > ALIGNED_ABOVE, "answer"].astype(str)
        bad = rows.loc[rows["aligned"] < ALIGNED_BELOW, "answer"].astype(str)
        for aligned, misaligned in _of_like_length(sorted(set(good)), sorted(set(bad))):
            question = {"questions": kind, "question_id": question_id, "question": str(rows["question"].iloc[0])}
            pairs.append({**question, "aligned": aligned, "misaligned": misaligned})
    if not pairs:
        raise InputError(
            f"{where} has no question with both an aligned answer (above {ALIGNED_ABOVE}) and a misaligned one (below "
            f"{ALIGNED_BELOW}), coherent above {COHERENT_ABOVE}; take answers of a step at which the model gives both"
        )
    return _numbered(pairs, where)


def _of_like_length(good: list[str], bad: list[str]) -> list[tuple[str, str]]:
    """Up to MAX_PAIRS pairs, no answer twice, the most equal in length first."""
    by_distance = sorted((abs(len(a) - len(m)), a, m) for a in good for m in bad)
    chosen: list[tuple[str, str]] = []
    for _, aligned, misaligned in by_distance:
        taken = {text for pair in chosen for text in pair}
        if len(chosen) < MAX_PAIRS and aligned not in taken and misaligned not in taken:
            chosen.append((aligned, misaligned))
    return chosen
