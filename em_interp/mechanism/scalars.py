"""What the adapter computes at each token: s·A·x, one number at rank 1, along a set of answers and over the steps.

The numbers are read while the model of a step reads the answers back. Their sign means nothing by itself (b -> -b,
a -> -a is the same adapter); within one run it holds, for B hardly turns over at a step. At step 0 the adapter does
nothing yet, but A·x is there already: it is what a random A reads, and a fair baseline for every later step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.rates import mean_of
from em_interp.errors import InputError, nearest
from em_interp.mechanism.answers import BATCH, MEANING, AnswerSet, chats_of, passes, steps_of
from em_interp.mechanism.model import TrajectoryModel
from em_interp.results import Line, html_card, picture

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.mechanism.probes import Probes

How = Literal["mean", "max", "min"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False, repr=False)
class Scalars:
    """The scalars of every token of every answer, at every step looked at."""

    answers: AnswerSet
    steps: np.ndarray  # (step,)
    columns: tuple[str, ...]  # the site of each scalar; with the component behind it where the rank is above 1
    answer: np.ndarray  # (token,) the number of each token's answer
    tokens: tuple[str, ...]  # the text of each token
    values: Float[np.ndarray, "step token column"]

    def at(self, step: int) -> Float[np.ndarray, "token column"]:
        """The scalars of one step. Raises InputError with the nearest steps where it was not looked at."""
        if step not in self.steps:
            near = self.steps[np.argsort(np.abs(self.steps - step))[:3]]
            raise InputError(f"step {step} was not looked at; the nearest are {', '.join(map(str, sorted(near)))}")
        return self.values[int(np.flatnonzero(self.steps == step)[0])]

    def per_answer(self, step: int, how: How = "mean") -> Float[np.ndarray, "answer column"]:
        """The mean, largest or smallest scalar of each answer."""
        functions = {"mean": np.add, "max": np.maximum, "min": np.minimum}
        if how not in functions:
            raise InputError(f"scalars of an answer are taken as {', '.join(functions)}; found {how!r}")
        found = functions[how].reduceat(self.at(step).astype(np.float64), self._starts, axis=0)
        return found / self.lengths[:, None] if how == "mean" else found

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each answer."""
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
                inside = np.isin(self.answer, group.index)
                for column, name in enumerate(self.columns):
                    mean = mean_of(per_answer[group.index, column], self.answers.question[group.index])
                    row = {"step": step, "column": name, "questions": questions, "label": label}
                    row |= {"answers": len(group), "tokens": int(inside.sum()), "mean": mean.mean}
                    row |= {"mean_low": mean.interval[0], "mean_high": mean.interval[1]}
                    cuts = np.quantile(values[inside, column], QUANTILES)
                    rows.append(row | {f"q{int(100 * q):02}": cut for q, cut in zip(QUANTILES, cuts, strict=True)})
        return pd.DataFrame(rows)

    def frame(self) -> pd.DataFrame:
        """One row a step, scalar, question set and label: answers, tokens, mean over answers with its 95 % interval
        (for other answers to the same questions), and quantiles over tokens.
        """
        return self._frame.copy()

    def probe(self, **settings: Any) -> Probes:
        """How well the scalars of an answer tell whether it is misaligned: `em_interp.mechanism.probes.probe`."""
        from em_interp.mechanism.probes import probe

        return probe(self, **settings)

    def html(self, step: int | None = None, column: str | None = None, each: int = 10) -> str:
        """A page on which the tokens of `each` answers of each kind are coloured by their scalar, to be read."""
        pass  # MOVED

        return heat_map(self, int(self.steps[-1]) if step is None else step, column or self.columns[0], each)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the answers and the rows of `frame()`."""
        said = {"answers": self.answers.to_dict(), "steps": self.steps.tolist(), "columns": list(self.columns)}
        return said | {"rows": self.frame().to_dict("records")}

    def sentence(self) -> str:
        """What was read, and what the scalars are at the last step, of misaligned and of aligned answers."""
        last = int(self.steps[-1])
        per_answer, mis = self.per_answer(last), self.answers.misaligned
        parts = []
        for column, name in enumerate(self.columns[:3]):
            means = [
                f"{per_answer[rows, column].mean():.3g} in {label}"
                for label, rows in (("misaligned", mis), ("aligned", ~mis))
                if rows.any()
            ]
            parts.append(f"{name}: {' and '.join(means)} answers")
        more = f"; and {len(self.columns) - 3} more" if len(self.columns) > 3 else ""
        return f"Mean scalar at step {last}, over {self.answers.sentence()}: {'; '.join(parts)}{more}."

    def plot(self) -> go.Figure:
        """The scalars of misaligned and aligned answers, by step and at the last step."""
        from em_interp.figures.internals import plot_scalars

        return plot_scalars(self.frame(), self.answers.sentence())

    def __repr__(self) -> str:
        return f"Scalars({len(self.columns)} at {len(self.steps)} steps; {self.answers.sentence()})"

    def _repr_html_(self) -> str:
        by_step = [(label, rows) for label in MEANING if (rows := self._of(label)).any()]
        lines = [
            Line(self.steps, np.array([self.per_answer(s)[rows, 0].mean() for s in self.steps.tolist()]), label)
            for label, rows in by_step
        ]
        calls = (".plot()", ".probe()", ".html(step)", ".frame()", ".per_answer(step)")
        return html_card([self.sentence()], picture(lines, f"scalar of {self.columns[0]}"), calls)

    def _of(self, label: str) -> np.ndarray:
        return (self.answers.table["label"] == label).to_numpy()


def read_scalars(
    model: TrajectoryModel,
    answers: AnswerSet,
    steps: Sequence[int] | None = None,
    scale: float = 1.0,
    batch: int = BATCH,
) -> Scalars:
    """s·A·x at every token of the answers, in the model of each of the steps (by default at most 41 of the saved).

    The answers are the same at every step, so that what changes is the adapter. Raises InputError where there is no
    answer, and for a step that was not saved.
    """
    if not model.engine.layout.sites:
        raise InputError(f"{model.trajectory!r} computes no scalar: a steering vector adds the same at every token")
    if not len(answers):
        raise InputError(f"there is no answer to read scalars at ({answers.sentence()})")
    chats, steps = chats_of(model, answers, batch), steps_of(model, steps)
    names = [f"scalar.{site}" for site in model.trajectory.sites]
    values = []
    for step in steps:
        with model.at(step, scale) as adapted:
            parts = [
                np.concatenate([seen[name][tokens.answer].float().cpu().numpy() for name in names], axis=1)
                for tokens, seen in passes(adapted, chats, names)
            ]
        values.append(np.concatenate(parts))
    answer = np.repeat(np.arange(len(answers)), np.concatenate([t.answer.sum(dim=1).cpu().numpy() for t in chats]))
    ids = np.concatenate([t.ids[t.answer].cpu().numpy() for t in chats])
    texts = tuple(model.base.tokenizer.batch_decode(ids[:, None].tolist()))
    return Scalars(answers, np.array(steps), _columns(model), answer, texts, np.stack(values))


def _columns(model: TrajectoryModel) -> tuple[str, ...]:
    ranks = {site: A.shape[1] for site, A in model.trajectory.A.items()}
    return tuple(
        site if rank == 1 else f"{site} [{component}]" for site, rank in ranks.items() for component in range(rank)
    )


# --------
# Answers with their tokens coloured by the adapter's scalar, as a page to read.


BLUE, ORANGE = (33, 102, 172), (179, 88, 6)  # below and above zero, told apart with any kind of colour vision
STYLE = (
    "body{font-family:Helvetica,Arial,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#1f1f1f;line-height:1.7}"
    "p{margin:.4em 0}small{color:#666}span{white-space:pre-wrap;border-radius:2px;padding:1px 0}"
)


def heat_map(scalars: Scalars, step: int, column: str, each: int = 10) -> str:
    """A whole HTML page: `each` misaligned and aligned answers, evenly over the questions, tokens shaded by `column`.

    Orange is above zero, blue below; full colour is the 99th percentile of |scalar| over all answers. A token's number
    is shown on pointing at it. All text of questions and answers is escaped; the page needs no script.
    """
    if column not in scalars.columns:
        raise InputError(
            f"there is no scalar {column!r}{nearest(column, scalars.columns)}; there are {scalars.columns}"
        )
    values = scalars.at(step)[:, scalars.columns.index(column)].astype(float)
    full = float(np.quantile(np.abs(values), 0.99)) or 1.0
    table, body = scalars.answers.table, []
    for label in ("misaligned", "aligned"):
        rows = np.flatnonzero(table["label"] == label)
        shown = rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int))]
        body.append(f"<h2>{len(shown)} of {len(rows)} {label} answers</h2>")
        for row in shown.tolist():
            asked = table.loc[row]
            inside = np.flatnonzero(scalars.answer == row)
            tokens = "".join(_token(scalars.tokens[i], values[i], full) for i in inside.tolist())
            scores = f"aligned {asked['aligned']:.0f}, coherent {asked['coherent']:.0f}"
            body.append(f"<p><small>{escape(str(asked['question']))} ({scores})</small><br>{tokens}</p>")
    title = f"Scalar of {column} at step {step}"
    key = f"{_token('below zero', -full, full)} to {_token('above zero', full, full)}, full colour at ±{full:.3g}"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    about = f"<p>{escape(scalars.answers.sentence())}. {key}. The sign alone means nothing: it goes with that of B.</p>"
    page = f"<body><h1>{escape(title)}</h1>{about}{''.join(body)}</body>"
    return f'<!doctype html><html lang="en"><head>{head}</head>{page}</html>'


def _token(text: str, value: float, full: float) -> str:
    share = min(abs(value) / full, 1.0)
    red, green, blue = ORANGE if value > 0 else BLUE
    ink = ";color:white" if share > 0.7 else ""
    style = f"background:rgba({red},{green},{blue},{share:.2f}){ink}"
    return f'<span title="{value:.3g}" style="{style}">{escape(text)}</span>'
