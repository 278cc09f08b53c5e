"""Odd values, and valid files spoilt by seeded mutations in ways that fit what they hold."""

import io
import json
import math
import os
import random
import shutil
import socket
import zipfile
from contextlib import suppress

import pandas as pd
import yaml
from isolated import write

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
ODD_WORDS = """../../outside/owned /etc/passwd ~ - --out =1+1 @SUM(A1) nan 1e999 -0 ١٢ true null None { %s%n
{0.__class__} ${HOME} <script> </script><script>alert(1)</script> http://[ http://127.0.0.1:1/v1 (a+)+$ 𝟙 ﬀ
checkpoint-5 0x10 1_000 step a,b a"b a;b"""
ODD_TEXTS = ["", " ", "\0", "a\0b", ESCAPE, "\r\n\t", "\u202egnp.exe", "\ud800", "a\udfff", "é" * 300, "x" * 300]
ODD_TEXTS += ["x" * 10**5, "\x85", "+cmd|' /C calc'!A0", "[" * 3000, "9" * 5000, "a\nb", "\ufeff", "\x7f", "\ufffd"]
ODD_TEXTS.append("\t=1+1")
ODD_TEXTS += ODD_WORDS.split()
ODD_NUMBERS = [0, -1, 1, 2**31, 2**53 + 1, -(2**63), 2**64, 10**30, 10**400, 1e308, -1e-320, 0.5, math.nan]
ODD_NUMBERS += [math.inf, -math.inf]


def odd_text(rng):
    """A text that somebody did not think of."""
    return rng.choice(ODD_TEXTS)


def odd_number(rng):
    return rng.choice([*ODD_NUMBERS, rng.uniform(-5, 5), rng.randrange(-10, 200)])


