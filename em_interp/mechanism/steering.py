"""Steering: what a multiple of a direction, added to the residual stream, does to EM and coherence, dose by dose.

x + λv at every token after one layer, on the base (does it bring the behaviour?) and on the adapted model (does it take
it away, or add?). A dose of 1 is the difference itself, |v| long. Beside every dose stand random directions of exactly
the same length. A dose is *usable* where the lower end of EM on the base lies above the upper end of what the controls
show (the base left alone; the random directions of that dose together) at 90 % coherent or more: too little does
nothing, too much breaks the model (arXiv 2506.11618 finds EM 47 % at 94 % coherent for λ = 6, 10 % at 11 % for 10).
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
from em_interp.behaviour.rates import LEVEL
from em_interp.behaviour.scores import ScoredResponses
from em_interp.errors import InputError
from em_interp.mechanism.directions import Direction
from em_interp.mechanism.engines.base import Positions
from em_interp.mechanism.experiments import (
    DIRECTION,
    NONE,
    RANDOM,
    Arm,
    Held,
    SamplingParams,
    no_intervention,
    random_like,
    sample_arms,
)
from em_interp.mechanism.sufficiency import COHERENT
from em_interp.results import Line, html_card, picture

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.mechanism.model import TrajectoryModel

COEFFICIENTS = (-2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
FINER = 3  # doses that are added where the base stops being coherent
RANDOMS = 3  # random directions at every dose
HELD: tuple[Held, ...] = ("base", "adapted")


@dataclass(frozen=True, eq=False, repr=False)
class SteeringCurve:
    """EM and coherent rates at every dose, on the base and on the adapted model, beside random directions."""

    direction: Direction
    layer: int
    answers: pd.DataFrame  # judged; held, kind, number and dose say of which arm
    level: float = LEVEL

    @property
    def length(self) -> float:
        """|v| after the layer: what a dose of 1 adds."""
        return float(np.linalg.norm(self.direction.vectors[self.layer]))

    def rates(self, held: Held, kind: str = NONE, dose: float = 0.0) -> ScoredResponses:
        """The answers of one kind of arm at a dose, all its random directions together."""
        return ScoredResponses(self._of(held, kind, dose), self.level)

    def _of(self, held: Held, kind: str, dose: float) -> pd.DataFrame:
        table = self.answers
        return table[(table["held"] == held) & (table["kind"] == kind) & (table["dose"] == dose)]

    def frame(self) -> pd.DataFrame:
        """A row a model (`held`), kind (none, direction, random) and dose, random directions pooled: counts, EM and
        coherent rates with intervals, `em_least` and `em_most` of its directions, and whether the dose is usable.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        rows = []
        keys = self.answers[["held", "kind", "dose"]].drop_duplicates().sort_values(["held", "kind", "dose"])
        for held, kind, dose in keys.itertuples(index=False):
            answers = self._of(held, kind, dose)
            one = ScoredResponses(answers, self.level)
            each = [ScoredResponses(some).em.rate for _, some in answers.groupby("number")]
            row: dict[str, Any] = {"held": held, "kind": kind, "dose": dose, "n": one.n, "scored": len(one.scored)}
            for name, rate in (("em", one.em), ("coherent", one.coherent)):
                row |= {name: rate.rate, f"{name}_low": rate.interval[0], f"{name}_high": rate.interval[1]}
            row |= {"em_least": min(each), "em_most": max(each), "directions": len(each)}
            rows.append(row | {"usable": kind == DIRECTION and held == "base" and self._usable(one, dose)})
        return pd.DataFrame(rows)

    def limit(self, dose: float) -> float:
        """What EM on the base must be above at this dose: the upper end of the base's alone and of the random ones'."""
        return max(one.em.interval[1] for one in (self.rates("base"), self.rates("base", RANDOM, dose)))

    def _usable(self, one: ScoredResponses, dose: float) -> bool:
        return bool(one.em.interval[0] > self.limit(dose) and one.coherent.rate >= COHERENT)

    @property
    def window(self) -> list[float]:
        """The usable doses, increasing."""
        return [float(dose) for dose in self._frame.loc[self._frame["usable"], "dose"]]

    def edge(self, count: int) -> list[float]:
        """`count` doses, evenly between the largest positive one at which the base is coherent and the next."""
        rows = [row for row in self._steered("base") if row["dose"] > 0]
        kept = [index for index, row in enumerate(rows) if row["coherent"] >= COHERENT]
        if not kept or kept[-1] == len(rows) - 1:
            return []
        low, high = (float(rows[index]["dose"]) for index in (kept[-1], kept[-1] + 1))
        return [float(dose) for dose in np.linspace(low, high, count + 2)[1:-1]]

    def _steered(self, held: Held) -> list[dict[str, Any]]:
        """The rows of the direction on one model, by dose."""
        rows = self._frame[(self._frame["held"] == held) & (self._frame["kind"] == DIRECTION)]
        return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]

    @property
    def verdict(self) -> str:
        """`induces` where some dose is usable; `breaks` where EM exceeds the controls only below 90 % coherent; else
        `none`.
        """
        if self.window:
            return "induces"
        above = any(row["em_low"] > self.limit(row["dose"]) for row in self._steered("base"))
        return "breaks" if above else "none"

    def sentence(self) -> str:
        """What steering the base does, and what it does to the adapted model."""
        rows = self._steered("base")
        best = max([row for row in rows if row["usable"]] or rows, key=lambda row: (row["em"], row["coherent"]))
        at = f"{best['em']:.1%} ({best['em_low']:.1%} to {best['em_high']:.1%}) at {best['coherent']:.0%} coherent"
        listed = ", ".join(f"{dose:.3g}" for dose in self.window)
        words = {
            "induces": f"induces EM in the base at doses {listed}: most at {best['dose']:.3g}, {at}",
            "breaks": f"raises EM in the base only where it breaks it: most at dose {best['dose']:.3g}, {at}",
            "none": f"does not induce EM in the base at any dose tried (largest at {best['dose']:.3g}: {at})",
        }
        random = self.rates("base", RANDOM, float(best["dose"]))
        said = (
            f"Added after layer {self.layer}, the direction ({self.direction.said}) {words[self.verdict]}; random "
            f"directions of that length {random.em.rate:.1%} at {random.coherent.rate:.0%} coherent."
        )
        return " ".join([said, *self._subtracted()])

    def _subtracted(self) -> list[str]:
        alone = self.rates("adapted").em.rate
        kept = [row for row in self._steered("adapted") if row["dose"] < 0 and row["coherent"] >= COHERENT]
        if not kept or not alone > 0:
            return []
        row = min(kept, key=lambda row: float(row["em"]))
        random = self.rates("adapted", RANDOM, float(row["dose"])).em.rate
        return [
            f"Subtracted from the adapted model it takes EM from {alone:.1%} to {row['em']:.1%} ({row['em_low']:.1%} "
            f"to {row['em_high']:.1%}) at dose {row['dose']:.3g}, {row['coherent']:.0%} coherent; random ones to "
            f"{random:.1%}."
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
        """EM and coherent rates over doses, on the base and on the adapted model, the usable window marked."""
        from em_interp.figures.interventions import plot_steering

        return plot_steering(self.frame(), self.layer, self.direction.said, self.length, self.level)

    def __repr__(self) -> str:
        return f"SteeringCurve({self.sentence()})"

    def _repr_html_(self) -> str:
        lines = []
        for held in HELD:
            rows = self._frame[(self._frame["held"] == held) & (self._frame["kind"] != RANDOM)].sort_values("dose")
            lines.append(Line(rows["dose"].to_numpy(), rows["em"].to_numpy(), f"EM, {held}"))
        return html_card(
            [self.sentence()], picture(lines, "EM rate", x_axis="dose"), (".plot()", ".frame()", ".window")
        )


def steer(
    folder: str | Path,
    model: TrajectoryModel,
    direction: Direction,
    judge: Judge,
    questions: Sequence[dict[str, str]],
    layer: int | None = None,
    doses: Sequence[float] = COEFFICIENTS,
    sampling: SamplingParams | None = None,
    random: int = RANDOMS,
    finer: bool = True,
    positions: Positions = "all",
    level: float = LEVEL,
    resume: bool = False,
    progress: bool = False,
) -> SteeringCurve:
    """Ask the base and the last step's model `questions` with each dose of the direction added after `layer`.

    With `finer`, three more doses are asked between the largest at which the base is still coherent and the next, for
    the window ends there and may be narrow. `layer` is by default the one at half depth. `direction` may come from
    another run on the same base. Answers and scores are kept in `folder`; with `resume` what is there is not asked or
    judged again. Raises InputError for a direction of another base, a layer that is not there, and a dose that is 0 or
    twice there.
    """
    import pandas as pd

    if random < 1:
        raise InputError(f"steering is held against random directions; expected at least 1, found {random}")
    if not doses or len({*doses}) < len(doses) or not all(np.isfinite(doses)) or 0 in doses:
        raise InputError(f"doses are distinct finite numbers other than 0 (which is always asked); found {doses}")
    layer = max(0, model.layers // 2 - 1) if layer is None else layer
    direction.check(model, [layer])
    sampling = SamplingParams() if sampling is None else sampling
    arms = steering_arms(direction.vectors, layer, sorted(doses), random, sampling.seed, positions=positions)
    more = (judge, questions, sampling, None, resume, progress)
    coarse = SteeringCurve(direction, layer, sample_arms(Path(folder) / "coarse", model, arms, *more), level)
    between = coarse.edge(FINER) if finer else []
    if not between:
        return coarse
    arms = steering_arms(direction.vectors, layer, between, random, sampling.seed, False, positions)
    fine = sample_arms(Path(folder) / "fine", model, arms, *more)
    return SteeringCurve(direction, layer, pd.concat([coarse.answers, fine], ignore_index=True), level)


def steering_arms(
    vectors: Float[np.ndarray, "layer d"],
    layer: int,
    doses: Sequence[float],
    random: int,
    seed: int,
    alone: bool = True,
    positions: Positions = "all",
) -> list[Arm]:
    """On each model: left `alone`; at each dose `random` random directions of the same length, and the direction as
    often.
    """
    rng, arms = np.random.default_rng(seed), []
    here = np.zeros_like(vectors)
    here[layer] = vectors[layer]
    others = [random_like(here, rng) for _ in range(random)]
    for held in HELD:
        arms += no_intervention(held, vectors) if alone else []
        for dose in map(float, doses):
            for number, other in enumerate(others):
                for kind, added in ((DIRECTION, here), (RANDOM, other)):
                    where = (f"layer {layer}", number, dose)
                    arms.append(Arm(held, kind, "add", dose * added, *where, positions=positions))
    return arms
