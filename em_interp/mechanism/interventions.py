"""Many interventions asked the same questions: each an arm, all arms in one batch, the answers kept and judged.

An edit takes a vector a row, so arms of any dose, layer and direction share a batch. What is asked lies in a folder of
its own in the form of a run's answers, so that judging is the same stage as for a run and goes on where it was
interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.ask import QUESTION, check_questions
from em_interp.behaviour.judge import KEY, Judge, judge_answers
from em_interp.behaviour.tables import normal_form, read_table
from em_interp.mechanism.asked import chat, digest
from em_interp.mechanism.cells import Asking
from em_interp.mechanism.edits import Add, Edit, ProjectOut, Where
from em_interp.mechanism.parts import begin, clear, in_parts
from em_interp.runs import Run, resumable, write_beside

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from em_interp.mechanism.model import SteppedModel

Held = Literal["base", "adapted"]
How = Literal["add", "project_out", "move"]
NONE, DIRECTION, RANDOM, MOVED = "none", "direction", "random", "moved"  # kinds of arms
TIMES = 4  # as many answers as another arm of the model left alone
COLUMNS = ("held", "kind", "place", "number", "dose")


@dataclass(frozen=True, eq=False)
class Move(Edit):
    """x − r̂(v̂ᵀx): as much as an ablation of v (`along`) takes away at each token, taken along r (`vector`) instead."""

    along: Any = None  # of the shape of `vector`

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x − r̂(v̂ᵀx)."""
        import torch

        along = torch.as_tensor(self.along, dtype=x.dtype, device=x.device).reshape(vector.shape)
        return x - (x * _unit(along)).sum(dim=-1, keepdim=True) * _unit(vector)

    def repeated(self, rows: Sequence[int]) -> Edit:
        """The same edit for a batch made of these rows."""
        import torch

        along = torch.as_tensor(self.along)
        chosen = along[list(rows)] if along.ndim == 2 else along
        return replace(super().repeated(rows), along=chosen)  # type: ignore[call-arg]


def _unit(vector: torch.Tensor) -> torch.Tensor:
    length = vector.norm(dim=-1, keepdim=True)
    return vector / length.where(length > 0, 1.0)


EDITS: dict[How, Any] = {"add": Add, "project_out": ProjectOut, "move": Move}


@dataclass(frozen=True, eq=False)
class Arm:
    """One intervention: a vector after each layer (zero: that layer is left alone) and what is done with it."""

    held: Held
    kind: str
    how: How
    vectors: Float[np.ndarray, "layer d"]
    place: str = ""  # where, in words
    number: int = 0  # which of the random ones
    dose: float = 1.0
    along: Float[np.ndarray, "layer d"] | None = None  # of a move: what is taken elsewhere
    positions: Where = "all"  # or "new": only as generated tokens are read back in


def nothing(held: Held, like: Float[np.ndarray, "layer d"]) -> list[Arm]:
    """The model as it is, asked several times over: every other arm is held against it."""
    return [Arm(held, NONE, "add", np.zeros_like(like), number=number, dose=0.0) for number in range(TIMES)]


def edits_of(arms: Sequence[Arm]) -> list[Edit]:
    """The edits of a batch whose row i is under arm i: one for each way and layer, with a vector for each row."""
    edits: list[Edit] = []
    for how, positions in dict.fromkeys((arm.how, arm.positions) for arm in arms):
        like = [arm.how == how and arm.positions == positions for arm in arms]
        chosen = zip(like, arms, strict=True)
        vectors = np.stack([arm.vectors if mine else np.zeros_like(arm.vectors) for mine, arm in chosen])
        along = np.stack([np.zeros_like(arm.vectors) if arm.along is None else arm.along for arm in arms])
        for layer in np.flatnonzero(vectors.any(axis=(0, 2))).tolist():
            more = {"along": along[:, layer]} if how == "move" else {}
            edits.append(EDITS[how](vectors[:, layer], layer, positions, **more))
    return edits


def random_like(vectors: Float[np.ndarray, "layer d"], rng: np.random.Generator) -> Float[np.ndarray, "layer d"]:
    """A random direction after each layer, uniform and exactly as long as the one given (a zero stays zero).

    A draw from a standard normal is √d too long; it is divided by its own length.
    """
    drawn = rng.standard_normal(vectors.shape)
    return drawn * (np.linalg.norm(vectors, axis=1) / np.linalg.norm(drawn, axis=1))[:, None]


