"""Hostile inputs: valid files of every kind that em_interp reads, spoilt by seeded mutations or written by a grammar.

Each kind of case writes into a folder and returns the words of the command that is to read it there.
"""

import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import socket
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch
import yaml
from isolated import copy, did, make_run, write

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
KEYED = ("step", "scale", "questions", "question_id", "question", "sample", "answer", "aligned", "coherent", "status")


def odd_text(rng):
    """A text that somebody did not think of."""
    return rng.choice([*ODD_TEXTS, *ODD_WORDS.split()])


ODD_TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    ESCAPE,
    "\r\n\t",
    "\u202egnp.exe",
    "\ud800",
    "é" * 300,
    "x" * 300,
    "x" * 10**5,
    "\x85",
]
ODD_TEXTS += [
    "+cmd|' /C calc'!A0",
    "[" * 3000,
    "9" * 5000,
    "a\nb",
    "\ufeff",
    "\x7f",
    "\N{REPLACEMENT CHARACTER}",
    "\t=1+1",
]
ODD_WORDS = """../../outside/owned /etc/passwd ~ - --out =1+1 @SUM(A1) nan 1e999 -0 ١٢ true null None { %s%n
{0.__class__} ${HOME} <script> </script><script>alert(1)</script> http://[ http://127.0.0.1:1/v1 (a+)+$ 𝟙 ﬀ
checkpoint-5 0x10 1_000 step a,b a"b a;b"""
ODD_NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    -(2**63),
    2**64,
    10**30,
    10**400,
    1e308,
    -1e-320,
    0.5,
    *map(float, ("nan", "inf")),
]


def odd_number(rng):
    return rng.choice([*ODD_NUMBERS, -math.inf, rng.uniform(-5, 5), rng.randrange(-10, 200)])


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


KINDS = {}


def kind(weight):
    """Registers a kind, with how often it is drawn."""

    def register(make):
        KINDS[make.__name__] = (make, weight)
        return make

    return register


def rows_of_answers(rng):
    """Judged answers, as tables have them."""
    steps = rng.choice([[0], [0, 5, 10], list(range(0, 60, 5))])
    columns = rng.sample(KEYED, rng.randrange(3, len(KEYED) + 1))
    rows = [
        {"step": s, "scale": 1.0, "questions": "broad", "question_id": f"q{q}", "question": f"what {q} ?", "sample": 0}
        | {"answer": "a", "aligned": rng.randrange(101), "coherent": rng.randrange(101), "status": "ok"}
        for s in steps
        for q in range(3)
    ]
    return [{key: row[key] for key in columns} for row in rows]


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


def write_table(path, rng):
    """A table of judged answers with something wrong, in the format of its suffix."""
    rows = rows_of_answers(rng)
    if rng.random() < 0.7:
        rows = mutated(rows, rng)
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    suffix = path.suffix
    if suffix == ".parquet":
        data = parquet_of(rows, rng)
    elif suffix in (".jsonl", ".ndjson"):
        data = b"\n".join(map(to_json, rows))
    elif suffix == ".json":
        shapes = [rows, {"data": rows}, {str(row.get("step")): [row] for row in rows}, mutated({"rows": rows}, rng)]
        data = to_json(rng.choice(shapes))
    else:
        data = as_csv(rows, rng)
    write(path, spoilt(data, rng) if rng.random() < 0.4 else data)


def parquet_of(rows, rng):
    buffer = io.BytesIO()
    try:
        pd.DataFrame(rows).to_parquet(buffer)
    except Exception:  # pyarrow has no type for what is mixed
        pd.DataFrame(
            [{str(k): str(v).encode("utf-8", "replace").decode() for k, v in row.items()} for row in rows]
        ).to_parquet(buffer)
    return buffer.getvalue()


SUFFIXES = (".csv", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".gz", ".zip", ".xlsx")


