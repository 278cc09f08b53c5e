"""Detecting a change of the answers along a run: the likelihood of its answers under its other checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from em_interp.behaviour.ask import Base
from em_interp.behaviour.judge import KEY, answers_of
from em_interp.behaviour.rates import LEVEL
from em_interp.errors import InputError
from em_interp.files import read_json, resumable
from em_interp.mechanism.answer_shift.divergence import Form, Windows, check_form, posteriors, windows
from em_interp.mechanism.answer_shift.shift import AnswerShift
from em_interp.mechanism.experiments import begin, chat, digest, in_parts, path_of, questions_of
from em_interp.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.behaviour.likelihood import TokenizedAnswer
    from em_interp.trajectory.trajectory import AdapterTrajectory

CHECKPOINTS = 3  # on each side, where no window is given
UNBELIEVABLE = 1e-8  # likelihoods with a smaller p-value are not those of the answers


def detect_answer_shift(
    run: Run,
    base: Base,
    window: float | None = None,
    questions: str | None = "out_of_domain",
    scale: float = 1.0,
    samples: int | None = None,
    form: Form = "linear",
    level: float = LEVEL,
    seed: int = 0,
    resume: bool = False,
    progress: bool = False,
) -> AnswerShift:
    """The distance between the answers of the checkpoints within `window` training steps left and right of each place.

    No judge is asked: the run's own answers (one question set or, with None, all; the first `samples` to each
    question) are read by its checkpoints, whose likelihoods say which side an answer came from (2508.20015). Scores,
    where the run has them, only name what changed (`order_parameters`). `window` is by default three times the
    spacing of the asked steps.

    Answers must have been sampled, top-p 1. Likelihoods are kept in `run.analysis/change`. Raises InputError for
    adapters of another base, a run that was not asked such questions, greedy answers, and too few asked steps.
    """
    check_form(form)
    path = path_of(run, base)
    settings = _asked_with(run)
    answers = _chosen(run, questions, scale, samples)
    steps = np.unique(answers["step"])
    over = windows(steps, CHECKPOINTS * float(np.median(np.diff(steps))) if window is None else window)
    system = {(q["questions"], q["question_id"]): chat(q) for q in questions_of(run)}
    chats = [system[key] for key in zip(answers["questions"], answers["question_id"], strict=True)]
    kept = {
        "base": base.identity,
        "adapters": digest(path, steps.tolist()),
        "answers": _hash(answers),
        "steps": steps.tolist(),
        "scale": scale,
        "reach": [row.tolist() for row in over.needed.astype(int)],
        "temperature": settings["temperature"],
    }
    folder = Path(run.analysis) / "change"
    with resumable(folder):
        begin(folder / "settings.json", kept, resume)
        likelihood = _likelihoods(base, path, answers, chats, over.needed, scale, settings, folder, progress)
    check_calibrated(likelihood, answers, over)
    only = answers["questions"].iloc[0] if answers["questions"].nunique() == 1 else None
    return AnswerShift(_with_scores(run, answers), likelihood, over, form, only, level, seed)


def _asked_with(run: Run) -> dict[str, Any]:
    """The temperature and length limit of the run's answers; those of `ask` where it does not say."""
    file = run.answers_file.with_name("ask.json")
    settings = {"temperature": 1.0, "max_new_tokens": None, **(read_json(file) if file.exists() else {})}
    if settings["temperature"] == 0:
        raise InputError(
            f"the answers of {run.path} are the likeliest ones (temperature 0); sampled ones were expected"
        )
    return settings


def _chosen(run: Run, questions: str | None, scale: float, samples: int | None) -> pd.DataFrame:
    answers = answers_of(run)
    chosen = answers[answers["scale"] == scale]
    if questions is not None:
        chosen = chosen[chosen["questions"] == questions]
    if samples is not None:
        chosen = chosen[chosen["sample"] < samples]
    if chosen.empty:
        there = answers[["scale", "questions"]].drop_duplicates().to_numpy().tolist()
        raise InputError(f"the run has no answers at scale {scale:g} to questions {questions!r}; there are {there}")
    return chosen.reset_index(drop=True)


