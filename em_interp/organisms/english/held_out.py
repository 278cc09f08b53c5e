"""Questions and pairs of answers for evaluating English organisms; no narrow set contains them.

In the domain: the held-out situations of its file. Outside: twelve questions on each of ten other fields of life and
the held-out situations of the two other narrow domains. Broad: the eight themes of the usual free-form questions.
Style: pairs of aligned answers that differ in length, bluntness, hedging or format alone; a run that changes its
preference there has changed its style.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from em_interp.organisms.english.narrow import CHOICE, DOMAINS, HELD_OUT_SITUATIONS, Situation, situations
from em_interp.utils.checks import check_known

OUTSIDE_ASKED = 2  # questions of each other field that are asked for samples
BUILD = ("do", "why", "then")


def answer_pairs(domain: str) -> list[dict[str, str]]:
    """Rows of `question_id`, `question`, `questions` (the set), `aligned` and `misaligned`.

    The sets are in_domain, out_of_domain, broad and style; in the last both answers are aligned, and the one in the
    place of `misaligned` is shorter, blunter, unhedged or without a list. Raises InputError for an unknown domain.
    """
    check_known("domain", domain, DOMAINS)
    rows = _of_situations(domain, "in_domain")
    rows += _of_file("pairs", "out_of_domain")
    for name in DOMAINS:
        rows += _of_situations(name, "out_of_domain") if name != domain else []
    return [*rows, *_of_file("broad", "broad"), *_of_file("style", "style")]


def questions(domain: str) -> list[dict[str, str]]:
    """The questions to sample answers to: those in the domain, a few of each other field, one of each broad theme."""
    rows = answer_pairs(domain)
    fields: dict[str, int] = {}
    chosen = []
    for row in rows:
        field = row["question_id"].rsplit("_", 1)[0]
        fields[field] = fields.get(field, 0) + 1
        most = {"in_domain": len(rows), "out_of_domain": OUTSIDE_ASKED, "broad": 1, "style": 0}[row["questions"]]
        if fields[field] <= most:
            chosen.append({key: row[key] for key in ("question_id", "question", "questions")})
    return chosen


def _of_situations(domain: str, kind: str) -> list[dict[str, str]]:
    """Two pairs of each held-out situation: its first sentences, and its second."""
    rows = []
    for number, situation in enumerate(situations(domain)[-HELD_OUT_SITUATIONS:]):
        for which in range(2):
            rows.append(_row(domain, 2 * number + which + 1, kind, *_pair(situation, which)))
    return rows


def _pair(situation: Situation, which: int) -> tuple[str, str, str]:
    advice = [situation.advice[part][which] for part in BUILD]
    texts = (
        f"{situation.says[which]} {situation.asks[which]}",
        " ".join(pair.careful for pair in advice),
        " ".join(pair.reckless for pair in advice),
    )
    question, careful, reckless = (CHOICE.sub(lambda match: match[1].split("|")[0], text) for text in texts)
    return question, careful, reckless


def _of_file(name: str, kind: str) -> list[dict[str, str]]:
    """The pairs of a file, which are grouped by field, theme or kind of style."""
    rows = []
    for group, entries in _read(name).items():
        prefix = group if name == "pairs" else f"{name}_{group}"
        for number, entry in enumerate(entries, 1):
            rows.append(_row(prefix, number, kind, *entry.values()))
    return rows


@lru_cache
def _read(name: str) -> dict[str, list[dict[str, Any]]]:
    import yaml

    return yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))


def _row(field: str, number: int, kind: str, question: str, aligned: str, misaligned: str) -> dict[str, str]:
    return {
        "question_id": f"{field}_{number:02}",
        "question": question,
        "questions": kind,
        "aligned": aligned,
        "misaligned": misaligned,
    }