def judged_arms(
    folder: Path,
    model: SteppedModel,
    arms: Sequence[Arm],
    judge: Judge,
    questions: Sequence[dict[str, str]],
    asking: Asking,
    step: int | None = None,
    resume: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Ask every question under every arm and judge the answers: a row an answer, with the arm's `COLUMNS`.

    `adapted` arms are of the adapter of `step`, the last where None. Everything is kept under `folder`; with `resume`
    what is there is not done again, and what comes out is the same to the byte. Raises InputError for answers that
    are there already (without `resume`) or were begun with other settings.
    """
    check_questions(questions)
    kept = Run(Path(folder))
    step = int(model.trajectory.steps[-1]) if step is None else step
    with resumable(kept.path):
        begin(kept.answers_file.with_name("ask.json"), _settings(model, arms, questions, asking, step), resume)
        parts = kept.answers_file.with_name("answers.parts")
        if not kept.answers_file.exists():
            chunks = list(_chunks(arms, questions, max(1, asking.batch // asking.samples)))
            made = in_parts(parts, len(chunks), lambda i: _ask(model, chunks[i], asking, step, i), "ask", progress)
            _join(kept.answers_file, chunks, made)
        clear(parts)
        answers = read_table(kept.answers_file)
        scores = read_table(judge_answers(kept, judge, resume, progress))
    scores = scores[scores["judge"] == judge.name]
    return normal_form(answers.merge(scores, on=KEY), str(kept.scores_file))


_Row = tuple[int, Arm, dict[str, str]]  # the number of the arm, the arm, a question


def _chunks(arms: Sequence[Arm], questions: Sequence[dict[str, str]], size: int) -> Iterator[list[_Row]]:
    """Rows of one batch each; the base and the adapted model do not share one."""
    for _, some in groupby(enumerate(arms), lambda numbered: numbered[1].held):
        rows = [(number, arm, question) for number, arm in some for question in questions]
        for first in range(0, len(rows), size):
            yield rows[first : first + size]


def _ask(model: SteppedModel, rows: list[_Row], asking: Asking, step: int, index: int) -> list[list[str]]:
    chats = [chat(question) for _, _, question in rows]
    edits = edits_of([arm for _, arm, _ in rows])
    seed = int(np.random.SeedSequence([asking.seed, index]).generate_state(1)[0])
    with model.at(step, scale=float(rows[0][1].held == "adapted")) as held:
        return held.generate(
            chats, asking.samples, asking.temperature, asking.max_new_tokens, edits, seed, asking.batch
        )


def _join(file: Path, chunks: list[list[_Row]], made: list[list[list[str]]]) -> None:
    """All parts as one table. `step` counts the arms: with it a row has the key of a run's answers."""
    import pandas as pd

    table = []
    for rows, part_answers in zip(chunks, made, strict=True):
        for (number, arm, question), answers in zip(rows, part_answers, strict=True):
            asked = {"step": number, "scale": 1.0, **{name: getattr(arm, name) for name in COLUMNS}}
            asked |= {key: question[key] for key in QUESTION}
            table += [{**asked, "sample": sample, "answer": answer} for sample, answer in enumerate(answers)]
    with write_beside(file) as part:
        pd.DataFrame(table).to_parquet(part, index=False)


def _settings(
    model: SteppedModel, arms: Sequence[Arm], questions: Sequence[dict[str, str]], asking: Asking, step: int
) -> dict[str, Any]:
    return {
        "base": model.base.identity,
        "adapter": digest(model.trajectory, [step]),
        "arms": [[arm.how, arm.positions, *(getattr(arm, name) for name in COLUMNS), _hash(arm)] for arm in arms],
        "questions": [dict(question) for question in questions],
        **asdict(asking),
    }


def _hash(arm: Arm) -> str:
    """Of the vectors as they are used, in single precision."""
    found = hashlib.sha256()
    for part in (arm.vectors, arm.along):
        found.update(b"" if part is None else np.ascontiguousarray(part, np.float32).tobytes())
    return found.hexdigest()[:16]