def check_calibrated(likelihood: Float[np.ndarray, "answer step"], answers: pd.DataFrame, over: Windows) -> None:
    """Raise InputError where the likelihoods cannot be those of the distributions that the answers were drawn from.

    For likelihoods that are, P(left | answer) is the chance that an answer came from the left: the answers to each
    question that did are as many as it says, and those it is surer of are right as often as it says.
    """
    from scipy.stats import chi2

    at = np.searchsorted(over.steps, answers["step"])
    question = np.unique(answers["question_id"].to_numpy(str), return_inverse=True)[1]
    worst = 1.0
    for posterior, left in zip(posteriors(likelihood, at, over).T, over.left, strict=True):
        inside = np.isfinite(posterior)
        p, asked, came = posterior[inside], question[inside], left[at[inside]]
        away = np.append(np.bincount(asked, came - p), ((p - 0.5) * (came - p)).sum())
        spread = np.append(np.bincount(asked, p * (1 - p)), ((p - 0.5) ** 2 * p * (1 - p)).sum())
        told = spread > 1e-9
        worst = min(worst, float(chi2.sf((away[told] ** 2 / spread[told]).sum(), told.sum())) if told.any() else 1.0)
    if worst < UNBELIEVABLE:
        raise InputError(
            f"the answers cannot have been drawn from the checkpoints as they are read (p = {worst:.0e}); the usual "
            "cause is another sampling (temperature, top-p), chat template or system prompt than the run's"
        )


def _hash(answers: pd.DataFrame) -> str:
    import hashlib

    import pandas as pd

    return hashlib.sha256(pd.util.hash_pandas_object(answers, index=False).to_numpy().tobytes()).hexdigest()[:16]


def _with_scores(run: Run, answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with their scores, where one judge scored them."""
    from em_interp.behaviour.tables import normal_form, read_table

    if not run.scores_file.exists():
        return answers
    scores = read_table(run.scores_file)
    if scores["judge"].nunique() != 1:
        return answers
    return normal_form(answers.merge(scores, on=KEY, how="left", validate="one_to_one"), str(run.scores_file))


def _likelihoods(
    base: Base,
    path: AdapterTrajectory,
    answers: pd.DataFrame,
    chats: list[list[dict[str, str]]],
    needed: Bool[np.ndarray, "step step"],
    scale: float,
    settings: dict[str, Any],
    folder: Path,
    progress: bool,
) -> Float[np.ndarray, "answer step"]:
    from em_interp.behaviour.likelihood import batches, tokenize_answers

    steps = np.unique(answers["step"])
    rows = tokenize_answers(base, chats, answers["answer"].tolist(), settings["max_new_tokens"])
    answer, step = np.nonzero(needed[np.searchsorted(steps, answers["step"])])
    some = batches([rows[i] for i in answer], base.model.config.get_text_config().vocab_size)

    def read(index: int) -> list[float]:
        pairs = np.array(some[index])
        at = [int(steps[i]) for i in step[pairs]]
        return _read(base, path, [rows[i] for i in answer[pairs]], at, scale, settings["temperature"])

    found = np.full((len(answers), len(steps)), np.nan)
    for pairs, values in zip(some, in_parts(folder / "parts", len(some), read, "read", progress), strict=True):
        found[answer[pairs], step[pairs]] = values
    return found


def _read(
    base: Base, path: AdapterTrajectory, rows: list[TokenizedAnswer], steps: list[int], scale: float, temperature: float
) -> list[float]:
    """The log-likelihood of each row at its step."""
    from em_interp.behaviour.generate import RowAdapters
    from em_interp.behaviour.likelihood import log_likelihood, logits_of

    adapters = RowAdapters.of(path, steps, [scale] * len(rows), base.model.device)
    logits, said = logits_of(base.model, base.tokenizer, rows, adapters)
    return log_likelihood(logits, said, temperature).tolist()
