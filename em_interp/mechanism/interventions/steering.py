"""Steering: the effect of a multiple of a direction, added to the residual stream, on EM and coherence.

x + λv at every token after one layer, on the base (does it induce the behaviour?) and on the adapted model (does it
reduce or increase it?). A coefficient λ of 1 adds the difference itself, |v| long. Random directions of exactly the
same length are added with every coefficient. A coefficient is *usable* where the lower end of EM on the base lies
above the upper end of the controls' (no intervention; the random directions with that coefficient together) at 90 %
coherent or more: too small a coefficient does nothing, too large a one breaks the model (arXiv 2506.11618 finds EM 47 %
at 94 % coherent for λ = 6, and 10 % at 11 % for 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.judging.judge import Judge
from em_interp.behaviour.rates import LEVEL
from em_interp.behaviour.scores import ScoredResponses
from em_interp.errors import InputError
from em_interp.mechanism.directions import Direction
from em_interp.mechanism.engines.interventions import Positions
from em_interp.mechanism.interventions.experiments import (
    DIRECTION,
    NONE,
    RANDOM,
    InterventionCondition,
    InterventionExperiment,
    ModelName,
    Questions,
    SamplingParams,
    main_questions,
    no_intervention,
    rate_columns,
    run_experiment,
)
from em_interp.mechanism.interventions.sufficiency import MIN_COHERENT
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.mechanism.random_adapters import random_directions
from em_interp.results import Line, Result, picture
from em_interp.trajectory.load import TrajectorySource
from em_interp.utils.checks import as_list, check_level, checked
from em_interp.utils.stages import Storage

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import plotly.graph_objects as go

COEFFICIENTS = (-2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
N_REFINED = 3  # coefficients that are added where the base stops being coherent
N_RANDOM = 3  # random directions with every coefficient
MODELS: tuple[ModelName, ...] = ("base", "adapted")


@dataclass(frozen=True, eq=False, repr=False)
class SteeringCurve(Result):
    """EM and coherent rates by coefficient, on the base and on the adapted model, with random directions.

    Attributes:
        direction: the direction that is added.
        layer: the layer after which it is added.
        answers: the judged answers; `model`, `kind`, `number` and `coefficient` name the condition of each.
        level: confidence level of the intervals.
    """

    NEXT: ClassVar = (".plot()", ".frame()", ".window")

    direction: Direction
    layer: int
    answers: pd.DataFrame
    level: float = LEVEL

    @property
    def length(self) -> float:
        """|v| after the layer: what a coefficient of 1 adds."""
        return float(np.linalg.norm(self.direction.vectors[self.layer]))

    def rates(self, model: ModelName, kind: str = NONE, coefficient: float = 0.0) -> ScoredResponses:
        """The answers of one kind of condition with a coefficient, all its random directions together."""
        table = self.answers
        chosen = (table["model"] == model) & (table["kind"] == kind) & (table["coefficient"] == coefficient)
        return ScoredResponses(table[chosen], self.level)

    def frame(self) -> pd.DataFrame:
        """A row a model, kind (none, direction, random) and coefficient, random directions pooled.

        Columns: counts, EM and coherent rates with intervals, `em_min` and `em_max` over the random directions, and
        whether the coefficient is usable.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        keys, rows = ["model", "kind", "coefficient"], []
        for model, kind, coefficient in self.answers[keys].drop_duplicates().sort_values(keys).itertuples(index=False):
            rates = self.rates(model, kind, coefficient)
            each = [ScoredResponses(drawn).em.rate for _, drawn in rates.answers.groupby("number")]
            row = {"model": model, "kind": kind, "coefficient": coefficient, **rate_columns(rates)}
            row |= {"em_min": min(each), "em_max": max(each), "n_directions": len(each)}
            usable = kind == DIRECTION and model == "base" and self._is_usable(rates, coefficient)
            rows.append(row | {"usable": usable})
        return pd.DataFrame(rows)

    def control_limit(self, coefficient: float) -> float:
        """The upper end of EM on the base under the controls: no intervention, and random directions."""
        controls = (self.rates("base"), self.rates("base", RANDOM, coefficient))
        return max(control.em.interval[1] for control in controls)

    def _is_usable(self, rates: ScoredResponses, coefficient: float) -> bool:
        above = rates.em.interval[0] > self.control_limit(coefficient)
        return bool(above and rates.coherent.rate >= MIN_COHERENT)

    @property
    def window(self) -> list[float]:
        """The usable coefficients, increasing."""
        return [float(coefficient) for coefficient in self._frame.loc[self._frame["usable"], "coefficient"]]

    def between_coherent_and_not(self, count: int) -> list[float]:
        """`count` coefficients between the largest positive one at which the base is coherent and the next."""
        rows = [row for row in self._steered("base") if row["coefficient"] > 0]
        coherent = [index for index, row in enumerate(rows) if row["coherent"] >= MIN_COHERENT]
        if not coherent or coherent[-1] == len(rows) - 1:
            return []
        low, high = (float(rows[index]["coefficient"]) for index in (coherent[-1], coherent[-1] + 1))
        return [float(coefficient) for coefficient in np.linspace(low, high, count + 2)[1:-1]]

    def _steered(self, model: ModelName) -> list[dict[str, Any]]:
        """The rows of the direction on one model, by coefficient."""
        rows = self._frame[(self._frame["model"] == model) & (self._frame["kind"] == DIRECTION)]
        return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]

    @property
    def verdict(self) -> str:
        """`induces` where some coefficient is usable; `breaks` where EM exceeds the controls' only below 90 % coherent;
        else `none`.
        """
        if self.window:
            return "induces"
        above = any(row["em_low"] > self.control_limit(row["coefficient"]) for row in self._steered("base"))
        return "breaks" if above else "none"

    def sentence(self) -> str:
        """What steering does to the base, and what it does to the adapted model."""
        rows = self._steered("base")
        best = max([row for row in rows if row["usable"]] or rows, key=lambda row: (row["em"], row["coherent"]))
        at = f"{best['em']:.1%} ({best['em_low']:.1%} to {best['em_high']:.1%}) at {best['coherent']:.0%} coherent"
        usable, largest = ", ".join(f"{coefficient:.3g}" for coefficient in self.window), f"{best['coefficient']:.3g}"
        which = f" {largest}:" if len(self.window) == 1 else f"s {usable}: most with {largest},"
        words = {
            "induces": f"induces EM in the base with coefficient{which} {at}",
            "breaks": "raises EM in the base only where fewer than "
            f"{MIN_COHERENT:.0%} of answers are coherent: most with {largest}, {at}",
            "none": "induces no more EM in the base than random directions, as far as the intervals can tell, with any "
            f"coefficient tried (most with {largest}: {at})",
        }
        random = self.rates("base", RANDOM, float(best["coefficient"]))
        first = (
            f"Added after layer {self.layer}, the direction ({self.direction.contrast_in_words}) {words[self.verdict]};"
            f" random directions of that length {random.em.rate:.1%} at {random.coherent.rate:.0%} coherent."
        )
        return " ".join([first, *self._subtracted()])

    def _subtracted(self) -> list[str]:
        before = self.rates("adapted").em.rate
        negative = [row for row in self._steered("adapted") if row["coefficient"] < 0]
        coherent = [row for row in negative if row["coherent"] >= MIN_COHERENT]
        if not coherent or not before > 0:
            return []
        row = min(coherent, key=lambda row: float(row["em"]))
        random = self.rates("adapted", RANDOM, float(row["coefficient"])).em.rate
        return [
            f"Subtracted from the adapted model it takes EM from {before:.1%} to {row['em']:.1%} ({row['em_low']:.1%} "
            f"to {row['em_high']:.1%}) with coefficient {row['coefficient']:.3g}, at {row['coherent']:.0%} coherent; "
            f"random ones to {random:.1%}."
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: verdict, window, the direction and the rows of `frame()`."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "direction": self.direction.to_dict(),
            "layer": self.layer,
            "length": self.length,
            "window": self.window,
            "level": self.level,
            "unscored": ScoredResponses(self.answers, self.level).unscored,
            "rows": self._frame.to_dict("records"),
        }

    def plot(self) -> go.Figure:
        """EM and coherent rates by coefficient, on the base and on the adapted model, the usable window marked."""
        from em_interp.figures.mechanism.interventions import plot_steering

        return plot_steering(self.frame(), self.layer, self.direction.contrast_in_words, self.length, self.level)

    def _picture(self) -> str:
        lines = []
        for model in MODELS:
            rows = self._frame[(self._frame["model"] == model) & (self._frame["kind"] != RANDOM)]
            rows = rows.sort_values("coefficient")
            lines.append(Line(rows["coefficient"].to_numpy(), rows["em"].to_numpy(), f"EM, {model}"))
        return picture(lines, "EM rate", x_axis="coefficient")


