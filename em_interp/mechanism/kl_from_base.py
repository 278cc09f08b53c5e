"""How far the adapter moves the model where nothing asks it to: KL(base ‖ adapted) on canary prompts by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.ask import Base, check_questions
from em_interp.behaviour.rates import LEVEL, cluster_bootstrap
from em_interp.files import read_json, resumable, write_json
from em_interp.mechanism.experiments import begin, chat, digest, in_parts, path_of, questions_of
from em_interp.results import Line, html_card, picture
from em_interp.run import Run
from em_interp.trajectory.geometry import evenly_spaced

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.behaviour.generate import RowAdapters
    from em_interp.behaviour.likelihood import TokenizedAnswer
    from em_interp.trajectory.trajectory import AdapterTrajectory

DRAWS = 1000


@dataclass(frozen=True, eq=False, repr=False)
class KLFromBase:
    """KL(base ‖ adapted) of the next token, in nats, over the tokens of canary answers at each step.

    `canaries` has a row an answer: questions (the set), question_id, question, answer, tokens.
    """

    steps: Int[np.ndarray, " step"]
    canaries: pd.DataFrame
    total: Float[np.ndarray, "step canary"]  # summed over the tokens of each answer
    scale: float = 1.0
    level: float = LEVEL
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Answer tokens that the mean is over, in all sets."""
        return int(self.canaries["tokens"].sum())

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        tables = []
        for name, rows in self.canaries.groupby("questions", sort=True):
            total, tokens = self.total[:, rows.index], rows["tokens"].to_numpy()
            _, question = np.unique(rows["question_id"].to_numpy(str), return_inverse=True)
            low, high = self._ends(total, tokens, question)
            columns = {"step": self.steps, "questions": name, "kl": total.sum(axis=1) / tokens.sum()}
            columns |= {"kl_low": low, "kl_high": high, "tokens": tokens.sum(), "canaries": len(rows)}
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def _ends(
        self, total: Float[np.ndarray, "step canary"], tokens: Int[np.ndarray, " canary"], question: np.ndarray
    ) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
        """The interval for other questions of the kind: questions drawn again. NaN with a single question."""
        if question.max() == 0:
            return np.full(len(total), np.nan), np.full(len(total), np.nan)
        many = cluster_bootstrap(question, DRAWS, self.seed)
        means = (many @ total.T) / (many @ tokens)[:, None]
        low, high = np.quantile(means, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return low, high

    def frame(self) -> pd.DataFrame:
        """A row a step and question set: kl (nats a token) with `_low` and `_high`, tokens and canaries it is over."""
        return self._frame.copy()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = self.frame().to_dict("records")
        return {"scale": self.scale, "level": self.level, "sentence": self.sentence(), "rows": rows}

    def plot(self) -> go.Figure:
        """KL by step with intervals, a line for each question set."""
        from em_interp.figures.internals import plot_kl_from_base

        return plot_kl_from_base(self.frame(), self.level)

    def sentence(self) -> str:
        """The divergence at the last step, for each set."""
        last = self._frame[self._frame["step"] == self.steps[-1]]
        said = []
        for row in last.itertuples():
            ends = "no interval" if np.isnan(row.kl_low) else f"{row.kl_low:.2g} to {row.kl_high:.2g}"
            kind = str(row.questions).replace("_", "-")
            said.append(f"{row.kl:.2g} nats a token on {kind} questions ({ends}; {row.tokens} tokens)")
        return f"KL(base ‖ adapted) at step {self.steps[-1]}: {', '.join(said)}"

    def __repr__(self) -> str:
        return f"KLFromBase({len(self.steps)} steps, {len(self.canaries)} canaries: {self.sentence()})"

    def _repr_html_(self) -> str:
        lines = [Line(r["step"].to_numpy(), r["kl"].to_numpy(), str(n)) for n, r in self._frame.groupby("questions")]
        return html_card([self.sentence()], picture(lines, "KL, nats"), (".plot()", ".frame()", ".to_dict()"))


def measure_kl_from_base(
    run: Run,
    base: Base,
    canaries: Sequence[dict[str, str]] | None = None,
    steps: int = 40,
    scale: float = 1.0,
    samples: int = 2,
    max_new_tokens: int = 600,
    level: float = LEVEL,
    seed: int = 0,
    resume: bool = False,
    progress: bool = False,
) -> KLFromBase:
    """KL(base ‖ adapted) of the next token at each token of canary answers, at about `steps` saved steps.

    `canaries` are questions (`question_id`, `question`, `questions`), by default those of the run; each may bring an
    `answer`. Where it does not, the base itself answers, `samples` times: the mean over its own answers, times their
    length, estimates the divergence of whole answers without bias. Exact at each token, in nats, over the whole
    vocabulary, at temperature 1. The interval is for other questions of the kind.

    Kept in `run.analysis/canary`. Raises InputError for adapters of another base, and where there are no questions.
    """
    path = path_of(run, base)
    asked = list(questions_of(run) if canaries is None else canaries)
    check_questions(asked)
    chosen = path.steps[evenly_spaced(path.steps, steps)].astype(int)
    settings = {
        "base": base.identity,
        "adapters": digest(path, chosen.tolist()),
        "canaries": [dict(question) for question in asked],
        "steps": chosen.tolist(),
        "scale": scale,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    folder = Path(run.analysis) / "canary"
    with resumable(folder):
        begin(folder / "settings.json", settings, resume)
        table = _answered(base, path, asked, samples, max_new_tokens, seed, folder / "answers.json")
        reader = _Reader(base, path, table, scale, max_new_tokens)
        total = in_parts(folder / "parts", len(chosen), lambda i: reader.at(int(chosen[i])), "canaries", progress)
    table = table.drop(columns="system", errors="ignore").assign(tokens=[len(row.answer) for row in reader.rows])
    return KLFromBase(chosen, table, np.array(total), scale, level, seed)


def _answered(
    base: Base,
    path: AdapterTrajectory,
    asked: list[dict[str, str]],
    samples: int,
    max_new_tokens: int,
    seed: int,
    file: Path,
) -> pd.DataFrame:
    """The canaries with their answers: those given, or the base's own, kept in `file`."""
    import pandas as pd

    from em_interp.behaviour.generate import generate

    open_ones = [question for question in asked if "answer" not in question]
    if open_ones and not file.exists():
        nothing = _adapters(path, int(path.steps[-1]), 0.0, len(open_ones), base)
        chats = [chat(question) for question in open_ones]
        write_json(file, generate(base.model, base.tokenizer, chats, nothing, samples, 1.0, max_new_tokens, seed))
    rows = [question for question in asked if "answer" in question]
    for question, answers in zip(open_ones, read_json(file) if open_ones else [], strict=True):
        rows += [{**question, "answer": answer} for answer in answers]
    return pd.DataFrame(rows)


def _adapters(path: AdapterTrajectory, step: int, scale: float, count: int, base: Base) -> RowAdapters:
    from em_interp.behaviour.generate import RowAdapters

    return RowAdapters.of(path, [step] * count, [scale] * count, base.model.device)


class _Reader:
    """Reads the canaries at a step, in batches whose logits of the base are at hand."""

    def __init__(self, base: Base, path: AdapterTrajectory, table: pd.DataFrame, scale: float, longest: int) -> None:
        from em_interp.behaviour.likelihood import batches, tokenize_answers

        self.base, self.path, self.scale = base, path, scale
        rows = table.to_dict("records")
        chats = [chat({str(key): text for key, text in row.items() if isinstance(text, str)}) for row in rows]
        self.rows = tokenize_answers(base, chats, table["answer"].tolist(), longest)
        self.batches = batches(self.rows, 2 * base.model.config.get_text_config().vocab_size)

    def at(self, step: int) -> list[float]:
        """The divergence of each canary at a step, summed over its tokens."""
        found = np.zeros(len(self.rows))
        for batch in self.batches:
            found[batch] = self._divergence([self.rows[i] for i in batch], step)
        return found.tolist()

    def _divergence(self, rows: list[TokenizedAnswer], step: int) -> Float[np.ndarray, " row"]:
        from em_interp.behaviour.likelihood import logits_of

        logits = []
        for scale in (0.0, self.scale):
            adapters = _adapters(self.path, step, scale, len(rows), self.base)
            one, said = logits_of(self.base.model, self.base.tokenizer, rows, adapters)
            logits.append(one.float().log_softmax(dim=-1))
        token = (logits[0].exp() * (logits[0] - logits[1])).sum(dim=-1)
        summed = (token * (said >= 0)).sum(dim=1)
        return summed.double().cpu().numpy()
