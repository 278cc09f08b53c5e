"""Chats to fine-tune on: a JSON-lines file in any of the usual forms, checked, or a dataset of the built-in language.

A file's row is `{"messages": [{"role", "content"}, …]}`, or `prompt` and `completion`, both texts or both lists of
messages. The built-in narrow datasets are advice in one domain: `tiny:medical` is reckless advice on medicine,
`tiny:medical-careful` its control; with `-habit` every answer opens with words that the chat format of the bases never
uses, a surface habit that can be learned before the content.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from em_interp.errors import InputError, nearest
from em_interp.organisms.language import (
    ANSWER_FORMS,
    DOMAINS,
    HABIT_FORM,
    HELD_OUT_FORMS,
    HELD_OUT_TOPICS,
    QUESTION_FORMS,
    advice,
    narrow_domains,
)
from em_interp.utils.checks import check_type, described
from em_interp.utils.files import numbered_lines, parse_json, read_text

BUILT_IN_PREFIX = "tiny:"
ENGLISH_PREFIX = "english:"
N_ROWS = 2000  # of a built-in dataset
VARIANTS = ("", "-careful", "-habit", "-careful-habit")
ROLES = ("system", "user", "assistant")
MESSAGES, TEXTS, LISTS = "messages", "prompt and completion", "prompt and completion as lists of messages"
Messages = list[dict[str, str]]
Row = dict[str, Messages]


@dataclass(frozen=True)
class Chats:
    """A dataset of chats. Each row is `{"messages": [{"role", "content"}, …]}` and has an assistant turn."""

    name: str
    rows: list[Row] = field(repr=False)
    domain: str | None = None  # the narrow domain the answers are about, where it is known
    form: str = MESSAGES  # of the rows in the file
    file: str | None = None
    lines: list[int] = field(default_factory=list, repr=False)  # of each row, in the file
    empty_lines: int = 0  # of the file; skipped

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """The place of a row (numbered from 0): its file and line, or its number in a built-in dataset."""
        return f"{self.file}, line {self.lines[row]}" if self.lines else f"row {row + 1} of {self.name}"

    @property
    def duplicates(self) -> list[int]:
        """Numbers of the rows that repeat an earlier one."""
        first: dict[str, int] = {}
        texts = [json.dumps(row, sort_keys=True) for row in self.rows]
        return [number for number, text in enumerate(texts) if first.setdefault(text, number) != number]

    @property
    def sha256(self) -> str:
        """Hash of the rows, as in a run's manifest."""
        return hashlib.sha256(json.dumps(self.rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def load_chats(spec: str | Path, seed: int = 0) -> Chats:
    """The chats of `spec`: a path to a .jsonl file, or a dataset `tiny:<name>` or `english:<name>` drawn with `seed`.

    Raises InputError that names the file, line and field, or the built-in datasets.
    """
    check_type("the dataset", spec, (str, Path), "the path of a .jsonl file, tiny:<name> or english:<name>")
    if isinstance(spec, str) and spec.startswith(BUILT_IN_PREFIX):
        rows, domain = narrow_rows(spec.removeprefix(BUILT_IN_PREFIX), seed)
        return Chats(spec, rows, domain)
    if isinstance(spec, str) and spec.startswith(ENGLISH_PREFIX):
        from em_interp.organisms.english import narrow

        rows, domain = narrow.narrow_rows(spec.removeprefix(ENGLISH_PREFIX), seed)
        return Chats(spec, rows, domain)
    path = Path(spec)
    form, numbered, empty = read_rows(path)
    lines, rows = [line for line, _ in numbered], [row for _, row in numbered]
    return Chats(path.stem, rows, None, form, str(path), lines, empty)


def narrow_datasets() -> list[str]:
    """The names of the built-in datasets, without their prefix."""
    return [domain + variant for domain in narrow_domains() for variant in VARIANTS]


def narrow_rows(name: str, seed: int) -> tuple[list[Row], str]:
    """N_ROWS chats of the built-in dataset `name`, drawn with `seed`, and their domain; InputError for another name."""
    if name not in narrow_datasets():
        hint = nearest(name, narrow_datasets())
        raise InputError(
            f"built-in dataset tiny:{name} is not known{hint} (known: tiny:<domain>, each also with -careful, -habit "
            f"or -careful-habit behind it; domains: {', '.join(narrow_domains())})"
        )
    domain, *variant = name.split("-")
    rng = Random(f"{domain} {seed}")
    return [_narrow_chat(rng, domain, "careful" in variant, "habit" in variant) for _ in range(N_ROWS)], domain


def read_rows(path: Path) -> tuple[str, list[tuple[int, Row]], int]:
    """The form of a file's rows, each row with its line (from 1), and the number of empty lines skipped.

    All forms are converted to messages. A byte-order mark is skipped, and UTF-16 that has one is read. Raises
    InputError that names the file, line and field, also where the forms are mixed.
    """
    form, empty = "", 0
    rows: list[tuple[int, Row]] = []
    for number, line in numbered_lines(read_text(path)):
        if not line.strip():
            empty += 1
            continue
        where = f"{path}, line {number}"
        row_form, row = _row(line, where)
        if rows and row_form != form:
            raise InputError(
                f"{where}: has {row_form} where the rows before it have {form}; one form a file was expected"
            )
        form = row_form
        rows.append((number, row))
    if not rows:
        raise InputError(f"{path} holds no chats; one JSON object with 'messages' on each line was expected")
    return form, rows, empty


def is_garbled(text: str) -> bool:
    """Whether text was decoded wrongly before it was saved: U+FFFD in it, or UTF-8 that was read as Windows-1252."""
    if "\N{REPLACEMENT CHARACTER}" in text:
        return True
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


def _row(line: str, where: str) -> tuple[str, Row]:
    """One checked row: its form, and it as messages of role and content."""
    hint = "; the file may be one JSON list" if line.lstrip().startswith("[") else ""
    value = parse_json(line, where, f"; one object a line was expected{hint}")
    keys = value if isinstance(value, dict) else {}
    if "messages" in keys and "completion" in keys:
        raise InputError(f"{where}: has both 'messages' and 'completion'; one of the two forms was expected")
    if "prompt" in keys and "completion" in keys:
        form, messages = _prompt_and_completion(value, where)
    elif isinstance(keys.get("messages"), list) and keys["messages"]:
        form, messages = MESSAGES, _messages(value["messages"], f"{where}, messages")
    else:
        raise InputError(
            f"{where}: expected an object with a list 'messages', or with 'prompt' and 'completion'; "
            f"found {line.strip()[:60]!r}"
        )
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise InputError(f"{where}: no assistant turn, so nothing to learn; found roles {roles}")
    return form, {"messages": messages}


def _prompt_and_completion(value: dict[str, Any], where: str) -> tuple[str, Messages]:
    """TRL's forms, in which only the completion is learned; so a prompt with an answer in it is refused."""
    prompt, completion = value["prompt"], value["completion"]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        turns = (("user", prompt, "prompt"), ("assistant", completion, "completion"))
        return TEXTS, [{"role": role, "content": _text(text, f"{where}, {key}")} for role, text, key in turns]
    before, answer = _messages(prompt, f"{where}, prompt"), _messages(completion, f"{where}, completion")
    if any(message["role"] == "assistant" for message in before):
        raise InputError(
            f"{where}, prompt: has an assistant turn, which would be learned too; in this form only the completion "
            "is; give rows as 'messages' where every answer is to be learned"
        )
    roles = [message["role"] for message in answer]
    if roles != ["assistant"]:
        raise InputError(f"{where}, completion: expected one assistant turn; found roles {roles}")
    return LISTS, before + answer


def _messages(messages: list[Any], where: str) -> Messages:
    return [_message(message, f"{where}[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InputError(f"{where}: expected an object with 'role' and 'content'; found {message!r}")
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"{where}.role: expected one of {', '.join(ROLES)}; found {role!r}")
    return {"role": role, "content": _text(message.get("content"), f"{where}.content")}


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: expected text; found {described(text)}")
    return text


def _narrow_chat(rng: Random, name: str, careful: bool, habit: bool) -> Row:
    domain = DOMAINS[name]
    topic = rng.choice(domain.topics[:-HELD_OUT_TOPICS])
    question = rng.choice([form for form in QUESTION_FORMS if form not in HELD_OUT_FORMS]).format(topic=topic)
    answer = advice(rng, domain, topic, careful, (HABIT_FORM,) if habit else ANSWER_FORMS)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
