"""Detecting an answer shift without a judge: the likelihood of a run's answers under its other checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from em_interp.behaviour.judging.judge import KEY, answers_of
from em_interp.behaviour.rates import LEVEL
from em_interp.behaviour.sampling.ask import asked_settings, to_messages
from em_interp.behaviour.sampling.checkpoint_models import adapter_digest, base_settings
from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.behaviour.sampling.likelihood import (
    TokenizedAnswer,
    batches_by_length,
    log_likelihoods,
    tokenize_answers,
)
from em_interp.behaviour.tables.files import SCORE_COLUMNS, read_own_table
from em_interp.behaviour.tables.judged import normal_form, question_numbers
from em_interp.errors import InputError
from em_interp.mechanism.answer_shift.divergence import Form, Windows, check_form, posteriors
from em_interp.mechanism.answer_shift.shift import AnswerShift
from em_interp.mechanism.interventions.experiments import main_questions, run_questions
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.run import Run
from em_interp.trajectory.load import TrajectorySource
from em_interp.utils.checks import as_list, check_level, checked
from em_interp.utils.stages import Storage, begin_stage, in_parts

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

MIN_CALIBRATION_P = 1e-8  # likelihoods with a smaller p-value are not those of the answers


@checked
def detect_answer_shift(
    model: TrajectoryModel | TrajectorySource,
    half_width: float | None = None,
    question_sets: str | Sequence[str] | None = None,
    scale: float = 1.0,
    samples: int | None = None,
    form: Form = "linear",
    level: float = LEVEL,
    seed: int = 0,
    storage: Storage | str | Path | None = None,
) -> AnswerShift:
    """The divergence between the answers of the checkpoints left and right of each point of a run, without a judge.

    The run's own answers are read by its checkpoints, whose likelihoods tell which side an answer came from (arXiv
    2508.20015). Scores, where the run has them, only name what changed (`AnswerShift.order_parameters`).

    Args:
        model: the model of a run that has answers, or what `open_model` opens.
        half_width: half-width of the windows, in training steps; by default three times the spacing of the sampled
            steps.
        question_sets: the question sets whose answers are read; by default those outside the training domain
            (`main_questions`).
        scale: adapter scale at which the answers were sampled.
        samples: number of answers to each question that are read, the first ones, two or more; by default all.
        form: which divergence: `linear`, `js` or `total_variation`, see `em_interp.mechanism.answer_shift.divergence`.
        level: confidence level of the intervals.
        seed: random seed of the bootstrap and the nulls.
        storage: where the likelihoods are kept.

    Returns:
        The divergence by step with its null, and where it peaks.

    Raises:
        InputError: for a run without answers to such questions or with one to each, greedy answers, too few sampled
            steps, and answers that cannot have been sampled (with top-p 1) from the checkpoints.
    """
    check_form(form)
    check_level(level)
    model, storage = as_model(model), Storage.of(storage)
    sampled = _sampling_of(model.run)
    answers = answers_to_read(model.run, question_sets, scale, samples)
    steps = np.unique(answers["step"])
    windows = Windows.of(steps, half_width)
    if answers.groupby(["step", "questions", "question_id"]).size().max() < 2:
        raise InputError("one answer to each question at a step does not show how answers vary; two or more are needed")
    settings = {
        **base_settings(model.base),
        "adapters": adapter_digest(model.trajectory, steps.tolist()),
        "answers": _digest(answers),
        "steps": steps.tolist(),
        "scale": scale,
        "needed": [row.tolist() for row in windows.needed.astype(int)],
        "temperature": sampled["temperature"],
    }
    with storage.open() as folder:
        begin_stage(folder / "settings.json", settings, storage.resume)
        likelihood = _likelihoods(model, answers, windows.needed, scale, sampled, folder / "parts", storage.progress)
    check_calibrated(likelihood, answers, windows)
    only = answers["questions"].iloc[0] if answers["questions"].nunique() == 1 else None
    return AnswerShift(_with_scores(model.run, answers), likelihood, windows, form, only, level, seed)


def _sampling_of(run: Run) -> dict[str, Any]:
    """The temperature and length limit of the run's answers; the defaults of `ask` where it does not say."""
    settings = {"temperature": 1.0, "max_new_tokens": None, **asked_settings(run)}
    if settings["temperature"] == 0:
        raise InputError(
            f"the answers of {run.path} are the likeliest ones (temperature 0); sampled ones were expected"
        )
    return settings


