"""Ablation: what of the misalignment goes when a direction is taken out of the residual stream, x − v̂v̂ᵀx.

Taken out after one layer, or after every layer its own; at all tokens (Soligo, Turner et al., arXiv 2506.11618,
section 3, where it takes EM from 11 % to 0). Two controls at each place, several random directions of each:

- `random`: a random direction is taken out likewise. In d dimensions that takes away 1/d of the stream, so it is
  a weak control whatever its length; it is the one in use.
- `moved`: as much as the ablation takes away at each token, taken along a random direction instead. It is norm-matched
  token by token and disturbs the model as much, so it is the control to be held against.

The share removed is of the EM rate of the adapted model left alone, over scored answers. An answer that is no longer
coherent is not EM either: the coherent rate stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.judge import Judge
from em_interp.behaviour.rates import LEVEL, Rate
from em_interp.behaviour.scores import COHERENT_ABOVE, ScoredResponses, is_em
from em_interp.errors import InputError
from em_interp.mechanism.directions import Direction
from em_interp.mechanism.experiments import (
    DIRECTION,
    MOVED,
    NONE,
    RANDOM,
    Arm,
    SamplingParams,
    no_intervention,
    random_like,
    sample_arms,
)
from em_interp.mechanism.sufficiency import COHERENT, DRAWS, Counts
from em_interp.results import html_card

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.mechanism.model import TrajectoryModel

EVERY = "every layer"
MOST_LAYERS = 6  # ablated one at a time where none are named
RANDOMS = 4  # random directions of each kind at each place
REMOVES, LITTLE = 0.75, 0.2  # shares of EM: what a direction that carries it removes at least, a control at most


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """EM and coherent rates with a direction taken out at several places, beside random ones."""

    direction: Direction
    answers: pd.DataFrame  # judged; kind, place and number say of which arm
    level: float = LEVEL
    seed: int = 0

    @property
    def places(self) -> list[str]:
        """Where it was taken out; every layer at once comes last."""
        rows = self.answers[self.answers["kind"] == DIRECTION]
        return [str(place) for place in dict.fromkeys(rows["place"])]

    def rates(self, kind: str, place: str = "") -> ScoredResponses:
        """The answers of one kind of arm at a place, all its random directions together."""
        chosen = self.answers[(self.answers["kind"] == kind) & (self.answers["place"] == place)]
        return ScoredResponses(chosen, self.level)

    @property
    def untouched(self) -> Rate:
        """EM of the adapted model left alone."""
        return self.rates(NONE).em

    def frame(self) -> pd.DataFrame:
        """A row a place and kind (direction, random, moved), random directions pooled: counts, EM and coherent rates
        with intervals, `removed` with its interval, and `removed_least` and `removed_most` of its directions.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        rng, none = np.random.default_rng(self.seed), counts(self.rates(NONE).scored)
        untouched = none.redrawn_rates(rng)
        rows = []
        for (place, kind), answers in self.answers.groupby(["place", "kind"], sort=False):
            one = ScoredResponses(answers, self.level)
            row: dict[str, Any] = {"place": place, "kind": kind, "n": one.n, "scored": len(one.scored)}
            for name, rate in (("em", one.em), ("coherent", one.coherent)):
                row |= {name: rate.rate, f"{name}_low": rate.interval[0], f"{name}_high": rate.interval[1]}
            drawn = 1 - np.divide(counts(one.scored).redrawn_rates(rng), untouched)
            ends = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2])
            each = [self._removed(ScoredResponses(some, self.level).em) for _, some in answers.groupby("number")]
            row |= {"removed": self._removed(one.em), "removed_low": ends[0], "removed_high": ends[1]}
            rows.append(row | {"removed_least": min(each), "removed_most": max(each), "directions": len(each)})
        return pd.DataFrame(rows)

    def _removed(self, rate: Rate) -> float:
        return 1 - rate.rate / self.untouched.rate if self.untouched.rate > 0 else float("nan")

    def row(self, kind: str, place: str = EVERY) -> dict[str, Any]:
        """The row of `frame` of a kind and place. Raises InputError where it was not tried."""
        found = self._frame[(self._frame["kind"] == kind) & (self._frame["place"] == place)]
        if found.empty:
            raise InputError(f"{kind!r} was not tried at {place!r}; tried were {', '.join(self.places)}")
        return {str(key): value for key, value in found.iloc[0].items()}

    def carries(self, place: str) -> bool:
        """Whether at this place it removes three quarters of EM or more, at 90 % coherent or more, random directions
        under a fifth, and as much moved at random less than it (`beyond`).
        """
        own, random = self.row(DIRECTION, place), self.row(RANDOM, place)
        enough = own["removed"] >= REMOVES and own["coherent"] >= COHERENT and random["removed"] < LITTLE
        return bool(enough and self.beyond(place))

    def beyond(self, place: str) -> bool:
        """Whether it removes more than as much moved at random: its interval lies above that of all of those."""
        return bool(self.row(DIRECTION, place)["removed_low"] > self.row(MOVED, place)["removed_high"])

    @property
    def verdict(self) -> str:
        """`carries` (see there; at some place), `partly` (removes more than chance at some place), `none`, or
        `undefined` where there is no EM to remove.
        """
        if not self.untouched.interval[0] > 0:
            return "undefined"
        if any(map(self.carries, self.places)):
            return "carries"
        return "partly" if any(map(self.beyond, self.places)) else "none"

    def best(self) -> str:
        """The place to speak of: one where it carries, else goes beyond chance, else every layer; of several the one
        whose own share exceeds that of as much moved at random by most.
        """
        for tried in (self.carries, self.beyond):
            there = [place for place in self.places if tried(place)]
            if there:
                return max(there, key=lambda place: self.row(DIRECTION, place)["removed"] - self._moved(place))
        return self.places[-1]

    def _moved(self, place: str) -> float:
        return float(self.row(MOVED, place)["removed"])

    def sentence(self) -> str:
        """What goes with the direction, and what with the controls."""
        rate, said = self.untouched, self.direction.said
        if self.verdict == "undefined":
            return f"Left alone the adapted model shows EM {rate.rate:.1%}: there is nothing for an ablation to remove."
        words = {
            "carries": "carries the misalignment: taking it out removes most of it, random ones little, as much moved "
            "at random less",
            "partly": "carries part of the misalignment: taking it out removes more than as much moved at random",
            "none": "does not carry the misalignment: taking it out removes no more than as much moved at random",
        }
        parts = [f"The direction ({said}) {words[self.verdict]}."]
        for place in dict.fromkeys([self.best(), self.places[-1]]):
            own, random, moved = (self.row(kind, place) for kind in (DIRECTION, RANDOM, MOVED))
            parts.append(
                f"After {place}: of EM {rate.rate:.1%} it removes {_share(own)} at {own['coherent']:.0%} coherent; "
                f"random directions {_share(random)}; as much moved at random {_share(moved)} at "
                f"{moved['coherent']:.0%} coherent."
            )
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: verdict, the direction, the untouched rate and the rows of `frame()`."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "direction": self.direction.to_dict(),
            "level": self.level,
            "untouched": self.untouched.to_dict(),
            "unscored": ScoredResponses(self.answers, self.level).unscored,
            "rows": self._frame.to_dict("records"),
        }

    def plot(self) -> go.Figure:
        """EM and coherent rates at every place, of the direction and of both controls."""
        from em_interp.figures.interventions import plot_ablation

        return plot_ablation(self.frame(), self.direction.said, self.level)

    def __repr__(self) -> str:
        return f"Ablation({self.sentence()})"

    def _repr_html_(self) -> str:
        table = self._frame.to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0)
        return html_card([self.sentence()], calls=(".plot()", ".frame()", ".row(kind, place)"), table=table)


