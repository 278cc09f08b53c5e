"""Ablation: how much of the misalignment is removed when a direction is ablated from the residual stream, x − v̂v̂ᵀx.

The direction is ablated after one layer, or after each layer that layer's direction, at all tokens (Soligo, Turner et
al., arXiv 2506.11618, section 3, where it takes EM from 11 % to 0). There are two controls, several random directions
of each:

- `random`: a random direction is ablated. In d dimensions that removes 1/d of the stream, whatever its length, so it
  is a weak control; it is the usual one.
- `norm_matched`: the amount that the ablation removes at each token is removed along a random direction instead. It
  disturbs the model as much as the ablation, so it is the control to compare with.

The share removed is of the EM rate of the adapted model without an intervention, over scored answers. An answer that
is no longer coherent is not EM either, so the coherent rate is given too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.judging.judge import Judge
from em_interp.behaviour.rates import LEVEL, Rate
from em_interp.behaviour.scores import ScoredResponses
from em_interp.errors import InputError
from em_interp.mechanism.directions import Direction
from em_interp.mechanism.interventions.experiments import (
    DIRECTION,
    NONE,
    NORM_MATCHED,
    RANDOM,
    InterventionCondition,
    InterventionExperiment,
    Questions,
    SamplingParams,
    main_questions,
    no_intervention,
    rate_columns,
    run_experiment,
)
from em_interp.mechanism.interventions.sufficiency import MIN_COHERENT, N_RESAMPLES, AnswerCounts
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.mechanism.random_adapters import random_directions
from em_interp.results import Result, interval_columns
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.trajectory.load import TrajectorySource
from em_interp.utils.checks import as_list, check_level, checked
from em_interp.utils.stages import Storage

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import plotly.graph_objects as go

ALL_LAYERS = "every layer"
MAX_LAYERS = 6  # ablated one at a time where none are given
N_RANDOM = 4  # random directions of each control
MIN_REMOVED_BY_DIRECTION, MAX_REMOVED_BY_RANDOM = 0.75, 0.2  # shares of EM, where the direction mediates it


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """EM and coherent rates with a direction ablated after several layers, and with both controls.

    Attributes:
        direction: the ablated direction.
        answers: the judged answers; `kind`, `layers` and `number` name the condition of each.
        level: confidence level of the intervals.
        seed: random seed of the resampling.
    """

    NEXT: ClassVar = (".plot()", ".frame()", ".row(kind, layers)")

    direction: Direction
    answers: pd.DataFrame
    level: float = LEVEL
    seed: int = 0

    @property
    def layers(self) -> list[str]:
        """In words, the layers after which it was ablated; the last entry is all layers at once."""
        rows = self.answers[self.answers["kind"] == DIRECTION]
        return [str(layers) for layers in dict.fromkeys(rows["layers"])]

    def rates(self, kind: str, layers: str = "") -> ScoredResponses:
        """The answers under one kind of condition, all its random directions together."""
        chosen = self.answers[(self.answers["kind"] == kind) & (self.answers["layers"] == layers)]
        return ScoredResponses(chosen, self.level)

    @cached_property
    def baseline(self) -> Rate:
        """EM of the adapted model without an intervention."""
        return self.rates(NONE).em

    def frame(self) -> pd.DataFrame:
        """A row for each choice of layers and kind (direction, random, norm_matched), random directions pooled.

        Columns: counts, EM and coherent rates with intervals, the share `removed` with its interval, and `removed_min`
        and `removed_max` over the random directions.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        rng = np.random.default_rng(self.seed)
        baseline, rows = self._resampled_rates(self.rates(NONE).answers, rng), []
        for (layers, kind), answers in self.answers.groupby(["layers", "kind"], sort=False):
            rates = ScoredResponses(answers, self.level)
            drawn = 1 - np.divide(self._resampled_rates(answers, rng), baseline)
            low, high = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2])
            each = [self._removed(ScoredResponses(rows, self.level).em) for _, rows in answers.groupby("number")]
            row = {"layers": layers, "kind": kind, **rate_columns(rates), "removed": self._removed(rates.em)}
            row |= interval_columns("removed", (float(low), float(high)))
            rows.append(row | {"removed_min": min(each), "removed_max": max(each), "n_directions": len(each)})
        return pd.DataFrame(rows)

    def _resampled_rates(self, answers: pd.DataFrame, rng: np.random.Generator) -> Float[np.ndarray, " draw"]:
        """EM rates of new answers to the same questions, never 0."""
        counts = AnswerCounts.of(answers, self.answers)
        least = 0.5 / max(1, int(counts.n.sum()))
        return np.maximum([counts.resampled(rng).rate for _ in range(N_RESAMPLES)], least)

    def _removed(self, rate: Rate) -> float:
        return 1 - rate.rate / self.baseline.rate if self.baseline.rate > 0 else float("nan")

    def row(self, kind: str, layers: str = ALL_LAYERS) -> dict[str, Any]:
        """The row of `frame` of a kind and layers. Raises InputError where there is none."""
        rows = self._frame[(self._frame["kind"] == kind) & (self._frame["layers"] == layers)]
        if rows.empty:
            kinds = ", ".join(dict.fromkeys(self.answers["kind"]))
            known = f"kinds: {kinds}; layers: {', '.join(self.layers)}"
            raise InputError(f"there is no condition {kind!r} after {layers!r}; {known}")
        return {str(key): value for key, value in rows.iloc[0].items()}

    def mediates(self, layers: str) -> bool:
        """Whether the direction mediates the misalignment after these layers.

        Its ablation removes three quarters of EM or more, at 90 % coherent or more; that of random directions less
        than a fifth; and the norm-matched control less than it (`exceeds_control`).
        """
        own, random = self.row(DIRECTION, layers), self.row(RANDOM, layers)
        enough = own["removed"] >= MIN_REMOVED_BY_DIRECTION and own["coherent"] >= MIN_COHERENT
        return bool(enough and random["removed"] < MAX_REMOVED_BY_RANDOM and self.exceeds_control(layers))

    def exceeds_control(self, layers: str) -> bool:
        """Whether the ablation removes more than the norm-matched control: its interval lies above the control's."""
        return bool(self.row(DIRECTION, layers)["removed_low"] > self.row(NORM_MATCHED, layers)["removed_high"])

    @property
    def verdict(self) -> str:
        """`mediates` (after some layers), `partly` (removes more than the control), `none`, or `undefined`.

        It is undefined where there is no EM to remove.
        """
        if not self.baseline.interval[0] > 0:
            return "undefined"
        if any(map(self.mediates, self.layers)):
            return "mediates"
        return "partly" if any(map(self.exceeds_control, self.layers)) else "none"

    def best_layers(self) -> str:
        """The layers to report: those where it mediates, else where it exceeds the control, else every layer.

        Of several, those where its share exceeds the norm-matched control's by most.
        """

        def above_control(layers: str) -> float:
            return float(self.row(DIRECTION, layers)["removed"] - self.row(NORM_MATCHED, layers)["removed"])

        for condition in (self.mediates, self.exceeds_control):
            candidates = [layers for layers in self.layers if condition(layers)]
            if candidates:
                return max(candidates, key=above_control)
        return self.layers[-1]

    def sentence(self) -> str:
        """How much the ablation removes, and how much the controls do."""
        rate = self.baseline
        if self.verdict == "undefined":
            return f"Without an intervention EM is {rate.rate:.1%}: there is nothing for an ablation to remove."
        words = {
            "mediates": "mediates the misalignment: its ablation removes most of it, that of random ones little, the "
            "norm-matched control less",
            "partly": "mediates part of the misalignment: its ablation removes more than the norm-matched control",
            "none": "does not mediate the misalignment: its ablation removes no more than the norm-matched control, as "
            "far as the intervals can tell",
        }
        parts = [f"The direction ({self.direction.contrast_in_words}) {words[self.verdict]}."]
        for layers in dict.fromkeys([self.best_layers(), self.layers[-1]]):
            own, random, matched = (self.row(kind, layers) for kind in (DIRECTION, RANDOM, NORM_MATCHED))
            parts.append(
                f"After {layers}: of EM {rate.rate:.1%} it removes {_share(own)} at {own['coherent']:.0%} coherent; "
                f"random directions {_share(random)}; the norm-matched control {_share(matched)} at "
                f"{matched['coherent']:.0%} coherent."
            )
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: verdict, the direction, the rate without an intervention and the rows of `frame()`."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "direction": self.direction.to_dict(),
            "level": self.level,
            "baseline": self.baseline.to_dict(),
            "unscored": ScoredResponses(self.answers, self.level).unscored,
            "rows": self._frame.to_dict("records"),
        }

    def plot(self) -> go.Figure:
        """EM and coherent rates by layers, of the direction and of both controls."""
        from em_interp.figures.mechanism.interventions import plot_ablation

        return plot_ablation(self.frame(), self.direction.contrast_in_words, self.level)

    def _table(self) -> pd.DataFrame:
        return self._frame[["layers", "kind", "scored", "em", "coherent", "removed", "removed_low", "removed_high"]]


