"""Tokens that the adapter's residual write promotes and suppresses, step by step, and when they settle.

A write w reaches the logits on a direct path as W_U·(γ ⊙ w)/rms, through the final norm's gains and the unembedding;
rms is that of the final residual stream, averaged over the answers' tokens, so that the effect is in logits (the logit
lens, nostalgebraist 2020, of a write alone, with the norm held fixed). Effects are centred over the vocabulary, which
leaves every probability as it is. What later layers make of the write is not in it.

*Settled* is the first step after which the k tokens promoted most stay within Jaccard 0.8 of the last step's; the
suppressed ones likewise. Chance stands beside: the Jaccard of the last step's tokens with those of random directions,
which is not 0, because unembeddings favour some tokens whatever the direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError
from em_interp.mechanism.answers import BATCH, AnswerSet, chats_of, passes
from em_interp.mechanism.model import TrajectoryModel
from em_interp.results import Line, html_card, picture
from em_interp.transition.lock_in import first_sustained

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SETTLED = 0.8  # Jaccard
DRAWS = 200  # random directions
SEED = 20250611
Table = Literal["tokens", "settling"]
SIDES = {"promoted": 1, "suppressed": -1}


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """Direct effects of one site's write on the logits of some tokens, and the tokens it moves most, at every step."""

    site: str
    steps: Int[np.ndarray, " step"]
    top: dict[str, Int[np.ndarray, "step k"]]  # by side, the tokens moved most, first the one moved most
    effects: dict[str, Float[np.ndarray, "step k"]]  # logits; NaN where the write is zero
    chosen: dict[str, Float[np.ndarray, " step"]]  # the effect on tokens of your choice, by their text
    texts: dict[int, str]
    random: dict[str, Float[np.ndarray, " draw"]]  # Jaccard of the last step's tokens with a random direction's
    level: float = 0.95

    @property
    def k(self) -> int:
        """How many tokens are looked at on either side."""
        return self.top["promoted"].shape[1]

    def jaccard(self, side: str) -> Float[np.ndarray, " step"]:
        """Of each step's tokens with the last step's; NaN where the write is zero."""
        found = jaccard(self.top[side], self.top[side][-1])
        return np.where(np.isfinite(self.effects[side][:, 0]), found, np.nan)

    def chance(self, side: str) -> float:
        """What the Jaccard with random directions stays below."""
        return float(np.quantile(self.random[side], self.level))

    def settled(self, side: str) -> int | None:
        """The first step after which the tokens stay those of the last; None where only the last step itself is so."""
        first = first_sustained(self.steps, self.jaccard(side) >= SETTLED)
        return first if first != self.steps[-1] else None

    def frame(self, table: Table = "tokens") -> pd.DataFrame:
        """`tokens`: a row a step, side and rank, with token and effect in logits. `settling`: a row a step and side,
        with the Jaccard with the last step's tokens and `chance`.
        """
        import pandas as pd

        if table == "settling":
            parts = [
                {"step": self.steps, "side": side, "jaccard": self.jaccard(side), "chance": self.chance(side)}
                for side in SIDES
            ]
            return pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
        if table != "tokens":
            raise InputError(f"there is no table {table!r}; there are tokens, settling")
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
                "chance": self.chance(side),
                "jaccard": self.jaccard(side).tolist(),
            }
            for side in SIDES
        }
        chosen = {token: effect.tolist() for token, effect in self.chosen.items()}
        said = {"site": self.site, "k": self.k, "steps": self.steps.tolist(), "sentence": self.sentence()}
        return said | sides | {"chosen": chosen}

    def sentence(self) -> str:
        """The tokens of the last step and when they settled."""
        parts = []
        for side in SIDES:
            tokens = ", ".join(repr(token.strip()) for token in self.last(side)[:5])
            when = "only at the last" if self.settled(side) is None else f"from step {self.settled(side)} on"
            share = self.effects[side][-1, 0]
            parts.append(
                f"{side} most are {tokens} (the first by {share:+.2f} logits), settled {when} "
                f"(by chance Jaccard {self.chance(side):.2f})"
            )
        return f"Read out directly, of what {self.site} writes at step {self.steps[-1]}: {'; '.join(parts)}."

    def plot(self) -> go.Figure:
        """The effect on the last step's tokens by step, and how far the tokens are those of the last step."""
        from em_interp.figures.internals import plot_logit_lens

        return plot_logit_lens(self.chosen, self.frame("settling"), self.steps, self.site, SETTLED, self.k)

    def __repr__(self) -> str:
        return f"LogitLens({self.sentence()})"

    def _repr_html_(self) -> str:
        lines = [Line(self.steps, self.jaccard(side), side) for side in SIDES]
        return html_card([self.sentence()], picture(lines, "Jaccard with the last"), (".plot()", ".frame()"))


