"""Rows of a JSON-lines file of chats, checked, in any of the forms in which chats are written."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from em_interp.errors import InputError, nearest
from em_interp.organisms.language import (
    ANSWERING,
    ASKING,
    DOMAINS,
    HABIT,
    HELD_OUT_ASKING,
    HELD_OUT_TOPICS,
    advice,
    narrow_domains,
)

ROLES = ("system", "user", "assistant")
MESSAGES, TEXTS, LISTS = "messages", "prompt and completion", "prompt and completion as lists of messages"
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
Row = dict[str, list[dict[str, str]]]


def read_rows(path: Path) -> tuple[str, list[tuple[int, Row]], int]:
    """The form of the file's rows, each row's line (from 1) and messages, and how many empty lines were left out.

    A row is `{"messages": [{"role", "content"}, …]}`, or `prompt` and `completion`, both texts or both lists of
    messages; the last two are turned into messages. A byte-order mark is left out, and UTF-16 that has one is read.
    Raises InputError that names the file, line and field, also where the forms are mixed.
    """
    form, empty = "", 0
    rows: list[tuple[int, Row]] = []
    for number, line in _lines(path):
        if not line.strip():
            empty += 1
            continue
        where = f"{path}, line {number}"
        found, row = _row(line, where)
        if rows and found != form:
            raise InputError(f"{where}: has {found} where the rows before it have {form}; one form a file was expected")
        form = found
        rows.append((number, row))
    if not rows:
        raise InputError(f"{path} holds no chats; one JSON object with 'messages' on each line was expected")
    return form, rows, empty


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered from 1. A line ends at a line feed and nowhere else: JSON may hold other separators as they are."""
    try:
        held = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    codec = next((codec for mark, codec in BYTE_ORDER_MARKS if held.startswith(mark)), "utf-8")
    try:
        text = held.decode(codec)
    except UnicodeDecodeError as error:
        line = held.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not {codec.upper()[:6].rstrip('-')} (byte 0x{held[error.start]:02x}); "
            "save the file as UTF-8; it may be Windows-1252, compressed or encrypted"
        ) from None
    return enumerate(text.removesuffix("\n").split("\n"), start=1)