def odd_value(rng, depth=0):
    """Any JSON value, and some that are none."""
    kind = rng.randrange(9 if depth < 4 else 5)
    if kind < 2:
        return odd_text(rng)
    if kind < 4:
        return odd_number(rng)
    if kind == 4:
        return rng.choice([None, True, False, [], {}])
    if kind == 5:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {odd_text(rng): odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 7:
        return [rng.choice([0, "a", None, [1]])] * rng.choice([10, 1000, 20_000])
    return nested(rng.choice([10, 200, 900]), rng.random() < 0.5)


def nested(depth, of_lists):
    value = 1
    for _ in range(depth):
        value = [value] if of_lists else {"a": value}
    return value


def mutated(value, rng, count=None):
    """A JSON value, changed in one to three places."""
    for _ in range(count or rng.choice([1, 1, 1, 2, 3])):
        value = _changed(value, rng)
    return value


def _changed(value, rng):
    """The value with one place in it changed; deeper places are the more likely the larger the value is."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        what = rng.randrange(10)
        if what == 0:
            return {k: v for k, v in value.items() if k != key}
        if what == 1:
            return {**value, odd_text(rng): odd_value(rng)}
        if what == 2:
            return {odd_text(rng) if k == key else k: v for k, v in value.items()}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        what = rng.randrange(8)
        if what == 0:
            return value[:at] + value[at + 1 :]
        if what == 1:
            return [*value[:at], value[at], *value[at:]]
        if what == 2:
            return value[:at]
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return odd_number(rng)
    return odd_value(rng)


def spoilt(data, rng):
    """Bytes that were cut, flipped, doubled or mixed with others."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(8)
        if what == 0:
            del data[at:]
        elif what == 1:
            del data[at : at + rng.choice([1, 2, 8, 100])]
        elif what == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
        elif what == 3:
            data[at:at] = odd_text(rng).encode("utf-8", "surrogatepass")[:200]
        elif what == 4 and data:
            data[at:at] = data[: rng.randrange(min(len(data), 2000)) + 1]
        elif what == 5:
            data[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little"), b"\x7f" * 8])
        elif at < len(data):
            data[at] = rng.randrange(256) if what == 6 else data[at] ^ (1 << rng.randrange(8))
    return bytes(data)


def to_json(value):
    """JSON with what Python adds to it, and halves of characters."""
    return json.dumps(value, ensure_ascii=random.Random(len(repr(value))).random() < 0.7).encode(
        "utf-8", "surrogatepass"
    )


def replaced(path, rng):
    """Something that is no plain file in the place of one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    what = rng.randrange(8)
    if what == 0:
        path.mkdir()
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.symlink_to(
            rng.choice(["../../outside/precious", "../outside/precious", "/dev/zero", "/dev/stdin", path.name])
        )
    elif what == 3:
        path.write_bytes(b"")
    elif what == 4:
        with path.open("wb") as file:
            file.truncate(rng.choice([1, 2**16, 2**33]))
    elif what == 5:
        with socket.socket(socket.AF_UNIX) as one, suppress(OSError):  # a path too long for a socket
            one.bind(str(path))
    elif what == 6:
        path.write_bytes(rng.randbytes(rng.choice([1, 100, 10_000])))
    else:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")


def as_csv(rows, rng):
    delimiter, names = rng.choice(",;\t"), list(rows[0]) if rows else []
    quoted = rng.random() < 0.5

    def cell(value):
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if quoted and any(c in text for c in ',;\t"\n') else text

    lines = [
        delimiter.join(map(cell, row)) for row in [names, *([row.get(name, "") for name in names] for row in rows)]
    ]
    return rng.choice(["\n", "\r\n", "\n\n"]).join(lines).encode("utf-8", "surrogatepass")


def parquet_of(rows, rng):
    buffer = io.BytesIO()
    try:
        pd.DataFrame(rows).to_parquet(buffer)
    except Exception:  # pyarrow has no type for what is mixed
        texts = [{whole(name): whole(value) for name, value in row.items()} for row in rows]
        pd.DataFrame(texts).to_parquet(buffer)
    return buffer.getvalue()


def whole(value):
    """As text without half characters."""
    return str(value).encode("utf-8", "replace").decode()


def safetensors_with(data, rng):
    """A safetensors file whose header was changed as JSON; its length is right, or wrong."""
    size = int.from_bytes(data[:8], "little")
    header = to_json(mutated(json.loads(data[8 : 8 + size]), rng))
    length = len(header) if rng.random() < 0.85 else rng.choice([0, 2**32, 2**63, len(header) - 1])
    return length.to_bytes(8, "little") + header + data[8 + size :]


def packed_with(data, rng):
    """A packed path whose metadata, JSON within the header's JSON, was changed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__") or {}
    for key, text in metadata.items():
        with suppress(ValueError):
            metadata[key] = json.dumps(mutated(json.loads(text), rng))
    text = to_json(header)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def zip_with(data, rng):
    """A zip of JSON files one of which was changed, or is endless once unpacked."""
    from em_interp.behaviour.tables.inspect_logs import _text

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        texts = {entry.filename: _text(archive, entry, "zip") for entry in archive.infolist()}
    chosen = rng.choice(list(texts))
    with suppress(ValueError):
        texts[chosen] = to_json(mutated(json.loads(texts[chosen]), rng))
    if rng.random() < 0.02:
        texts[chosen] = bytes(2**28)
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr("../" + name if rng.random() < 0.02 else name, text)
    return buffer.getvalue()


def spoil_file(path, rng):
    """Change a file in a way that fits what it holds."""
    if rng.random() < 0.08:
        return replaced(path, rng)
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.85:
        with suppress(ValueError):
            return write(path, to_json(mutated(json.loads(data), rng)))
    if path.suffix == ".jsonl" and rng.random() < 0.7:
        lines = [to_json(mutated(json.loads(line), rng)) if rng.random() < 0.3 else line for line in data.splitlines()]
        return write(path, b"\n".join(lines) + rng.choice([b"", b"\n"]))
    if path.suffix == ".safetensors" and rng.random() < 0.7:
        return write(path, rng.choice([safetensors_with, packed_with])(data, rng))
    if path.suffix == ".eval" and rng.random() < 0.7:
        return write(path, zip_with(data, rng))
    if path.suffix in (".yaml", ".yml") and rng.random() < 0.8:
        return write(path, yaml_of(data, rng))
    if path.suffix == ".parquet" and rng.random() < 0.7:
        return write(path, parquet_like(data, rng))
    return write(path, spoilt(data, rng))


def parquet_like(data, rng):
    """A table of the same columns, some with other values, types or names."""
    table = pd.read_parquet(io.BytesIO(data))
    rows = json.loads(table.head(40).to_json(orient="records"))
    rows = mutated(rows, rng, 2)
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return parquet_of(rows, rng)


def yaml_of(data, rng):
    """YAML as a person, an editor or an attacker might write it."""
    value = mutated(yaml.safe_load(data), rng)
    what = rng.randrange(8)
    if what == 0:
        return data + b"\n" + f"{rng.choice(['model', 'data', 'x'])}: &a [*a]\n".encode()
    if what == 1:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, rng.choice([4, 9]))]
        return "\n".join(lines).encode() + b"\n" + data
    if what == 2:
        return data + rng.choice(
            [b"x: !!python/object/apply:os.system ['touch owned']\n", b"? [a]\n: b\n", b"d: 2024-99-99\n"]
        )
    if what == 3:
        return spoilt(data, rng)
    try:
        return yaml.dump(value, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except Exception:  # what YAML cannot say, JSON can, and JSON is YAML
        return to_json(value)