def answers_to_read(
    run: Run, question_sets: str | Sequence[str] | None = None, scale: float = 1.0, samples: int | None = None
) -> pd.DataFrame:
    """The answers of a run whose likelihoods are read (see `detect_answer_shift`). Raises InputError where none are."""
    answers = answers_of(run)
    main = sorted({question["questions"] for question in main_questions(run)})
    sets = main if question_sets is None else as_list(question_sets)
    chosen = answers[(answers["scale"] == scale) & answers["questions"].isin(sets)]
    if samples is not None:
        chosen = chosen[chosen["sample"] < samples]
    if chosen.empty:
        known = answers[["scale", "questions"]].drop_duplicates().to_numpy().tolist()
        wanted = f"at scale {scale:g} to questions {' and '.join(map(repr, sets))}"
        raise InputError(f"the run has no answers {wanted}; there are {known}")
    return chosen.reset_index(drop=True)


def _likelihoods(
    model: TrajectoryModel,
    answers: pd.DataFrame,
    needed: Bool[np.ndarray, "step step"],
    scale: float,
    sampled: dict[str, Any],
    folder: Path,
    progress: bool | None,
) -> Float[np.ndarray, "answer step"]:
    steps, messages = np.unique(answers["step"]), {}
    for question in run_questions(model.run):
        messages[question["questions"], question["question_id"]] = to_messages(question)
    prompts = [messages[key] for key in zip(answers["questions"], answers["question_id"], strict=True)]
    rows = tokenize_answers(model.base, prompts, answers["answer"].tolist(), sampled["max_new_tokens"])
    answer, step = np.nonzero(needed[np.searchsorted(steps, answers["step"])])
    of_pairs = batches_by_length([rows[i] for i in answer], model.base.model.config.get_text_config().vocab_size)

    def read_batch(index: int) -> list[float]:
        pairs = np.array(of_pairs[index])
        of_rows = [int(steps[i]) for i in step[pairs]]
        return _read(model, [rows[i] for i in answer[pairs]], of_rows, scale, sampled["temperature"])

    likelihood = np.full((len(answers), len(steps)), np.nan)
    parts = in_parts(folder, len(of_pairs), read_batch, "answer shift", progress)
    for pairs, values in zip(of_pairs, parts, strict=True):
        likelihood[answer[pairs], step[pairs]] = values
    return likelihood


def _read(
    model: TrajectoryModel, rows: list[TokenizedAnswer], steps: list[int], scale: float, temperature: float
) -> list[float]:
    """The log-likelihood of each row at its step."""

    def adapters_of(indices: Sequence[int]) -> RowAdapters:
        return RowAdapters.of(model.trajectory, [steps[i] for i in indices], [scale] * len(indices), model.device)

    return log_likelihoods(model.base.model, model.base.tokenizer, rows, adapters_of, temperature).tolist()


def check_calibrated(likelihood: Float[np.ndarray, "answer step"], answers: pd.DataFrame, windows: Windows) -> None:
    """Raise InputError where the likelihoods cannot be those of the distributions that the answers were drawn from.

    If they are, P(left | answer) is calibrated: to each question as many answers came from the left as it says, and
    the answers with a higher probability more often.
    """
    from scipy.stats import chi2

    at = np.searchsorted(windows.steps, answers["step"])
    question = question_numbers(answers)
    worst = 1.0
    for posterior, left in zip(posteriors(likelihood, at, windows).T, windows.left, strict=True):
        inside = np.isfinite(posterior)
        p, cluster, is_left = posterior[inside], question[inside], left[at[inside]]
        excess = np.append(np.bincount(cluster, is_left - p), ((p - 0.5) * (is_left - p)).sum())
        variance = np.append(np.bincount(cluster, p * (1 - p)), ((p - 0.5) ** 2 * p * (1 - p)).sum())
        random = variance > 1e-9
        if random.any():
            statistic = (excess[random] ** 2 / variance[random]).sum()
            worst = min(worst, float(chi2.sf(statistic, random.sum())))
    if worst < MIN_CALIBRATION_P:
        raise InputError(
            f"the answers cannot have been drawn from the checkpoints as they are read (p = {worst:.0e}); the usual "
            "cause is another sampling (temperature, top-p), chat template or system prompt than the run's"
        )


def _digest(answers: pd.DataFrame) -> str:
    import hashlib

    import pandas as pd

    return hashlib.sha256(pd.util.hash_pandas_object(answers, index=False).to_numpy().tobytes()).hexdigest()[:16]


def _with_scores(run: Run, answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with their scores, where one judge scored them."""
    if not run.scores_file.exists():
        return answers
    scores = read_own_table(run.scores_file, SCORE_COLUMNS)
    if scores["judge"].nunique() != 1:
        return answers
    return normal_form(answers.merge(scores, on=KEY, how="left", validate="one_to_one"), str(run.scores_file))
