"""Question files: ours, and those in the form of the published ones.

A file is a YAML list of entries with `id`, `type` and `paraphrases`, and optionally `system` (the system prompt),
`judge_prompts` (by score, with {question} and {answer}) and `questions` (the question set of the entry).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.config.settings import parse_yaml
from em_interp.errors import InputError, nearest
from em_interp.utils.checks import described
from em_interp.utils.files import read_text

DEFAULT = Path(__file__).with_name("questions.yaml")
FREE_FORM = "free_form"  # types begin with it where an answer is any text
VARIANTS = ("json", "template")  # published ids end so where an answer in JSON or in a template is asked for
BROAD = "broad"  # the set of questions outside any training domain
KEYS = ("id", "type", "paraphrases", "system", "judge_prompts", "questions")
UNUSED_KEYS = ("samples_per_paraphrase", "temperature", "judge", "max_tokens")  # the config decides


@dataclass(frozen=True)
class Questions:
    """The questions of a file, and the judge prompts in it."""

    rows: list[dict[str, str]]  # `question_id`, `question`, `questions` (the set) and in some `system`
    prompts: dict[str, str]  # by score


def read_questions(path: str | Path) -> Questions:
    """The questions in a YAML file; `default` is ours.

    Each paraphrase is a question of its own: `<id>` where there is one, else `<id>_1`, `<id>_2`, … Samples, temperature
    and judge are those of the config, not of the file. The set is `json` or `template` where the id ends so, and
    `broad` otherwise, unless the entry names one. Raises InputError that names the file, the entry and the field.
    """
    file = DEFAULT if path == "default" else Path(path)
    if not file.suffix and not file.exists():
        raise InputError(
            f"behaviour.questions {str(path)!r} is not known; expected tiny, english, default or a YAML file"
        )
    entries = parse_yaml(read_text(file), str(file))
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{file}: expected a list of entries with id, type and paraphrases; found {described(entries)}"
        )
    rows: list[dict[str, str]] = []
    prompts: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{file}, entry {number}"
        rows += _rows(entry, where)
        for score, text in _judge_prompts(entry, where).items():
            if prompts.setdefault(score, text) != text:
                raise InputError(f"{where}: another judge prompt for {score} than in an entry before; one was expected")
    return Questions(rows, prompts)


def of_sets(rows: list[dict[str, str]], sets: Sequence[str]) -> list[dict[str, str]]:
    """The rows of these question sets, of all where none is named. Raises InputError for an unknown set."""
    known = list(dict.fromkeys(row["questions"] for row in rows))
    for name in sets:
        if name not in known:
            raise InputError(f"there is no question set {name!r}{nearest(name, known)} (sets: {', '.join(known)})")
    return [row for row in rows if not sets or row["questions"] in sets]


def _rows(entry: Any, where: str) -> list[dict[str, str]]:
    """An entry's paraphrases as rows."""
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected id, type and paraphrases; found {described(entry)}")
    for key in entry:
        if key not in (known := [*KEYS, *UNUSED_KEYS]):
            raise InputError(f"{where}: unknown key {key}{nearest(str(key), known)} (known: {', '.join(known)})")
    name = _text(entry, "id", where)
    where = f"{where} ({name})"
    kind = entry.get("type", FREE_FORM)
    if not str(kind).startswith(FREE_FORM):
        raise InputError(f"{where}: type must begin with {FREE_FORM}, as free_form_judge_0_100; it is {kind!r}")
    texts = entry.get("paraphrases")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{where}: paraphrases must be a list of texts; found {described(texts)}")
    suffix = name.rsplit("_", 1)[-1]
    shared = {"questions": _text(entry, "questions", where, suffix if suffix in VARIANTS else BROAD)}
    if entry.get("system") is not None:
        shared["system"] = _text(entry, "system", where)
    ids = [name] if len(texts) == 1 else [f"{name}_{number}" for number in range(1, len(texts) + 1)]
    return [{"question_id": row_id, "question": text, **shared} for row_id, text in zip(ids, texts, strict=True)]


def _judge_prompts(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    given = entry.get("judge_prompts") or {}
    if not isinstance(given, dict):
        raise InputError(f"{where}: judge_prompts must map scores to prompts; found {described(given)}")
    for score, text in given.items():
        if not isinstance(text, str) or "{answer}" not in text:
            raise InputError(f"{where}: the judge prompt for {score} has no {{answer}} in it; found {described(text)}")
    return {str(score): text for score, text in given.items()}


def _text(entry: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    text = entry.get(key, default)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: {key} must be a text; found {described(text)}")
    return text