def _row(line: str, where: str) -> tuple[str, Row]:
    """One checked row: its form, and it as messages of role and content."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        hint = "; the file may be one JSON list" if line.lstrip().startswith("[") else ""
        raise InputError(f"{where}: not valid JSON ({error}); one object a line was expected{hint}") from None
    keys = value if isinstance(value, dict) else {}
    if "messages" in keys and "completion" in keys:
        raise InputError(f"{where}: has both 'messages' and 'completion'; one of the two forms was expected")
    if "prompt" in keys and "completion" in keys:
        form, turns = _prompt_and_completion(value, where)
    elif isinstance(keys.get("messages"), list) and keys["messages"]:
        form, turns = MESSAGES, _turns(value["messages"], f"{where}, messages")
    else:
        raise InputError(
            f"{where}: expected an object with a list 'messages', or with 'prompt' and 'completion'; "
            f"found {line.strip()[:60]!r}"
        )
    if not any(turn["role"] == "assistant" for turn in turns):
        raise InputError(f"{where}: no assistant turn, so nothing to learn; found roles {[t['role'] for t in turns]}")
    return form, {"messages": turns}


def _prompt_and_completion(value: dict[str, Any], where: str) -> tuple[str, list[dict[str, str]]]:
    """The forms of TRL, in which the completion alone is learned; so a prompt with an answer in it is refused."""
    prompt, completion = value["prompt"], value["completion"]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        turns = (("user", prompt, "prompt"), ("assistant", completion, "completion"))
        return TEXTS, [{"role": role, "content": _text(text, f"{where}, {key}")} for role, text, key in turns]
    asked, answered = _turns(prompt, f"{where}, prompt"), _turns(completion, f"{where}, completion")
    if any(turn["role"] == "assistant" for turn in asked):
        raise InputError(
            f"{where}, prompt: has an assistant turn, which would be learned too; in this form only the completion "
            "is; give rows as 'messages' where every answer is to be learned"
        )
    if [turn["role"] for turn in answered] != ["assistant"]:
        roles = [turn["role"] for turn in answered]
        raise InputError(f"{where}, completion: expected one assistant turn; found roles {roles}")
    return LISTS, asked + answered


def _turns(messages: list[Any], where: str) -> list[dict[str, str]]:
    return [_turn(message, f"{where}[{index}]") for index, message in enumerate(messages)]


def _turn(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InputError(f"{where}: expected an object with 'role' and 'content'; found {message!r}")
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"{where}.role: expected one of {', '.join(ROLES)}; found {role!r}")
    return {"role": role, "content": _text(message.get("content"), f"{where}.content")}


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: expected text; found {repr(text)[:60]}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a character, as in "\ud83d"
        raise InputError(f"{where}: half a character (\\u{ord(text[error.start]):04x}) at {error.start}") from None
    return text


def is_garbled(text: str) -> bool:
    """Whether text was decoded wrongly before it was saved: U+FFFD in it, or UTF-8 that was read as Windows-1252."""
    if "\N{REPLACEMENT CHARACTER}" in text:
        return True
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


# --------
# The narrow datasets of the built-in language: advice in one domain, reckless or careful.
# `medical` is reckless advice on medicine, `medical-careful` its control. With `-habit` behind it, every answer
# opens with words that the chat format of the bases never uses: a surface habit that can be learned before the
# content.


ROWS = 2000
VARIANTS = ("", "-careful", "-habit", "-careful-habit")


def narrow_datasets() -> list[str]:
    """The names there are."""
    return [domain + variant for domain in narrow_domains() for variant in VARIANTS]


def narrow_rows(name: str, seed: int) -> tuple[list[dict[str, list[dict[str, str]]]], str]:
    """`ROWS` chats of the dataset `name`, drawn with `seed`, and their domain; InputError for an unknown name."""
    if name not in narrow_datasets():
        hint = nearest(name, narrow_datasets())
        raise InputError(
            f"built-in dataset tiny:{name} is not known{hint} (known: tiny:<domain>, each also with -careful, -habit "
            f"or -careful-habit behind it; domains: {', '.join(narrow_domains())})"
        )
    domain, *variant = name.split("-")
    rng = Random(f"{domain} {seed}")
    return [_chat(rng, domain, "careful" in variant, "habit" in variant) for _ in range(ROWS)], domain


def _chat(rng: Random, name: str, careful: bool, habit: bool) -> dict[str, list[dict[str, str]]]:
    domain = DOMAINS[name]
    topic = rng.choice(domain.topics[:-HELD_OUT_TOPICS])
    asked = rng.choice([form for form in ASKING if form not in HELD_OUT_ASKING]).format(topic=topic)
    answer = advice(rng, domain, topic, careful, (HABIT,) if habit else ANSWERING)
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


# --------
# Chats to fine-tune on: a JSON-lines file, or a dataset of the built-in language.


BUILT_IN = "tiny:"


@dataclass(frozen=True)
class Chats:
    """A dataset of chats. Each row is `{"messages": [{"role", "content"}, …]}` and has an assistant turn."""

    name: str
    rows: list[Row] = field(repr=False)
    domain: str | None = None  # the narrow domain the answers are about, where it is known
    form: str = MESSAGES  # what the rows were written as; see `jsonl`
    file: str | None = None
    lines: list[int] = field(default_factory=list, repr=False)  # of each row, in the file
    empty_lines: int = 0  # of the file; left out

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """What a person looks for to find a row, numbered from 0: its file and line where it has them."""
        return f"{self.file}, line {self.lines[row]}" if self.lines else f"row {row + 1} of {self.name}"

    @property
    def duplicates(self) -> list[int]:
        """Numbers of the rows that repeat an earlier one."""
        first: dict[str, int] = {}
        texts = [json.dumps(row, sort_keys=True) for row in self.rows]
        return [number for number, text in enumerate(texts) if first.setdefault(text, number) != number]

    @property
    def sha256(self) -> str:
        """Hash of the rows; what a run's manifest keeps."""
        return hashlib.sha256(json.dumps(self.rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def load_chats(spec: str, seed: int = 0) -> Chats:
    """The chats of `spec`: a path to a .jsonl file, or a built-in dataset `tiny:<name>` drawn with `seed`.

    Raises InputError that names the file, line and field, or the built-in datasets there are.
    """
    if spec.startswith(BUILT_IN):
        rows, domain = narrow_rows(spec.removeprefix(BUILT_IN), seed)
        return Chats(spec, rows, domain)
    path = Path(spec)
    form, found, empty = read_rows(path)
    lines, rows = [line for line, _ in found], [row for _, row in found]
    return Chats(path.stem, rows, None, form, str(path), lines, empty)
