"""The logit lens of the adapter's write: the tokens that it promotes and suppresses by step, and when they settle.

A write w reaches the logits on a direct path as W_U·(γ ⊙ w)/rms, through the final norm's gains and the unembedding;
rms is that of the final residual stream, averaged over the answers' tokens, so that the effect is in logits (the logit
lens, nostalgebraist 2020, of a write alone, with the norm held fixed). Effects are centred over the vocabulary, which
leaves every probability as it is. What later layers make of the write is not included. Logits that a model scales or
soft-caps (Cohere, Gemma 2) are those before that.

*Settled* is the first step from which on the k most promoted tokens keep Jaccard 0.8 or more with the last step's; the
suppressed ones likewise. The null is the Jaccard of the last step's tokens with those of random directions, which is
not 0, because unembeddings favour some tokens whatever the direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.mechanism.answers import BATCH, AnswerSet, forward_passes, tokenized_answers
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.results import Line, Result, picture
from em_interp.trajectory.load import TrajectorySource
from em_interp.transition.signals.lock_in import first_sustained
from em_interp.utils.checks import as_list, check_known, checked

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MIN_JACCARD = 0.8  # of settled tokens
N_RANDOM = 200  # random directions
LOGIT_LENS_SEED = 20250611
Table = Literal["tokens", "settling"]
SIDES = {"promoted": 1, "suppressed": -1}


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(Result):
    """Direct effects of one site's write on the logits, and the tokens with the largest effects, at every step.

    Attributes:
        site: the site whose write is read.
        steps: training steps of the adapter.
        top: by side (promoted or suppressed), the ids of the tokens with the largest effects, the largest first.
        effects: by side, their effects in logits; NaN where the write is zero.
        followed: by text, the effect on the followed tokens at every step.
        texts: the tokens' texts by id.
        random: by side, the Jaccard index of the last step's tokens with those of random directions.
        level: probability with which that of a random direction is at most `null`.
    """

    site: str
    steps: Int[np.ndarray, " step"]
    top: dict[str, Int[np.ndarray, "step k"]]
    effects: dict[str, Float[np.ndarray, "step k"]]
    followed: dict[str, Float[np.ndarray, " step"]]
    texts: dict[int, str]
    random: dict[str, Float[np.ndarray, " draw"]]
    level: float = 0.95

    @property
    def k(self) -> int:
        """The number of promoted tokens, which is that of suppressed ones."""
        return self.top["promoted"].shape[1]

    def jaccard(self, side: str) -> Float[np.ndarray, " step"]:
        """Jaccard index of each step's tokens with the last step's; NaN where the write is zero."""
        shared = jaccard(self.top[side], self.top[side][-1])
        return np.where(np.isfinite(self.effects[side][:, 0]), shared, np.nan)

    def null(self, side: str) -> float:
        """The `level` quantile of the Jaccard index with random directions."""
        return float(np.quantile(self.random[side], self.level))

    def settled(self, side: str) -> int | None:
        """The first step from which on the tokens stay those of the last; None where that is the last step itself."""
        first = first_sustained(self.steps, self.jaccard(side) >= MIN_JACCARD)
        return first if first != self.steps[-1] else None

    def frame(self, table: Table = "tokens") -> pd.DataFrame:
        """The numbers as a tidy table.

        `tokens`: a row a step, side and rank, with token and effect in logits. `settling`: a row a step and side, with
        the Jaccard with the last step's tokens and its `null`.
        """
        import pandas as pd

        if table == "settling":
            parts = [
                {"step": self.steps, "side": side, "jaccard": self.jaccard(side), "null": self.null(side)}
                for side in SIDES
            ]
            return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
        check_known("table", table, ("tokens", "settling"))
        rows = []
        for index, step in enumerate(self.steps.tolist()):
            for side in SIDES:
                pairs = zip(self.top[side][index].tolist(), self.effects[side][index].tolist(), strict=True)
                for rank, (token, effect) in enumerate(pairs, 1):
                    row = {"step": step, "side": side, "rank": rank, "token": self.texts[token]}
                    rows.append(row | {"effect": effect})
        return pd.DataFrame(rows)

    def last(self, side: str) -> list[str]:
        """The tokens of the last step."""
        return [self.texts[token] for token in self.top[side][-1].tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the last step's tokens with their effects, when they settled, and the Jaccard by step."""
        sides = {
            side: {
                "tokens": self.last(side),
                "effects": self.effects[side][-1].tolist(),
                "settled": self.settled(side),
                "null": self.null(side),
                "jaccard": self.jaccard(side).tolist(),
            }
            for side in SIDES
        }
        followed = {token: effect.tolist() for token, effect in self.followed.items()}
        about = {"site": self.site, "k": self.k, "steps": self.steps.tolist(), "sentence": self.sentence()}
        return {**about, **sides, "followed": followed}

    def sentence(self) -> str:
        """The tokens of the last step and when they settled."""
        parts = []
        for side in SIDES:
            tokens = ", ".join(repr(token.strip()) for token in self.last(side)[:5])
            when = "at the last step only" if self.settled(side) is None else f"from step {self.settled(side)} on"
            first = f"the first by {self.effects[side][-1, 0]:+.2f} logits"
            parts.append(
                f"{side} most are {tokens} ({first}); the top {self.k} have settled {when} (Jaccard {MIN_JACCARD:g} or "
                f"more with the last step's; random directions {self.null(side):.2f} or less)"
            )
        return f"Logit lens of the write of {self.site} at step {self.steps[-1]}: {'; '.join(parts)}."

    def plot(self) -> go.Figure:
        """The effect on the last step's tokens by step, and the Jaccard of the tokens with the last step's."""
        from em_interp.figures.mechanism.logit_lens import plot_logit_lens

        return plot_logit_lens(self.followed, self.frame("settling"), self.steps, self.site, MIN_JACCARD, self.k)

    def _picture(self) -> str:
        return picture([Line(self.steps, self.jaccard(side), side) for side in SIDES], "Jaccard")


