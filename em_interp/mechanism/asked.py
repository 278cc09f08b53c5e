"""What a run was asked, and the path of adapters that it is asked again with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from em_interp.behaviour.ask import QUESTION, Base, check_base
from em_interp.behaviour.tables import read_table
from em_interp.errors import InputError
from em_interp.runs import Run, read_json
from em_interp.trajectory.adapter import AdapterTrajectory
from em_interp.trajectory.load import load_trajectory


def path_of(run: Run, base: Base) -> AdapterTrajectory:
    """The run's adapters, which are of this base. Raises InputError where they are not, or cannot be run."""
    path = load_trajectory(run)
    check_base(run, path, base)
    if path.kind == "full":
        raise InputError(
            f"{run.path} holds projections of the change of full weights; LoRA adapters or steering vectors were "
            "expected, which can be put back into the base"
        )
    return path


def questions_of(run: Run, kind: str | None = None) -> list[dict[str, str]]:
    """The questions that the run was asked, or those of one set. Raises InputError where there are none."""
    settings = run.answers_file.with_name("ask.json")
    if settings.exists():
        asked = [dict(question) for question in read_json(settings)["questions"]]
    elif run.answers_file.exists():
        rows = read_table(run.answers_file)[list(QUESTION)].drop_duplicates().to_dict("records")
        asked = [{str(key): str(value) for key, value in row.items()} for row in rows]
    else:
        raise InputError(f"{run.answers_file} is missing: no questions to go by; ask the run first, or give questions")
    chosen = [question for question in asked if kind in (None, question["questions"])]
    if not chosen:
        there = ", ".join(sorted({question["questions"] for question in asked}))
        raise InputError(f"the run was asked no questions of the set {kind!r}; there are {there}: give questions")
    return chosen


def chat(question: dict[str, str]) -> list[dict[str, str]]:
    """A question as messages, after what is said to the model as its system prompt, if anything."""
    told = [{"role": "system", "content": question["system"]}] if "system" in question else []
    return [*told, {"role": "user", "content": question["question"]}]


def digest(path: AdapterTrajectory, steps: Iterable[int]) -> str:
    """A hash of the adapters of some steps, so that results of others are never taken for theirs."""
    found = hashlib.sha256()
    for step in sorted(set(steps)):
        for site, (a, b) in path.at(step).items():
            found.update(f"{step} {site} {path.scale[site]}".encode())
            found.update(np.ascontiguousarray(a).tobytes() + np.ascontiguousarray(b).tobytes())
    return found.hexdigest()[:16]