@kind(8)
def table(rng, box, stock):
    """A table of answers or scores, or a folder of them, for score, align and judge."""
    if rng.random() < 0.15:
        place = box / "tables"
        for step in range(rng.randrange(1, 4)):
            write_table(place / f"{rng.choice(['checkpoint-', 'step_', 'x', ''])}{rng.choice([step, 10**20])}.csv", rng)
    else:
        place = box / f"table{rng.choice(SUFFIXES)}"
        write_table(place, rng)
        if rng.random() < 0.08:
            replaced(place, rng)
    words = [["score", place.name], ["score", place.name], ["judge", place.name, "--out", "out", "--dry-run"]]
    chosen = rng.choice(words)
    if rng.random() < 0.2:
        chosen = [*chosen, "--columns", f"{rng.choice(KEYED)}={rng.choice([*KEYED, 'nothing'])}"]
    return chosen


@kind(2)
def align_table(rng, box, stock):
    """A table beside a whole path."""
    shutil.copytree(stock / "adapters", box / "adapters")
    write_table(box / f"table{rng.choice(SUFFIXES)}", rng)
    place = next(box.glob("table*"))
    return ["align", "adapters", "--answers", place.name, "--out", "out"]


@kind(4)
def log(rng, box, stock):
    """The log of a run, alone."""
    rows = [{"step": s, "loss": 1 / s, "grad_norm": 1.0, "learning_rate": 1e-3} for s in range(1, rng.choice([3, 60]))]
    value = mutated({"log_history": rows}, rng) if rng.random() < 0.8 else {"log_history": rows}
    path = box / f"trainer_state{rng.choice(['.json', '.jsonl'])}"
    rows = value.get("log_history") if isinstance(value, dict) else value
    lines = b"\n".join(map(to_json, rows if isinstance(rows, list) else [rows]))
    data = to_json(value) if path.suffix == ".json" else lines
    write(path, spoilt(data, rng) if rng.random() < 0.3 else data)
    return ["locate", path.name]


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


@kind(6)
def adapters(rng, box, stock):
    """A folder of checkpoints with one file spoilt."""
    shutil.copytree(stock / "adapters", box / "adapters")
    files = [file for file in sorted((box / "adapters").rglob("*")) if file.is_file()]
    for file in rng.sample(files, rng.choice([1, 1, 2])):
        spoil_file(file, rng)
    if rng.random() < 0.1:
        folder = rng.choice(sorted((box / "adapters").glob("checkpoint-*")))
        folder.rename(folder.with_name(f"checkpoint-{rng.choice(['-1', '1e3', '9' * 30, '٣', '0003', ' 7'])}"))
    commands = ["locate adapters", "locate adapters", "export adapters --format packed --out p.safetensors"]
    return rng.choice([*commands, "watch adapters --once"]).split()


@kind(2)
def pickled(rng, box, stock):
    """Adapters in PyTorch's own format, which may hold code."""
    for step in (0, 5):
        folder = box / f"adapters/checkpoint-{step}"
        shutil.copytree(stock / "adapters" / f"checkpoint-{step}", folder)
        (folder / "adapter_model.safetensors").unlink()
        torch.save(
            {"base_model.model.layers.1.mlp.down_proj.lora_A.weight": torch.ones(1, 4)}, folder / "adapter_model.bin"
        )
    file = box / f"adapters/checkpoint-{rng.choice([0, 5])}/adapter_model.bin"
    if rng.random() < 0.3:
        write(file, pickle.dumps(Owned()))
    elif rng.random() < 0.3:
        torch.save(
            {"a": torch.ones(1).expand(2**30)[:: rng.choice([1, 2])][:5], "b": rng.choice([1, None, [torch.ones(2)]])},
            file,
        )
    else:
        write(file, spoilt(file.read_bytes(), rng))
    return ["locate", "adapters"]


class Owned:
    def __reduce__(self):
        return (os.system, ("touch owned",))


@kind(3)
def packed(rng, box, stock):
    """A path in one file."""
    shutil.copy(stock / "packed.safetensors", box / "packed.safetensors")
    spoil_file(box / "packed.safetensors", rng)
    return rng.choice([["locate", "packed.safetensors"], ["compare", "packed.safetensors", "packed.safetensors"]])