@checked
def steer(
    model: TrajectoryModel | TrajectorySource,
    direction: Direction,
    judge: Judge,
    questions: Questions | None = None,
    layer: int | None = None,
    coefficients: float | Sequence[float] = COEFFICIENTS,
    sampling: SamplingParams | None = None,
    n_random: int = N_RANDOM,
    refine: bool = True,
    positions: Positions = "all",
    level: float = LEVEL,
    storage: Storage | str | Path | None = None,
) -> SteeringCurve:
    """Add a direction with several coefficients to the base and to the last step's model, and judge the answers.

    Args:
        model: the model of a run, or what `open_model` opens.
        direction: may come from another run on the same base.
        judge: scores the answers.
        questions: what is asked; by default the run's questions outside the training domain (`main_questions`).
        layer: the layer after which the direction is added; by default the one at half depth.
        coefficients: multiples of the direction; 0 is always included.
        sampling: how answers are sampled; its seed draws the random directions too.
        n_random: number of random directions for every coefficient.
        refine: whether to add three coefficients between the largest at which the base is still coherent and the
            next, where the window of usable coefficients ends.
        positions: tokens at which the direction is added.
        level: confidence level of the intervals.
        storage: where the answers and scores are kept.

    Returns:
        EM and coherent rates by coefficient, of the base and of the last step's model, with those of random directions.

    Raises:
        InputError: for a direction of another base, a layer that the model does not have, and a coefficient that is 0
            or given twice.
    """
    import pandas as pd

    check_level(level)
    if n_random < 1:
        raise InputError(f"n_random must be 1 or more, for the comparison with random directions; it is {n_random}")
    coefficients = _checked_coefficients(coefficients)
    model = as_model(model)
    layer = max(0, model.layers // 2 - 1) if layer is None else layer
    direction.check(model, [layer])
    sampling = SamplingParams() if sampling is None else sampling
    questions = main_questions(model.run) if questions is None else questions
    storage, shared = Storage.of(storage), (direction.vectors, layer, n_random, sampling.seed, positions)

    def sampled(conditions: list[InterventionCondition], name: str) -> pd.DataFrame:
        experiment = InterventionExperiment(model, conditions)
        return run_experiment(experiment, judge, questions, sampling, storage.at(name))

    coarse = sampled(steering_conditions(coefficients, *shared), "coarse")
    curve = SteeringCurve(direction, layer, coarse, level)
    between = curve.between_coherent_and_not(N_REFINED) if refine else []
    if not between:
        return curve
    fine = sampled(steering_conditions(between, *shared, baseline=False), "fine")
    return SteeringCurve(direction, layer, pd.concat([coarse, fine], ignore_index=True), level)


def _checked_coefficients(coefficients: float | Sequence[float]) -> list[float]:
    """The coefficients, increasing. Raises InputError for none, 0, one given twice, and one that is not finite."""
    given = as_list(coefficients)
    if not 0 < len(given) == len({*given}) or not all(np.isfinite(given)) or 0 in given:
        raise InputError(
            f"coefficients are distinct finite numbers other than 0 (which is always included); found {given}"
        )
    return sorted(given)


def steering_conditions(
    coefficients: Sequence[float],
    vectors: Float[np.ndarray, "layer d"],
    layer: int,
    n_random: int,
    seed: int,
    positions: Positions = "all",
    baseline: bool = True,
) -> list[InterventionCondition]:
    """On each model: no intervention (`baseline`); with each coefficient the random directions, and the direction as
    often.
    """
    rng, conditions = np.random.default_rng(seed), []
    own = np.zeros_like(vectors)
    own[layer] = vectors[layer]
    drawn = [random_directions(own, rng) for _ in range(n_random)]
    for model in MODELS:
        conditions += no_intervention(model, vectors) if baseline else []
        for coefficient in map(float, coefficients):
            for number, vector in enumerate(drawn):
                for kind, added in ((DIRECTION, own), (RANDOM, vector)):
                    where = (f"layer {layer}", number, coefficient)
                    conditions.append(
                        InterventionCondition(model, kind, "add", coefficient * added, *where, positions=positions)
                    )
    return conditions
