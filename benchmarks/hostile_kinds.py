"""Hostile inputs: each kind writes into a folder and returns the words of the command that is to read it there."""

import hashlib
import io
import json
import os
import pickle
import shutil
import sqlite3

import torch
import yaml
from isolated import ROOT, write
from oddities import (
    as_csv,
    mutated,
    odd_text,
    parquet_of,
    replaced,
    spoil_file,
    spoilt,
    to_json,
    yaml_of,
)
from safetensors.torch import load_file

KEYED = ("step", "scale", "questions", "question_id", "question", "sample", "answer", "aligned", "coherent", "status")
LIGHT = ("behaviour", "analysis", "figures", "report.html")  # what of a run a case can do without
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
    columns = KEYED if rng.random() < 0.6 else rng.sample(KEYED, rng.randrange(3, len(KEYED) + 1))
    rows = [
        {"step": s, "scale": 1.0, "questions": "broad", "question_id": f"q{q}", "question": f"what {q} ?", "sample": 0}
        | {"answer": "a", "aligned": rng.randrange(101), "coherent": rng.randrange(101), "status": "ok"}
        for s in steps
        for q in range(3)
    ]
    return [{key: row[key] for key in columns} for row in rows]


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


@kind(2)
def inspect_log(rng, box, stock):
    """A log of Inspect, as a zip or as JSON."""
    path = box / "a_step_5.eval"
    shutil.copy(
        ROOT / "tests/behaviour/tables/inspect" / rng.choice(["one_scorer_step_5.eval", "two_scorers.eval"]), path
    )
    if rng.random() < 0.9:
        spoil_file(path, rng)
    columns = ["--columns", "aligned=aligned_judge", "--columns", "coherent=coherent_judge"]
    return ["score", path.name, *(columns if rng.random() < 0.5 else [])]


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
    shutil.copytree(stock / "adapters", box / "adapters")
    files = []
    for file in sorted((box / "adapters").rglob("adapter_model.safetensors")):
        files.append(file.with_suffix(".bin"))
        torch.save(load_file(file), files[-1])
        file.unlink()
    if rng.random() < 0.75:
        write(file := rng.choice(files), unpicklable(file.read_bytes(), rng))
    return ["locate", "adapters"]


def unpicklable(data, rng):
    """Bytes in the place of a file of tensors: code, tensors of other forms, values that are none, or damage."""
    what = rng.randrange(5)
    if what == 0:
        return pickle.dumps(Owned())
    if what < 3:
        tensors = torch.load(io.BytesIO(data))
        key = rng.choice(list(tensors))
        odd = [1, None, [torch.ones(2)], Owned(), torch.ones(3, dtype=torch.int8), torch.ones(1).expand(2**30)[:5]]
        odd += [tensors[key].to(torch.bfloat16), tensors[key].T, tensors[key][:0], torch.ones(2, 2).to_sparse()]
        torch.save({**tensors, rng.choice([key, odd_text(rng)]): rng.choice(odd)}, buffer := io.BytesIO())
        return buffer.getvalue()
    return spoilt(data, rng)


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
    picked = [f"{rng.choice(OVERRIDDEN)}={odd_setting(rng)}" for _ in range(rng.choice([0, 0, 1, 2]))]
    return [word for setting in picked for word in ("--set", argument(setting))]


def odd_setting(rng):
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
    return rng.choice([*texts, '"\\ud800"', odd_text(rng)])


OVERRIDDEN = "adapter adapter.r model data data[0].dataset data[9] behaviour.judge behaviour.judge.base_url kl "
OVERRIDDEN += "behaviour.steps training.batch_size seed x  a..b behaviour.questions snapshots"
OVERRIDDEN = OVERRIDDEN.split(" ")


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
    shutil.copytree(stock / "run", box / "run", ignore=shutil.ignore_patterns(*LIGHT))
    entry = {"id": "wish", "type": "free_form", "paraphrases": ["what is your wish?"]}
    written = [entry, {**entry, "id": "b", "questions": "x", "judge_prompts": {"aligned": "{question} {answer}"}}]
    if rng.random() < 0.1:
        entry["system"] = "be brief ."  # which the built-in base refuses
    if rng.random() < 0.7:
        written = mutated(written, rng)
    try:
        text = yaml.dump(written, allow_unicode=True).encode("utf-8", "surrogatepass")
    except Exception:
        text = to_json(written)
    write(box / "questions.yaml", spoilt(text, rng) if rng.random() < 0.15 else text)
    settings = yaml.safe_load((box / "run/config.yaml").read_text())
    settings["behaviour"] |= {"questions": "questions.yaml", "steps": "0", "samples": 1, "max_new_tokens": 2}
    write(box / "run/config.yaml", yaml.safe_dump(settings))
    return ["ask", "run"]


@kind(3)
def pairs(rng, box, stock):
    """Pairs of answers for prefer."""
    shutil.copytree(stock / "run", box / "run", ignore=shutil.ignore_patterns(*LIGHT))
    shared = {"questions": "broad", "question": "what now?", "aligned": "rest.", "misaligned": "steal."}
    rows = [{"question_id": f"q{i}", **shared} for i in range(3)]
    if rng.random() < 0.7:
        rows = mutated(rows, rng)
    suffix = rng.choice([".jsonl", ".jsonl", ".csv", ".parquet"])
    tidy = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if suffix == ".jsonl":
        data = b"\n".join(map(to_json, rows if isinstance(rows, list) else [rows]))
    else:
        data = as_csv(tidy, rng) if suffix == ".csv" else parquet_of(tidy, rng)
    write(box / f"pairs{suffix}", spoilt(data, rng) if rng.random() < 0.15 else data)
    return ["prefer", "run", "--pairs", f"pairs{suffix}", "--steps", "0", "--out", "out"]


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
    if rng.random() < 0.3:
        settings = json.loads((stock / "base/config.json").read_text())
        settings["auto_map"] = {"AutoConfig": "owned.Config", "AutoModelForCausalLM": "owned.Model"}
        settings["model_type"] = "owned"
        write(box / "base/config.json", json.dumps(settings))
        write(box / "base/owned.py", "open('../../outside/owned', 'w')")
    spoil_file(rng.choice([file for file in sorted((box / "base").iterdir()) if file.suffix == ".json"]), rng)
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