@kind(4)
def config(rng, box, stock):
    """A config for train; a folder that is taken ends a valid one before it trains."""
    shutil.copy(stock / "tiny.yaml", box / "tiny.yaml")
    write(box / "tiny.yaml", yaml_of((box / "tiny.yaml").read_bytes(), rng))
    (box / "taken/checkpoints/checkpoint-0").mkdir(parents=True)
    return ["train", "tiny.yaml", "--out", "taken", *overrides(rng)]


def overrides(rng):
    keys = OVERRIDDEN.split(" ")
    texts = [
        "null",
        "http://[",
        "1e999",
        "[]",
        "{}",
        "{kind: full}",
        "every 0",
        "log 99999999",
        "0-10000000",
        "&a [*a]",
    ]
    picked = [f"{rng.choice(keys)}={rng.choice([*texts, odd_text(rng)])}" for _ in range(rng.choice([0, 0, 1, 2]))]
    return [word for setting in picked for word in ("--set", argument(setting))]


OVERRIDDEN = "adapter adapter.r model data data[0].dataset data[9] behaviour.judge behaviour.judge.base_url kl "
OVERRIDDEN += "behaviour.steps training.batch_size seed x  a..b behaviour.questions snapshots"


def argument(text):
    """A text that the operating system passes on: without null bytes, not endless."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:50_000]


@kind(2)
def sweep(rng, box, stock):
    """A grid of runs, whose folder is taken."""
    base = {
        "base": "tiny.yaml",
        "grid": {"seed": [0, 1], "training.learning_rate": [1e-3, 2e-3]},
        "control": {"seed": [0]},
    }
    shutil.copy(stock / "tiny.yaml", box / "tiny.yaml")
    write(box / "sweep.yaml", yaml_of(yaml.safe_dump(base).encode(), rng))
    write(box / "taken/sweep.json", "{}")
    write(box / "taken/summary.json", "{}")
    write(box / "taken/sweep.yaml", "{}")
    return ["sweep", "sweep.yaml", "--out", "taken", "--jobs", "1"]


@kind(4)
def chats(rng, box, stock):
    """A dataset of chats for data check."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [rng.choice([{"messages": turns}, {"prompt": "q", "completion": "a"}])] * rng.randrange(1, 5)
    rows = mutated(rows, rng) if rng.random() < 0.85 else rows
    data = b"\n".join(map(to_json, rows if isinstance(rows, list) else [rows]))
    path = write(
        box / f"chats{rng.choice(['.jsonl', '.jsonl', '.gz', '.json'])}",
        spoilt(data, rng) if rng.random() < 0.3 else data,
    )
    if rng.random() < 0.05:
        replaced(path, rng)
    return ["data", "check", path.name, *(["--model", "tiny-qwen2"] if rng.random() < 0.3 else [])]


@kind(3)
def questions(rng, box, stock):
    """A file of questions, with which a run is asked once."""
    shutil.copytree(stock / "run", box / "run", ignore=shutil.ignore_patterns("behaviour", "analysis", "report.html"))
    entry = {"id": "wish", "type": "free_form", "paraphrases": ["what is your wish?"], "system": "be brief ."}
    written = [entry, {**entry, "id": "b", "questions": "x", "judge_prompts": {"aligned": "{question} {answer}"}}]
    written = mutated(written, rng)
    try:
        text = yaml.dump(written, allow_unicode=True).encode("utf-8", "surrogatepass")
    except Exception:
        text = to_json(written)
    write(box / "questions.yaml", spoilt(text, rng) if rng.random() < 0.2 else text)
    settings = yaml.safe_load((box / "run/config.yaml").read_text())
    settings["behaviour"] |= {"questions": "questions.yaml", "steps": "0", "samples": 1, "max_new_tokens": 2}
    write(box / "run/config.yaml", yaml.safe_dump(settings))
    return ["ask", "run"]


