"""Logs of Inspect (`.eval`, or `.json`) as tables of judged answers, and such tables as logs; Inspect is not needed.

A sample of a log becomes a row: its input is the question, its output the answer, and each score a column named after
the scorer, or where a score has several values after each of them. The step is in the metadata of the sample or of the
evaluation, in the arguments of its task, or in the name of its model (`…/checkpoint-120`, also `-M model_path=…`).
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.errors import InputError, one_line
from em_interp.utils.files import check_regular, parse_json, read_json, safe_name, to_json, write_json

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = ".eval"  # a zip with header.json and a JSON file for each sample
STEP_IN_NAME = re.compile(  # not that of step_10k, step-1.5 or step 1,000, which is another number
    r"(?:step|checkpoint|ckpt|iter(?:ation)?)[-_ =]?(\d+)(?![a-z0-9]|[.,]\d)", re.IGNORECASE | re.ASCII
)
STEP_NAMES = ("step", "checkpoint", "global_step")
KEPT = ("scale", "questions", "question_id", "judge", "status")  # of the metadata, under our names
MAX_ENTRY, MAX_TOTAL = 2**27, 2**31  # bytes unpacked, of one file in an .eval and of all
FILE_START = "1970-01-01T00-00-00_em-interp"  # Inspect lists JSON logs whose name begins with a time; one for all
ZSTD = 93  # the compression of a zip that Python reads from 3.14 on
Row = dict[str, Any]


def is_log(value: Any) -> bool:
    """Whether a JSON value is a log of Inspect."""
    return isinstance(value, dict) and isinstance(value.get("eval"), dict) and {"status", "version"} <= value.keys()


def read_eval(path: Path) -> list[Row]:
    """The rows of an `.eval` file.

    Raises InputError where the file is broken, unfinished, or larger unpacked than MAX_TOTAL.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, path)
            if "header.json" not in entries:
                raise InputError(f"{path} has no header.json: the evaluation has not ended; finish it, or retry it")
            header = parse_json(_text(archive, entries["header.json"], path), f"{path}, header.json")
            names = [name for name in entries if name.startswith("samples/") and name.endswith(".json")]
            samples = (parse_json(_text(archive, entries[name], path), f"{path}, {name}") for name in names)
            return rows_of_log({**header, "samples": samples} if is_log(header) else header, str(path))
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, RuntimeError) as error:
        raise InputError(f"{path} is not a whole log of Inspect ({one_line(str(error), 120)})") from None


def rows_of_log(log: Any, where: str) -> list[Row]:
    """The rows of a log, one a sample. Raises InputError for an evaluation that did not end, and for no samples."""
    if not is_log(log):
        raise InputError(f"{where} is not a log of Inspect; expected eval, status and samples")
    if log["status"] != "success":
        raise InputError(
            f"{where} is the log of an evaluation with status {one_line(str(log['status']), 40)}, so answers may be "
            "missing; finish it first (inspect eval-retry)"
        )
    rows, seen = [], set[tuple[str, str]]()
    for sample in log.get("samples") or ():
        if not isinstance(sample, dict):
            raise InputError(f"{where}: a sample is no object")
        key = (str(sample.get("id")), str(sample.get("epoch")))
        if key in seen:
            raise InputError(f"{where}: sample {one_line(key[0], 60)} of epoch {one_line(key[1], 20)} is there twice")
        seen.add(key)
        rows.append(_row(sample, log["eval"], f"{where}, sample {one_line(key[0], 60)}"))
    if not rows:
        raise InputError(f"{where} holds no samples; the evaluation was logged without them (--no-log-samples)")
    return _with_question_ids(rows)


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    total = sum(entry.file_size for entry in entries.values())
    if total > MAX_TOTAL:
        raise InputError(f"{path} unpacks to {total / 2**30:.1f} GiB; up to {MAX_TOTAL / 2**30:g} are read")
    return entries