class EmCounts(Counts):
    """Counts of one arm, which can be drawn again."""

    def redrawn_rates(self, rng: np.random.Generator) -> Float[np.ndarray, " draw"]:
        """EM rates of new answers to the same questions, never 0."""
        least = 0.5 / max(1, int(self.n.sum()))
        return np.maximum([self.redrawn(rng).rate for _ in range(DRAWS)], least)


def counts(scored: pd.DataFrame) -> EmCounts:
    """Scored answers counted by question."""
    code = np.unique(scored["question_id"].to_numpy(str), return_inverse=True)[1]
    hits = (np.ones(len(scored), bool), is_em(scored), scored["coherent"] > COHERENT_ABOVE)
    return EmCounts(*(np.bincount(code[np.asarray(hit)], minlength=code.max(initial=0) + 1) for hit in hits))


def _share(row: dict[str, Any]) -> str:
    return f"{row['removed']:.0%} ({row['removed_low']:.0%} to {row['removed_high']:.0%})"


def ablate(
    folder: str | Path,
    model: TrajectoryModel,
    direction: Direction,
    judge: Judge,
    questions: Sequence[dict[str, str]],
    layers: Sequence[int] | None = None,
    sampling: SamplingParams | None = None,
    random: int = RANDOMS,
    level: float = LEVEL,
    resume: bool = False,
    progress: bool = False,
) -> Ablation:
    """Ask the last step's model `questions` with the direction taken out after each of `layers`, and after every layer.

    `layers` are by default six of them, evenly spread. `direction` may come from another run on the same base. Answers
    and scores are kept in `folder`; with `resume` what is there is not asked or judged again. Raises InputError for a
    direction of another base and a layer that is not there.
    """
    if random < 1:
        raise InputError(f"an ablation is held against random directions; expected at least 1 of each, found {random}")
    layers = spread_layers(model.layers) if layers is None else list(layers)
    direction.check(model, [*layers, *range(model.layers)])
    sampling = SamplingParams() if sampling is None else sampling
    arms = ablation_arms(direction.vectors, layers, random, sampling.seed)
    answers = sample_arms(Path(folder), model, arms, judge, questions, sampling, None, resume, progress)
    return Ablation(direction, answers, level, sampling.seed)


def spread_layers(layers: int, most: int = MOST_LAYERS) -> list[int]:
    """Up to `most` layers, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, layers - 1, min(most, layers)).round().astype(int)).tolist()


def ablation_arms(vectors: Float[np.ndarray, "layer d"], layers: Sequence[int], random: int, seed: int) -> list[Arm]:
    """The model left alone; at each place the direction, asked as often as its controls, and `random` arms of each."""
    rng, arms = np.random.default_rng(seed), no_intervention("adapted", vectors)
    for place, chosen in [*((f"layer {layer}", [layer]) for layer in layers), (EVERY, list(range(len(vectors))))]:
        here = np.zeros_like(vectors)
        here[chosen] = vectors[chosen]
        arms += [Arm("adapted", DIRECTION, "project_out", here, place, number) for number in range(random)]
        for number in range(random):
            drawn = random_like(here, rng)
            arms.append(Arm("adapted", RANDOM, "project_out", drawn, place, number))
            arms.append(Arm("adapted", MOVED, "move", drawn, place, number, along=here))
    return arms