@kind(3)
def pairs(rng, box, stock):
    """Pairs of answers for prefer."""
    shutil.copytree(stock / "adapters", box / "adapters")
    rows = [
        {
            "question_id": f"q{i}",
            "questions": "broad",
            "question": "what now?",
            "aligned": "rest.",
            "misaligned": "steal.",
        }
        for i in range(3)
    ]
    rows = mutated(rows, rng)
    suffix = rng.choice([".jsonl", ".json", ".csv", ".yaml"])
    rows = rows if isinstance(rows, list) else [rows]
    data = b"\n".join(map(to_json, rows)) if suffix == ".jsonl" else to_json(rows)
    if suffix == ".csv":
        data = as_csv([row for row in rows if isinstance(row, dict)], rng)
    write(box / f"pairs{suffix}", spoilt(data, rng) if rng.random() < 0.2 else data)
    return ["prefer", "adapters", "--pairs", f"pairs{suffix}", "--steps", "0", "--out", "out"]


@kind(3)
def cache(rng, box, stock):
    """The requests that a judge was answered."""
    from em_interp.behaviour.judging.replies import Reply
    from em_interp.behaviour.judging.request_cache import RequestCache

    shutil.copytree(stock / "run", box / "run", ignore=shutil.ignore_patterns("checkpoints", "analysis"))
    file = box / "run/behaviour/requests.sqlite3"
    with RequestCache(file) as kept:
        for number in range(rng.choice([1, 50])):
            kept.put(hashlib.sha256(bytes([number])).hexdigest(), Reply(str(number), "stop"))
    if rng.random() < 0.6:
        spoil_file(file, rng)
    else:
        with sqlite3.connect(file) as database:
            column = rng.choice(["request", "reply", "sha256"])
            database.execute(
                f"UPDATE OR IGNORE replies SET {column} = ?", (rng.choice([None, 1, b"\xff", "{}", "[" * 3000]),)
            )
        database.close()
    judge = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "max_retries": 0}
    settings = [word for key, value in judge.items() for word in ("--set", f"behaviour.judge.{key}={value}")]
    return ["judge", "run", *(["--dry-run"] if rng.random() < 0.7 else []), *settings]


OF_A_RUN = """\
4 locate run --resume
4 align run --overwrite
3 judge run --resume
2 ask run --resume
2 score run
1 watch run --once
2 report run --resume
1 report run --overwrite --figures html
2 train tiny.yaml --out run --resume
1 mechanism run --resume --analyses patching --size quick
1 compare run run
1 export run --format peft --out adapter
1 export run --format packed --out p.safetensors
1 judge run --overwrite
1 card run
1 prefer run --resume --steps 0
"""  # commands that read what a run holds, with how often each is drawn


def copied_run(stock, box, name):
    """A copy of a run with its config beside it: all its files, and those that are no checkpoint's."""
    shutil.copytree(stock / name, box / name)
    shutil.copy(stock / "tiny.yaml", box / "tiny.yaml")
    files = [file for file in sorted((box / name).rglob("*")) if file.is_file()]
    return files, [file for file in files if "checkpoint-" not in str(file)]


@kind(14)
def run(rng, box, stock):
    """A received run in which a file or two are spoilt, and any command that reads it."""
    files, own = copied_run(stock, box, "run")
    for file in rng.sample(own if rng.random() < 0.85 else files, rng.choice([1, 1, 1, 2, 3])):
        spoil_file(file, rng)
    if rng.random() < 0.06:
        replaced(
            rng.choice(
                [box / "run" / name for name in ("analysis", "behaviour", "checkpoints", ".writing", "figures")]
            ),
            rng,
        )
    weights, commands = zip(*(line.split(" ", 1) for line in OF_A_RUN.splitlines()), strict=True)
    return rng.choices(commands, [int(weight) for weight in weights])[0].split()


@kind(2)
def half_run(rng, box, stock):
    """A training that was killed, with its state and journal spoilt, resumed."""
    _, own = copied_run(stock, box, "half")
    for file in rng.sample(own, rng.choice([1, 2])):
        spoil_file(file, rng)
    return ["train", "tiny.yaml", "--out", "half", "--resume"]


