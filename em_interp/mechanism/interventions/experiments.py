"""The experiment behind ablation, steering and patching: sample answers under many conditions, judge them, keep both.

A condition is an intervention on the residual stream (`InterventionCondition`) or an adapter made of A of one step
and B of another (`patched_adapters.PatchedAdapter`). Conditions share batches: each row has its own vectors or adapter.
The answers are kept in the form of a run's answers, so judging them is the same stage as for a run; interrupted and
resumed, an experiment ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.judging.judge import KEY, Judge, judge_answers
from em_interp.behaviour.sampling.ask import (
    QUESTION_KEYS,
    LocalEngine,
    Row,
    asked_settings,
    check_questions,
    sample_answers,
)
from em_interp.behaviour.sampling.checkpoint_models import Base, adapter_digest, base_settings
from em_interp.behaviour.sampling.generate import Sampler
from em_interp.behaviour.scores import ScoredResponses
from em_interp.behaviour.tables.files import ANSWER_COLUMNS, read_own_table, read_table
from em_interp.behaviour.tables.judged import normal_form
from em_interp.errors import InputError
from em_interp.mechanism.engines.interventions import (
    AblateDirection,
    AddVector,
    Intervention,
    NormMatchedAblation,
    Positions,
)
from em_interp.results import interval_columns
from em_interp.run import OUTSIDE_SETS, Run, RunLike, open_run
from em_interp.utils.checks import checked
from em_interp.utils.stages import Storage

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.behaviour.sampling.chat import Tokens
    from em_interp.behaviour.sampling.decode import RowModel
    from em_interp.mechanism.model import TrajectoryModel

Questions = Sequence[dict[str, str]]
ModelName = Literal["base", "adapted"]
Method = Literal["add", "ablate", "ablate_norm_matched"]
NONE, DIRECTION, RANDOM, NORM_MATCHED = "none", "direction", "random", "norm_matched"  # kinds of conditions
N_BASELINE = 4  # times as many answers without an intervention as under one: all conditions are compared with them
METHODS: dict[Method, type[Intervention]] = {
    "add": AddVector,
    "ablate": AblateDirection,
    "ablate_norm_matched": NormMatchedAblation,
}


@dataclass(frozen=True)
class SamplingParams:
    """How answers are sampled: the parameters of `em_interp.ask`.

    Attributes:
        samples: number of answers to each question under each condition.
        temperature: 0 takes the likeliest token; otherwise top-p is 1.
        max_new_tokens: largest number of tokens of an answer.
        seed: random seed of the sampling, and of the random directions or adapters of an experiment.
        batch: the most answers at once; None for as many as fit in memory. It does not alter the answers.
    """

    samples: int = 6
    temperature: float = 1.0
    max_new_tokens: int = 600
    seed: int = 0
    batch: int | None = None


class Experiment(ABC):
    """Conditions that questions are answered under, in groups that can share a batch."""

    model: TrajectoryModel

    @property
    def base(self) -> Base:
        """The base model and its tokenizer."""
        return self.model.base

    @abstractmethod
    def groups(self) -> Iterator[Sequence[Any]]:
        """The conditions of each group."""

    @abstractmethod
    def columns(self, condition: Any) -> dict[str, Any]:
        """The columns that tell a condition from the others in the table of answers."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that the answers depend on, besides the questions and the sampling."""

    @abstractmethod
    def open_batch(self, conditions: Sequence[Any], prompts: Tokens) -> AbstractContextManager[RowModel]:
        """The model for a batch of answers to prompts, each under its own condition; these are of one group."""


def run_experiment(
    experiment: Experiment, judge: Judge, questions: Questions, sampling: SamplingParams, storage: Storage
) -> pd.DataFrame:
    """Sample answers to every question under every condition and judge them.

    Returns:
        The judged answers, a row each, with the columns of the conditions.

    Raises:
        InputError: for answers that exist already (without `storage.resume`) or were begun with other settings.
    """
    check_questions(questions)
    rows, number = [], count()
    for group, conditions in enumerate(experiment.groups()):
        for condition in conditions:  # with the number of its condition as step a row has the key of a run's answers
            columns = {"step": next(number), "scale": 1.0, **experiment.columns(condition)}
            rows += [Row(question, columns, condition, group) for question in questions]

    def open_batch(rows: list[Row], prompts: Tokens) -> AbstractContextManager[RowModel]:
        return experiment.open_batch([row.condition for row in rows], prompts)

    settings = {
        **experiment.settings(),
        "columns": [experiment.columns(condition) for conditions in experiment.groups() for condition in conditions],
        "questions": [dict(question) for question in questions],
        **{name: value for name, value in asdict(sampling).items() if name != "batch"},
    }
    params = (sampling.temperature, sampling.max_new_tokens, sampling.seed, sampling.batch)
    engine = LocalEngine(Sampler(experiment.base.model, experiment.base.tokenizer, *params), open_batch)
    with storage.open() as folder:
        kept = Run(folder)
        sample_answers(kept.answers_file, settings, rows, engine, storage.resume, storage.progress)
        answers = read_table(kept.answers_file)
        scores = read_table(judge_answers(kept, judge, storage.resume, storage.shows_progress))
    scores = scores[scores["judge"] == judge.name]
    return normal_form(answers.merge(scores, on=KEY), str(kept.scores_file))