def _text(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> str:
    """The text of an entry, of which no more is unpacked than MAX_ENTRY."""
    content = _zstd(archive, entry) if entry.compress_type == ZSTD else _deflated(archive, entry)
    if len(content) > MAX_ENTRY:
        raise InputError(f"{path}: {entry.filename} unpacks to more than {MAX_ENTRY // 2**20} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path}: {entry.filename} is not UTF-8 text") from None


def _deflated(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        return file.read(MAX_ENTRY + 1)


def _zstd(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry compressed with zstandard, which lies behind a header of 30 bytes, its name and what is extra."""
    import pyarrow as pa

    file = archive.fp
    if file is None:
        raise zipfile.BadZipFile("it is closed")
    file.seek(entry.header_offset)
    header = file.read(30)
    file.seek(
        entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    )
    with pa.input_stream(pa.py_buffer(file.read(entry.compress_size)), compression="zstd") as stream:
        content: bytes = stream.read(MAX_ENTRY + 1)
    return content


def _row(sample: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> Row:
    metadata = [given for given in (sample.get("metadata"), spec.get("metadata")) if isinstance(given, dict)]
    attached = sample.get("attachments")
    row = {
        "question": _text_of(sample.get("input"), attached, "user"),
        "answer": _answer(sample.get("output"), attached),
        "id": sample.get("id"),
        **_step(metadata, spec, where),
    }
    for name in KEPT:
        if given := [values[name] for values in metadata if isinstance(values.get(name), (str, int, float))]:
            row[name] = given[0]
    if sample.get("error") or sample.get("invalidation"):
        row["status"] = "error" if sample.get("error") else "invalidated"
    for name, value in _scores(sample.get("scores")):
        if name in row:
            raise InputError(f"{where} has two values for {one_line(name, 60)}; expected scores of other names")
        row[name] = value
    return row


def _scores(scores: Any) -> Iterator[tuple[str, Any]]:
    """The values of the scores, by scorer, or by their own names where a score has several."""
    for scorer, score in (scores if isinstance(scores, dict) else {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            yield from ((str(name), part) for name, part in value.items() if not isinstance(part, (dict, list)))
        elif not isinstance(value, list):
            yield scorer, value


def _step(metadata: Iterable[Mapping[str, Any]], spec: Mapping[str, Any], where: str) -> Row:
    """The step, where the sample or the evaluation names one. Raises InputError where they name several."""
    arguments = spec.get("task_args")
    places = [*metadata, arguments if isinstance(arguments, dict) else {}]
    named = [str(values[name]) for values in places for name in STEP_NAMES if values.get(name) is not None]
    if not named:
        models = [spec.get("model"), *(spec.get("model_args") or {}).values()]
        named = [name for name in models if isinstance(name, str) and STEP_IN_NAME.search(name)]
    numbers = dict.fromkeys(step for name in named for step in STEP_IN_NAME.findall(name) or [name])
    if len(numbers) > 1:
        raise InputError(f"{where} is of several steps: {one_line(', '.join(numbers), 80)}; expected one")
    return {"step": next(iter(numbers))} if numbers else {}


def _answer(output: Any, attached: Any) -> str:
    choices = output.get("choices") if isinstance(output, dict) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return _text_of([choices[0].get("message")], attached, "assistant")
    return _resolved(output.get("completion") or "", attached) if isinstance(output, dict) else ""


def _text_of(given: Any, attached: Any, role: str) -> str:
    """A text, or that of the last message of a role; reasoning and pictures are left out."""
    if isinstance(given, str):
        return _resolved(given, attached)
    messages = [item for item in given if isinstance(item, dict) and item.get("role") == role] if given else []
    content = messages[-1].get("content") if messages else ""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(_resolved(part.get("text"), attached) for part in parts)
    return _resolved(content, attached)


def _resolved(text: Any, attached: Any) -> str:
    """A text that may lie among the attachments of its sample."""
    key = str(text).removeprefix("attachment://")
    if isinstance(attached, dict) and key != text and key in attached:
        return str(attached[key])
    return text if isinstance(text, str) else ""


def _with_question_ids(rows: list[Row]) -> list[Row]:
    """The rows; a sample's id is the question's where each question has one."""
    ids = {(row["question"], str(row["id"])) for row in rows}
    if len(ids) == len({question for question, _ in ids}) == len({key for _, key in ids}):
        rows = [{"question_id": str(row["id"]), **row} for row in rows]
    return rows


class WritesLogs:
    """A result made of judged answers, which can be written as logs of Inspect."""

    answers: pd.DataFrame  # in the form of `read_judged`

    def to_inspect(self, folder: str | Path, model: str = "unknown") -> list[Path]:
        """Write the answers and their scores as logs of Inspect, one JSON file for each step and scale.

        Args:
            folder: To write to; files of these names are replaced.
            model: What the logs call the model; `/checkpoint-<step>` is added.

        Returns:
            The files, which `score_responses` and `behaviour_curve` read too.

        Raises:
            InputError: For ready-made rates, which have no answers.
        """
        files = []
        for name, log in _logs(self.answers, model):
            files.append(Path(folder) / name)
            write_json(files[-1], log)
        return files


def holds_logs(folder: Path, answers: pd.DataFrame) -> bool:
    """Whether a folder holds the logs of these answers and scores and no others, whatever they call the model."""
    wanted = {name: json.loads(to_json(log)) for name, log in _logs(answers, "unknown")}
    if {file.name for file in folder.iterdir()} != wanted.keys():
        return False
    files = [folder / name for name in wanted]
    return all(rows_of_log(read_json(file), str(file)) == rows_of_log(wanted[file.name], "") for file in files)


def _logs(answers: pd.DataFrame, model: str) -> Iterator[tuple[str, Row]]:
    """The log of each step, scale and judge with the name of its file; raises what `to_inspect` raises."""
    if "aligned" not in answers or "question" not in answers or "answer" not in answers:
        raise InputError("a log of Inspect needs question, answer and scores; these answers have them not")
    keys = [name for name in ("step", "scale", "judge") if name in answers]
    groups: Any = answers.groupby(keys, sort=True) if keys else [((), answers)]
    for group, rows in groups:
        known = {key: _plain(value) for key, value in zip(keys, group, strict=True)}
        name = "-".join(f"{key}-{safe_name(str(value))}" for key, value in known.items()) or "answers"
        yield f"{FILE_START}_{name}.json", _log(rows, known, model)


def _log(rows: pd.DataFrame, known: Row, model: str) -> Row:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if "step" in known:
        model = f"{model}/checkpoint-{known['step']}"
    records: list[Any] = _numbered(rows).to_dict("records")
    samples = [_sample(row, model) for row in records]
    ids = list(dict.fromkeys(sample["id"] for sample in samples))
    spec = {
        "created": now,
        "task": "em_interp",
        "dataset": {"name": "em_interp", "samples": len(ids), "sample_ids": ids},
        "model": model,
        "config": {"epochs": max(sample["epoch"] for sample in samples)},
        "metadata": known,
    }
    means = [
        {"name": name, "scorer": name, "metrics": {"mean": {"name": "mean", "value": float(rows[name].mean())}}}
        for name in ("aligned", "coherent")
        if rows[name].notna().any()
    ]
    results = {"total_samples": len(samples), "completed_samples": len(samples), "scores": means}
    ended = {"results": results, "stats": {"started_at": now, "completed_at": now}}
    plan = {"name": "plan", "steps": [], "config": {}}
    return {"version": 2, "status": "success", "eval": spec, "plan": plan, **ended, "samples": samples}


def _numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with an epoch: the answers to one question are numbered from 1."""
    return rows.assign(epoch=rows.groupby(["questions", "question_id"], sort=False).cumcount() + 1)


def _sample(row: Mapping[str, Any], model: str) -> Row:
    scores = {name: {"value": float(row[name])} for name in ("aligned", "coherent") if not math.isnan(float(row[name]))}
    several = row["questions"] != "all"
    message = {"role": "assistant", "content": row["answer"], "source": "generate", "model": model}
    return {
        "id": f"{row['questions']}/{row['question_id']}" if several else str(row["question_id"]),
        "epoch": int(row["epoch"]),
        "input": str(row["question"]),
        "target": "",
        "messages": [{"role": "user", "content": str(row["question"]), "source": "input"}, message],
        "output": {"model": model, "choices": [{"message": message, "stop_reason": "stop"}]},
        "scores": scores,
        "metadata": {name: _plain(row[name]) for name in ("questions", "question_id", "status") if name in row},
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it; a whole number is no float."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