@checked
def read_logit_lens(
    model: TrajectoryModel | TrajectorySource,
    answers: AnswerSet,
    writes: Mapping[str, Float[np.ndarray, "step d"]],
    steps: int | Sequence[int] | Int[np.ndarray, " step"],
    k: int = 10,
    tokens: Sequence[str] = (),
    n_random: int = N_RANDOM,
    batch: int = BATCH,
) -> list[LogitLens]:
    """The logit lens of each site's write at several steps.

    Args:
        model: the model of a run, or what `open_model` opens.
        answers: the answers over whose tokens the scale of the final norm is averaged.
        writes: the write of each site at each step, from `attribute_direction` (`.writes`).
        steps: the steps of the writes (`.steps`).
        k: number of promoted and of suppressed tokens.
        tokens: texts of single tokens to follow; by default the five with the largest effects on either side.
        n_random: number of random directions for the null.
        batch: answers that are read at a time.

    Returns:
        A result for each site: the tokens that its write promotes and suppresses, by step.

    Raises:
        InputError: where nothing is written at the last step, for a text that is not one token, and a vocabulary too
            small for k.
    """
    model = as_model(model)
    vocabulary = model.base.model.get_output_embeddings().weight.shape[0]
    if not 0 < k <= vocabulary // 4:
        raise InputError(f"k is the number of tokens on either side, 1 to {vocabulary // 4} here; found {k}")
    if not any(write[-1].any() for write in writes.values()):
        raise InputError("no site writes to the residual stream at the last step, so there is no logit lens of it")
    rms = final_rms(model, answers, batch)
    rng = np.random.default_rng(LOGIT_LENS_SEED)
    random = unembed(model.base.model, rng.standard_normal((n_random, model.d_model)))
    numbers = [_single_token(model.base.tokenizer, text) for text in tokens]
    return [
        _of_site(model, site, np.array(as_list(steps)), write / rms, k, numbers, random)
        for site, write in writes.items()
        if write[-1].any()
    ]


def _of_site(
    model: TrajectoryModel,
    site: str,
    steps: Int[np.ndarray, " step"],
    write: Float[np.ndarray, "step d"],
    k: int,
    wanted: list[int],
    random: Float[np.ndarray, "draw token"],
) -> LogitLens:
    effect = unembed(model.base.model, write, unit=False)
    effect[~write.any(axis=1)] = np.nan
    top = {side: _top(sign * effect, k) for side, sign in SIDES.items()}
    effects = {side: np.take_along_axis(effect, tokens, axis=1) for side, tokens in top.items()}
    null = {side: jaccard(_top(sign * random, k), top[side][-1]) for side, sign in SIDES.items()}
    follow = wanted or [int(token) for side in SIDES for token in top[side][-1][:5]]
    numbers = sorted({*follow, *(int(token) for tokens in top.values() for token in np.unique(tokens))})
    texts = dict(zip(numbers, model.base.tokenizer.batch_decode([[n] for n in numbers]), strict=True))
    followed = {texts[token]: effect[:, token] for token in follow}
    return LogitLens(site, steps, top, effects, followed, texts, null)


def _top(effect: Float[np.ndarray, "case token"], k: int) -> Int[np.ndarray, "case k"]:
    """The k tokens with the largest effect, the largest first; of equal ones the lower number."""
    return np.argsort(-np.nan_to_num(effect), axis=1, kind="stable")[:, :k]


def jaccard(tokens: Int[np.ndarray, "case k"], last: Int[np.ndarray, " k"]) -> Float[np.ndarray, " case"]:
    """Shared tokens over all tokens of each set and one other."""
    shared = np.isin(tokens, last).sum(axis=1)
    return shared / (tokens.shape[1] + len(last) - shared)


def unembed(model: Any, writes: Float[np.ndarray, "case d"], unit: bool = True) -> Float[np.ndarray, "case token"]:
    """Writes through the final norm's gains and the unembedding, centred over the vocabulary; zero stays zero.

    With `unit` each is first scaled to root-mean-square 1, as the norm does; else the norm's scale is left out.
    """
    import torch

    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    rms = np.sqrt((writes**2).mean(axis=1, keepdims=True))
    scaled = np.divide(writes, rms, out=np.zeros(writes.shape), where=rms > 0)
    with torch.inference_mode():
        vectors = torch.from_numpy(scaled).to(head.weight.device, head.weight.dtype)
        through = norm(vectors) - norm(torch.zeros_like(vectors))  # without the bias of a LayerNorm
        logits = np.asarray(head(through).double().cpu().numpy())
    logits -= logits.mean(axis=1, keepdims=True)
    return logits if unit else logits * rms


def final_rms(model: TrajectoryModel, answers: AnswerSet, batch: int = BATCH) -> float:
    """Root mean square of the residual stream before the final norm, averaged over the answers' tokens, in the last
    step's model.
    """
    name, total, count = f"resid_post.{model.layers - 1}", 0.0, 0
    with model.at(model.last_step) as adapted:
        for tokens, activations in forward_passes(adapted, tokenized_answers(model, answers, batch), [name]):
            rms_of_tokens = activations[name][tokens.answer].double().pow(2).mean(dim=-1).sqrt()
            total, count = total + float(rms_of_tokens.sum()), count + len(rms_of_tokens)
    return total / count


def _single_token(tokenizer: Any, text: str) -> int:
    """The one token of a text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(f"{text!r} is {len(ids)} tokens ({ids}); expected a text that is one token of the vocabulary")
    return int(ids[0])