@dataclass(frozen=True, eq=False)
class InterventionCondition:
    """An intervention on the residual stream: a vector after each layer, and how it is used.

    Attributes:
        model: which model: the base, or the one with the adapter.
        kind: `none`, `direction`, or the control it belongs to: `random` or `norm_matched`.
        method: the kind of intervention.
        vectors: the vector after each layer; where it is zero nothing is changed.
        layers: in words, the layers after which the stream is changed.
        number: the number of the random direction, or of the repetition.
        coefficient: the coefficient, which is already part of the vectors.
        ablated: for `ablate_norm_matched`, by layer, the direction whose component is matched in norm.
        positions: the tokens at which the stream is changed.
    """

    model: ModelName
    kind: str
    method: Method
    vectors: Float[np.ndarray, "layer d"]
    layers: str = ""
    number: int = 0
    coefficient: float = 1.0
    ablated: Float[np.ndarray, "layer d"] | None = None
    positions: Positions = "all"


def no_intervention(model: ModelName, like: Float[np.ndarray, "layer d"]) -> list[InterventionCondition]:
    """The model without an intervention, several times: every other condition is compared with it."""
    zero = np.zeros_like(like)
    return [
        InterventionCondition(model, NONE, "add", zero, number=number, coefficient=0.0) for number in range(N_BASELINE)
    ]


def interventions_of(conditions: Sequence[InterventionCondition]) -> list[Intervention]:
    """The interventions of a batch whose row i is under condition i.

    There is one for each method, choice of positions and layer, with a vector for each row.
    """
    interventions: list[Intervention] = []
    for method, positions in dict.fromkeys((condition.method, condition.positions) for condition in conditions):
        zero = np.zeros_like(conditions[0].vectors)
        chosen = [condition.method == method and condition.positions == positions for condition in conditions]
        vectors = np.stack(
            [condition.vectors if is_chosen else zero for is_chosen, condition in zip(chosen, conditions, strict=True)]
        )
        ablated = np.stack([zero if condition.ablated is None else condition.ablated for condition in conditions])
        for layer in np.flatnonzero(vectors.any(axis=(0, 2))).tolist():
            more = {"ablated": ablated[:, layer]} if method == "ablate_norm_matched" else {}
            interventions.append(METHODS[method](vectors[:, layer], layer, positions, **more))
    return interventions


@dataclass(frozen=True, eq=False)
class InterventionExperiment(Experiment):
    """Interventions on the base and on the model of the last step."""

    model: TrajectoryModel
    conditions: Sequence[InterventionCondition]

    def groups(self) -> Iterator[Sequence[InterventionCondition]]:
        """The base and the adapted model do not share a batch."""
        for name in dict.fromkeys(condition.model for condition in self.conditions):
            yield [condition for condition in self.conditions if condition.model == name]

    def columns(self, condition: InterventionCondition) -> dict[str, Any]:
        """All entries but the vectors and how they are used."""
        return {name: getattr(condition, name) for name in ("model", "kind", "layers", "number", "coefficient")}

    def settings(self) -> dict[str, Any]:
        """The base, the adapter, and the vectors as they are used, in single precision."""
        used = [
            [condition.method, condition.positions, _digest(condition.vectors), _digest(condition.ablated)]
            for condition in self.conditions
        ]
        digest = adapter_digest(self.model.trajectory, [self.model.last_step])
        return {**base_settings(self.model.base), "adapter": digest, "interventions": used}

    @contextmanager
    def open_batch(self, conditions: Sequence[InterventionCondition], prompts: Tokens) -> Iterator[RowModel]:
        """The model in its engine, with an intervention for each row."""
        adapted = self.model.at(self.model.last_step, scale=float(conditions[0].model == "adapted"))
        with adapted as model, model.generating(prompts, interventions_of(conditions)) as rows:
            yield rows


def _digest(vectors: Float[np.ndarray, "layer d"] | None) -> str:
    used = b"" if vectors is None else np.ascontiguousarray(vectors, np.float32).tobytes()
    return hashlib.sha256(used).hexdigest()[:16]


def rate_columns(responses: ScoredResponses) -> dict[str, Any]:
    """The counts, and the EM and coherent rates with their intervals, as columns of a result's frame."""
    columns: dict[str, Any] = {"n": responses.n, "scored": len(responses.scored)}
    for name, rate in (("em", responses.em), ("coherent", responses.coherent)):
        columns |= {name: rate.rate, **interval_columns(name, rate.interval)}
    return columns


@checked
def run_questions(run: RunLike, question_set: str | None = None) -> list[dict[str, str]]:
    """The questions of a run's answers.

    Args:
        run: a run with answers, or its folder.
        question_set: one set, such as `out_of_domain`; by default all.

    Returns:
        For each question its text, id and set.

    Raises:
        InputError: where there are none.
    """
    run = open_run(run)
    if settings := asked_settings(run):
        questions = [dict(question) for question in settings["questions"]]
    elif run.answers_file.exists():
        answers = read_own_table(run.answers_file, ANSWER_COLUMNS)
        rows = answers[list(QUESTION_KEYS)].drop_duplicates().to_dict("records")
        questions = [{str(key): str(value) for key, value in row.items()} for row in rows]
    else:
        raise InputError(f"{run.answers_file} is missing, so the run has no questions; ask the run first, or give some")
    chosen = [question for question in questions if question_set in (None, question["questions"])]
    if not chosen:
        sets = ", ".join(sorted({question["questions"] for question in questions}))
        raise InputError(
            f"the run was asked no questions of the set {question_set!r}; there are {sets}: give questions"
        )
    return chosen


@checked
def main_questions(run: RunLike) -> list[dict[str, str]]:
    """The questions outside the training domain that the analyses ask unless they are given others.

    Args:
        run: a run, or its folder.

    Returns:
        The questions of the run's set `out_of_domain`, else of `broad`, else of `all`; all its questions where it has
        none of these sets. Each with `question_id`, `question` and `questions`, its set.

    Raises:
        InputError: where the run has no questions.
    """
    questions = run_questions(run)
    sets = {question["questions"] for question in questions}
    main = next((name for name in OUTSIDE_SETS if name in sets), None)
    return [question for question in questions if main in (None, question["questions"])]