def _share(row: dict[str, Any]) -> str:
    return f"{row['removed']:.0%} ({row['removed_low']:.0%} to {row['removed_high']:.0%})"


@checked
def ablate(
    model: TrajectoryModel | TrajectorySource,
    direction: Direction,
    judge: Judge,
    questions: Questions | None = None,
    layers: int | Sequence[int] | None = None,
    sampling: SamplingParams | None = None,
    n_random: int = N_RANDOM,
    level: float = LEVEL,
    storage: Storage | str | Path | None = None,
) -> Ablation:
    """Ablate a direction in the last step's model, after single layers and after every layer, and judge the answers.

    Args:
        model: the model of a run, or what `open_model` opens.
        direction: may come from another run on the same base.
        judge: scores the answers.
        questions: what is asked; by default the run's questions outside the training domain (`main_questions`).
        layers: single layers to ablate after; by default six of them, evenly spaced.
        sampling: how answers are sampled; its seed draws the random directions too.
        n_random: number of random directions for each control.
        level: confidence level of the intervals.
        storage: where the answers and scores are kept.

    Returns:
        EM and coherent rates by condition: none, each layer, all layers, and the random controls.

    Raises:
        InputError: for a direction of another base, or zero after one of the layers, and a layer that the model does
            not have.
    """
    check_level(level)
    if n_random < 1:
        raise InputError(f"n_random must be 1 or more, for the comparison with random directions; it is {n_random}")
    model = as_model(model)
    layers = evenly_spaced(np.arange(model.layers), MAX_LAYERS).tolist() if layers is None else as_list(layers)
    direction.check(model, [*layers, *range(model.layers)])
    sampling = SamplingParams() if sampling is None else sampling
    questions = main_questions(model.run) if questions is None else questions
    conditions = ablation_conditions(direction.vectors, layers, n_random, sampling.seed)
    experiment = InterventionExperiment(model, conditions)
    answers = run_experiment(experiment, judge, questions, sampling, Storage.of(storage))
    return Ablation(direction, answers, level, sampling.seed)


def ablation_conditions(
    vectors: Float[np.ndarray, "layer d"], layers: Sequence[int], n_random: int, seed: int
) -> list[InterventionCondition]:
    """No intervention; for each choice of layers the direction, as often as its controls, and `n_random` of each."""
    rng, conditions = np.random.default_rng(seed), no_intervention("adapted", vectors)
    choices = [*((f"layer {layer}", [layer]) for layer in layers), (ALL_LAYERS, list(range(len(vectors))))]
    for words, chosen in choices:
        own = np.zeros_like(vectors)
        own[chosen] = vectors[chosen]
        conditions += [
            InterventionCondition("adapted", DIRECTION, "ablate", own, words, number) for number in range(n_random)
        ]
        for number in range(n_random):
            drawn, where = random_directions(own, rng), (words, number)
            conditions += [
                InterventionCondition("adapted", RANDOM, "ablate", drawn, *where),
                InterventionCondition("adapted", NORM_MATCHED, "ablate_norm_matched", drawn, *where, ablated=own),
            ]
    return conditions