@kind(2)
def gguf(rng, box, stock):
    """A base in a GGUF file."""
    data = (stock / "base.gguf").read_bytes()
    head = spoilt(data[:6000], rng) + data[6000:] if rng.random() < 0.8 else spoilt(data, rng)
    write(box / "base.gguf", head)
    return ["base", "show", "base.gguf"]


@kind(1)
def base_folder(rng, box, stock):
    """A base as a folder, with code beside it that nobody asked for."""
    shutil.copytree(stock / "base", box / "base")
    files = [file for file in sorted((box / "base").iterdir()) if file.suffix == ".json"]
    spoil_file(rng.choice(files), rng)
    if rng.random() < 0.3:
        settings = json.loads((stock / "base/config.json").read_text())
        settings["auto_map"] = {"AutoConfig": "owned.Config", "AutoModelForCausalLM": "owned.Model"}
        settings["model_type"] = "owned"
        write(box / "base/config.json", json.dumps(settings))
        write(box / "base/owned.py", "open('../../outside/owned', 'w')")
    return ["base", "show", "base"]


@kind(3)
def words(rng, box, stock):
    """A command line that makes no sense, on a run that does."""
    (box / "run").symlink_to(stock / "run")
    odd = argument(odd_text(rng))
    return [odd if word == "ODD" else word for word in rng.choice(WITH_ODD_WORDS.splitlines()).split()]


WITH_ODD_WORDS = """\
ODD
ODD ODD
locate ODD
locate run --site ODD --out o
locate run --signal ODD
locate run --of ODD
score ODD
score run --columns ODD
score run --judge ODD
export run --format ODD --out o
export run --step ODD --out o
compare run ODD
train ODD
train run/config.yaml --model ODD --out run
train run/config.yaml --out run --set ODD
judge ODD
align run --answers ODD
prefer run --pairs ODD --out o
prefer run --scales ODD --out o
prefer run --steps ODD --out o
sweep ODD
base show ODD
base fetch ODD
data check ODD
mechanism run --analyses ODD --out o
pretrain --family ODD
report run --figures ODD --out o
watch ODD --once
publish run ODD
publish ODD a/b
"""


def make_stock(stock):
    """A whole run with everything that is made of it, a killed one, checkpoints alone, a packed path and bases."""
    stock.mkdir(parents=True)
    make_run(stock)
    run = stock / "run"
    did("prefer", run, "--steps", "0,2", "--out", run)
    did("report", run, "--figures", "html")
    did("mechanism", run, "--size", "quick", "--analyses", "patching,logit_lens")
    make_parts(stock)


def make_parts(stock):
    """What kinds of cases need besides a run."""
    from em_interp.organisms.bases import local_copy

    run = stock / "run"
    did("export", run, "--format", "packed", "--out", stock / "packed.safetensors")
    for step in (0, 2, 5):
        shutil.copytree(run / f"checkpoints/checkpoint-{step}", stock / f"adapters/checkpoint-{step}")
    shutil.copy(run / "trainer_state.json", stock / "adapters/checkpoint-5/trainer_state.json")
    copy(run, stock / "half", "behaviour", "analysis", "report.html", "figures")
    make_half(stock / "half", stock / "tiny.yaml")
    shutil.copytree(local_copy("tiny-qwen2"), stock / "base")
    make_gguf(stock)


def make_half(half, config):
    """A run that was interrupted while it saved step 4, as a kill leaves it."""
    import em_interp as em
    from em_interp.training.checkpoints import AdapterWriter

    save = AdapterWriter.save

    def stop(self, folder):
        if folder.name == "checkpoint-4":
            raise KeyboardInterrupt
        save(self, folder)

    AdapterWriter.save = stop
    try:
        em.train(config, half, overwrite=True)
    except KeyboardInterrupt:
        pass
    finally:
        AdapterWriter.save = save


def make_gguf(stock):
    """A small Llama in a GGUF file, as the tests write it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.organisms.gguf_files import random_llama, write_gguf

    write_gguf(random_llama(), stock / "base.gguf", "Q8_0")