def read_logit_lens(
    model: TrajectoryModel,
    answers: AnswerSet,
    steps: Sequence[int] | Int[np.ndarray, " step"],
    writes: Mapping[str, Float[np.ndarray, "step d"]],
    k: int = 10,
    chosen: Sequence[str] = (),
    draws: int = DRAWS,
    batch: int = BATCH,
) -> list[LogitLens]:
    """Read out the `writes` of each site at these steps, as `follow_direction` finds them (`.writes`, `.steps`).

    `chosen` are texts of single tokens to follow, by default the five moved most on either side at the last step.
    `answers` say how large the final stream is. Raises InputError where nothing is written at the last step, for
    a text that is not one token, and a vocabulary too small for k.
    """
    vocabulary = model.base.model.get_output_embeddings().weight.shape[0]
    if not 0 < k <= vocabulary // 4:
        raise InputError(f"k is how many tokens are looked at on either side, 1 to {vocabulary // 4} here; found {k}")
    if not any(write[-1].any() for write in writes.values()):
        raise InputError("no site writes to the residual stream at the last step, so there is nothing to read out")
    rms, found = final_rms(model, answers, batch), []
    rng = np.random.default_rng(SEED)
    drawn = read_out(model.base.model, rng.standard_normal((draws, model.d_model)))
    wanted = [_single(model.base.tokenizer, text) for text in chosen]
    for site, write in writes.items():
        if write[-1].any():
            found.append(_one(model, site, np.asarray(steps), write / rms, k, wanted, drawn))
    return found


def _one(
    model: TrajectoryModel,
    site: str,
    steps: Int[np.ndarray, " step"],
    write: Float[np.ndarray, "step d"],
    k: int,
    wanted: list[int],
    drawn: Float[np.ndarray, "draw token"],
) -> LogitLens:
    effect = read_out(model.base.model, write, unit=False)
    effect[~write.any(axis=1)] = np.nan
    top = {side: _top(sign * effect, k) for side, sign in SIDES.items()}
    effects = {side: np.take_along_axis(effect, tokens, axis=1) for side, tokens in top.items()}
    random = {side: jaccard(_top(sign * drawn, k), top[side][-1]) for side, sign in SIDES.items()}
    followed = wanted or [int(token) for side in SIDES for token in top[side][-1][:5]]
    numbers = sorted({*followed, *(int(token) for tokens in top.values() for token in np.unique(tokens))})
    texts = dict(zip(numbers, model.base.tokenizer.batch_decode([[n] for n in numbers]), strict=True))
    chosen = {texts[token]: effect[:, token] for token in followed}
    return LogitLens(site, steps, top, effects, chosen, texts, random)


def _top(effect: Float[np.ndarray, "case token"], k: int) -> Int[np.ndarray, "case k"]:
    """The k tokens with the largest effect, the largest first; of equal ones the lower number."""
    return np.argsort(-np.nan_to_num(effect), axis=1, kind="stable")[:, :k]


def jaccard(tokens: Int[np.ndarray, "case k"], last: Int[np.ndarray, " k"]) -> Float[np.ndarray, " case"]:
    """Shared tokens over all tokens of each set and one other."""
    shared = np.isin(tokens, last).sum(axis=1)
    return shared / (tokens.shape[1] + len(last) - shared)


def read_out(model: Any, writes: Float[np.ndarray, "case d"], unit: bool = True) -> Float[np.ndarray, "case token"]:
    """Writes through the final norm's gains and the unembedding, centred over the vocabulary; zero stays zero.

    With `unit` each is first brought to root-mean-square 1, as the norm does; else the norm's scale is left out.
    """
    import torch

    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    rms = np.sqrt((writes**2).mean(axis=1, keepdims=True))
    scaled = np.divide(writes, rms, out=np.zeros(writes.shape), where=rms > 0)
    with torch.inference_mode():
        through = norm(torch.from_numpy(scaled).to(head.weight.device, head.weight.dtype))
        found = np.asarray(head(through).double().cpu().numpy())
    found -= found.mean(axis=1, keepdims=True)
    return found if unit else found * rms


def final_rms(model: TrajectoryModel, answers: AnswerSet, batch: int = BATCH) -> float:
    """Root mean square of the residual stream before the final norm, averaged over the answers' tokens, in the last
    step's model.
    """
    name, total, count = f"resid_post.{model.layers - 1}", 0.0, 0
    with model.at(int(model.trajectory.steps[-1])) as adapted:
        for tokens, seen in passes(adapted, chats_of(model, answers, batch), [name]):
            each = seen[name][tokens.answer].double().pow(2).mean(dim=-1).sqrt()
            total, count = total + float(each.sum()), count + len(each)
    return total / count


def _single(tokenizer: Any, text: str) -> int:
    """The one token of a text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(f"{text!r} is {len(ids)} tokens ({ids}); expected a text that is one token of the vocabulary")
    return int(ids[0])
