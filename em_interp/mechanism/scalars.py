"""The adapter's scalars: what it computes at each token, s·A·x, one number at rank 1, by answer and step.

The model of a step reads the answers. The sign of a scalar has no meaning by itself (b → −b, a → −a is the same
adapter); within one run signs are comparable, because B hardly reverses at a step. Above rank 1 the components are
those of A as saved: another basis of them is the same adapter with other scalars. At step 0 the adapter does nothing
yet, but A·x is defined: it is what a random A reads, and a baseline for every later step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.rates import mean_of
from em_interp.errors import InputError, nearest
from em_interp.mechanism.answers import BATCH, GROUPS, AnswerSet, forward_passes, steps_to_read, tokenized_answers
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.results import Line, Result, interval_columns, picture
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.trajectory.load import TrajectorySource
from em_interp.utils.checks import checked

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.mechanism.probes import Probes

Summary = Literal["mean", "max", "min"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BLUE, ORANGE = (33, 102, 172), (179, 88, 6)  # below and above zero, distinct for every kind of colour vision
STYLE = (
    "body{font-family:Helvetica,Arial,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#1f1f1f;line-height:1.7}"
    "p{margin:.4em 0}small{color:#666}span{white-space:pre-wrap;border-radius:2px;padding:1px 0}"
)


@dataclass(frozen=True, eq=False, repr=False)
class Scalars(Result):
    """The scalars of every token of every answer, at several steps.

    Attributes:
        answers: the answers that were read.
        steps: training steps of the adapter.
        columns: the site of each scalar; with its component where the rank is above 1.
        answer: the number of each token's answer.
        tokens: the text of each token.
        values: s·A·x by step, token and scalar.
    """

    NEXT: ClassVar = (".plot()", ".probe()", ".html(step)", ".frame()", ".per_answer(step)")

    answers: AnswerSet
    steps: np.ndarray  # (step,)
    columns: tuple[str, ...]
    answer: np.ndarray  # (token,)
    tokens: tuple[str, ...]
    values: Float[np.ndarray, "step token column"]

    def at(self, step: int) -> Float[np.ndarray, "token column"]:
        """The scalars of one step. Raises InputError with the nearest steps where it was not read."""
        if step not in self.steps:
            near = self.steps[np.argsort(np.abs(self.steps - step))[:3]]
            raise InputError(f"step {step} was not read; the nearest are {', '.join(map(str, sorted(near)))}")
        return self.values[int(np.flatnonzero(self.steps == step)[0])]

    def per_answer(self, step: int, summary: Summary = "mean") -> Float[np.ndarray, "answer column"]:
        """The mean, largest or smallest scalar of each answer."""
        functions = {"mean": np.add, "max": np.maximum, "min": np.minimum}
        if summary not in functions:
            raise InputError(f"scalars of an answer are summarised by {', '.join(functions)}; found {summary!r}")
        summaries = functions[summary].reduceat(self.at(step).astype(np.float64), self._starts, axis=0)
        return summaries / self.lengths[:, None] if summary == "mean" else summaries

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each answer."""
        return np.bincount(self.answer, minlength=len(self.answers))

    @property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]])

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        table = self.answers.table
        rows = []
        for step in self.steps.tolist():
            per_answer, values = self.per_answer(step), self.at(step)
            for (questions, label), group in table.groupby(["questions", "label"], sort=True):
                of_group = np.isin(self.answer, group.index)
                for column, name in enumerate(self.columns):
                    mean = mean_of(per_answer[group.index, column], self.answers.question[group.index])
                    row = {"step": step, "column": name, "questions": questions, "label": label}
                    row |= {"answers": len(group), "tokens": int(of_group.sum()), "mean": mean.mean}
                    cuts = np.quantile(values[of_group, column], QUANTILES)
                    quantiles = {f"q{int(100 * q):02}": cut for q, cut in zip(QUANTILES, cuts, strict=True)}
                    rows.append({**row, **interval_columns("mean", mean.interval), **quantiles})
        return pd.DataFrame(rows)

    def frame(self) -> pd.DataFrame:
        """A row a step, scalar, question set and label.

        Columns: numbers of answers and tokens, mean over answers with its 95 % interval (for other answers to the same
        questions), and quantiles over tokens.
        """
        return self._frame.copy()

    def probe(self, **options: Any) -> Probes:
        """How well the scalars of an answer tell whether it is misaligned: `em_interp.mechanism.probes.probe`."""
        from em_interp.mechanism.probes import probe

        return probe(self, **options)

    def html(self, step: int | None = None, column: str | None = None, n_answers: int = 10) -> str:
        """A whole HTML page of answers whose tokens are shaded by their scalar.

        `n_answers` misaligned and aligned answers each, evenly over the questions. Orange is above zero, blue below;
        full colour is the 99th percentile of |scalar| over all answers. A token's number is shown on pointing at it.
        All text of questions and answers is escaped; the page needs no script.
        """
        column, step = column or self.columns[0], int(self.steps[-1]) if step is None else step
        if column not in self.columns:
            raise InputError(f"there is no scalar {column!r}{nearest(column, self.columns)}; there are {self.columns}")
        values = self.at(step)[:, self.columns.index(column)].astype(float)
        full, body = float(np.quantile(np.abs(values), 0.99)) or 1.0, []
        for label in GROUPS:
            rows = np.flatnonzero(self.answers.table["label"] == label)
            chosen = rows[evenly_spaced(np.arange(len(rows)), n_answers)]
            body.append(f"<h2>{len(chosen)} of {len(rows)} {label} answers</h2>")
            body += [self._answer_html(row, values, full) for row in chosen.tolist()]
        title = f"Scalar of {column} at step {step}"
        legend = f"{_token_html('below zero', -full, full)} to {_token_html('above zero', full, full)}"
        about = f"{escape(self.answers.sentence())}. {legend}, full colour at ±{full:.3g}."
        head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        note = f"<p>{about} The sign alone means nothing: it goes with that of B.</p>"
        page = f"<body><h1>{escape(title)}</h1>{note}{''.join(body)}</body>"
        return f'<!doctype html><html lang="en"><head>{head}</head>{page}</html>'

    def _answer_html(self, row: int, values: Float[np.ndarray, " token"], full: float) -> str:
        answer = self.answers.table.loc[row]
        tokens = [_token_html(self.tokens[i], values[i], full) for i in np.flatnonzero(self.answer == row).tolist()]
        scores = f"aligned {answer['aligned']:.0f}, coherent {answer['coherent']:.0f}"
        return f"<p><small>{escape(str(answer['question']))} ({scores})</small><br>{''.join(tokens)}</p>"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the answers and the rows of `frame()`."""
        about = {"answers": self.answers.to_dict(), "steps": self.steps.tolist(), "columns": list(self.columns)}
        return {**about, "rows": self.frame().to_dict("records"), "sentence": self.sentence()}

    def sentence(self) -> str:
        """The mean scalars of misaligned and of aligned answers at the last step."""
        last = int(self.steps[-1])
        per_answer, misaligned = self.per_answer(last), self.answers.misaligned
        parts = []
        for column, name in enumerate(self.columns[:3]):
            means = [
                f"{per_answer[rows, column].mean():.3g} in {label}"
                for label, rows in (("misaligned", misaligned), ("aligned", ~misaligned))
                if rows.any()
            ]
            parts.append(f"{name}: {' and '.join(means)} answers")
        more = f"; and {len(self.columns) - 3} more" if len(self.columns) > 3 else ""
        return f"Mean scalar at step {last}, over {self.answers.sentence()}: {'; '.join(parts)}{more}."

    def plot(self) -> go.Figure:
        """The scalars of misaligned and aligned answers, by step and at the last step."""
        from em_interp.figures.mechanism.scalars import plot_scalars

        return plot_scalars(self.frame(), self.answers.sentence())

    def _picture(self) -> str:
        lines = []
        for label in GROUPS:
            rows = (self.answers.table["label"] == label).to_numpy()
            if rows.any():
                means = [self.per_answer(step)[rows, 0].mean() for step in self.steps.tolist()]
                lines.append(Line(self.steps, np.array(means), label))
        return picture(lines, "scalar")


def _token_html(text: str, value: float, full: float) -> str:
    share = min(abs(value) / full, 1.0)
    red, green, blue = ORANGE if value > 0 else BLUE
    ink = ";color:white" if share > 0.7 else ""
    style = f"background:rgba({red},{green},{blue},{share:.2f}){ink}"
    return f'<span title="{value:.3g}" style="{style}">{escape(text)}</span>'


@checked
def read_scalars(
    model: TrajectoryModel | TrajectorySource,
    answers: AnswerSet,
    steps: int | Sequence[int] | None = None,
    scale: float = 1.0,
    batch: int = BATCH,
) -> Scalars:
    """s·A·x at every token of the answers, in the models of several steps.

    The same answers are read at every step, so that only the adapter changes.

    Args:
        model: the model of a run, or what `open_model` opens.
        answers: the answers that are read.
        steps: saved steps; by default at most 41 of them.
        scale: adapter scale; 1 is the adapter as trained.
        batch: answers that are read at a time.

    Returns:
        The scalars by step, site and token; `.probe()` predicts from them which answers are misaligned.

    Raises:
        InputError: where there is no answer, for a step that was not saved, and for learned steering vectors.
    """
    model = as_model(model)
    if not model.engine.hook_points.sites:
        raise InputError(f"{model.trajectory!r} computes no scalar: a steering vector adds the same at every token")
    if not len(answers):
        raise InputError(f"there is no answer to read scalars at ({answers.sentence()})")
    batches, steps = tokenized_answers(model, answers, batch), steps_to_read(model, steps)
    names = [f"scalar.{site}" for site in model.trajectory.sites]
    values = []
    for step in steps:
        with model.at(step, scale) as adapted:
            parts = [
                np.concatenate([activations[name][tokens.answer].float().cpu().numpy() for name in names], axis=1)
                for tokens, activations in forward_passes(adapted, batches, names)
            ]
        values.append(np.concatenate(parts))
    n_tokens = np.concatenate([tokens.answer.sum(dim=1).cpu().numpy() for tokens in batches])
    ids = np.concatenate([tokens.ids[tokens.answer].cpu().numpy() for tokens in batches])
    texts = tuple(model.base.tokenizer.batch_decode(ids[:, None].tolist()))
    answer = np.repeat(np.arange(len(answers)), n_tokens)
    return Scalars(answers, np.array(steps), _columns(model), answer, texts, np.stack(values))


def _columns(model: TrajectoryModel) -> tuple[str, ...]:
    ranks = {site: A.shape[1] for site, A in model.trajectory.A.items()}
    return tuple(
        site if rank == 1 else f"{site} [{component}]" for site, rank in ranks.items() for component in range(rank)
    )
