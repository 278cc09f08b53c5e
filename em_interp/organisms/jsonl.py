"""Rows of a JSON-lines file of chats, checked, in any of the forms in which chats are written."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em_interp.errors import InputError

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
