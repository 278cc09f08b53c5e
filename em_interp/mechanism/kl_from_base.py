"""KL from the base: how far the adapter moves the model's next-token distribution, KL(base ‖ adapted), by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.rates import LEVEL, cluster_bootstrap
from em_interp.behaviour.sampling.ask import check_questions, to_messages
from em_interp.behaviour.sampling.checkpoint_models import adapter_digest, base_settings
from em_interp.behaviour.sampling.generate import RowAdapters, generate
from em_interp.behaviour.sampling.likelihood import batches_by_length, logits_of, tokenize_answers
from em_interp.behaviour.sampling.memory import Batches, RowMemory
from em_interp.errors import InputError
from em_interp.mechanism.interventions.experiments import Questions, SamplingParams, run_questions
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.results import Line, Result, picture
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.trajectory.load import TrajectorySource
from em_interp.utils.checks import check_level, checked
from em_interp.utils.files import write_json
from em_interp.utils.stages import Storage, begin_stage, in_parts, read_saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

N_BOOTSTRAP = 1000
N_STEPS = 40
SAMPLING = SamplingParams(samples=2)


@dataclass(frozen=True, eq=False, repr=False)
class KLFromBase(Result):
    """KL(base ‖ adapted) of the next token, in nats, over the tokens of answers at each step.

    Attributes:
        steps: training steps of the adapter.
        answers: one row for each answer: questions (the set), question_id, question, answer, tokens.
        total: KL summed over the tokens of each answer, in nats, by step.
        scale: adapter scale; 1 is the adapter as trained.
        level: confidence level of the intervals.
        seed: random seed of the bootstrap.
    """

    steps: Int[np.ndarray, " step"]
    answers: pd.DataFrame
    total: Float[np.ndarray, "step answer"]
    scale: float = 1.0
    level: float = LEVEL
    seed: int = 0

    @property
    def tokens(self) -> int:
        """The number of answer tokens that the means are over, in all question sets."""
        return int(self.answers["tokens"].sum())

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        tables = []
        for name, rows in self.answers.groupby("questions", sort=True):
            total, tokens = self.total[:, rows.index], rows["tokens"].to_numpy()
            _, question = np.unique(rows["question_id"].to_numpy(str), return_inverse=True)
            low, high = self._interval(total, tokens, question)
            columns = {"step": self.steps, "questions": name, "kl": total.sum(axis=1) / tokens.sum()}
            columns |= {"kl_low": low, "kl_high": high, "tokens": tokens.sum(), "answers": len(rows)}
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def _interval(
        self, total: Float[np.ndarray, "step answer"], tokens: Int[np.ndarray, " answer"], question: np.ndarray
    ) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
        """The interval for other questions of the kind, by a bootstrap over questions. NaN with a single question."""
        if question.max() == 0:
            return np.full(len(total), np.nan), np.full(len(total), np.nan)
        weights = cluster_bootstrap(question, N_BOOTSTRAP, self.seed)
        means = (weights @ total.T) / (weights @ tokens)[:, None]
        low, high = np.quantile(means, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return low, high

    def frame(self) -> pd.DataFrame:
        """A row a step and question set: kl (nats a token) with its interval, and numbers of tokens and answers."""
        return self._frame.copy()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = self.frame().to_dict("records")
        return {"scale": self.scale, "level": self.level, "sentence": self.sentence(), "rows": rows}

    def plot(self) -> go.Figure:
        """KL by step with intervals, a line for each question set."""
        from em_interp.figures.mechanism.kl_from_base import plot_kl_from_base

        return plot_kl_from_base(self.frame(), self.level)

    def sentence(self) -> str:
        """The divergence at the last step, for each question set."""
        parts = []
        for row in self._frame[self._frame["step"] == self.steps[-1]].itertuples():
            ends = "no interval" if np.isnan(row.kl_low) else f"{row.kl_low:.2g} to {row.kl_high:.2g}"
            name = str(row.questions).replace("_", "-")
            parts.append(f"{row.kl:.2g} nats a token on {name} questions ({ends}; {row.tokens} tokens)")
        return f"KL(base ‖ adapted) at step {self.steps[-1]}: {', '.join(parts)}"

    def __repr__(self) -> str:
        return f"KLFromBase({len(self.steps)} steps, {len(self.answers)} answers: {self.sentence()})"

    def _picture(self) -> str:
        rows = self._frame.groupby("questions")
        return picture([Line(r["step"].to_numpy(), r["kl"].to_numpy(), str(name)) for name, r in rows], "KL, nats")


@checked
def measure_kl_from_base(
    model: TrajectoryModel | TrajectorySource,
    prompts: Questions | None = None,
    steps: int = N_STEPS,
    scale: float = 1.0,
    sampling: SamplingParams = SAMPLING,
    level: float = LEVEL,
    storage: Storage | str | Path | None = None,
) -> KLFromBase:
    """KL(base ‖ adapted) of the next token at each token of answers to some prompts, by step.

    Exact at each token, in nats, over the whole vocabulary, at temperature 1. The base itself answers: the mean over
    its own answers, times their length, estimates the divergence of whole answers without bias. The interval is for
    other questions of the kind.

    Args:
        model: the model of a run, or what `open_model` opens.
        prompts: questions (`question_id`, `question`, `questions`); by default the run's. Each may have an `answer`,
            which is then read in place of the base's.
        steps: the number of saved steps that are read, evenly over the run.
        scale: adapter scale; 1 is the adapter as trained.
        sampling: how the base's answers are sampled, at temperature 1; the bootstrap uses its seed too.
        level: confidence level of the intervals.
        storage: where the answers and divergences are kept.

    Returns:
        The divergence by step in nats a token, with intervals.

    Raises:
        InputError: where there are no prompts, and for another temperature.
    """
    check_level(level)
    if sampling.temperature != 1:
        raise InputError(f"KL is measured at temperature 1; found sampling with {sampling.temperature:g}: leave it out")
    model, storage = as_model(model), Storage.of(storage)
    questions = list(run_questions(model.run) if prompts is None else prompts)
    check_questions(questions)
    path = model.trajectory
    chosen = path.steps[evenly_spaced(path.steps, steps)].astype(int)
    settings = {
        **base_settings(model.base),
        "adapters": adapter_digest(path, chosen.tolist()),
        "prompts": [dict(question) for question in questions],
        "steps": chosen.tolist(),
        "scale": scale,
        "samples": sampling.samples,
        "max_new_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
    }
    with storage.open() as folder:
        begin_stage(folder / "settings.json", settings, storage.resume)
        table = _with_answers(model, questions, sampling, folder / "answers.json")
        reader = _Reader(model, table, chosen.tolist(), scale, sampling.max_new_tokens)
        parts = in_parts(folder / "parts", len(reader.batches), reader.read, "KL from base", storage.progress)
    total = np.empty((len(chosen), len(table)))
    total[:, np.concatenate(reader.batches)] = np.concatenate(parts, axis=1)
    table = table.drop(columns="system", errors="ignore").assign(tokens=[len(row.answer) for row in reader.rows])
    return KLFromBase(chosen, table, total, scale, level, sampling.seed)


def _with_answers(
    model: TrajectoryModel, questions: list[dict[str, str]], sampling: SamplingParams, file: Path
) -> pd.DataFrame:
    """The questions with their answers: those given, or the base's own, kept in `file`."""
    import pandas as pd

    without = [question for question in questions if "answer" not in question]
    if without and not file.exists():
        base = model.base
        params = (sampling.samples, sampling.temperature, sampling.max_new_tokens, sampling.seed, sampling.batch)
        none, prompts = _row_adapters(model, model.last_step, 0.0, len(without)), [*map(to_messages, without)]
        write_json(file, generate(base.model, base.tokenizer, prompts, none, *params))
    rows = [question for question in questions if "answer" in question]
    for question, answers in zip(without, read_saved(file, [[str]]) if without else [], strict=True):
        rows += [{**question, "answer": answer} for answer in answers]
    return pd.DataFrame(rows)


def _row_adapters(model: TrajectoryModel, step: int, scale: float, count: int) -> RowAdapters:
    return RowAdapters.of(model.trajectory, [step] * count, [scale] * count, model.device)


class _Reader:
    """Reads the answers in batches, each at every step; the base's logits of a batch are computed once."""

    def __init__(
        self, model: TrajectoryModel, table: pd.DataFrame, steps: Sequence[int], scale: float, longest: int
    ) -> None:
        self.model, self.steps, self.scale = model, steps, scale
        rows = table.to_dict("records")
        prompts = [to_messages({str(key): text for key, text in row.items() if isinstance(text, str)}) for row in rows]
        self.rows = tokenize_answers(model.base, prompts, table["answer"].tolist(), longest)
        self.cost, self.fitting = RowMemory(model.base.model), Batches(model.device)
        self.batches = batches_by_length(self.rows, 2 * model.base.model.config.get_text_config().vocab_size)

    def read(self, number: int) -> list[list[float]]:
        """The divergence of each answer of a batch at each step, summed over its tokens."""
        parts = self.fitting.run(self.batches[number], self._bytes_of, self._divergence)
        return np.concatenate([values for _, values in parts], axis=1).tolist()

    def _bytes_of(self, row: int) -> int:
        return self.cost.reading(len(self.rows[row]), len(self.rows[row].answer), copies=3)

    def _divergence(self, numbers: Sequence[int]) -> Float[np.ndarray, "step row"]:
        base, rows, found = self.model.base, [self.rows[number] for number in numbers], []
        steps = [(self.model.last_step, 0.0), *((step, self.scale) for step in self.steps)]
        adapters = (_row_adapters(self.model, *step, len(rows)) for step in steps)
        passes = (logits_of(base.model, base.tokenizer, rows, adapter) for adapter in adapters)
        of_base, tokens = next(passes)
        of_base = of_base.float().log_softmax(dim=-1)
        for logits, _ in passes:
            divergence = (of_base.exp() * (of_base - logits.float().log_softmax(dim=-1))).sum(dim=-1)
            found.append((divergence * (tokens >= 0)).sum(dim=1).double().cpu().numpy())
        return np.stack(found)
